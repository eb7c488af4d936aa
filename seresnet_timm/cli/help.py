"""`seresnet-timm help`: a verb, or one flag of a verb"""
import argparse
from typing import List

from seresnet_timm.argument_parser import HELP_FLAGS, ArgumentParser
from seresnet_timm.errors import UsageError, did_you_mean

EXAMPLES = (
    'seresnet-timm help train --lr   # meaning, default, unit and values of a flag, and where it comes from',
    'seresnet-timm help export')
NEXT = ('seresnet-timm completion bash   # completion of verbs and flags in your shell',)


def add_arguments(parser: ArgumentParser) -> None:
    parser.leave_unparsed()


def run(args: argparse.Namespace) -> None:
    from seresnet_timm.cli.main import VERBS, make_parser
    words: List[str] = args.argv
    if words and words[0] in HELP_FLAGS:
        parser = ArgumentParser(
            prog='seresnet-timm help', usage='seresnet-timm help [<verb> [FLAG ...]]',
            description='Explain a verb, or flags of it.', add_help=False)
        parser.examples, parser.next_steps = EXAMPLES, NEXT
        parser.print_help()
    elif not words:
        make_parser().print_help()
    elif words[0] not in VERBS:
        raise UsageError(f"Unknown verb '{words[0]}': {did_you_mean(words[0], VERBS)}")
    else:
        explain(words[0], words[1:])


def explain(verb: str, words: List[str]) -> None:
    """Print the help of a verb, or of its flags.

    Args:
        verb: One of the verbs.
        words: Flags, with or without hyphens; before them the word that follows the verb (`scripts fetch`,
            `recipe train_8p`), if any.
    """
    from seresnet_timm.cli import flag_help
    from seresnet_timm.cli.main import dispatch
    choice: List[str] = []
    if verb == 'bench' or not words:
        dispatch([verb, *words, '--help'])
        return
    if verb == 'recipe':
        from seresnet_timm.launch.recipes import runnable_recipes
        recipe = runnable_recipes().get(words[0])
        if recipe and not words[1:]:
            dispatch([verb, words[0], '--help'])
            return
        verb, words = (recipe.verb, words[1:]) if recipe else ('train', words)
    parser = flag_help.parser_of(verb)
    actions = flag_help.sub_parsers(parser)
    if words[0] in actions:
        choice, parser, words = [words[0]], actions[words[0]], words[1:]
        if not words:
            dispatch([verb, *choice, '--help'])
            return
    print('\n\n'.join(flag_help.describe(verb, parser, word) for word in words))
