"""ArgumentParser whose errors are one sentence, and types of its arguments."""
import argparse
import ast
from typing import Sequence

from seresnet_timm.errors import UsageError, did_you_mean


class Parser(argparse.ArgumentParser):
    """ArgumentParser whose errors are one sentence (UsageError) without the usage text."""

    def error(self, message: str):
        raise UsageError(f'{message[:1].upper()}{message[1:]}.')


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


def unknown_flag_message(flags: Sequence[str], unknown: Sequence[str]) -> str:
    flag = next((u for u in unknown if u.startswith('-')), None)
    if flag is None:
        return f"Unexpected argument '{unknown[0]}': --help lists the flags."
    name = flag.split('=')[0]
    return f"Unknown flag '{name}': {did_you_mean(name, flags, '--help lists the flags.')}"
