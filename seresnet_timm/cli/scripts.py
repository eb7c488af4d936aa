"""`seresnet-timm scripts` and `seresnet-timm scripts fetch`: timm's train.py and validate.py."""
import argparse

from seresnet_timm.argument_parser import ArgumentParser
from seresnet_timm.errors import UsageError
from seresnet_timm.timm_scripts import known

EXAMPLES = ('seresnet-timm scripts',)
NEXT = (
    "seresnet-timm scripts fetch   # get timm's own scripts",
    'seresnet-timm train --preset digits_demo --data-dir digits --scripts bundled')


def add_arguments(parser: ArgumentParser) -> None:
    parser.description = ("Show which train.py and validate.py are used, and why. `scripts fetch` downloads timm's. "
                          'Bundled scripts are used without them.')
    parser.add_argument('--scripts', default='auto', metavar='WHICH',
                        help='auto, timm, bundled, or a path (default: %(default)s)')
    fetch = parser.add_subparsers(dest='action', title='actions', metavar='[fetch]').add_parser(
        'fetch', help="download timm's train.py and validate.py",
        description="Download timm's train.py and validate.py of a release, check their SHA-256, and keep them.")
    fetch.examples = ('seresnet-timm scripts fetch', 'seresnet-timm scripts fetch --from timm.zip')
    fetch.next_steps = ('seresnet-timm scripts   # which scripts are used now',)
    fetch.add_argument('--tag', metavar='TAG',
                       help='release; default: that of the installed timm if it is known, else the newest')
    fetch.add_argument('--mirror', metavar='URL', help=f'download URL/TAG/train.py ({known.REPOSITORY})')
    fetch.add_argument('--from', dest='source', metavar='FILE_OR_DIR',
                       help='read a folder, a .zip or .tar.gz of the repository, or a script, instead of a download')
    fetch.add_argument('--sha256', nargs='+', default=[], metavar='NAME=HASH',
                       help='hashes of the scripts of a release that is not known here')


def run(args: argparse.Namespace) -> None:
    if args.action == 'fetch':
        run_fetch(args)
        return
    from seresnet_timm.timm_scripts import find
    for name in known.NAMES:
        print(f'{name:<12} {find.find(name, args.scripts).describe()}')
    print(f'cache        {known.cache_dir()}')


def run_fetch(args: argparse.Namespace) -> None:
    hashes = dict(item.split('=', 1) for item in args.sha256 if '=' in item)
    if len(hashes) != len(args.sha256) or not set(hashes) <= set(known.NAMES):
        raise UsageError('--sha256 takes train.py=HASH and validate.py=HASH.')
    from seresnet_timm.timm_scripts import fetch
    folder = fetch.fetch(args.tag, args.mirror, args.source, hashes)
    for name in known.NAMES:
        if (folder / name).is_file():
            print(f'{folder / name}: sha256 {known.sha256_of((folder / name).read_bytes())} verified')
