"""What a user is told of a text."""
from seresnet_timm.ascend.errors import diagnose_text


def assert_told(text: str, fault: str, what: str, remedy: str) -> None:
    """The first fault of a text has this name; its sentence and its remedy hold these words, and no blanks."""
    first = diagnose_text(text).first
    assert first.fault == fault and first.known
    assert what in first.what and remedy in first.remedy
    assert '{' not in first.what + first.remedy and '?' not in first.what
