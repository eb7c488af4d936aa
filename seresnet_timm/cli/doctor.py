"""`seresnet-timm doctor`: whether a training would run on this machine."""
import argparse

from seresnet_timm.argument_parser import ArgumentParser

EXAMPLES = (
    'seresnet-timm doctor',
    'seresnet-timm doctor --device npu --json',
    'seresnet-timm doctor --operators')
NEXT = ('seresnet-timm demo-data digits   # a small dataset, for a first training',)


def add_arguments(parser: ArgumentParser) -> None:
    parser.description = (
        'Check versions, CANN, devices, HCCL, environment variables and scripts, and compute on every device for a few '
        'seconds. The exit code is 1 if a training would fail.')
    arg = parser.add_argument
    arg('--device', default='auto', metavar='DEVICE', help='auto, npu, cuda or cpu, or one device such as npu:0')
    arg('--json', action='store_true', help='print one JSON object instead of text')
    arg('--operators', action='store_true',
        help='list the operators that the recipes reach on the NPU, and whether the installed torch_npu has a kernel '
        'for each; exit code 1 if one runs on the CPU')
    arg('--seconds', type=float, default=5, metavar='S',
        help='length of the smoke test, in seconds (default: %(default)s)')
    arg('--stress', action='store_true',
        help="let torch_npu's stress detection look for faults of the hardware too: minutes for each NPU, on which "
             'nothing else may run')
    arg('--timeout', type=float, default=180, metavar='S',
        help='time limit of the smoke test, in seconds; it fails if it takes longer (default: %(default)s)')


def run(args: argparse.Namespace) -> None:
    if args.operators:
        import os

        from seresnet_timm.doctor import operators
        operators.run(args.json, os.environ)
        return
    from seresnet_timm.doctor import doctor
    doctor.run(args.device, args.seconds, args.timeout, args.json, args.stress)
