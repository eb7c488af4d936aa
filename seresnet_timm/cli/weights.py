"""`seresnet-timm weights fetch`: pretrained weights into the cache, for machines without a network."""
import argparse

from seresnet_timm.argument_parser import ArgumentParser
from seresnet_timm.errors import UsageError, printable

EXAMPLES = (
    'seresnet-timm weights fetch seresnet50.ra2_in1k',
    'seresnet-timm weights fetch seresnet50.ra2_in1k --from model.safetensors')
NEXT = ('seresnet-timm train --model seresnet50.ra2_in1k --pretrained --data-dir digits',)


def add_arguments(parser: ArgumentParser) -> None:
    parser.description = 'Put pretrained weights where --pretrained finds them without a network.'
    fetch = parser.add_subparsers(dest='action', title='actions', metavar='fetch').add_parser(
        'fetch', help='from the Hub, a mirror or a file',
        description=(
            'Put the pretrained weights of a model into the cache, from the Hub (HF_ENDPOINT), a mirror or a file. '
            'Their SHA-256 is compared with --sha256, else with what the Hub or the mirror names, else with the hash '
            'in the name of the file. Where nothing tells the hash, it is printed.'))
    fetch.examples, fetch.next_steps = EXAMPLES, NEXT
    fetch.add_argument('name', metavar='NAME', help="timm's name, e.g. seresnet50.ra2_in1k, or hf-hub:org/name")
    fetch.add_argument('--from', dest='source', metavar='FILE',
                       help='read a file, or the folder that holds it, instead of a download; for hf-hub:org/name the '
                            'folder with config.json and weights')
    fetch.add_argument('--mirror', metavar='URL',
                       help='download from a mirror of the Hub, a folder on a web server, or the address of the file')
    fetch.add_argument('--sha256', metavar='HASH', help='hash that the file must have')


def run(args: argparse.Namespace) -> None:
    if args.action != 'fetch':
        raise UsageError('Write `seresnet-timm weights fetch NAME`, with --from FILE or --mirror URL.')
    from seresnet_timm.hub.fetch_weights import fetch_weights
    fetched = fetch_weights(args.name, args.source, args.mirror, args.sha256)
    verified = f'verified with {fetched.checked}' if fetched.checked else (
        'NOT VERIFIED: neither --sha256 nor the Hub nor its name tells its hash; compare it with that on the page '
        'of the file')
    print(f'{printable(fetched.path)}: sha256 {fetched.sha256} {verified}')
