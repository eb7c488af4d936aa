"""The patches on timm's scripts: on those of tests/small_scripts, and on timm's own where they are there."""
import ast
import inspect

import pytest
from conftest import run_cli, train_flags
from timm_scripts import SCRIPTS, SMALL

from seresnet_timm.errors import UsageError
from seresnet_timm.timm_scripts import patches
from seresnet_timm.timm_scripts.find import find
from seresnet_timm.timm_scripts.load import check

pytestmark = pytest.mark.preloaded


@pytest.mark.parametrize('folder', SCRIPTS)
@pytest.mark.parametrize('name', patches.PATCHES)
def test_every_patch_applies_and_the_file_is_not_changed(folder, name):
    path = folder / name
    before = path.read_bytes()
    outcomes = check(find(name, str(folder)))
    assert [o for o in outcomes if o[1] == patches.APPLIED] == [
        (p.__name__, patches.APPLIED) for p in patches.PATCHES[name]]
    assert path.read_bytes() == before


def apply(patch, source: str) -> str:
    tree = ast.parse(source)
    outcome = patch(tree)
    return outcome, ast.unparse(ast.fix_missing_locations(tree))


def train_source() -> str:
    return (SMALL / 'train.py').read_text()


@pytest.mark.parametrize('patch', (*patches.PATCHES['train.py'], *patches.PATCHES['validate.py']))
def test_every_patch_is_documented(patch):
    doc = inspect.getdoc(patch)
    assert 'Upstream (line' in doc and 'Without:' in doc and 'Checked by:' in doc


def test_upstream_fix_is_recognised():
    old = 'losses_m.update(loss.item() * accum_steps, batch_size)'
    fixed = train_source().replace(old, 'losses_m.update(loss.detach() * accum_steps, batch_size)')
    outcome, code = apply(patches.keep_losses_on_device, fixed)
    assert outcome == patches.FIXED and code == ast.unparse(ast.parse(fixed)) and fixed != train_source()


def test_upstream_npu_scaler_still_gets_the_right_one():
    source = train_source().replace("device.type in ('cuda',)", "device.type in ('cuda', 'npu')")
    outcome, code = apply(patches.scale_loss_on_npu, source)
    assert outcome == patches.APPLIED and '_seresnet_timm.create_loss_scaler(device)' in code


@pytest.mark.parametrize('name, old, new, patch', (
    ('train.py', "device.type in ('cuda',)", "device.type == 'cuda'", 'scale_loss_on_npu'),
    ('train.py', 'NativeScaler(device=device.type)', 'NativeScaler()', 'scale_loss_on_npu'),
    ('train.py', 'loss.item() * accum_steps', 'loss.item()', 'keep_losses_on_device'),
    ('train.py', 'losses_m = utils.AverageMeter()', 'losses_m = Meter()', 'keep_losses_on_device'),
    ('validate.py', 'dtype=model_dtype)', 'dtype=torch.float32)', 'fold_batch_norm'),
    ('validate.py', 'torch.device(args.device)', "torch.device('cpu')", 'evaluate_on_all_ranks'),
    ('validate.py', 'top1a, top5a = top1.avg, top5.avg', 'top1a = top1.avg', 'evaluate_on_all_ranks'),
))
def test_other_code_is_refused(tmp_path, name, old, new, patch):
    source = (SMALL / name).read_text()
    assert old in source
    (tmp_path / name).write_text(source.replace(old, new))
    with pytest.raises(UsageError) as e:
        check(find(name, str(tmp_path)))
    message = str(e.value)
    assert f'{tmp_path}/{name}: the change {patch} does not match' in message
    assert '--scripts bundled' in message and 'scripts fetch' in message


def test_code_found_twice_is_refused(tmp_path):
    line = '    model.to(device)\n'
    source = train_source().replace(line, line + "    x = device.type in ('cuda',)\n")
    (tmp_path / 'train.py').write_text(source)
    with pytest.raises(UsageError, match='scale_loss_on_npu does not match .2 x'):
        check(find('train.py', str(tmp_path)))


def test_refused_from_the_command_line(few_digits, tmp_path):
    (tmp_path / 'train.py').write_text('def main():\n    pass\n')
    result = run_cli(*train_flags(few_digits, tmp_path / 'out', '--scripts', tmp_path))
    assert result.returncode == 2 and 'does not match' in result.stderr and not (tmp_path / 'out').exists()
    (tmp_path / 'train.py').write_text('<html>')
    result = run_cli(*train_flags(few_digits, tmp_path / 'out', '--scripts', tmp_path))
    assert result.returncode == 2 and 'line 1, is not Python' in result.stderr
