"""The files that the documents name exist; the picture of the layers shows what the code imports."""
import re

import pytest
from conftest import ROOT, load_file

PLACES = [ROOT, ROOT / 'seresnet_timm', *(p for p in (ROOT / 'seresnet_timm').iterdir() if p.is_dir())]


@pytest.mark.parametrize('document', ['CONTRIBUTING.md', 'docs/architecture.md'])
def test_named_files_exist(document):
    text = (ROOT / document).read_text(encoding='utf-8')
    names = re.findall(r'`([\w/.]+(?:/|\.(?:py|c|j2|json|yaml|md|svg)))`|\]\((?!http|#)([^)]+)\)', text)
    named = {name or str(link).removeprefix('../') for name, link in names} - {'engine.train.py', 'cli/VERB.py'}
    assert len(named) > 20
    missing = [n for n in named if 'NAME' not in n and not any((p / n).exists() for p in [*PLACES, ROOT / 'docs'])]
    assert not missing


def test_architecture_lists_every_module():
    text = (ROOT / 'docs' / 'architecture.md').read_text(encoding='utf-8')
    tree = re.search(r'## Every file\n\n```\n(.*?)```', text, re.S)[1]
    listed, folder = [], ''
    for line in tree.splitlines():
        if re.fullmatch(r'\w+/', line):
            folder = line
        else:
            listed += [folder + name for name in re.match(r' *((?:\w+\.py *)+)', line)[1].split()]
    package = ROOT / 'seresnet_timm'
    modules = {str(p.relative_to(package)) for p in package.rglob('*.py')
               if p.name != '__init__.py' and 'recipes' not in p.relative_to(package).parts} | {'__init__.py'}
    assert sorted(listed) == sorted(modules)


@pytest.fixture
def draw_layers():
    return load_file(ROOT / 'docs' / 'draw_layers.py')


def test_arrows_that_others_imply_are_not_drawn(draw_layers):
    chain = {('cli', 'launch'), ('launch', 'hub'), ('hub', 'models')}
    implied = {('cli', 'hub'), ('cli', 'models'), ('launch', 'models')}
    assert draw_layers.without_implied(chain | implied | {('cli', 'runs')}) == chain | {('cli', 'runs')}


def test_a_picture_that_does_not_agree_is_reported(draw_layers, tmp_path):
    for name in ('cli', 'hub', 'lost'):
        (tmp_path / 'seresnet_timm' / name).mkdir(parents=True)
        (tmp_path / 'seresnet_timm' / name / '__init__.py').touch()
    draw_layers.ROOT, draw_layers.PICTURE = tmp_path, tmp_path / 'layers.svg'
    draw_layers.DECIDES = {'cli': 'verbs', 'hub': 'push, pull'}
    layers, edges = [['cli'], ['hub'], ['gone']], {('cli', 'hub'), ('hub', 'cli')}
    assert draw_layers.check(layers, edges) == [
        'lost is in no layer of pyproject.toml', 'gone of pyproject.toml does not exist',
        'gone is in DECIDES or in pyproject.toml only', 'hub imports cli, which is not below it',
        'layers.svg is out of date: run python docs/draw_layers.py']
    pytest.importorskip('matplotlib')
    (tmp_path / 'seresnet_timm' / 'lost' / '__init__.py').unlink()
    layers, edges = [['cli'], ['hub']], {('cli', 'hub')}
    draw_layers.draw(layers, edges, draw_layers.PICTURE)
    assert draw_layers.check(layers, edges) == []


def test_chinese_lines_are_joined_without_a_space():
    """As a browser shows a line end as one; code, English words, list items and tables stay as they are."""
    join = load_file(ROOT / 'docs' / 'join_lines.py').on_page_markdown
    assert join('在\n全部图像，\n  每张') == '在全部图像，每张'
    for same in ('用 timm\n的脚本', '图像\n\n数据', '* 一\n* 二', '| 一 |\n| 二 |', '```\n一\n二\n```', '文\n**粗**'):
        assert join(same) == same
