"""`seresnet-timm VERB ...`: the table of verbs, the dispatch to cli/VERB.py, and the exit codes.

A verb's file has `add_arguments(parser)` and `run(args)`. It is imported when its verb is chosen, and imports torch
inside `run` only, so that `--help` is quick.
"""
import argparse
import functools
import gc
import importlib
import os
import sys
import traceback
from types import ModuleType
from typing import Dict, List, Optional, Sequence

from seresnet_timm.argument_parser import HELP_FLAGS, ArgumentParser, HelpFormatter, guide
from seresnet_timm.engine.values import rules_of
from seresnet_timm.errors import (
    RunError,
    UsageError,
    did_you_mean,
    discard,
    keep_exit_code,
    print_any_text,
    printable,
    refuse,
)
from seresnet_timm.version import OldTimm, __version__, refuse_old_timm

# what one wants to do -> verb -> its line in `seresnet-timm --help`
TASKS: Dict[str, Dict[str, str]] = {
    'Check the machine': {
        'doctor': 'check versions, CANN, devices and network, and compute on every device',
        'env': 'print what a bug report needs: versions, machine, devices, variables',
        'bench': 'compare the loader, a training step or a whole training with timm',
        'tune': 'measure which settings are fastest on this machine, and write them as a config file',
        'scripts': "show which train.py is used; `scripts fetch` downloads timm's",
    },
    'Get data ready': {
        'demo-data': 'write a small dataset of real images',
        'split': 'divide a folder of classes into training and validation, by links',
        'check-data': 'list the damaged images, duplicates and odd classes of a dataset',
        'prepare': 'copy a dataset and reduce its large images, for faster training',
        'prepare-imagenet': 'unpack the official tar files of ImageNet',
    },
    'Train': {
        'train': 'train a model',
        'recipes': 'list the recipes, with cost and expected top-1, or show one',
        'recipe': 'run a recipe of the ModelZoo',
        'weights': '`weights fetch` puts pretrained weights into the cache, from the Hub, a mirror or a file',
    },
    'Evaluate': {
        'validate': 'evaluate a model or a checkpoint',
        'compare': 'compare a network on two devices, precisions or checkpoints, module by module',
    },
    'Use a model': {
        'predict': 'print the most likely classes of images',
        'explain': 'draw what a network looks at: gates of SE blocks, class activation maps',
        'export': 'write a model as ONNX or torch.export program, for example for Ascend inference',
        'convert': 'convert a checkpoint between timm, the ModelZoo and safetensors',
    },
    'Share a model': {
        'push': 'push a run or a checkpoint to the Hugging Face Hub',
        'pull': 'download a model from the Hugging Face Hub and verify it',
    },
    'Look after a run': {
        'watch': 'show how far a run is and when it will end, from another terminal',
        'report': "print a run's results table and draw its curves",
        'diagnose': 'explain an error text, a log, or the logs of a run that failed',
        'inspect': 'show what a checkpoint contains, and whether it is complete',
        'average': 'average the last checkpoints of a run, or several files',
    },
    'Get help': {
        'help': 'explain a verb, or one flag of it: `help train --lr`',
        'completion': 'print the completion of verbs and flags for bash or zsh',
    },
}
# in sentences the two that are meant most come first
VERBS: Dict[str, str] = {
    **dict.fromkeys(('train', 'validate')), **{verb: text for verbs in TASKS.values() for verb, text in verbs.items()}}
EXAMPLES = (
    'seresnet-timm doctor                                  # does it work here?',
    'seresnet-timm demo-data digits                        # a first training, a minute or two',
    'seresnet-timm train --preset digits_demo --data-dir digits --output output --experiment run',
    'seresnet-timm report output/run')
NEXT = (
    'seresnet-timm <verb> --help        # examples and all flags of a verb',
    'seresnet-timm help train --lr      # one flag: meaning, default, values')
WITHOUT_NPU = ('help', 'completion')
RUNS = ('train', 'validate', 'recipe')  # they collect no garbage before the first step
# packages whose absence means that another Python was started than the one that has this package
REQUIRED_PACKAGES = (
    'torch', 'timm', 'torchvision', 'yaml', 'numpy', 'PIL', 'safetensors', 'tqdm', 'huggingface_hub', 'psutil',
    'filelock',
)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run a command line; errors that a user can act on are one sentence on stderr and an exit code."""
    open_closed_streams()
    give_home()
    print_any_text()
    keep_exit_code()
    try:
        os.getcwd()
    except FileNotFoundError:  # libraries that torch loads ask for it, and end the process
        fail('The working folder was removed: go to another with cd, and run the command there.', UsageError.exit_code)
    try:
        dispatch(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()
    except (UsageError, RunError) as e:
        rank = os.environ.get('RANK', '')
        fail(str(e), e.exit_code, f' (rank {rank})' if rank.isdigit() else '')
    except OldTimm as e:
        fail(str(e))
    except KeyboardInterrupt:  # where a verb does not say more
        fail('Stopped by Ctrl-C.', 130)
    except BrokenPipeError:  # the reader, e.g. `head`, has ended
        discard(sys.stdout)
        sys.exit(1)
    except Exception as e:
        sentence = sentence_of(e)
        if sentence is None:
            raise
        fail(sentence)


def sentence_of(error: Exception) -> Optional[str]:
    """The sentence for an error of the machine or the installation, whatever the verb; None for another error."""
    fault = fault_of_stdout() if isinstance(error, OSError) and error.filename is None else None
    if fault is not None:
        discard(sys.stdout)
        return f'The output cannot be written to stdout ({fault}).'
    if isinstance(error, RuntimeError) and 'operator torchvision::' in str(error):
        return f'This torchvision does not belong to this torch: {install_command("torchvision")}'
    if isinstance(error, RuntimeError) and 'backend extension: torch_npu' in str(error):
        from seresnet_timm.ascend.errors import explain_import
        return explain_import(f'{error.__cause__ or error.__context__ or ""}\n{error}')
    if isinstance(error, ModuleNotFoundError) and error.name in REQUIRED_PACKAGES:
        name = error.name
        return (f'{name} is not installed for {sys.executable}: activate the environment that has this package '
                f'(`. .venv/bin/activate` after `make demo`), name its Python with PYTHON=..., or install {name} '
                f'there{": " + install_command(name) if name in ("timm", "torchvision") else "."}')
    if isinstance(error, EOFError) and 'marshal' in str(error):
        return (f'A compiled module of Python is damaged, as a full disk leaves it{_compiled_module(error)}: remove '
                'it, Python compiles it again.')
    from seresnet_timm.launch import limits
    sentence = limits.explain(error)
    if sentence is None and isinstance(error, OSError):
        from seresnet_timm.checkpoints import save_errors  # which imports what a limit may keep from being loaded
        return save_errors.explain(error)
    return sentence


def _compiled_module(error: EOFError) -> str:
    """The file that the import system was reading, as the end of a clause; '' if it does not say."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    path = next((f.f_locals['bytecode_path'] for f in frames if f.f_locals.get('bytecode_path')), None)
    return f' ({printable(path)})' if path else ''


def open_closed_streams() -> None:
    """Connect streams that the caller has closed (`>&-`) to /dev/null, so that no other file gets their numbers."""
    for name, mode in (('stdin', 'r'), ('stdout', 'w'), ('stderr', 'w')):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))


def give_home() -> None:
    """Give a user without a home folder `/`, as container engines do: libraries fail, or make a folder called `~`."""
    if not os.path.isabs(os.path.expanduser('~')):
        os.environ['HOME'] = '/'


def fault_of_stdout() -> Optional[str]:
    """Why stdout takes no more text, for example because its disk is full; None if it does."""
    try:
        sys.stdout.write('\n')  # without a buffer (PYTHONUNBUFFERED) the text that failed is gone
        sys.stdout.flush()
    except OSError as e:
        return e.strerror
    return None


def install_command(package: str) -> str:
    """How to install timm or torchvision without replacing torch."""
    from seresnet_timm.ascend import wheels
    return wheels.add_package_command(package, wheels.installed_pair())


def fail(message: str, exit_code: int = 1, where: str = '') -> None:
    lines = '\n'.join(printable(line) for line in message.split('\n'))
    try:
        print(f'seresnet-timm: error{where}: {lines}', file=sys.stderr)
    except OSError:  # nobody reads it, and the exit code stays what it is
        discard(sys.stderr)
    sys.exit(exit_code)


def dispatch(argv: List[str]) -> None:
    """Parse a command line and run its verb.

    Raises:
        UsageError: There is no such verb or flag, or an argument is wrong.
    """
    verb = argv[0] if argv else ''
    if verb not in VERBS:
        parser = make_parser()
        if not argv:
            parser.print_help()
            raise UsageError('Name a verb, for example `seresnet-timm doctor`; the list above has all.')
        if verb.startswith('-'):
            parser.parse_args(argv[:1])  # --help and --version end here, other flags are refused
        raise UsageError(f"Unknown verb '{verb}': {did_you_mean(verb, VERBS)}")
    module = module_of(verb)
    parser = make_parser(verb, module)
    parser.looks_for_files = True
    parser.find_contradictions = getattr(module, 'problems', parser.find_contradictions)
    args = parser.parse_args(argv)
    from seresnet_timm.engine.signals import StoppedEarly, stop_early  # 20 ms, for which --help does not wait
    try:
        with stop_early():
            if verb not in RUNS:
                gc.set_threshold(50_000, 20, 100)  # else the objects of torch are searched again and again: 0.6 s
            if verb not in WITHOUT_NPU and not HELP_FLAGS.intersection(argv):
                prepare()
            module.run(args)
    except StoppedEarly as e:
        print(e, file=sys.stderr)
        raise


def prepare() -> None:
    """What comes before a verb that imports torch."""
    from seresnet_timm.ascend.runtime import disable_incompatible_torch_npu  # 25 ms
    from seresnet_timm.launch import limits
    disable_incompatible_torch_npu()
    refuse_old_timm()
    refuse(limits.check())


def module_of(verb: str) -> ModuleType:
    """The file of a verb."""
    return importlib.import_module(f'seresnet_timm.cli.{verb.replace("-", "_")}')


def make_parser(verb: str = '', module: Optional[ModuleType] = None) -> ArgumentParser:
    """The parser of one verb, whose file is given; without a verb the parser of all, for their list."""
    parser = VerbsParser(
        prog='seresnet-timm', usage='seresnet-timm <verb> [options]',
        description=f'seresnet-timm {__version__}: train SE-ResNet on Ascend NPUs, GPUs and CPUs with timm',
        formatter_class=functools.partial(HelpFormatter, max_help_position=22))
    parser.examples, parser.next_steps = EXAMPLES, NEXT
    parser.add_argument('-V', '--version', action='version', version=__version__)
    verbs = parser.add_subparsers(metavar='<verb>', parser_class=ArgumentParser)
    for name in [verb] if verb else VERBS:  # all of them take 10 ms
        verb_parser = verbs.add_parser(name, help=VERBS[name], prog=f'seresnet-timm {name}')
    if verb:
        module.add_arguments(verb_parser)
        verb_parser.examples, verb_parser.next_steps = module.EXAMPLES, module.NEXT
        parser.rules = rules_of(verb)
    return parser


class VerbsParser(ArgumentParser):
    """The parser of all verbs. Its help lists them by what one wants to do."""

    def format_help(self) -> str:
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        lines = {a.dest: a for action in self._actions if isinstance(action, argparse._SubParsersAction)
                 for a in action._get_subactions()}
        for task, verbs in TASKS.items():
            formatter.start_section(task)
            formatter.add_arguments(lines[verb] for verb in verbs)
            formatter.end_section()
        formatter.start_section('Options')
        formatter.add_arguments(a for a in self._actions if a.option_strings)
        formatter.end_section()
        return guide(formatter.format_help(), self.examples, self.next_steps)
