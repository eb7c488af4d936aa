"""The files that the documents name exist."""
import re

import pytest
from conftest import ROOT

PLACES = [ROOT, ROOT / 'seresnet_timm', *(p for p in (ROOT / 'seresnet_timm').iterdir() if p.is_dir())]


@pytest.mark.parametrize('document', ['CONTRIBUTING.md', 'docs/architecture.md'])
def test_named_files_exist(document):
    text = (ROOT / document).read_text(encoding='utf-8')
    names = re.findall(r'`([\w/.]+(?:/|\.(?:py|c|j2|json|yaml|md|svg)))`|\]\((?!http|#)([^)]+)\)', text)
    named = {name or str(link).removeprefix('../') for name, link in names} - {'engine.train.py', 'cli/VERB.py'}
    assert len(named) > 20
    missing = [n for n in named if 'NAME' not in n and not any((p / n).exists() for p in [*PLACES, ROOT / 'docs'])]
    assert not missing
