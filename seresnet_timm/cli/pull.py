"""`seresnet-timm pull`: a model from the Hugging Face Hub."""
import argparse

from seresnet_timm.argument_parser import ArgumentParser
from seresnet_timm.errors import printable

EXAMPLES = (
    'seresnet-timm pull org/name',
    'seresnet-timm pull org/name@v1 model')
NEXT = (
    'seresnet-timm validate --data-dir digits --model hf-hub:org/name',
    'seresnet-timm predict hf-hub:org/name digits/val')


def add_arguments(parser: ArgumentParser) -> None:
    parser.description = (
        'Download a timm model from the Hugging Face Hub, and compare every file with the hash that the Hub names. If '
        'the Hub cannot be reached, the verified copy in the cache is used. HF_TOKEN, HF_ENDPOINT, HTTPS_PROXY, '
        'HF_HOME and HF_HUB_OFFLINE have the same meaning as for huggingface_hub.')
    parser.add_argument(
        'repo', metavar='ORG/NAME[@REVISION]',
        help='model on the Hub, or modelscope:org/name for one on ModelScope; branch, tag or commit')
    parser.add_argument('out', metavar='OUT', nargs='?', help='folder to copy it to; default: it stays in the cache')


def run(args: argparse.Namespace) -> None:
    from seresnet_timm.hub.names import describe_version
    from seresnet_timm.hub.pull import how_to_use, pull
    pulled = pull(args.repo, args.out)
    version = describe_version(args.repo, pulled.commit)
    print(f'{pulled.repo_id}: {version}{", from the cache" if pulled.cached else ""}')
    for name, digest in pulled.sha256.items():
        print(f'  {name:<18} sha256 {digest} {"not verified" if name in pulled.unverified else "verified"}')
    print(f'{printable(pulled.folder)}\n\n{how_to_use(pulled, args.repo, args.out)}')
