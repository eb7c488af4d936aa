"""`seresnet-timm push`: a run or a checkpoint to the Hugging Face Hub."""
import argparse

from seresnet_timm.argument_parser import ArgumentParser

EXAMPLES = ('seresnet-timm push output/run org/name --license apache-2.0 --tag v1',)
NEXT = ('seresnet-timm pull org/name@v1',)


def add_arguments(parser: ArgumentParser) -> None:
    parser.description = (
        'Push the weights of a run or of a checkpoint to the Hugging Face Hub, as safetensors with config.json and a '
        'model card. A missing repository or branch is created, an existing card is kept, and the uploaded files are '
        'verified. HF_TOKEN, HF_ENDPOINT, HTTPS_PROXY and HF_HOME have the same meaning as for huggingface_hub; '
        'MODELSCOPE_API_TOKEN and MODELSCOPE_ENDPOINT that of ModelScope.')
    arg = parser.add_argument
    arg('source', metavar='RUN_OR_FILE', help='output folder of a training (its best checkpoint), or a checkpoint')
    arg('repo', metavar='ORG/NAME', help='model on the Hub; modelscope:org/name for one on ModelScope')
    arg('--license', metavar='ID', help='licence of the weights, e.g. apache-2.0; default: that of the card on the Hub')
    arg('--model', metavar='NAME', help='architecture, if the file does not tell it')
    arg('--num-classes', type=int, metavar='N', help='number of classes, if the weights do not tell it')
    arg('--use-ema', '--ema', action=argparse.BooleanOptionalAction,
        help='push the moving average of the weights, or the raw weights; default: for a run the weights whose top-1 '
             'it reports, for a file the raw ones')
    arg('--class-names', metavar='FILE', help='names of the classes, one per line, in the order of their indices')
    arg('--private', action='store_true', help='make the repository private')
    arg('--revision', metavar='BRANCH', help='branch (default: main, and on ModelScope master)')
    arg('--tag', metavar='TAG', help='tag for the new commit')
    arg('--message', metavar='TEXT', help='commit message')


def run(args: argparse.Namespace) -> None:
    from seresnet_timm import hub
    from seresnet_timm.hub import modelscope
    pushed = hub.push(
        args.source, args.repo, license=args.license, model=args.model, num_classes=args.num_classes,
        use_ema=args.use_ema, class_names=args.class_names, private=args.private, revision=args.revision, tag=args.tag,
        message=args.message)
    where = 'ModelScope' if modelscope.is_name(args.repo) else 'the Hub'
    tag = f', tag {args.tag}' if args.tag else ''
    print(f'{pushed.repo_id}: commit {pushed.commit} on {pushed.revision}{tag}' if pushed.commit else
          f'{pushed.repo_id}: branch {pushed.revision} of {where}')
    for note in pushed.notes:
        print(f'  {note}')
    for name, digest in pushed.sha256.items():
        print(f'  {name:<18} sha256 {digest} verified on {where}')
    print(pushed.url)
