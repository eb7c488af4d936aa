"""`seresnet-timm <verb>`: parses, calls one room of the package, prints, sets the exit code."""
import os
import sys
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from seresnet_timm import __version__
from seresnet_timm.ascend.runtime import keep_unfit_torch_npu_out
from seresnet_timm.engine.arguments import Parser
from seresnet_timm.errors import RunError, UsageError, suggest


def train(argv: List[str]) -> None:
    from seresnet_timm import launch
    launch.run('train', argv)


def validate(argv: List[str]) -> None:
    from seresnet_timm import launch
    launch.run('validate', argv)


def recipe(argv: List[str]) -> None:
    from seresnet_timm import options
    from seresnet_timm.recipe import RECIPES
    if not argv or argv[0] in ('-h', '--help'):
        print('usage: seresnet-timm recipe <name> --data_path=DIR [options]   (= bash recipes/<name>.sh ...)\n')
        for name, r in RECIPES.items():
            print(f'  {name:<22}{r.description}  [{r.source}]')
        print(f'\nFiles: {options.recipes_dir()}')
        return
    if argv[0] not in RECIPES:
        raise UsageError(f"Unknown recipe '{argv[0]}': {suggest(argv[0], RECIPES)}")
    from seresnet_timm import launch
    launch.run(RECIPES[argv[0]].verb, argv[1:], recipe_name=argv[0])


def scripts(argv: List[str]) -> None:
    from seresnet_timm.timm_scripts import find, known
    if argv[:1] == ['fetch']:
        return scripts_fetch(argv[1:])
    parser = Parser(
        prog='seresnet-timm scripts',
        description="Show which train.py and validate.py would run, and why. `scripts fetch` gets timm's own.")
    parser.add_argument('--scripts', default='auto', metavar='WHICH', help='auto, timm, bundled, or a path')
    args = parser.parse_args(argv)
    for name in known.NAMES:
        print(f'{name:<12} {find.find(name, args.scripts).describe()}')
    print(f'cache        {known.cache_dir()}')


def scripts_fetch(argv: List[str]) -> None:
    from seresnet_timm.timm_scripts import fetch, known
    parser = Parser(
        prog='seresnet-timm scripts fetch',
        description="Get timm's train.py and validate.py of a release, check their SHA-256, and keep them.")
    parser.add_argument('--tag', metavar='TAG', help='release; default: of the installed timm, else newest')
    parser.add_argument('--mirror', metavar='URL', help=f'address under which TAG/train.py lies ({known.REPOSITORY})')
    parser.add_argument('--from', dest='source', metavar='FILE_OR_DIR',
                        help='take them from a folder, a .zip or .tar.gz of the repository, or one of the two files')
    parser.add_argument('--sha256', nargs='+', default=[], metavar='NAME=HASH', help='hashes of a tag not known here')
    args = parser.parse_args(argv)
    hashes = dict(item.split('=', 1) for item in args.sha256 if '=' in item)
    if len(hashes) != len(args.sha256) or not set(hashes) <= set(known.NAMES):
        raise UsageError('--sha256 takes train.py=HASH and validate.py=HASH.')
    folder = fetch.fetch(args.tag, args.mirror, args.source, hashes)
    for name in known.NAMES:
        if (folder / name).is_file():
            print(f'{folder / name}: sha256 {known.sha256_of((folder / name).read_bytes())} verified')


def demo_data(argv: List[str]) -> None:
    parser = Parser(
        prog='seresnet-timm demo-data',
        description="Write scikit-learn's handwritten digits (1,797 real scans) as an ImageNet-style tree of JPEGs.")
    parser.add_argument('dir', metavar='DIR', help='folder to create')
    args = parser.parse_args(argv)
    from seresnet_timm.data.demo import write_demo_data
    counts = write_demo_data(args.dir)
    print(f'{args.dir}: 10 classes, {counts["train"]} training and {counts["val"]} validation images')


def report(argv: List[str]) -> None:
    parser = Parser(
        prog='seresnet-timm report',
        description='Print the results table of runs and draw their curves (loss, top-1, learning rate, images/s).')
    parser.add_argument('run', nargs='+', metavar='RUN', help='output folder of a run')
    args = parser.parse_args(argv)
    from seresnet_timm import results
    results.report(args.run)


def doctor(argv: List[str]) -> None:
    from seresnet_timm.ascend import doctor as ascend_doctor
    ascend_doctor.main(argv)


def bench(argv: List[str]) -> None:
    from seresnet_timm import bench as benches
    benches.main(argv)


VERBS: Dict[str, Tuple[Callable[[List[str]], None], str]] = {
    'train': (train, 'train a model'),
    'validate': (validate, 'evaluate a model or a checkpoint'),
    'recipe': (recipe, "run one of the ModelZoo's recipes"),
    'scripts': (scripts, "show which train.py would run; `scripts fetch` gets timm's own"),
    'demo-data': (demo_data, 'write a small dataset of real images'),
    'doctor': (doctor, 'check versions, CANN, devices and network, and compute on every device'),
    'bench': (bench, "measure loader, step or whole runs against timm's in the same run"),
    'report': (report, "print a run's results table and draw its curves"),
}


def usage() -> str:
    lines = [f'  {verb:<12}{help}' for verb, (_, help) in VERBS.items()]
    return '\n'.join([
        f'seresnet-timm {__version__}: train SE-ResNet on Ascend NPUs, GPUs and CPUs with timm', '',
        'usage: seresnet-timm <verb> [options]', '', *lines, '',
        "'seresnet-timm <verb> --help' lists the options of a verb.",
    ])


def dispatch(argv: Sequence[str]) -> None:
    if not argv or argv[0] in ('-h', '--help', 'help'):
        print(usage())
        if not argv:
            raise UsageError('Name a verb: ' + ', '.join(VERBS) + '.')
        return
    if argv[0] in ('-V', '--version'):
        print(__version__)
        return
    if argv[0] not in VERBS:
        raise UsageError(f"Unknown verb '{argv[0]}': {suggest(argv[0], VERBS)}")
    keep_unfit_torch_npu_out()
    VERBS[argv[0]][0](list(argv[1:]))


def main(argv: Optional[Sequence[str]] = None) -> None:
    try:
        dispatch(sys.argv[1:] if argv is None else argv)
    except (UsageError, RunError) as e:
        rank = os.environ.get('RANK', '')
        where = f' (rank {rank})' if rank.isdigit() else ''
        print(f'seresnet-timm: error{where}: {e}', file=sys.stderr)
        sys.exit(e.exit_code)
    except BrokenPipeError:  # the reader, e.g. `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except RuntimeError as e:
        if 'backend extension: torch_npu' not in str(e):
            raise
        print('seresnet-timm: error: torch_npu does not load, and torch with it: source the set_env.sh of CANN first, '
              'or set TORCH_DEVICE_BACKEND_AUTOLOAD=0 to work without the NPU.', file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as e:
        if e.name not in ('torch', 'timm', 'torchvision', 'yaml', 'numpy', 'PIL', 'safetensors', 'tqdm'):
            raise
        print(f'seresnet-timm: error: {e.name} is not installed for {sys.executable}: activate the environment that '
              'has this package (`. .venv/bin/activate` after `make demo`), name its Python with PYTHON=..., or '
              'install the package there.', file=sys.stderr)
        sys.exit(1)
