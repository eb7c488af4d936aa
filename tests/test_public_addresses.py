"""docs/public-addresses.md lists every public address of the source tree, with the files that hold it."""
import fnmatch
import ipaddress
import re
import subprocess

import pytest
from conftest import ROOT

DOCUMENT = 'docs/public-addresses.md'
# ends of names of hosts; others (.py, .md, .invalid) are files, or no public names
DOMAINS = 'com|org|net|cn|io|ai|co|edu|gov|dev|eu|de|uk|jp'
URL = re.compile(r'\b(?:https?|ftp|git|ssh)://(?:[^\s/@\'"]+@)?([\w.-]+\.[a-z]{2,})', re.IGNORECASE)
HOST = re.compile(rf'(?<![\w.@/{{-])((?:[a-z0-9-]+\.)+(?:{DOMAINS}))(?![\w(=\[-]|\.\w| *=[^=])', re.IGNORECASE)
EMAIL = re.compile(rf'[\w.+-]+@(?:[\w-]+\.)+(?:{DOMAINS})\b', re.IGNORECASE)
NUMBER = re.compile(r'(?<![\w.+-])\d{1,3}(?:\.\d{1,3}){3}(?![\w.])')
# names of Python that look like hosts
NAMES_IN_CODE = {'scipy.io'}


def addresses(text: str) -> set:
    """The public hosts, IP addresses and e-mail addresses of a text."""
    hosts = {host.lower() for pattern in (URL, HOST) for host in pattern.findall(text)} - NAMES_IN_CODE
    hosts = {host for host in hosts if not host.endswith(('.invalid', '.local', '.test', '.example', '.inside'))}
    hosts -= {'example.org', 'example.com', 'example.net'}  # reserved for examples
    numbers = {n for n in NUMBER.findall(text) if all(int(p) < 256 for p in n.split('.'))
               and ipaddress.ip_address(n).is_global}
    return hosts | numbers | set(EMAIL.findall(text))


def source_files() -> list:
    """Files that the repository holds, except tests; without git, those of the source distribution."""
    result = subprocess.run(['git', 'ls-files', '--cached', '--others', '--exclude-standard'], cwd=ROOT,
                            capture_output=True, text=True)
    names = result.stdout.split('\n') if result.returncode == 0 else [
        str(p.relative_to(ROOT)) for top in ('seresnet_timm', 'recipes', 'docs', 'benchmarks')
        for p in (ROOT / top).rglob('*')] + [p.name for p in ROOT.iterdir()]
    return sorted(n for n in names if n and (ROOT / n).is_file() and not n.startswith('tests/') and n != DOCUMENT
                  and (ROOT / n).suffix not in ('.so', '.pyc', '.png', '.jpg'))


def in_tree() -> dict:
    found = {}
    for name in source_files():
        for address in addresses((ROOT / name).read_text(encoding='utf-8')):
            found.setdefault(address, set()).add(name)
    return found


def in_document() -> dict:
    """The rows of its first table: address, files, what for, when it is contacted."""
    text = (ROOT / DOCUMENT).read_text(encoding='utf-8').split('\n## ')[1]
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in text.split('\n') if line.startswith('| ')]
    assert all(len(row) == 4 and all(row) for row in rows)
    files = source_files()
    return {row[0]: {name for pattern in re.findall(r'`([^`]+)`', row[1])
                     for name in fnmatch.filter(files, pattern) or [pattern]} for row in rows[1:]}


def test_every_address_is_listed_with_its_files():
    tree, document = in_tree(), in_document()
    assert {a: sorted(f) for a, f in tree.items()} == {a: sorted(f) for a, f in document.items()}
    assert len(tree) > 8


@pytest.mark.parametrize('text, expected', (
    ('see https://hub.example.cn/x', {'hub.example.cn'}), ("URL = 'http://8.8.8.8:80/x'", {'8.8.8.8'}),
    ("host = 'obs.cn-north-4.myhuaweicloud.com'", {'obs.cn-north-4.myhuaweicloud.com'}),
    ('ftp://me:word@files.host.xyz/a', {'files.host.xyz'}), ('write to a.b@host.org', {'a.b@host.org'}),
    ('git@github.com:org/x.git', {'git@github.com'}), ('www.hiascend.com', {'www.hiascend.com'}),
    ('http://127.0.0.1:9, 10.0.0.1, 192.168.1.2, 2.10.0.post7', set()), ('http://timm.invalid/x', set()),
    ('x.io.read(), args.cn = 1, train.py, a.md', set())))
def test_what_an_address_is(text, expected):
    assert addresses(text) == expected


def test_readme_links_the_statement():
    for name in ('README.md', 'README.zh-CN.md', 'SECURITY.md'):
        assert f']({DOCUMENT})' in (ROOT / name).read_text(encoding='utf-8')


def test_citation_is_complete():
    import yaml

    from seresnet_timm.version import __version__
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text(encoding='utf-8'))
    assert {'cff-version', 'message', 'title', 'authors'} <= set(citation)  # what the format requires
    assert citation['cff-version'] == '1.2.0' and citation['type'] == 'software' and citation['license'] == 'Apache-2.0'
    assert citation['version'] == __version__ and isinstance(citation['version'], str)
    for entry in [citation, *citation['references']]:
        assert entry['title'] and entry['authors'] and all(
            {'name'} <= set(a) or {'family-names', 'given-names'} <= set(a) for a in entry['authors'])
