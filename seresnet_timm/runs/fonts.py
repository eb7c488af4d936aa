"""Fonts of pictures: letters that DejaVu Sans, which matplotlib brings, does not have."""
import functools
import sys
import warnings
from typing import Any, List, Sequence

# beginnings of names, the first that is installed is used: most have variants for regions (SC, CN, JP)
CHINESE_FONTS = (
    'Noto Sans CJK SC', 'Noto Sans SC', 'Source Han Sans SC', 'Source Han Sans CN', 'Noto Sans CJK', 'Source Han Sans',
    'WenQuanYi', 'Sarasa', 'HarmonyOS Sans SC', 'Microsoft YaHei', 'PingFang', 'Hiragino Sans GB', 'SimHei',
    'Droid Sans Fallback', 'Noto Serif CJK', 'Source Han Serif', 'SimSun', 'AR PL', 'Arial Unicode MS')


def families(font_manager: Any) -> List[str]:
    """DejaVu Sans, then the installed font for Chinese, if there is one.

    Args:
        font_manager: matplotlib's module. The list of fonts that it keeps on disk does not learn of later fonts.
    """
    chosen = choose(font.name for font in font_manager.fontManager.ttflist)
    if not chosen and add_new_fonts(font_manager):
        chosen = choose(font.name for font in font_manager.fontManager.ttflist)
    return ['DejaVu Sans', *chosen]


def choose(installed: Any) -> List[str]:
    """The first of `CHINESE_FONTS` that is installed; proportional letters before monospaced ones."""
    names = sorted(set(installed), key=lambda name: ('Mono' in name, name))
    return [name for start in CHINESE_FONTS for name in names if name.startswith(start)][:1]


@functools.lru_cache(maxsize=1)
def add_new_fonts(font_manager: Any) -> int:
    """Tell matplotlib of the fonts that were installed after it wrote its list, and return how many."""
    known = {font.fname for font in font_manager.fontManager.ttflist}
    added = 0
    for path in sorted(set(font_manager.findSystemFonts()) - known):
        try:
            font_manager.fontManager.addfont(path)
            added += 1
        except (OSError, RuntimeError, ValueError):  # a font that matplotlib cannot read, as one of pictures
            pass
    return added


def take_missing(caught: Sequence[warnings.WarningMessage]) -> bool:
    """Whether letters were missing, by matplotlib's warnings; the others are shown."""
    is_missing = False
    for item in caught:
        if str(item.message).startswith('Glyph '):
            is_missing = True
        else:
            warnings.warn_explicit(item.message, item.category, item.filename, item.lineno)
    return is_missing


@functools.lru_cache(maxsize=1)
def warn_of_missing_letters() -> None:
    """Say once in a process what the boxes in a picture are."""
    print('Warning: letters that no installed font has are drawn as boxes; for Chinese, install a font such as '
          'fonts-noto-cjk (Debian, Ubuntu) or google-noto-sans-cjk-fonts (openEuler), then repeat the command.',
          file=sys.stderr)
