"""`tune` on the NPU: variables of torch_npu are tried, each in a process of its own, and come back in the plan."""
import pytest
import yaml
from conftest import MODEL

from npu.ranks import npu_cli


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_variables_are_tried(few_digits, tmp_path):
    file = tmp_path / 'tuned.yaml'
    flags = ('--data-dir', few_digits, *MODEL, '-b', 8, '--device', 'npu')
    result = npu_cli('tune', *flags, '--seconds', 150, '--tuned-file', file, timeout=580)
    assert result.returncode == 0, result.stderr
    late = ''.join(line for line in result.stdout.splitlines() if line.startswith('Not measured, the time was up: '))
    for text in ('as planned', '--lean-se on', 'CPU_AFFINITY_CONF 1', 'TORCH_NPU_LAZY_FUSION True',
                 'allow_internal_format True', 'allow_internal_format False'):
        found = [line for line in result.stdout.splitlines() if ' '.join(line.split()).startswith(text)]
        assert len(found) == 1 and 'images/s (' in found[0] and 'GiB' in found[0] or (
            not found and text in late), result.stdout
    assert 'channels_last' not in result.stdout and '--graph' in result.stdout

    tuned = yaml.safe_load(file.read_text())
    tuned['tuned']['environment'] = {'TASK_QUEUE_ENABLE': '1', 'TORCH_NPU_LAZY_FUSION': 'True'}
    file.write_text(yaml.safe_dump(tuned))
    plan = npu_cli('train', '--config', file, *flags, '--dry-run', env={'TASK_QUEUE_ENABLE': '1'})
    assert plan.returncode == 0 and '`export TORCH_NPU_LAZY_FUSION=True` before the run' in plan.stderr, plan.stderr
