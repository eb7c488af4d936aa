"""What wheels of torch_npu hold of the names that this package uses, read from their sources: nothing is imported.

    python tests/read_torch_npu_wheels.py WHEEL_OR_SITE_PACKAGES ... > tests/golden/torch_npu_names.json
    python tests/read_torch_npu_wheels.py --table [zh-CN]
    python tests/read_torch_npu_wheels.py --kernels WHEEL_OR_SITE_PACKAGES ... > tests/golden/npu_kernels.json

The first makes the extract, from wheels as `pip download --no-deps torch_npu==X` gets them (x86-64 and aarch64). The
second prints the table of versions of docs/install.md from the extract. The third lists the operators of torch that
have a kernel for the NPU, by release.
"""
import ast
import configparser
import email
import hashlib
import json
import re
import runpy
import sys
import zipfile
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Set, Tuple, Union

ROOT = Path(__file__).resolve().parent.parent
# run, not imported: the package would import torch
CONTRACT = runpy.run_path(str(ROOT / 'tests' / 'torch_npu_contract.py'))
ABSENT, ENTRY_POINT, NAMES = CONTRACT['ABSENT'], CONTRACT['ENTRY_POINT'], CONTRACT['NAMES']
ENVIRONMENT = runpy.run_path(str(ROOT / 'seresnet_timm' / 'ascend' / 'environment.py'))
INSTALL = runpy.run_path(str(ROOT / 'seresnet_timm' / 'ascend' / 'wheels.py'))
VARIABLES = sorted([*ENVIRONMENT['VARIABLES'], *ENVIRONMENT['DEAD']])
EXTRACT = ROOT / 'tests' / 'golden' / 'torch_npu_names.json'
# what was run with a release, see tests/ascend_emulator
# of the table in docs/install.md, and in its Chinese page
HEADINGS = {'en': ('asks for torch, aarch64 / x86-64', 'torchvision', 'CPU build of torch for aarch64', 'run'),
            'zh-CN': ('要求的 torch，aarch64 / x86-64', 'torchvision', 'aarch64 的 CPU 版本 torch', '运行过')}
CHINESE = {'no: names read': '否：只核对名称', 'emulated': '模拟', "PyTorch's CPU index": 'PyTorch 的 CPU 源'}
EMULATED = dict.fromkeys(('2.10.0', '2.12.0', '2.13.0', '2.14.0'), 'emulated')
MISSING = 'missing'
# compiled, without a source: what torch_npu's own sources use of it is all that can be read
COMPILED = 'torch_npu._C'
# listed for sparse and quantized tensors
NOT_REGISTERED = {'_coalesce', '_empty_affine_quantized', 'dequantize.self', 'int_repr'}


class Found(NamedTuple):
    """Where a name leads: `node` is its definition in `module`; None for a module itself and for compiled names."""
    module: str
    node: Optional[ast.AST] = None
    name: str = ''


class Distribution:
    """A wheel, or a folder in which torch_npu is installed."""

    def __init__(self, path: Path):
        self.path = path
        self._zip = zipfile.ZipFile(path) if path.is_file() else None
        self._modules: Dict[str, Optional[ast.Module]] = {}
        names = self._zip.namelist() if self._zip else [
            f'{p.name}/METADATA' for p in path.glob('torch_npu-*.dist-info')]
        info = next((n.split('/')[0] for n in names if n.startswith('torch_npu-') and n.endswith('/METADATA')), None)
        if info is None:
            raise FileNotFoundError(f'{path} holds no torch_npu: name a wheel, or the site-packages folder.')
        metadata = email.message_from_string(self.read(f'{info}/METADATA'))
        self.version: str = metadata['Version']
        self.requires_torch = next(r.replace(' ', '').replace('(', '').replace(')', '')
                                   for r in metadata.get_all('Requires-Dist') if re.match(r'torch\b', r))
        entry_points = configparser.ConfigParser(delimiters='=')
        entry_points.read_string(self.read(f'{info}/entry_points.txt'))
        group, name = ENTRY_POINT
        self.entry_point = entry_points.get(group, name, fallback=MISSING)

    def read(self, name: str) -> Optional[str]:
        """Text of a file; None if there is no such file."""
        try:
            data = self._zip.read(name) if self._zip else (self.path / name).read_bytes()
        except (KeyError, FileNotFoundError):
            return None
        return data.decode()

    def module(self, name: str) -> Optional[ast.Module]:
        """A module of torch_npu; others, which may lie beside it, are not looked into."""
        if name.split('.')[0] != 'torch_npu':
            return None
        if name not in self._modules:
            stem = name.replace('.', '/')
            text = self.read(f'{stem}/__init__.py') or self.read(f'{stem}.py')
            is_empty = text is None and self.read(f'{stem}/__init__.py') is not None
            self._modules[name] = ast.parse(text or '') if text is not None or is_empty else None
        return self._modules[name]

    def is_package(self, name: str) -> bool:
        return self.read(f'{name.replace(".", "/")}/__init__.py') is not None

    def sha256(self) -> Optional[str]:
        return hashlib.sha256(self.path.read_bytes()).hexdigest() if self._zip else None

    def sources(self) -> Iterator[str]:
        names = self._zip.namelist() if self._zip else (
            str(p.relative_to(self.path)) for p in (self.path / 'torch_npu').rglob('*.py'))
        return (self.read(n) for n in sorted(names) if n.startswith('torch_npu/') and n.endswith('.py'))


    def variables(self) -> List[str]:
        """Environment variables that a source or a library names."""
        names = self._zip.namelist() if self._zip else (
            str(p.relative_to(self.path)) for p in (self.path / 'torch_npu').rglob('*'))
        found: Set[str] = set()
        for name in names:
            if name.startswith('torch_npu/') and name.endswith(('.py', '.so')):
                data = self._zip.read(name) if self._zip else (self.path / name).read_bytes()
                for variable in set(VARIABLES) - found:  # `in` first: a pattern alone takes five times as long
                    word = variable.encode()
                    if word in data and re.search(rb'(?<!\w)' + word + rb'(?!\w)', data):
                        found.add(variable)
        return sorted(found)


def _statements(body: List[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module, those under if, try and with included."""
    for node in body:
        yield node
        for field in ('body', 'orelse', 'finalbody'):
            if isinstance(node, (ast.If, ast.Try, ast.With)):
                yield from _statements(getattr(node, field, []))


def _absolute(dist: Distribution, module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module
    parts = module.split('.') if dist.is_package(module) else module.split('.')[:-1]
    parts = parts[:len(parts) - (node.level - 1)]
    return '.'.join(parts + ([node.module] if node.module else []))


def _exports(tree: ast.Module, name: str) -> bool:
    """Whether `from ... import *` would take a name along."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == '__all__' for t in node.targets):
            return name in ast.literal_eval(node.value)
    return not name.startswith('_')


def lookup(dist: Distribution, module: str, name: str) -> Optional[Found]:
    """Find a name in a module as Python would: the last statement that binds it, else a submodule."""
    if module == COMPILED or module.startswith(COMPILED + '.'):
        return Found(module, None, name)
    tree = dist.module(module)
    if tree is None:
        return Found(module, None, name) if not module.startswith('torch_npu') else None
    found = None
    for node in _statements(tree.body):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            found = Found(module, node, name)
        elif isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            found = Found(module, node.value, name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            found = Found(module, node.value, name)
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(dist, module, node)
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    # `from . import x` in a package is its submodule x
                    found = Found(f'{source}.{alias.name}') if source == module else lookup(dist, source, alias.name)
                elif alias.name == '*' and dist.module(source) and _exports(dist.module(source), name):
                    found = lookup(dist, source, name) or found
        elif isinstance(node, ast.Import):
            found = next((Found(a.name) for a in node.names if a.asname == name), found)
    if found is None and dist.module(f'{module}.{name}') is not None:
        found = Found(f'{module}.{name}')
    return found


def _resolve_expression(dist: Distribution, module: str, node: ast.AST) -> Optional[Found]:
    """What a name or a chain of attributes in a module means."""
    if isinstance(node, ast.Name):
        return lookup(dist, module, node.id) or (Found(node.id) if node.id == 'torch_npu' else None)
    if isinstance(node, ast.Attribute):
        text = ast.unparse(node)
        if text.startswith('torch_npu.'):
            return resolve(dist, text)
        base = _resolve_expression(dist, module, node.value)
        return member(dist, base, node.attr) if base else None
    return None


def _class_of(dist: Distribution, found: Found) -> Optional[Found]:
    """The class that a value such as `config = npu_config._npuConfig()` is an instance of."""
    if isinstance(found.node, ast.Call):
        cls = _resolve_expression(dist, found.module, found.node.func)
        return cls if cls and isinstance(cls.node, ast.ClassDef) else None
    return None


def member(dist: Distribution, owner: Found, name: str) -> Optional[Found]:
    """An attribute of a module, a class or an instance."""
    if owner.module.startswith(COMPILED):
        return Found(f'{owner.module}.{owner.name}', None, name)
    if owner.node is None:
        return lookup(dist, owner.module, name)
    if isinstance(owner.node, ast.ClassDef):
        for node in owner.node.body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return Found(owner.module, node, name)
        for base in owner.node.bases:
            parent = _resolve_expression(dist, owner.module, base)
            if parent is None:
                continue
            if isinstance(parent.node, ast.ClassDef):
                found = member(dist, parent, name)
                if found:
                    return found
            elif not parent.module.startswith('torch_npu'):
                return Found(f'{parent.module}.{parent.name}', None, name)  # a class of torch's
        return None
    cls = _class_of(dist, owner)
    setter = cls and member(dist, cls, '__setattr__')
    if setter:
        # `if name == "allow_hf32": ...`
        known = {c.value for n in ast.walk(setter.node) if isinstance(n, ast.Compare) for c in n.comparators
                 if isinstance(c, ast.Constant)}
        return Found(cls.module, setter.node, f'{cls.name}.__setattr__') if name in known else None
    return None


def resolve(dist: Distribution, dotted: str) -> Optional[Found]:
    """Follow a dotted name from `torch_npu` on."""
    first, *rest = dotted.split('.')
    found: Optional[Found] = Found(first)
    for name in rest:
        found = member(dist, found, name)
        if found is None:
            return None
    return found


def describe(dist: Distribution, dotted: str) -> str:
    """Kind and signature of a name, e.g. 'function (device=None)'; 'missing'."""
    found = resolve(dist, dotted)
    if found is None and re.fullmatch(r'torch_npu\.npu_\w+', dotted):  # an operator, put there when torch_npu loads
        seen = any(f'{dotted}(' in text for text in dist.sources() if text)
        return "operator, used by torch_npu's own sources" if seen else MISSING
    if found is None:
        return MISSING
    if found.node is None:
        if found.module.startswith('torch_npu.') and found.module.startswith(COMPILED):
            used = re.compile(rf'\b{re.escape(".".join(dotted.split(".")[-2:]))}\b')
            seen = any(used.search(text) for text in dist.sources() if text)
            return f"compiled, used by torch_npu's own sources: {found.module}.{found.name}" if seen else MISSING
        if found.module.startswith('torch_npu'):
            return 'module'
        return f'inherited from {found.module}'
    if found.name.endswith('.__setattr__'):
        return f'setting of {found.name[:-len(".__setattr__")]}'
    if isinstance(found.node, ast.ClassDef):
        maker = member(dist, found, '__init__') or member(dist, found, '__new__')
        if maker and isinstance(maker.node, ast.FunctionDef):
            return f'class {_signature(maker.node)}'
        maker = member(dist, found, '__new__')
        return f'class {_signature(maker.node)}' if maker and maker.node else 'class'
    if isinstance(found.node, ast.FunctionDef):
        return f'function {_signature(found.node)}'
    return 'value'


def _signature(node: ast.FunctionDef) -> str:
    """Parameters without annotations."""
    args = ast.parse(ast.unparse(node)).body[0].args
    for arg in [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]:
        if arg is not None:
            arg.annotation = None
    return f'({ast.unparse(args)})'


def version_key(version: str) -> Tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r'\d+', version))


def extract(paths: List[Union[str, Path]]) -> Dict:
    """The extract of the wheels: their hashes and pins, what they hold of each name, who names which variable.

    Raises:
        ValueError: The wheels of one version differ in a name.
    """
    wheels: Dict[str, Dict] = {}
    names: Dict[str, Dict[str, str]] = {}  # name -> version -> description
    variables: Dict[str, List[str]] = {name: [] for name in VARIABLES}
    for dist in sorted((Distribution(Path(p)) for p in paths), key=lambda d: (version_key(d.version), d.path.name)):
        wheels.setdefault(dist.version, {})[dist.path.name] = {
            'sha256': dist.sha256(), 'requires': dist.requires_torch, 'entry_point': dist.entry_point}
        for name in dist.variables():
            if dist.version not in variables[name]:
                variables[name].append(dist.version)
        for name in (*NAMES, *ABSENT):
            what = describe(dist, name)
            if names.setdefault(name, {}).setdefault(dist.version, what) != what:
                raise ValueError(f'{name} is not the same in all wheels of torch_npu {dist.version}.')
    grouped: Dict[str, Dict[str, List[str]]] = {}
    for name, by_version in names.items():
        for version, what in by_version.items():
            grouped.setdefault(name, {}).setdefault(what, []).append(version)
    return {'wheels': wheels, 'names': grouped, 'environment': variables}


def table(data: Dict, language: str = 'en') -> str:
    """Markdown: which torch each release of torch_npu asks for, where it is found, and what was run."""
    lines = [f'| torch_npu | {" | ".join(HEADINGS[language])} |', '|---|---|---|---|---|']
    for version, wheels in data['wheels'].items():
        pins = {}
        for name, wheel in wheels.items():
            pins['aarch64' if 'aarch64' in name else 'x86_64'] = wheel['requires'].replace('torch', '', 1)
        torch = INSTALL['dotted'](INSTALL['release'](version))
        index = "PyTorch's CPU index" if INSTALL['needs_cpu_index'](torch, 'aarch64') else 'PyPI'
        run = EMULATED.get(torch, 'no: names read')
        lines.append(
            f'| {version} | {pins["aarch64"]} / {pins["x86_64"]} | {INSTALL["TORCHVISION"][torch]} | {index} | {run} |')
    text = '\n'.join(lines)
    for english, chinese in CHINESE.items() if language == 'zh-CN' else ():
        text = text.replace(english, chinese)
    return text


def kernels(dist: Distribution) -> Set[str]:
    """Operators of torch that torch_npu registers a kernel for, from the lists that its code is generated from.

    With 2.14.0 these are the registrations of the dispatcher (run: the difference is NOT_REGISTERED).
    """
    import yaml
    names: Set[str] = set()
    for file in ('npu_native_functions.yaml', 'npu_native_functions_by_codegen.yaml'):
        lists = yaml.safe_load(dist.read(f'torch_npu/csrc/aten/{file}'))
        for part in ('supported', 'custom'):
            for entry in lists.get(part) or ():
                names.add((entry if isinstance(entry, str) else entry['func']).split('(')[0])
    return {name for name in names if 'npu' not in name} - NOT_REGISTERED


def extract_kernels(paths: List[Union[str, Path]]) -> Dict:
    """`newest`: the kernels of the newest release; `others`: those that an older one lacks, and has beside them."""
    found = {dist.version: kernels(dist) for dist in map(Distribution, map(Path, paths))}
    newest = max(found, key=version_key)
    return {
        'newest': {newest: sorted(found[newest])},
        'others': {version: {'lacks': sorted(found[newest] - found[version]),
                             'has': sorted(found[version] - found[newest])}
                   for version in sorted(found, key=version_key) if version != newest}}


def main(argv: List[str]) -> None:
    if not argv or argv[0] in ('-h', '--help'):
        sys.exit(__doc__)
    if argv[:1] == ['--table']:
        print(table(json.loads(EXTRACT.read_text()), *argv[1:]))
    elif argv[0] == '--kernels':
        print(json.dumps(extract_kernels(argv[1:]), indent=1))
    else:
        print(json.dumps(extract(argv), indent=1))


if __name__ == '__main__':
    main(sys.argv[1:])
