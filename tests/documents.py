"""The pages for users: their code blocks, links, headings and words"""
import re
import shlex
import unicodedata
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Tuple

ROOT = Path(__file__).resolve().parent.parent
READMES = ('README.md', 'README.zh-CN.md')
FENCE = re.compile(r'^( *)```(\w*)\n(.*?)^\1```$', re.M | re.S)


class Command(NamedTuple):
    """A line of a code block for the shell, without its comment.

    Attributes:
        page: The page.
        text: The line; lines that end in a backslash are joined.
    """
    page: str
    text: str

    @property
    def words(self) -> List[str]:
        return shlex.split(self.text)


def pages() -> List[str]:
    """Every page that is for users: the READMEs and docs/."""
    return [*READMES, *sorted(str(p.relative_to(ROOT)) for p in (ROOT / 'docs').rglob('*.md'))]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding='utf-8')


def chinese_pages() -> List[str]:
    return [p for p in pages() if 'zh-CN' in p]


def commands(page: str) -> Iterator[Command]:
    """The commands of the blocks that are marked bash, and of unmarked ones that begin like a command."""
    for _, language, block in FENCE.findall(read(page)):
        if language in ('bash', 'sh', 'shell', 'console'):
            for line in block.replace('\\\n', ' ').splitlines():
                text = without_comment(line).strip()
                if text:
                    yield Command(page, text)


def python_blocks(page: str) -> List[str]:
    return [block for _, language, block in FENCE.findall(read(page)) if language == 'python']


def inline_commands(page: str) -> Iterator[Command]:
    """The commands within sentences and tables: `seresnet-timm ...`, `bash recipes/...`, `make ...`, `pip ...`."""
    for text in re.findall(r'(?<!`)`([^`]+)`(?!`)', FENCE.sub('', read(page))):
        text = ' '.join(text.split())
        if re.match(r'(seresnet-timm|make|pip|sbatch|python -m|kubectl|docker) [a-z]|(bash|python) [\w.-]+/', text):
            yield Command(page, text)


def without_comment(line: str) -> str:
    """A line of a shell without its comment; # in quotes and in words is none."""
    quote = ''
    for i, c in enumerate(line):
        if quote:
            quote = '' if c == quote else quote
        elif c in '\'"':
            quote = c
        elif c == '#' and (i == 0 or line[i - 1].isspace()):
            return line[:i]
    return line


def simple_commands(text: str) -> List[List[str]]:
    """The words of each command of a line: of `cd a && make` two; redirections, pipes and variables are left out."""
    found = []
    for part in re.split(r'\s(?:&&|\|\||\||;)\s', re.sub(r'\s\d?>{1,2}\s*\S+', '', text)):
        words = shlex.split(part)
        while words and re.fullmatch(r'[A-Z_]+=.*', words[0]):
            words = words[1:]
        if words:
            found.append(words)
    return found


def prose(text: str) -> str:
    """A page without code, addresses of links and HTML comments."""
    text = FENCE.sub('', text)
    text = re.sub(r'<!--.*?-->', '', text, flags=re.S)
    return re.sub(r'\]\([^)]*\)', ']', re.sub(r'``.+?``|`[^`]*`', '', text))


def links(page: str) -> List[Tuple[str, str]]:
    """Path and anchor of every link of a page to a file of this repository."""
    text = re.sub(r'``.+?``|`[^`]*`', '', FENCE.sub('', read(page)))
    targets = re.findall(r'\]\(([^()\s]+(?:\([^)]*\))?)\)', text)
    return [(t.partition('#')[0], t.partition('#')[2]) for t in targets if not re.match(r'[a-z]+:', t)]


def anchors(page: str) -> Dict[str, str]:
    """Anchor of every heading -> heading, as GitHub, Gitee and the web site make it."""
    found: Dict[str, str] = {}
    for heading in re.findall(r'^#{1,6} +(.+?) *$', FENCE.sub('', read(page)), re.M):
        plain = re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', heading).replace('`', '').replace('**', '').lower()
        slug = ''.join(c for c in plain if c in '-_ ' or unicodedata.category(c)[0] in 'LN')
        slug, n = slug.replace(' ', '-'), 0
        while (name := slug + (f'-{n}' if n else '')) in found:
            n += 1
        found[name] = heading
    return found
