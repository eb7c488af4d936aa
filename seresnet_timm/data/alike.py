"""Names that look alike and are not the same: what they look like, and the characters in which they differ"""
import os
import re
import unicodedata

from seresnet_timm.data.label_files import quote


def describe_alike(a: str, b: str, where_a: str, where_b: str) -> str:
    """Two names that look alike, with the characters in which they differ."""
    reason = 'Unicode normalization, case or white space'
    forms = {unicodedata.normalize('NFC', n) for n in (a, b)}
    if len(forms) == 1:
        reason = 'Unicode normalization: ' + ' and '.join(
            'NFC' if unicodedata.is_normalized('NFC', n) else 'NFD' if unicodedata.is_normalized('NFD', n)
            else 'another form' for n in (a, b))
    elif a.lower() == b.lower():
        reason = 'case'
    elif a.split() == b.split():
        reason = 'white space'
    elif looks(a) != looks(a, letters=False) or looks(b) != looks(b, letters=False):
        reason = 'letters of another alphabet'
    return (f'{quote(a)} in {where_a} and {quote(b)} in {where_b} look alike and are not the same name ({reason}: '
            f'{_code_points(a, b)} and {_code_points(b, a)})')


def is_written_twice(a: str, b: str) -> bool:
    """Two names are one in other characters; letters of two alphabets are two names."""
    return looks(a, letters=False) == looks(b, letters=False)


def _code_points(name: str, other: str) -> str:
    """The part of a name that is not in another one, as code points."""
    start = len(os.path.commonprefix([name, other]))
    end = min(len(os.path.commonprefix([name[::-1], other[::-1]])), len(name) - start, len(other) - start)
    part = name[start:len(name) - end]
    if any(unicodedata.combining(c) for c in name[start:] + other[start:]) and start:
        part = name[start - 1:len(name) - end] if unicodedata.combining(part[:1] or 'a') else part
    return ' '.join(f'U+{ord(c):04X}' for c in part) or 'nothing'


# letters of other alphabets by the Latin ones that they look like
_LOOKALIKES = str.maketrans(
    'АВЕКМНОРСТХаеорсухіјѕԁһӏѴԛԝΑΒΕΖΗΙΚΜΝΟΡΤΥΧοινІЈЅ',
    'ABEKMHOPCTXaeopcyxijsdhlVqwABEZHIKMNOPTYXoivIJS')


def looks(name: str, letters: bool = True, fold: bool = False) -> str:
    """What a name looks like: without the form of its accents, white space at its ends and what nobody can see.

    Args:
        name: The name.
        letters: Letters of other alphabets are those that they look like.
        fold: Case and the width of characters do not count either.
    """
    name = unicodedata.normalize('NFKC' if fold else 'NFC', name)
    name = ''.join(c for c in name if unicodedata.category(c) != 'Cf')
    name = name.translate(_LOOKALIKES) if letters else name
    return re.sub(r'\s+', ' ', name.casefold() if fold else name).strip()
