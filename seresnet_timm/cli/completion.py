"""`seresnet-timm completion`: verbs, flags and their values, completed in bash or zsh"""
import argparse
from typing import Iterable

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
    from seresnet_timm.cli.main import VERBS
    from seresnet_timm.engine.values import rules_of
    top = ArgumentParser(prog='seresnet-timm')
    top.add_argument('-V', '--version', action='version', version='')
    verbs = top.add_subparsers(parser_class=ArgumentParser)
    for verb, text in VERBS.items():
        parser, rules = parser_of_words(verb), rules_of('train' if verb == 'recipe' else verb)
        for sub in parser.parsers():
            for action in sub._actions:
                complete_values(action, rules.get(action.dest))
        verbs.choices[verb] = parser
        verbs._choices_actions.append(verbs._ChoicesPseudoAction(verb, (), text))
    return top


def parser_of_words(verb: str) -> ArgumentParser:
    """The parser of a verb, with the words of one that parses its arguments elsewhere."""
    from seresnet_timm.cli import flag_help
    from seresnet_timm.cli.main import VERBS
    if verb == 'recipe':
        from seresnet_timm.launch.recipes import runnable_recipes
        return with_first_word(flag_help.parser_of('train'), runnable_recipes())
    if verb == 'bench':
        from seresnet_timm.cli.bench import BENCHES
        return with_first_word(ArgumentParser(), BENCHES)
    if verb == 'help':
        parser = ArgumentParser()
        verbs = parser.add_subparsers(parser_class=ArgumentParser)
        for name, text in VERBS.items():
            sub = verbs.add_parser(name, help=text, add_help=False)
            if name != 'help':
                add_names(sub, parser_of_words(name))
        return parser
    return flag_help.parser_of(verb)


def with_first_word(parser: ArgumentParser, words: Iterable[str]) -> ArgumentParser:
    """A parser that takes one of the words, then the flags of another."""
    result = ArgumentParser(add_help=False)
    result.add_argument('name', choices=list(words), nargs='?')
    for action in parser._actions:
        if action.option_strings:
            result._add_action(action)
    return result


def add_names(target: ArgumentParser, parser: ArgumentParser) -> None:
    """Add the flags of a parser as words without values, and the words that its sub-parsers stand for."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            words = target.add_subparsers(parser_class=ArgumentParser)
            for word, sub in action.choices.items():
                add_names(words.add_parser(word, help='', add_help=False), sub)
        elif action.option_strings and action.help != argparse.SUPPRESS:
            target.add_argument(*action.option_strings, action='store_true', help=action.help)
        elif action.choices:
            target.add_argument(action.dest, choices=action.choices, nargs='?')


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
