"""Draw docs/layers.svg: the packages in their layers and who imports whom, from the imports of the code

    python docs/draw_layers.py            # needs matplotlib and import-linter: pip install -e '.[demo,lint]'
    python docs/draw_layers.py --check    # compares layers, packages and picture with the code; draws nothing

The layers are those of the import-linter contract in pyproject.toml, which `make lint` enforces.
"""
import argparse
import json
import random
import re
import sys
from pathlib import Path
from typing import Dict, List, Set, Tuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = 'seresnet_timm'
PICTURE = ROOT / 'docs' / 'layers.svg'
# what a package decides, in one line of the picture
DECIDES: Dict[str, str] = {
    '__main__': 'python -m',
    'cli': 'verbs, exit codes',
    'launch': 'command line → settings\n→ checks → processes',
    'inference': 'predict, export',
    'doctor': 'is this machine ready?',
    'hub': 'push, pull, model card',
    'timm_scripts': "timm's train.py\nand what is replaced in it",
    'engine': 'the bundled train.py\nand validate.py',
    'data': 'class names, loaders,\nfast JPEG decoding',
    'checkpoints': 'read, save, fit, convert',
    'device': 'cpu, cuda or npu',
    'step': 'faster training steps',
    'models': 'networks',
    'runs': 'settings, folder\nand record of a run',
    'datasets': 'make datasets',
    'ascend': 'torch_npu,\nCANN, HCCL',
    'argument_parser': 'flags and\ntheir errors',
    'errors': 'one-sentence errors',
    'files': 'atomic writes, locks',
    'old_names': 'names of 0.1',
    'process': 'limits, parent',
    'version': 'the version',
}
WIDTH, HEIGHT, ROW = 2.05, 0.66, 1.05  # of a box; from a layer to the next
SEARCH = 20000  # steps of the search for places
Edges = Set[Tuple[str, str]]
Places = Dict[str, Tuple[float, float]]


def read_layers() -> List[List[str]]:
    """Layers of the import-linter contract, highest first."""
    try:
        import tomllib
    except ImportError:  # Python 3.10; import-linter requires tomli there
        import tomli as tomllib
    settings = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['tool']['importlinter']
    contract = next(c for c in settings['contracts'] if c['type'] == 'layers')
    return [[name.strip(' ()') for name in re.split('[|:]', layer)] for layer in contract['layers']]


def read_imports() -> Edges:
    """Pairs (importer, imported) of the parts of the package, also of imports inside functions."""
    import grimp
    sys.path.insert(0, str(ROOT))
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    edges = set()
    for module in graph.modules - {PACKAGE}:
        for imported in graph.find_modules_directly_imported_by(module) - {PACKAGE}:
            edges.add((module.split('.')[1], imported.split('.')[1]))
    return {(a, b) for a, b in edges if a != b}


def without_implied(edges: Edges) -> Edges:
    """The imports that no chain of others implies (the transitive reduction)."""
    targets: Dict[str, Set[str]] = {a: {b for x, b in edges if x == a} for a, _ in edges}

    def reachable(name: str) -> Set[str]:
        found, new = set(), [name]
        while new:
            more = targets.get(new.pop(), set()) - found
            found |= more
            new += more
        return found

    return {(a, b) for a, b in edges if not any(b in reachable(c) for c in targets[a] - {b})}


def upward(layers: List[List[str]], edges: Edges) -> Edges:
    """The imports of a part that is not in a lower layer."""
    level = {name: i for i, names in enumerate(layers) for name in names}
    return {(a, b) for a, b in edges if a in level and b in level and level[a] >= level[b]}


def check(layers: List[List[str]], edges: Edges) -> List[str]:
    """What does not agree: layers, imports, packages on disk, this file, the picture."""
    named = {name for names in layers for name in names}
    files = {p.stem for p in (ROOT / PACKAGE).glob('*.py')} - {'__init__'}
    folders = {p.parent.name for p in (ROOT / PACKAGE).glob('*/__init__.py')}
    problems = [f'{name} is in no layer of pyproject.toml' for name in sorted((files | folders) - named)]
    problems += [f'{name} of pyproject.toml does not exist' for name in sorted(named - files - folders)]
    problems += [f'{name} is in DECIDES or in pyproject.toml only' for name in sorted(named ^ set(DECIDES))]
    problems += [f'{a} imports {b}, which is not below it' for a, b in sorted(upward(layers, edges))]
    text = PICTURE.read_text(encoding='utf-8') if PICTURE.exists() else ''
    drawn = re.search(r'<dc:description>(.*?)</dc:description>', text, re.S)
    if drawn is None or json.loads(drawn[1]) != data_of(layers, edges):
        problems.append(f'{PICTURE.relative_to(ROOT)} is out of date: run python docs/draw_layers.py')
    return problems


def data_of(layers: List[List[str]], edges: Edges) -> Dict[str, List[List[str]]]:
    """What the picture shows; stored in it."""
    return {'layers': layers, 'imports': [list(edge) for edge in sorted(edges)]}


def ends(where: Places, a: str, b: str) -> Tuple[float, float, float, float]:
    """Start and end of an arrow; a box's arrows start and end in different points."""
    (xa, ya), (xb, yb) = where[a], where[b]
    lean = max(-1., min(1., (xb - xa) / 4)) * WIDTH * 0.4
    return xa + lean, ya - HEIGHT / 2, xb - lean, yb + HEIGHT / 2


def place_boxes(layers: List[List[str]], arrows: List[Tuple[str, str]]) -> Places:
    """Places of the boxes, as (x, y) of their centres: a search for few arrows through boxes, and short ones."""
    rng = random.Random(1)

    def places(shifts: List[float], order: List[List[str]]) -> Places:
        return {name: (shift + (k - (len(names) - 1) / 2) * (WIDTH + 0.35), -ROW * i)
                for i, (shift, names) in enumerate(zip(shifts, order)) for k, name in enumerate(names)}

    def cost(where: Places) -> float:
        total = 0.
        for a, b in arrows:
            xa, ya, xb, yb = ends(where, a, b)
            total += abs(xa - xb) / 4
            for x, y in where.values():
                aside = abs(xb - xa) / (ya - yb) * HEIGHT / 2  # how far the arrow moves aside within a box's height
                total += 20 * (yb < y < ya and abs(
                    xa + (xb - xa) * (ya - y) / (ya - yb) - x) < WIDTH / 2 + aside + 0.1)
        return total + sum(abs(x) for x, _ in where.values()) / 50

    shifts, order = [0.] * len(layers), [list(names) for names in layers]
    now = best = cost(places(shifts, order))
    found = places(shifts, order)
    for step in range(SEARCH):
        new_shifts, new_order = list(shifts), [list(names) for names in order]
        i = rng.randrange(len(layers) - 1)  # the lowest layer stays
        rng.shuffle(new_order[i])
        free = 6 - len(layers[i]) * (WIDTH + 0.35) / 2
        new_shifts[i] = rng.choice([free * share for share in (-1, -0.5, -0.25, 0, 0.25, 0.5, 1)])
        new = cost(places(new_shifts, new_order))
        if new < now + rng.expovariate(1) * 2 * (1 - step / SEARCH):  # uphill too, ever less
            shifts, order, now = new_shifts, new_order, new
            if now < best:
                best, found = now, places(shifts, order)
    return found


def draw(layers: List[List[str]], edges: Edges, path: Path = PICTURE) -> None:
    """Draw the layers, without the arrows that other arrows imply and those to the lowest layer; upward ones in red."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
    matplotlib.rcParams.update({'svg.fonttype': 'none', 'svg.hashsalt': PACKAGE, 'font.size': 9})
    wrong = upward(layers, edges)
    arrows = sorted(without_implied({(a, b) for a, b in edges - wrong if b not in layers[-1]}))
    where = place_boxes(layers, arrows)
    bottom = -ROW * (len(layers) - 1)
    figure, axes = plt.subplots(figsize=(14.4, ROW * len(layers) + 0.5))
    for i in range(len(layers)):
        axes.axhspan(-ROW * i - HEIGHT / 2 - 0.1, -ROW * i + HEIGHT / 2 + 0.1, color='#f3f5f8', zorder=0)
        axes.text(-7.6, -ROW * i, str(len(layers) - i), va='center', color='#8a94a3', fontsize=13)
    for name, (x, y) in where.items():
        axes.add_patch(FancyBboxPatch(
            (x - WIDTH / 2, y - HEIGHT / 2), WIDTH, HEIGHT, boxstyle='round,pad=0,rounding_size=0.08',
            facecolor='white', edgecolor='#33415c', zorder=3))
        axes.text(x, y + 0.16, name, ha='center', va='center', weight='bold', zorder=4)
        axes.text(x, y - 0.11, DECIDES[name], ha='center', va='center', fontsize=7.5, color='#4a5568', zorder=4)
    for a, b in [*arrows, *sorted(wrong)]:
        xa, ya, xb, yb = ends(where, a, b)
        axes.add_patch(FancyArrowPatch(
            (xa, ya), (xb, yb), arrowstyle='-|>', mutation_scale=11, shrinkA=0, shrinkB=0, linewidth=1.2, zorder=2,
            color='#c0392b' if (a, b) in wrong else '#3b6fb6'))
    axes.text(0, bottom - 0.72, ha='center', fontsize=8.5, color='#4a5568', s=(
        f'An arrow is an import; {len(edges)} pairs of parts are importer and imported. Not drawn: imports that a '
        f'chain of arrows implies,\nand imports of {", ".join(layers[-1])}, which are allowed everywhere.'))
    axes.set(xlim=(-7.9, 7.2), ylim=(bottom - 0.8, 0.5))
    axes.axis('off')
    figure.tight_layout(pad=0.3)
    description = {'Date': None, 'Description': json.dumps(data_of(layers, edges))}
    figure.savefig(path, metadata=description if path.suffix == '.svg' else None, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='compare only; exit code 1 if something does not agree')
    args = parser.parse_args()
    layers, edges = read_layers(), read_imports()
    if args.check:
        problems = check(layers, edges)
        print('\n'.join(problems) or 'Layers, packages and picture agree with the code.')
        sys.exit(bool(problems))
    draw(layers, edges)
    print(PICTURE)


if __name__ == '__main__':
    main()
