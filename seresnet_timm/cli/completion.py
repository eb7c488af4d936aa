"""`seresnet-timm completion`: verbs, flags and their values, completed in bash or zsh"""
import argparse
from typing import List, Optional

from seresnet_timm.argument_parser import ArgumentParser
from seresnet_timm.errors import RunError

EXAMPLES = (
    'seresnet-timm completion bash > ~/.seresnet-timm.bash && echo ". ~/.seresnet-timm.bash" >> ~/.bashrc',
    'mkdir -p ~/.zsh && seresnet-timm completion zsh > ~/.zsh/_seresnet-timm',
    "echo 'fpath+=(~/.zsh); autoload -Uz compinit; compinit' >> ~/.zshrc   # once, after the line above")
NEXT = ('Open a new shell, write `seresnet-timm train --mod` and press the tab key.',)
SHELLS = ('bash', 'zsh')


def add_arguments(parser: ArgumentParser) -> None:
    parser.description = (
        'Print a script that completes verbs, flags, names of values and files of seresnet-timm. Print it again after '
        "an update. It needs shtab: pip install 'seresnet-timm[completion]', or pip install shtab.")
    parser.add_argument('shell', choices=SHELLS, metavar='SHELL', help='bash or zsh')


def run(args: argparse.Namespace) -> None:
    try:
        import shtab
    except ImportError:
        raise RunError('shtab is not installed, which writes the completion: pip install shtab.')
    print(shtab.complete(whole_parser(), shell=args.shell))


def whole_parser() -> ArgumentParser:
    """One parser with all verbs and all their flags, and what completes their values."""
    from seresnet_timm.cli import flag_help
    from seresnet_timm.cli.main import VERBS
    from seresnet_timm.engine.values import rules_of
    top = ArgumentParser(prog='seresnet-timm')
    top.add_argument('-V', '--version', action='version', version='')
    verbs = top.add_subparsers(parser_class=ArgumentParser)
    for verb, text in VERBS.items():
        parser = flag_help.parser_of(verb)
        names = first_words(verb)
        if names:  # its flags are parsed elsewhere
            parser = ArgumentParser(prog=parser.prog)
            parser.add_argument('name', choices=names, nargs='?')
        for sub in parser.parsers():
            for action in sub._actions:
                complete_values(action, rules_of(verb).get(action.dest))
        verbs.choices[verb] = parser
        verbs._choices_actions.append(verbs._ChoicesPseudoAction(verb, (), text))
    return top


def first_words(verb: str) -> Optional[List[str]]:
    """The words that may follow a verb whose flags are not in its parser."""
    if verb == 'recipe':
        from seresnet_timm.launch.recipes import runnable_recipes
        return list(runnable_recipes())
    if verb == 'bench':
        from seresnet_timm.cli.bench import BENCHES
        return list(BENCHES)
    if verb == 'help':
        from seresnet_timm.cli.main import VERBS
        return list(VERBS)
    return None


def complete_values(action: argparse.Action, rule) -> None:
    """Tell shtab what completes the value of an argument."""
    import shtab

    from seresnet_timm.engine.values import FilePath, Names, Output
    from seresnet_timm.launch.recipes import recipes_dir
    if action.dest in ('preset', 'recipe'):
        action.choices = sorted(path.stem for path in recipes_dir().glob('*.yaml'))
    elif action.choices or action.nargs == 0 or action.help == argparse.SUPPRESS:
        return
    elif isinstance(rule, Output) and rule.is_folder or action.metavar == 'DIR':
        action.complete = shtab.DIRECTORY
    elif isinstance(rule, FilePath):
        action.complete = shtab.FILE
    elif isinstance(rule, Names) and not rule.first_part:
        action.choices = rule.known
    elif action.dest == 'device':
        action.choices = ('auto', 'npu', 'cuda', 'cpu')
