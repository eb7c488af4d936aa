"""`seresnet-timm <verb>`: parses, calls one room of the package, prints, sets the exit code."""
import os
import sys
from argparse import BooleanOptionalAction
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from seresnet_timm import __version__
from seresnet_timm.argument_parser import Parser
from seresnet_timm.ascend.runtime import disable_incompatible_torch_npu
from seresnet_timm.errors import RunError, UsageError, did_you_mean


def train(argv: List[str]) -> None:
    from seresnet_timm.launch import run as launch
    launch.run('train', argv)


def validate(argv: List[str]) -> None:
    from seresnet_timm.launch import run as launch
    launch.run('validate', argv)


def recipe(argv: List[str]) -> None:
    from seresnet_timm.launch import flags as options
    from seresnet_timm.launch.recipes import RECIPES
    if not argv or argv[0] in ('-h', '--help'):
        print('usage: seresnet-timm recipe <name> --data_path=DIR [options]   (= bash recipes/<name>.sh ...)\n')
        for name, r in RECIPES.items():
            print(f'  {name:<22}{r.description}  [{r.source}]')
        print(f'\nFiles: {options.recipes_dir()}')
        return
    if argv[0] not in RECIPES:
        raise UsageError(f"Unknown recipe '{argv[0]}': {did_you_mean(argv[0], RECIPES)}")
    from seresnet_timm.launch import run as launch
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
    from seresnet_timm.datasets.demo import write_demo_data
    counts = write_demo_data(args.dir)
    print(f'{args.dir}: 10 classes, {counts["train"]} training and {counts["val"]} validation images')


def inspect(argv: List[str]) -> None:
    parser = Parser(
        prog='seresnet-timm inspect',
        description='Show what a checkpoint is: architecture, classes, epoch, metric, precision, whether it is whole.')
    parser.add_argument('file', nargs='+', metavar='FILE', help='checkpoint: .pth.tar, .pth, .pkl or .safetensors')
    parser.add_argument('--model', metavar='NAME', help='list every weight that does not fit this model, by name')
    parser.add_argument('--json', action='store_true', help='print facts as JSON, a line a file')
    args = parser.parse_args(argv)
    import json

    from seresnet_timm.checkpoints import inspect as inspection
    misfits = 0
    for path in args.file:
        facts = inspection.inspect(path)
        if args.model:
            facts['misfits'] = inspection.misfits(path, args.model)
            misfits += len(facts['misfits'])
        print(json.dumps(facts) if args.json else '\n'.join(inspection.describe(facts)))
    if misfits:
        raise RunError(f'{misfits} weight(s) do not fit {args.model}.')


def convert(argv: List[str]) -> None:
    parser = Parser(
        prog='seresnet-timm convert',
        description="Convert a checkpoint's weights between timm, the ModelZoo and safetensors, bit for bit.")
    parser.add_argument('source', metavar='IN', help='any checkpoint that `seresnet-timm inspect` reads')
    parser.add_argument('target', metavar='OUT', help='file to write')
    parser.add_argument('--to', metavar='FORMAT', help="timm, modelzoo or safetensors; default: by OUT's ending")
    parser.add_argument('--ema', action='store_true', help='take the moving average of the weights')
    parser.add_argument('--dtype', metavar='D', help='float32, float16 or bfloat16; default: as it is')
    parser.add_argument('--model', metavar='NAME', help="timm's name of the network, where the weights do not tell")
    args = parser.parse_args(argv)
    from seresnet_timm.checkpoints import inspect as inspection
    from seresnet_timm.checkpoints.convert import convert as convert_file
    print('\n'.join(inspection.describe(convert_file(
        args.source, args.target, args.to, args.ema, args.dtype, args.model))))


def report(argv: List[str]) -> None:
    parser = Parser(
        prog='seresnet-timm report',
        description='Print the results table of runs and draw their curves (loss, top-1, learning rate, images/s).')
    parser.add_argument('run', nargs='+', metavar='RUN', help='output folder of a run')
    args = parser.parse_args(argv)
    from seresnet_timm.runs import report as results
    results.report(args.run)


def export(argv: List[str]) -> None:
    parser = Parser(
        prog='seresnet-timm export',
        description='Write a model as ONNX or torch.export program, check it, and print the ATC command for Ascend.')
    _add_model_source(parser)
    parser.add_argument('out', metavar='OUT', help='file to write, e.g. model.onnx or model.pt2')
    parser.add_argument('--format', choices=('onnx', 'torch'), help='default: by the suffix of OUT')
    parser.add_argument('--opset', type=int, choices=range(11, 16), metavar='N', default=13,
                        help='ONNX operator set, 11 to 15, which ATC reads (%(default)s)')
    parser.add_argument('--uint8', action='store_true', help='take pixels, uint8, and normalise inside')
    parser.add_argument('--soc', metavar='CHIP', help='chip for the ATC command, e.g. Ascend910A, Ascend310P3')
    parser.add_argument('--atc-batch-size', type=_positive, nargs='+', default=[1], metavar='N',
                        help='batch size of the .om, or several to switch between (1)')
    args = parser.parse_args(argv)
    from seresnet_timm.inference import export as room
    soc = room.check_soc(args.soc) if args.soc else None
    loaded = _load_model(args)
    out = room.export(loaded, args.out, args.format, args.opset, args.uint8)
    is_onnx = (args.format or room.SUFFIXES.get(out.suffix)) == 'onnx'
    kind = f'ONNX opset {args.opset}' if is_onnx else 'torch.export program'
    print(f'{out}: {kind}, any batch size; outputs compared with the model at batch sizes '
          f'{", ".join(map(str, room.CHECKED_BATCH_SIZES))}')
    if is_onnx:
        print('\n' + room.atc_command(out, loaded.data_config['input_size'], soc, args.atc_batch_size))
        print(room.where_is_atc(os.environ), file=sys.stderr)
        if soc is None:
            print('SOC is the chip: `npu-smi info` shows it, --soc puts it in.', file=sys.stderr)


def predict(argv: List[str]) -> None:
    parser = Parser(
        prog='seresnet-timm predict',
        description='Print the likeliest classes of images, preprocessed as in validation.')
    _add_model_source(parser)
    parser.add_argument('image', nargs='+', metavar='IMAGE|DIR', help='image files, and folders of them at any depth')
    parser.add_argument('--topk', type=_positive, default=5, metavar='K', help='number of classes (%(default)s)')
    parser.add_argument('-b', '--batch-size', type=_positive, default=32, metavar='N', help='(%(default)s)')
    parser.add_argument('-j', '--workers', type=int, metavar='N', help='loader processes (as many as pay)')
    parser.add_argument('--device', default='auto', metavar='D', help='auto (npu, else cuda, else cpu) or one of them')
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument('--json', dest='format', action='store_const', const='json', help='a JSON list, one entry a file')
    kind.add_argument('--csv', dest='format', action='store_const', const='csv', help='a CSV row for each class')
    parser.add_argument('--output', metavar='FILE', help='write there, not to stdout')
    args = parser.parse_args(argv)
    from seresnet_timm.ascend import setup as npu_setup
    npu_setup.set_environment(os.environ)
    from seresnet_timm import device as devices
    from seresnet_timm.inference import predict as room
    files = room.find_images(args.image)
    device, reason = devices.select_device(args.device)
    if device.startswith('npu'):
        npu_setup.set_up(device)
    loaded = _load_model(args)
    print(f'Device: {device} ({reason})', file=sys.stderr)
    room.run(loaded, files, args.format or 'table', args.output, device=device, topk=args.topk,
             batch_size=args.batch_size, workers=args.workers)


def _add_model_source(parser: Parser) -> None:
    parser.add_argument('model', metavar='MODEL',
                        help="timm's name, hf-hub:org/name, a checkpoint file, or the folder of a run")
    arg = parser.add_argument_group('Where the file does not say so').add_argument
    arg('--model', dest='model_name', metavar='NAME', help='architecture of the checkpoint')
    arg('--num-classes', type=_positive, metavar='N', help='number of classes that it must have')
    arg('--img-size', type=_positive, metavar='N', help='image size in pixels')
    arg('--crop-pct', type=float, metavar='P', help='share of the resized image that is kept')
    arg('--use-ema', action='store_true', help='take the moving average of the weights')
    arg('--class-names', metavar='FILE', help='names of the classes, one a line, in the order of their indices')


def _load_model(args):
    from seresnet_timm.inference.load import load_model
    loaded = load_model(
        args.model, args.model_name, args.num_classes, args.img_size, args.crop_pct, args.use_ema, args.class_names)
    print('\n'.join(loaded.describe()), file=sys.stderr)
    return loaded


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


_positive.__name__ = 'positive number'  # argparse names the type in its error


def prepare(argv: List[str]) -> None:
    parser = Parser(
        prog='seresnet-timm prepare',
        description='Copy an ImageNet-style tree with large images made smaller, which train faster. Small ones are '
                    'copied as they are. Run it again after an interruption: it goes on.')
    parser.add_argument('src', metavar='SRC', help='folder of images, at any depth; only read')
    parser.add_argument('dst', metavar='DST', help='folder of the copy')
    parser.add_argument('--max-side', type=_positive, default=512, metavar='N',
                        help='longer side in pixels above which an image is made smaller, to it (%(default)s)')
    parser.add_argument('--quality', type=int, choices=range(1, 101), default=95, metavar='Q',
                        help='JPEG quality of the images made smaller (%(default)s)')
    parser.add_argument('-j', '--workers', type=_positive, metavar='N', help='threads (one a core)')
    args = parser.parse_args(argv)
    from seresnet_timm.datasets import prepare as room
    room.prepare(args.src, args.dst, args.max_side, args.quality, args.workers)


def prepare_imagenet(argv: List[str]) -> None:
    parser = Parser(
        prog='seresnet-timm prepare-imagenet',
        description="Unpack ImageNet's official tar files to DST/train/<class>/* and DST/val/<class>/*. Run it again "
                    'after an interruption: it goes on.')
    parser.add_argument('--from', dest='source', required=True, metavar='DIR',
                        help='folder of the tar files; only read')
    parser.add_argument('dst', metavar='DST', help='folder to unpack to')
    parser.add_argument('--split', choices=('train', 'val', 'both'), default='both', help='(%(default)s)')
    parser.add_argument('--check-md5', action='store_true', help="compare the files with the official MD5 sums first")
    args = parser.parse_args(argv)
    from seresnet_timm.datasets import prepare_imagenet as room
    room.prepare_imagenet(args.source, args.dst, args.split, args.check_md5)


def push(argv: List[str]) -> None:
    parser = Parser(
        prog='seresnet-timm push',
        description='Push the weights of a run or of a checkpoint to the Hugging Face Hub, as safetensors with '
                    'config.json and a model card; repository and branch are made where they are missing, a card that '
                    'is there is kept, and what has arrived is verified. HF_TOKEN, HF_ENDPOINT, HTTPS_PROXY and '
                    'HF_HOME mean what they mean to huggingface_hub.')
    arg = parser.add_argument
    arg('source', metavar='RUN_OR_FILE', help='output folder of a training (its best checkpoint), or a checkpoint')
    arg('repo', metavar='ORG/NAME', help='model on the Hub')
    arg('--license', metavar='ID', help='licence of the weights, e.g. apache-2.0; default: that of the card on the Hub')
    arg('--model', metavar='NAME', help='architecture, where the file does not say')
    arg('--num-classes', type=int, metavar='N', help='number of classes, where the weights do not say')
    arg('--ema', action=BooleanOptionalAction, help='the moving average of the weights, or the raw ones; default: of a '
        'run those whose top-1 it reports, of a file the raw ones')
    arg('--private', action='store_true', help='make the repository private')
    arg('--revision', metavar='BRANCH', help='branch (main)')
    arg('--tag', metavar='TAG', help='tag for the new commit')
    arg('--message', metavar='TEXT', help='commit message')
    args = vars(parser.parse_args(argv))
    from seresnet_timm import hub
    pushed = hub.push(args.pop('source'), args.pop('repo'), **args)
    print(f'{pushed.repo_id}: commit {pushed.commit} on {pushed.revision}')
    for note in pushed.notes:
        print(f'  {note}')
    for name, digest in pushed.sha256.items():
        print(f'  {name:<18} sha256 {digest} verified on the Hub')
    print(pushed.url)


def pull(argv: List[str]) -> None:
    parser = Parser(
        prog='seresnet-timm pull',
        description='Get a timm model from the Hugging Face Hub, and compare every file with the hash that the Hub '
                    'names. Without the Hub the verified copy in the cache does. HF_TOKEN, HF_ENDPOINT, HTTPS_PROXY, '
                    'HF_HOME and HF_HUB_OFFLINE mean what they mean to huggingface_hub.')
    parser.add_argument('repo', metavar='ORG/NAME[@REVISION]', help='model on the Hub; branch, tag or commit')
    parser.add_argument('out', metavar='OUT', nargs='?', help='folder to copy it to; default: it stays in the cache')
    args = parser.parse_args(argv)
    from seresnet_timm.hub.pull import how_to_use
    from seresnet_timm.hub.pull import pull as pull_model
    pulled = pull_model(args.repo, args.out)
    print(f'{pulled.repo_id}: commit {pulled.commit}{", from the cache" if pulled.cached else ""}')
    for name, digest in pulled.sha256.items():
        print(f'  {name:<18} sha256 {digest} verified')
    print(f'{pulled.folder}\n\n{how_to_use(pulled, args.repo, args.out)}')


def doctor(argv: List[str]) -> None:
    from seresnet_timm.doctor import doctor as ascend_doctor
    ascend_doctor.main(argv)


def bench(argv: List[str]) -> None:
    from seresnet_timm.cli import bench as benches
    benches.main(argv)


VERBS: Dict[str, Tuple[Callable[[List[str]], None], str]] = {
    'train': (train, 'train a model'),
    'validate': (validate, 'evaluate a model or a checkpoint'),
    'recipe': (recipe, "run one of the ModelZoo's recipes"),
    'scripts': (scripts, "show which train.py would run; `scripts fetch` gets timm's own"),
    'demo-data': (demo_data, 'write a small dataset of real images'),
    'inspect': (inspect, 'show what a checkpoint is, and whether it is whole'),
    'convert': (convert, "convert checkpoints: timm's, the ModelZoo's, safetensors"),
    'doctor': (doctor, 'check versions, CANN, devices and network, and compute on every device'),
    'export': (export, 'write a model as ONNX or torch.export program, for Ascend inference and others'),
    'predict': (predict, 'print the likeliest classes of images'),
    'prepare': (prepare, 'copy a dataset with large images made smaller, to train faster'),
    'prepare-imagenet': (prepare_imagenet, "unpack ImageNet's official tar files"),
    'push': (push, 'push a run or a checkpoint to the Hugging Face Hub'),
    'pull': (pull, 'get a model from the Hugging Face Hub, verified'),
    'bench': (bench, "measure loader, step or whole runs against timm's in the same run"),
    'report': (report, "print a run's results table and draw its curves"),
}


def usage() -> str:
    lines = [f'  {verb:<18}{help}' for verb, (_, help) in VERBS.items()]
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
        raise UsageError(f"Unknown verb '{argv[0]}': {did_you_mean(argv[0], VERBS)}")
    disable_incompatible_torch_npu()
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
