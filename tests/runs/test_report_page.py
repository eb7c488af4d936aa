"""The HTML page: it needs no network, its tags are balanced, names are texts in it; how a browser shows it."""
import base64
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from PIL import Image
from test_predictions import make

from seresnet_timm.runs import report, report_page, report_rows
from seresnet_timm.runs.read import Run, names_of
from seresnet_timm.runs.record import RunRecord
from seresnet_timm.runs.settings import RunSettings, Script

ODD = ('<script>alert(1)</script>', '"><img src=x onerror=alert(1)>', '&lt;b&gt;', os.fsdecode(b'caf\xe9'),
       "it's $title", '\u732b \u202egpj', '\x1b[31mred', 'x' * 300)
VOID = ('meta', 'img', 'br')
BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


class Page(HTMLParser):
    """The tags of a page, in order; refuses what is not balanced."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    """Two runs under odd names, one with predictions of classes and files under odd names."""
    root = tmp_path_factory.mktemp('page')
    runs = []
    for name in ODD[:2]:
        settings = RunSettings(
            verb='train', script=Script('train.py'), command=['seresnet-timm', 'train', '--data-dir', ODD[1]],
            args=dict(model='seresnet50_ascend', batch_size=8, device='cpu', epochs=2, data_dir=ODD[0]),
            reasons={'device': ODD[2]})
        record = RunRecord(settings, root / name.replace('/', '\u2215'), None, ODD[1])
        record.add_epoch(dict(epoch=0, fps=10., train_seconds=1.))
        record.add_fault('restart', 0, ODD[0])
        rows = [dict(epoch=0, train_loss=1., eval_loss=1., eval_top1=50., lr=.1)]
        runs.append(Run(record.folder, record.content, rows))
    files = [str(root / f'{i}{name[:20]}.png'.replace('/', '\u2215')) for i in range(5) for name in ODD]
    for file in files:
        Image.new('RGB', (9, 9), 'blue').save(file)
    found = make(len(ODD), names=list(ODD), files=files, unreadable=1)
    rows = [report_rows.row_of(run, name) for run, name in zip(runs, names_of(runs))]
    path = root / 'page.html'
    report.write_text(str(path), report_page.make_page(runs, rows, [found, None], 5))
    return path


def test_no_network_and_balanced(page):
    text = page.read_text(encoding='utf-8')
    parsed = Page(text)
    for tag, attributes in parsed.tags:
        assert tag not in ('script', 'link', 'iframe', 'object', 'base')
        assert not any(a.startswith('on') for a in attributes)
        for name in ('src', 'href', 'srcset', 'action', 'data', 'poster'):
            assert attributes.get(name, '#').startswith(('#', 'data:image/'))
    style = re.search('<style>(.*?)</style>', text, re.S)[1]
    assert 'url(' not in style and '@import' not in style and 'http' not in style
    assert any("default-src 'none'" in a.get('content', '') for _, a in parsed.tags)


def test_accessible(page):
    parsed = Page(page.read_text(encoding='utf-8'))
    tags = [tag for tag, _ in parsed.tags]
    pictures = [a for tag, a in parsed.tags if tag == 'img']
    assert len(pictures) == 7 and all(a['alt'].strip() for a in pictures)  # curves, matrix, five images
    assert tags.count('h1') == 1 and tags.count('main') == 1 and dict(parsed.tags)['html']['lang'] == 'en'
    heads = [int(t[1]) for t in tags if re.fullmatch('h[1-6]', t)]
    assert all(b - a <= 1 for a, b in zip(heads, heads[1:]))
    tables = tags.count('table')
    boxes = [a for tag, a in parsed.tags if tag == 'div' and a.get('class') == 'scroll']
    assert len(boxes) == tables > 5 and all(a['tabindex'] == '0' and a['aria-label'] for a in boxes)
    ids = {a['id'] for _, a in parsed.tags if 'id' in a}
    assert {a['href'][1:] for tag, a in parsed.tags if tag == 'a'} == ids == {'run-0', 'run-1'}


def test_names_are_texts(page):
    text = page.read_text(encoding='utf-8')
    shown = ' '.join(Page(text).texts)
    for name in ODD[:3]:
        assert name in shown
    assert "it's $title" in shown and 'caf\\udce9' in shown and '\\x1b[31mred' in shown and '\\u202egpj' in shown
    assert '\x1b' not in text and '\u202e' not in text


def test_pictures_are_whole(page):
    data = re.findall('src="data:image/([a-z]+);base64,([^"]+)"', page.read_text(encoding='utf-8'))
    assert sorted({kind for kind, _ in data}) == ['jpeg', 'png']
    assert all(base64.b64decode(code, validate=True)[:2] in (b'\x89P', b'\xff\xd8') for _, code in data)


@pytest.mark.skipif(BROWSER is None, reason='no chromium is installed: apt-get install chromium')
@pytest.mark.slow
@pytest.mark.parametrize('width', (1280, 400))
def test_in_a_browser(page, tmp_path, width):
    """Nothing is wider than the window, every picture is drawn, and no script of a name has run."""
    probe = tmp_path / 'probe.html'
    code = ('<script>onload = () => {const d = document, n = [...d.images].filter(i => !i.naturalWidth).length;'
            'd.title = JSON.stringify([d.documentElement.scrollWidth, innerWidth, n, d.images.length])}</script>')
    text = page.read_text(encoding='utf-8')
    policy = re.search('<meta http-equiv[^>]*>', text)[0]
    probe.write_text(text.replace(policy, '').replace('</head>', code + '</head>'), encoding='utf-8')
    dom = subprocess.run(
        [BROWSER, '--headless', '--no-sandbox', '--disable-gpu', f'--window-size={width},900',
         '--virtual-time-budget=3000', '--dump-dom', f'file://{probe}'], capture_output=True, text=True, timeout=120)
    found, window, broken, images = json.loads(re.search('<title>(.*?)</title>', dom.stdout)[1])
    assert found <= window and broken == 0 and images == 7
