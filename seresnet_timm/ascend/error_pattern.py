"""Words of an error and the fault that they tell"""
import re
from dataclasses import dataclass
from typing import Dict, Optional, Tuple

Facts = Dict[str, str]
Told = Optional[Tuple[str, Facts]]  # key of FAULTS, values found


@dataclass(frozen=True)
class Pattern:
    """Words of an error.

    Attributes:
        words: The pattern; its groups are values for the sentence.
        fault: Key of `FAULTS`, or a function of the match that chooses it (None: no fault).
        weight: How much it tells, as in `error_codes`.
    """
    words: 're.Pattern[str]'
    fault: object
    weight: int = 100

    def read(self, text: str) -> Told:
        match = self.words.search(text)
        if not match:
            return None
        if callable(self.fault):
            return self.fault(match)
        return str(self.fault), groups(match)


def groups(match: 're.Match[str]') -> Facts:
    return {k.rstrip('_'): v.strip(' ,;').rstrip(' .,;').replace(',]', ']') for k, v in match.groupdict().items() if v}


def pattern(words: str, fault: object, weight: int = 100) -> Pattern:
    return Pattern(re.compile(words), fault, weight)
