"""The folder that a run writes into: another run in it is refused, a run that goes on is not; nothing is written."""
import hashlib
import io
import json
import os
import re
import sys
import time
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, run_cli, run_here, train_flags
from test_launch import start_cli
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg, safe_model_name
from training import bundled_settings, load

from seresnet_timm.cli.main import main
from seresnet_timm.errors import UsageError, note_replaced, print_any_text
from seresnet_timm.launch import rank
from seresnet_timm.launch.plan import resolve_output
from seresnet_timm.runs.folder import RunFolder

pytestmark = pytest.mark.preloaded


def sums(folder):
    return {p: hashlib.sha256(p.read_bytes()).digest() for p in folder.rglob('*') if p.is_file()}


@pytest.fixture(scope='module')
def trained(few_digits, tmp_path_factory):
    output = tmp_path_factory.mktemp('a folder')
    result = run_cli(*train_flags(few_digits, output, '--epochs', 1))
    assert result.returncode == 0, result.stderr
    return output


def refusal(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as e:
        main([str(a) for a in argv])
    assert e.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize('place', ('train', 'val/0'))
def test_a_run_inside_the_data(few_digits, tmp_path, capsys, place):
    """Its folder would be a class of the next run."""
    (tmp_path / 'data').symlink_to(few_digits)
    before = sorted(few_digits.rglob('*'))
    error = refusal(capsys, *train_flags(tmp_path / 'data', few_digits / place))
    assert 'whose folders are classes' in error and sorted(few_digits.rglob('*')) == before


@pytest.mark.parametrize('more', (
    ['--dry-run'], [], ['--nproc', 2], ['--scripts', ROOT / 'tests' / 'small_scripts'], ['--preset', 'digits_demo']))
def test_same_experiment(few_digits, trained, capsys, more):
    before = sums(trained)
    error = refusal(capsys, *train_flags(few_digits, trained, '--lr', 0.5, *more))
    folder = trained / 'run'
    assert f'{folder} holds another run' in error and f"--resume '{folder}/last.pth.tar'" in error
    assert '--experiment' in error and sums(trained) == before


def test_same_experiment_of_a_recipe(few_digits, trained, capsys):
    error = refusal(capsys, 'recipe', 'train_1p', f'--data_path={few_digits}', '--device', 'cpu', '--output', trained,
                    '--experiment', 'run', '--dry-run')
    assert 'holds another run' in error


def test_the_same_command_of_a_recipe_goes_on_until_its_run_has_ended(few_digits, tmp_path, capsys):
    """Another command is another run, also before."""
    flags = [str(f) for f in train_flags(few_digits, tmp_path, '--preset', 'digits_demo', '--epochs', 1)]
    main(flags)
    before = sums(tmp_path)
    assert 'holds another run' in refusal(capsys, *flags)
    record = tmp_path / 'run' / 'run.json'
    record.write_text(json.dumps(dict(json.loads(record.read_text()), finished=None)))  # as of one that was killed
    for more in (('--lr', '0.5'), ('--resume', '')):
        assert 'holds another run' in refusal(capsys, *flags, *more)
    swapped = {'-b': '2', '--log-interval': '16'}  # the same words
    others = [swapped.get(before, word) for before, word in zip(['', *flags], flags)]
    assert sorted(others) == sorted(flags) and 'holds another run' in refusal(capsys, *others)
    assert 'holds another run' in refusal(capsys, *flags[:flags.index('--preset')], *flags[-2:])
    where = flags.index('--output')
    main([*flags[:where], *flags[where + 4:], '--dry-run', *flags[where:where + 4]])  # in the order as printed
    assert f'--resume auto: the run goes on from {tmp_path}/run/last.pth.tar' in capsys.readouterr().err
    assert {**sums(tmp_path), record: ''} == {**before, record: ''}


def test_resume_goes_on(few_digits, trained, tmp_path, capsys):
    flags = train_flags(few_digits, trained, '--dry-run', '--resume')
    main([*map(str, flags), str(trained / 'run' / 'last.pth.tar')])
    (tmp_path / 'last.pth.tar').write_bytes((trained / 'run' / 'last.pth.tar').read_bytes())
    assert 'holds another run' in refusal(capsys, *flags, tmp_path / 'last.pth.tar')  # a copy from elsewhere


def test_damaged_record_is_found_before_anything_is_written(few_digits, trained, capsys):
    """It is told where the checkpoint holds it, and else refused, as with checkpoints of earlier versions."""
    record, last = trained / 'run' / 'run.json', trained / 'run' / 'last.pth.tar'
    text, content = record.read_text(), last.read_bytes()
    flags = train_flags(few_digits, trained, '--resume', last)
    try:
        record.write_text('{')
        main([*map(str, flags), '--dry-run'])
        assert 'run.json is not the record of a run' in capsys.readouterr().err and record.read_text() == '{'
        checkpoint = load(last)
        del checkpoint['run_state']['history']
        torch.save(checkpoint, last)
        before = sums(trained)
        for more in ('--dry-run', '--no-resume-opt'):
            assert 'run.json is not the record of a run' in refusal(capsys, *flags, more) and sums(trained) == before
    finally:
        record.write_text(text)
        last.write_bytes(content)


def test_folder_of_a_run_that_goes_on_now(few_digits, tmp_path, capsys):
    with RunFolder(tmp_path / 'run').exclusive():
        assert str(tmp_path / 'run') in refusal(capsys, *train_flags(few_digits, tmp_path, '--dry-run'))
    main([*map(str, train_flags(few_digits, tmp_path, '--dry-run'))])


def test_multinode_recipe_without_nodes(few_digits, capsys):
    error = refusal(capsys, 'recipe', 'train_multinode', f'--data_path={few_digits}', '--device', 'cpu', '--dry-run')
    assert '--nnodes is missing' in error and '--node_rank' in error
    main(['recipe', 'train_multinode', f'--data_path={few_digits}', '--device', 'cpu', '--dry-run', '--nnodes', '1'])


def test_file_that_is_replaced_is_named(tmp_path, capsys):
    note_replaced(str(tmp_path / 'none'))
    (tmp_path / 'new\nfile').write_text('')
    note_replaced(str(tmp_path / 'new\nfile'), '--output')
    assert capsys.readouterr().err == f'Note: --output {tmp_path}/new\\nfile exists and is replaced.\n'


@pytest.mark.parametrize('encoding', ('ascii', 'latin-1', 'utf-8'))
def test_names_of_any_bytes_on_a_strict_stdout(monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(raw, encoding, errors='strict'))
    print_any_text()
    print('caf\u00e9 \u732b \udcff', flush=True)
    text = raw.getvalue().decode(encoding)
    assert '\\udcff' in text and text.startswith('caf')


@pytest.mark.parametrize('module', ('argparse', 'inspect', 'profile', 'typing'))
def test_start_beside_files_with_names_of_the_standard_library(tmp_path, module):
    (tmp_path / f'{module}.py').write_text('raise SystemExit("not the standard library")')
    result = run_cli('demo-data', '--help', cwd=tmp_path, fresh=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize('name, make', (
    ('last.pth.tar', os.mkdir), ('last.pth.tar', os.mkfifo), ('checkpoint-7.pth.tar', os.mkdir),
    ('summary.csv', os.mkdir), ('logs', lambda path: open(path, 'w').close())))
def test_what_has_the_name_of_a_file_of_the_run(few_digits, tmp_path, name, make):
    """The run would end without being saved, or wait for a pipe for ever."""
    (tmp_path / 'run').mkdir()
    make(tmp_path / 'run' / name)
    result = run_here(*train_flags(few_digits, tmp_path, '--resume', 'auto', '--dry-run'))
    kind = 'folder' if name == 'logs' else 'file'
    assert result.returncode == 2, result.stderr
    assert f'{tmp_path}/run/{name} is no {kind}, and has the name of one that the run writes: move' in result.stderr


@pytest.mark.parametrize('name', ('last.pth.tar', 'summary.csv'))
def test_a_run_that_came_and_went_since_the_plan(few_digits, tmp_path, name):
    """Another training started later, was quicker, and has ended before this one begins to write."""
    folder, said = tmp_path / 'run', 'Another training has written into .* since this one was planned'
    settings = bundled_settings('train', *train_flags(few_digits, tmp_path)[1:])

    def enter(settings):
        with rank.output_folder(settings):
            return True
    assert enter(settings) and not folder.exists()
    folder.mkdir()
    (folder / name).touch()
    with pytest.raises(UsageError, match=said):
        enter(settings)
    assert [path.name for path in folder.iterdir()] == [name]
    assert enter(replace(settings, restarts=['1 Rank 0 was killed.']))  # what it has written itself
    assert enter(replace(settings, args={**settings.args, 'resume': str(folder / 'last.pth.tar')}))
    assert enter(replace(settings, reasons={'resume': 'auto'})) if name == 'summary.csv' else True


@pytest.mark.slow
def test_two_runs_that_start_at_once(few_digits, tmp_path):
    """One of them trains; the other, which comes later as its ranks start, is refused."""
    flags = train_flags(few_digits, tmp_path, '--resume', 'auto', '--epochs', 1)
    runs = [start_cli(*flags, *more) for more in ((), ('--nproc', 2, '-b', 8))]
    outputs = [run.communicate(timeout=240)[1] for run in runs]
    assert sorted(run.returncode for run in runs) == [0, 2], outputs
    refused = outputs[[run.returncode for run in runs].index(2)]
    assert 'nother training ' in refused or 'holds another run' in refused, refused
    assert 'Traceback' not in refused


@pytest.mark.parametrize('model, flags, name', [
    ('resnet18', {}, 'resnet18-224'), ('seresnet50.ra2_in1k', {}, 'seresnet50_ra2_in1k-224'),
    ('vit_base_patch16_384', {}, 'vit_base_patch16_384-384'), ('resnet18', {'img_size': 96}, 'resnet18-96'),
    ('resnet18', {'input_size': [1, 64, 128]}, 'resnet18-128'), ('hf-hub:org/My-Name.v1', {}, 'org_My_Name_v1'),
    ('hf-hub:org/name@v1', {'img_size': 64}, 'org_name_v1-64'), ('modelscope:org/name', {}, 'org_name'),
    ('local-dir:/data/my model/', {}, 'my_model'),
])
def test_name_of_a_run_is_timms(model, flags, name):
    """Date, model, size of the input. The size of a model of the Hub is not known before it is there."""
    folder, is_named = resolve_output('train', {'model': model, 'experiment': '', 'output': '', **flags}, False)
    date, given = re.fullmatch(r'output/train/(\d{8}-\d{6})-(.*)', folder).groups()
    assert given == name and not is_named and abs(time.time() - time.mktime(time.strptime(date, '%Y%m%d-%H%M%S'))) < 60
    if ':' not in model:  # as timm's train.py makes it
        size = resolve_data_config(flags, pretrained_cfg=get_pretrained_cfg(model).to_dict())['input_size'][-1]
        assert given == f'{safe_model_name(model)}-{size}'
