"""What the package uses of torch_npu is what the wheels of torch_npu hold, and what its table says it uses."""
import ast
import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple

import pytest
import read_torch_npu_wheels as wheels
from conftest import ROOT
from torch_npu_contract import ABSENT, ENTRY_POINT, NAMES, OPTIONAL, Use

from seresnet_timm.ascend.environment import DEAD

EXTRACT = json.loads(wheels.EXTRACT.read_text())
VERSIONS = list(EXTRACT['wheels'])


def description(name: str, version: str) -> str:
    return next(what for what, versions in EXTRACT['names'][name].items() if version in versions)


def signature_of(what: str) -> Optional[inspect.Signature]:
    """Signature of 'function (a, b=1)' or 'class (self, ...)' of the extract."""
    kind, _, text = what.partition(' ')
    if kind not in ('function', 'class'):
        return None
    args = ast.parse(f'def f{text}: pass').body[0].args
    for defaults in (args.defaults, args.kw_defaults):
        defaults[:] = [d and ast.Constant(None) for d in defaults]  # names such as `required` mean nothing here
    namespace: Dict = {}
    exec(ast.unparse(ast.parse(f'def f({ast.unparse(args)}): pass')), namespace)
    return inspect.signature(namespace['f'])


def check(name: str, use: Use, what: str) -> None:
    """Check that a name can be used as the table says, from its description in the extract."""
    assert what != wheels.MISSING, f'{name} is missing'
    if use.kind == 'set':
        assert what.startswith('setting of '), f'{name} is no setting: {what}'
        return
    if use.kind == 'value':
        assert what.startswith('compiled'), f'{name}: {what}'
        return
    if what.startswith('operator, used by'):
        return  # compiled: its arguments cannot be read
    if what.startswith('inherited from torch.'):
        module, _, cls = what.removeprefix('inherited from ').rpartition('.')
        signature = inspect.signature(getattr(getattr(importlib.import_module(module), cls), name.rpartition('.')[2]))
    else:
        signature = signature_of(what)
    assert signature is not None, f'{name} cannot be called: {what}'
    has_self = next(iter(signature.parameters), None) in ('self', 'cls')
    signature.bind(*[None] * (use.positional + has_self), **dict.fromkeys(use.keywords))


@pytest.mark.parametrize('version', VERSIONS)
@pytest.mark.parametrize('name', NAMES)
def test_wheels_hold_what_is_used(name, version):
    check(name, NAMES[name], description(name, version))


@pytest.mark.parametrize('version', VERSIONS)
def test_wheels_lack_what_has_a_substitute(version):
    assert all(description(name, version) == wheels.MISSING for name in ABSENT)


def test_extract_covers_every_release_since_2_6():
    """Every minor release, on both architectures, each with a hash, torch's own version as pin, and the entry point."""
    minors = [wheels.version_key(v)[:2] for v in VERSIONS]
    assert sorted(set(minors)) == [(2, n) for n in range(6, minors[-1][1] + 1)]
    assert minors[-1] >= (2, 14)
    for version, files in EXTRACT['wheels'].items():
        assert sorted(name.rsplit('_', 1)[1] for name in files) in (['64.whl', 'aarch64.whl'], ['64.whl'] * 2), files
        for wheel in files.values():
            assert len(wheel['sha256']) == 64
            assert wheel['requires'].startswith(f'torch=={".".join(map(str, wheels.version_key(version)[:3]))}')
            assert wheel['entry_point'].startswith(f'{ENTRY_POINT[1]}:')


def test_dead_variables_are_in_no_wheel():
    """Neither in a source nor in a library of torch_npu; those that it reads are in all."""
    assert {name: EXTRACT['environment'][name] for name in DEAD} == dict.fromkeys(DEAD, [])
    for name in ('TASK_QUEUE_ENABLE', 'CPU_AFFINITY_CONF', 'COMBINED_ENABLE', 'INF_NAN_MODE_ENABLE'):
        assert EXTRACT['environment'][name] == VERSIONS


def at_hand() -> List[Path]:
    """Wheels in the folder TORCH_NPU_WHEELS, or the torch_npu installed there or for this Python."""
    folder = Path(os.environ.get('TORCH_NPU_WHEELS') or next((p for p in sys.path if p.endswith('site-packages')), ''))
    found = sorted(folder.glob('torch_npu-*.whl'))
    return found or ([folder] if list(folder.glob('torch_npu-*.dist-info')) else [])


def test_extract_is_what_the_wheels_say():
    """Reads the real ones again; a release that the extract does not know is checked against the table."""
    paths = at_hand()
    if not paths:
        pytest.skip('no torch_npu at hand: name a folder of wheels, or a site-packages, with TORCH_NPU_WHEELS')
    fresh = wheels.extract(paths)
    for version, files in fresh['wheels'].items():
        known = EXTRACT['wheels'].get(version, {})
        for name, wheel in files.items():
            if name in known:
                assert wheel == known[name]
        if known:
            assert [n for n, versions in fresh['environment'].items() if version in versions] == \
                [n for n, versions in EXTRACT['environment'].items() if version in versions]
        for name in NAMES:
            what = next(w for w, versions in fresh['names'][name].items() if version in versions)
            if known:
                assert what == description(name, version)
            check(name, NAMES[name], what)


def write_package(folder: Path, sources: Dict[str, str]) -> Path:
    for name, text in sources.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    info = folder / 'torch_npu-2.99.0.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Version: 2.99.0\nRequires-Dist: torch (==2.99.0)\n')
    (info / 'entry_points.txt').write_text('[torch.backends]\ntorch_npu = torch_npu:_autoload\n')
    return folder


def test_reader_follows_imports_as_python_does(tmp_path):
    """Stars with and without __all__, relative imports, aliases, the last binding, bases, settings, missing names."""
    dist = wheels.Distribution(write_package(tmp_path, {
        'torch_npu/__init__.py': 'import torch_npu.npu\n',
        'torch_npu/npu/__init__.py':
            'from .a import *\nfrom .b import Real as Alias\nfrom . import c\nconfig = c.Config()\n'
            'def twice(): pass\nif True:\n    def twice(x, *, y: int = 1): pass\n',
        'torch_npu/npu/a.py': '__all__ = ["shown"]\ndef shown(device=None): pass\ndef hidden(): pass\n',
        'torch_npu/npu/b.py': 'from torch.nn import Module\nclass Base(Module):\n    def of_base(self): pass\n'
                              'class Real(Base):\n    def __init__(self, lr: float): pass\n',
        'torch_npu/npu/c.py': 'class Config:\n    def __setattr__(self, name, value):\n'
                              '        if name == "known": pass\n',
    }))
    assert {name: wheels.describe(dist, f'torch_npu.npu.{name}') for name in (
        'shown', 'hidden', 'Alias', 'Alias.of_base', 'Alias.train', 'twice', 'config.known', 'config.unknown',
        'nothing')
    } == {
        'shown': 'function (device=None)', 'hidden': 'missing', 'Alias': 'class (self, lr)',
        'Alias.of_base': 'function (self)', 'Alias.train': 'inherited from torch.nn.Module',
        'twice': 'function (x, *, y=1)', 'config.known': 'setting of Config', 'config.unknown': 'missing',
        'nothing': 'missing',
    }


@pytest.mark.parametrize('what, use', (
    ('missing', Use()),
    ('function (device)', Use()),
    ('function ()', Use(positional=1)),
    ('class (self, params, lr=required)', Use(positional=1, keywords=('lr', 'nesterov'))),
    ('function (device=None)', Use('set')),
    ('value', Use()),
))
def test_check_can_fail(what, use):
    with pytest.raises((AssertionError, TypeError)):
        check('torch_npu.npu.f', use, what)


def uses(source: str) -> Iterator[Tuple[str, Optional[ast.Call], int]]:
    """Dotted names of torch_npu that a source uses, with the call if it is called, and the line.

    Follows imports, `x = torch_npu.y`, `torch.npu` and what `device_module(...)` of seresnet_timm/device.py returns.
    """
    tree = ast.parse(source)
    aliases: Dict[str, str] = {}

    def dotted(node: ast.AST) -> Optional[str]:
        if isinstance(node, ast.Name):
            return aliases.get(node.id)
        if isinstance(node, ast.Attribute):
            base = dotted(node.value)
            if base is None and isinstance(node.value, ast.Name) and node.value.id == 'torch':
                base = 'torch'
            if base == 'torch':
                return 'torch_npu.npu' if node.attr == 'npu' else None
            return f'{base}.{node.attr}' if base else None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == 'device_module':
                return 'torch_npu.npu'
            if node.func.id == 'getattr' and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
                return dotted(ast.Attribute(node.args[0], node.args[1].value))
        return None

    imported = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split('.')[0] == 'torch_npu':
                    aliases[name.asname or 'torch_npu'] = name.name if name.asname else 'torch_npu'
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or '').split('.')[0] == 'torch_npu':
            for name in node.names:
                aliases[name.asname or name.name] = f'{node.module}.{name.name}'
                imported.append((f'{node.module}.{name.name}', None, node.lineno))
    inner = set()  # nodes that are part of a longer chain, or give a module another name
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            target = dotted(node.value)
            if target is not None:
                aliases[node.targets[0].id] = target
                inner.update((node.targets[0], node.value))
    called = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            inner.add(node.value)
        elif isinstance(node, ast.Call):
            called[node.func] = node
    yield from imported
    for node in ast.walk(tree):
        name = dotted(node) if isinstance(node, (ast.Attribute, ast.Name, ast.Call)) else None
        if name is not None and node not in inner and name not in ('torch_npu', 'torch_npu.npu'):
            yield name, called.get(node), node.lineno


def misuses(source: str) -> List[str]:
    """What a source uses of torch_npu and the table does not allow."""
    found = []
    for name, call, line in uses(source):
        use = NAMES.get(name) or OPTIONAL.get(name)
        if use is None:
            found.append(f'line {line}: {name} is not in the table')
            continue
        given = [k.arg for k in call.keywords if k.arg] if call else []
        too_many = call and len([a for a in call.args if not isinstance(a, ast.Starred)]) > use.positional
        if too_many or not set(given) <= set(use.keywords):
            found.append(f'line {line}: {name} is used with other arguments than the table says')
    return found


@pytest.mark.parametrize('path', sorted((ROOT / 'seresnet_timm').rglob('*.py')), ids=lambda p: p.stem)
def test_table_lists_what_the_package_uses(path):
    assert misuses(path.read_text()) == []


def test_scan_sees_every_way_to_use_a_name():
    source = '''
import torch
import torch_npu as tn
from torch_npu.optim import NpuFusedSGD as SGD
import torch_npu
p = torch_npu.profiler
p.kineto()
tn.npu.amp.autocast()
SGD([], lr=1, foreach=True)
torch.npu.set_device(0, 1)
getattr(torch, 'npu').ipc_collect()
device_module('npu').utilization()
module = device_module('npu')
module.seed()
torch_npu.npu.config.other = 1
torch_npu.npu.amp.GradScaler(init_scale=1., dynamic=False)
torch.npu.synchronize()
'''
    assert sorted(int(m.split()[1][:-1]) for m in misuses(source)) == [7, 8, 9, 10, 11, 12, 14, 15], misuses(source)


def test_only_the_ascend_folder_imports_torch_npu():
    for path in (ROOT / 'seresnet_timm').rglob('*.py'):
        modules = {name for node in ast.walk(ast.parse(path.read_text()))
                   for name in ([n.name for n in node.names] if isinstance(node, ast.Import) else
                                [node.module or ''] if isinstance(node, ast.ImportFrom) else [])}
        assert path.parent.name == 'ascend' or not any(m.split('.')[0] == 'torch_npu' for m in modules), path


@pytest.mark.parametrize('page, language', (('docs/install.md', 'en'), ('docs/zh-CN/install.md', 'zh-CN')))
def test_the_page_on_installation_shows_the_table(page, language):
    printed = subprocess.run(
        [sys.executable, 'tests/read_torch_npu_wheels.py', '--table', language], cwd=ROOT, capture_output=True,
        text=True, check=True).stdout.strip()
    assert printed in (ROOT / page).read_text(), f'put what the command prints into {page}'
