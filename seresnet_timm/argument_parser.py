"""ArgumentParser whose errors are one sentence, and types of its arguments."""
import argparse
import ast
from typing import List, Sequence

from seresnet_timm.errors import UsageError, did_you_mean

HELP_FLAGS = frozenset(('-h', '--help'))


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser; an error is one sentence (UsageError) without the usage text."""

    def error(self, message: str):
        raise UsageError(f'{message[:1].upper()}{message[1:]}.')

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        namespace, unknown = self.parse_known_args(args, namespace)
        if unknown:
            raise UsageError(unknown_flag_message(self.flags(), unknown))
        return namespace

    def flags(self) -> List[str]:
        """Every flag of this parser and of its sub-parsers."""
        found = [flag for action in self._actions for flag in action.option_strings]
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                found += [flag for parser in action.choices.values() for flag in parser.flags()]
        return list(dict.fromkeys(found))

    def leave_unparsed(self, dest: str) -> None:
        """Store all arguments as they are, flags and --help too, for another parser."""
        self.prefix_chars = '\0'  # no argument starts with it, so argparse takes none for a flag
        self.add_argument(dest, nargs=argparse.REMAINDER)


class KeyValues(argparse.Action):
    """`--opt-kwargs a=1 b=text` as a dict; values are Python literals, else strings."""

    def __call__(self, parser, namespace, values, option_string=None):
        result = {}
        for item in values:
            key, equals, value = item.partition('=')
            if not equals or not key:
                parser.error(f"{option_string} takes key=value pairs, got '{item}'")
            try:
                result[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                result[key] = value
        setattr(namespace, self.dest, result)


def positive_int(text: str) -> int:
    """Type of an argument that counts something: 1, 2, ..."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive whole number")
    return int(text)


def unknown_flag_message(flags: Sequence[str], unknown: Sequence[str]) -> str:
    """One sentence on the arguments that a parser did not recognise."""
    flag = next((u for u in unknown if u.startswith('-')), None)
    if flag is None:
        return f"Unexpected argument '{unknown[0]}': --help lists the flags."
    name = flag.split('=')[0]
    return f"Unknown flag '{name}': {did_you_mean(name, flags, '--help lists the flags.')}"
