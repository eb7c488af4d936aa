"""The ends of sentences, and text that is safe for a terminal."""
import pytest

from seresnet_timm.errors import printable, redact


@pytest.mark.parametrize('text,expected', [
    *[(text, text) for text in ('Jose\u0301 caf\xe9', '\u732b \u3000 \xa0', '\U0001f468\u200d\U0001f469')],
    (r'C:\data\x', r'C:\data\x'),
    ('\x1b[2Jgone\x07', r'\x1b[2Jgone\x07'),
    ('a\nb\tc\rd\x7f', r'a\nb\tc\rd\x7f'),
    ('\x9b31m', r'\x9b31m'),
    ('line\u2028next\u2029', r'line\u2028next\u2029'),
    ('exe.\u202egnp', r'exe.\u202egnp'),
    ('\u2066x\u2069', r'\u2066x\u2069'),
    ('bad\udcff', r'bad\udcff'),
    ('tag\U000e0041 \ufeff', r'tag\U000e0041 \ufeff'),
])
def test_printable_escapes_controls_and_keeps_other_text(text, expected):
    assert printable(text) == expected
    assert printable(text).encode() and len(printable(text).splitlines()) == 1


def test_what_is_printed_or_pushed_holds_no_secret():
    text = ('my-own-word of hf_abcdefgh at https://me:word@hub/x, http://hub/y?Signature=abc&Expires=1 and '
            'hf_hub_offline, https://hub/z')
    assert redact(text, ('my-own-word', '')) == (
        '*** of hf_*** at https://***@hub/x, http://hub/y and hf_hub_offline, https://hub/z')
