"""Hook of mkdocs: joins the lines of Chinese text, between which a browser would show a space"""
import re

WIDE = '[\u3000-\u303f\u3400-\u4dbf\u4e00-\u9fff\uff00-\uffef]'  # Chinese characters, and their punctuation
CODE_OR_LINE_END = re.compile(rf'(^ *```.*?^ *```$)|(?<={WIDE})\n *(?={WIDE})', re.M | re.S)


def on_page_markdown(markdown: str, **_page) -> str:
    """What mkdocs calls for every page."""
    return CODE_OR_LINE_END.sub(lambda found: found[1] or '', markdown)
