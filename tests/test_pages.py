"""READMEs and docs/: every command is understood, links lead somewhere, error texts are those of the code, the pages
in two languages agree, and the web site builds without a warning and without addresses of others."""
import ast
import configparser
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys

import documents
import preloaded
import pytest
from conftest import ROOT, load_file, run_here

from seresnet_timm.argument_parser import HELP_FLAGS
from seresnet_timm.cli.main import VERBS, make_parser, module_of
from seresnet_timm.launch.parse import parse

MAX_WORDS = 1200  # of a README, by wc -w


# --- commands ---------------------------------------------------------------------------------------------------------

def check_package(words: list) -> None:
    """A command line of this package is understood by the parser that would read it."""
    verb, *argv = [w for w in words[1:] if w != '...']
    if verb in ('train', 'validate'):
        parsed = parse(verb, argv)
        assert not parsed.problems, parsed.problems
    elif verb == 'recipe':
        check_recipe(argv[0], argv[1:])
    elif verb == 'tune':
        assert not parse('train', module_of(verb).help_parser().parse_known_args(argv)[1]).problems
    elif verb == 'bench':
        check_script([f'benchmarks/{argv[0]}.py', *argv[1:]])
    elif verb == 'help':
        assert 'meaning' in run_here(verb, *argv).stdout or 'usage:' in run_here(verb, *argv).stdout
    elif not HELP_FLAGS.intersection(argv):
        make_parser(verb, module_of(verb)).parse_args([verb, *argv])


def check_recipe(name: str, argv: list) -> None:
    assert (ROOT / 'recipes' / f'{name}.yaml').is_file(), name
    parsed = parse('validate' if name.startswith('eval') else 'train', argv)
    assert not parsed.problems
    assert not parsed.problems, parsed.problems


def check_script(words: list) -> None:
    """A script of the checkout is there, and has the flags that are given to it."""
    source = (ROOT / words[0]).read_text(encoding='utf-8')
    for flag in [w.partition('=')[0] for w in words[1:] if w.startswith('--')]:
        assert flag in source or f"'{flag[2:]}'" in source, (words[0], flag)


def check_bash(words: list) -> None:
    path = words[1]
    assert (ROOT / path).is_file(), path
    name = os.path.basename(path).removesuffix('.sh')
    if (ROOT / 'recipes' / f'{name}.yaml').is_file():
        check_recipe(name, words[2:])
    elif name in ('run', 'start'):
        check_recipe(words[2], words[3:])
    else:
        check_script(words[1:])


def check_sbatch(words: list) -> None:
    script = next(i for i, word in enumerate(words) if word.endswith('.sbatch'))
    assert (ROOT / words[script]).is_file()
    check_recipe(words[script + 1], words[script + 2:])


def check_python(words: list) -> None:
    if words[1] == '-m':
        assert importlib.util.find_spec(words[2]), words[2]
    elif words[1] == 'train.py':  # timm's
        assert not parse('train', [w for w in words[2:] if w != '...']).problems
    elif words[1].endswith('start.py'):
        check_recipe(*boot_file_command(words))
    else:
        check_script(words[1:])


def boot_file_command(words: list) -> tuple:
    _, _, name, *argv = load_file(ROOT / words[1]).command(words[2:])
    return name, argv


def check_pip(words: list) -> None:
    """Extras that setup.cfg has, constraints that are there; pip itself is not run."""
    assert words[1] == 'install', words
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    extras = set(config['options.extras_require'])
    for word in words[2:]:
        for named in re.findall(r'^(?:\.|seresnet[_-]timm)\[([\w,]+)\]$', word):
            assert set(named.split(',')) <= extras, word
        if word.startswith('seresnet_timm/'):
            assert (ROOT / word).is_file(), word
    known = {'-c', '-e', '--extra-index-url', '--no-index', '--find-links'}
    assert {w for w in words[2:] if w.startswith('-')} <= known, words


def check_make(words: list) -> None:
    targets = re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.M)
    assert [w for w in words[1:] if '=' not in w and w not in targets] == [], words


def check_atc(words: list) -> None:
    """The flags that `export` prints."""
    source = (ROOT / 'seresnet_timm' / 'inference' / 'export.py').read_text()
    assert all(w.partition('=')[0] in source for w in words[1:]), words


def check_files(words: list) -> None:
    """The files that follow -f are there."""
    assert words[1] in ('apply', 'build', 'describe', 'load', 'run'), words
    assert all((ROOT / words[i + 1]).is_file() for i, word in enumerate(words) if word == '-f'), words


def is_exactly(*allowed):
    """The rule for a command of another program: it is one of these lines."""
    def check(words: list) -> None:
        assert shlex.join(words) in {shlex.join(shlex.split(line)) for line in allowed}, words
    return check


# first word of a command -> its check; a word that is not here makes the test fail
RULES = {
    'seresnet-timm': check_package, 'bash': check_bash, 'sbatch': check_sbatch, 'python': check_python,
    # tests/recipes/ parses the files and runs what they call
    'python3': check_python, 'docker': check_files, 'kubectl': check_files,
    'pip': check_pip, 'make': check_make, 'atc': check_atc,
    'npu-smi': is_exactly('npu-smi info'), 'cd': is_exactly('cd seresnet_timm'),
    '.': is_exactly('. .venv/bin/activate'),
    'source': is_exactly('source /usr/local/Ascend/ascend-toolkit/set_env.sh'),
    'tensorboard': is_exactly('tensorboard --logdir output'),
    'export': is_exactly('export HF_TOKEN=...'),
    'echo': is_exactly('echo ". ~/.seresnet-timm.bash"',
                       "echo 'fpath+=(~/.zsh); autoload -Uz compinit; compinit'"),
    'mkdir': is_exactly('mkdir -p ~/.zsh'),
}


def check(command: documents.Command) -> None:
    for words in documents.simple_commands(command.text):
        assert words[0] in RULES, f'no rule in RULES of {__name__} for: {command.text}'
        RULES[words[0]](words)


def test_every_command_is_understood():
    """By the parser that would read it; those of other programs by a rule."""
    found = {command.text: command for page in documents.pages() for command in documents.commands(page)}
    lines = [words for text in found for words in documents.simple_commands(text)]
    verbs = {words[1] for words in lines if words[0] == 'seresnet-timm'}
    assert len(found) > 120 and set(VERBS) <= verbs
    wrong = []
    for command in found.values():
        try:
            check(command)
        except (Exception, SystemExit) as e:
            wrong.append(f'{command.page}: {command.text}: {type(e).__name__} {str(e)[:200]}')
    assert not wrong, '\n'.join(wrong)


@pytest.mark.parametrize('page', documents.pages())
def test_every_command_in_a_sentence_is_understood(page):
    for command in documents.inline_commands(page):
        if re.fullmatch(r'seresnet-timm [\w-]+', command.text):  # a verb, named without what it needs
            assert command.text.split()[1] in VERBS
        else:
            text = command.text.replace('FLAG', '--lr').replace('VERB', 'train').replace('NAME.sh', 'train_8p.sh')
            check(documents.Command(page, text))


@pytest.mark.parametrize('text', (
    'seresnet-timm train --data-dri x', 'seresnet-timm trian', 'bash recipes/train_9p.sh', 'ssh host', 'make demos',
    "pip install '.[nothing]'", 'pip install . --user', 'pip install x -c seresnet_timm/ascend/constraints/none.txt',
    'python benchmarks/none.py', 'seresnet-timm bench step --no-such-flag', 'npu-smi set',
    'sbatch recipes/slurm/train.sbatch train_9p', 'seresnet-timm recipe train_8p --no-such-flag 1',
    'seresnet-timm doctor --devise npu'))
def test_a_command_that_is_wrong_is_found(text):
    with pytest.raises((Exception, SystemExit)):
        check(documents.Command('page', text))


@pytest.fixture(scope='module')
def place(tmp_path_factory, digits):
    """A folder with what the pages name: the digits under each name of a data folder, checkpoints under theirs."""
    import torch
    from timm import create_model
    from timm.optim import create_optimizer_v2
    folder = tmp_path_factory.mktemp('place')
    for name in ('DIR', 'DATA', 'ImageNet', 'ImageNet-448', 'imagenet', 'digits', 'photos-split'):
        (folder / name).symlink_to(digits)
    (folder / 'imagenetv2-matched-frequency-format-val').symlink_to(digits / 'val')
    model = create_model('seresnet50_ascend', num_classes=10)
    optimizer = create_optimizer_v2(model, 'momentum', lr=0.1, weight_decay=1e-4)
    torch.save({'arch': 'seresnet50_ascend', 'epoch': 1, 'state_dict': model.state_dict(), 'version': 2,
                'optimizer': optimizer.state_dict()}, folder / 'last.pth.tar')
    for name in ('output/train/RUN', 'output/run', 'output/big', 'output/quiet'):
        (folder / name).mkdir(parents=True)
        os.link(folder / 'last.pth.tar', folder / name / 'model_best.pth.tar')
        os.link(folder / 'last.pth.tar', folder / name / 'last.pth.tar')
    for name in ('model_best.pth.tar', 'output/run/averaged.pth.tar'):
        os.link(folder / 'last.pth.tar', folder / name)
    (folder / 'tuned.yaml').write_text('channels_last: false\n')
    return folder


# what a machine without NPUs, network and pretrained weights takes instead
REPLACED = {
    '10.0.0.1': '127.0.0.1', '10.0.0.2': '127.0.0.1', 'npu': 'cpu', 'cuda': 'cpu', 'finetune': 'digits_demo',
    'resnet101.a1h_in1k': 'last.pth.tar', '2048': '64'}


# part of a command -> whether what it needs is here
NEEDS = {
    'hf-hub:': False,  # tests/hub
    'hfds:': False, 'wds:': False,  # tests/launch/test_reader_dataset.py
    '--real-labels': False,  # goes by the names of ImageNet's images
    '--help': False,  # plans nothing
    '--tensorboard': importlib.util.find_spec('tensorboard') is not None,
    '--log-wandb': importlib.util.find_spec('wandb') is not None,
}


def for_this_machine(words: list) -> list:
    """A command of train, validate or a recipe as a dry run that this machine can do, on few images."""
    found = []
    for word in words:
        name, equals, value = word.partition('=')
        found.append(f'{name}={REPLACED.get(value, value)}' if equals else REPLACED.get(word, word))
    if '--resume' not in found and '--experiment' in found:
        found += ['--experiment', 'another']  # the folder of the pages holds a run here
    if '...' in found:
        found += ['--data-dir', 'digits']
    if '--freeze' in found:  # the preset's weights need a network
        found += ['--model', 'seresnet50_ascend', '--pretrained-path', 'last.pth.tar']
    if 'recipe' not in found:
        found += ['-b', '16']
    if 'train' in found:
        found += ['--num-classes', '10']
    return [word for word in found if word not in ('...', '--dry-run')] + ['--dry-run']


@pytest.mark.slow
def test_every_training_and_evaluation_passes_the_checks_before_a_run(place, monkeypatch):
    """The commands of all pages, as dry runs on the digits."""
    monkeypatch.chdir(place)
    found = {}
    for page in documents.pages():
        for command in documents.commands(page):
            for words in documents.simple_commands(command.text.replace('<', "'<").replace('>', ">'")):
                if words[0] == 'seresnet-timm' and words[1] in ('train', 'validate', 'recipe'):
                    found[shlex.join(words[1:])] = words[1:]
                elif words[0] == 'bash' and (ROOT / words[1]).with_suffix('.yaml').is_file():
                    name = os.path.basename(words[1]).removesuffix('.sh')
                    found[shlex.join(words)] = ['recipe', name, *words[2:]]
    assert len(found) > 20
    wrong = []
    for text, words in found.items():
        if any(word in text and not installed for word, installed in NEEDS.items()):
            continue
        result = run_here(*for_this_machine(words))
        if result.returncode:
            wrong.append(f'{text}: {result.stderr.strip().splitlines()[-1][:300]}')
    assert not wrong, '\n'.join(wrong)


# --- Python -----------------------------------------------------------------------------------------------------------

# what needs a network, and what takes its place: a model in the folder `model`, random weights
WITHOUT_NETWORK = {
    "'hf-hub:org/name'": "'local-dir:model'", "hub.pull('modelscope:org/name', 'model')": 'hub.pull',
    "create_model('seresnet50_ascend', pretrained=True)": "create_model('seresnet50_ascend')",
    'features_only=True, pretrained=True': 'features_only=True'}


def test_every_python_block_runs(tmp_path):
    """The blocks of a page one after the other, as if typed into one Python; those in Chinese have the same code."""
    blocks = {page: documents.python_blocks(page) for page in documents.pages()}
    code = {page: ''.join(found) for page, found in blocks.items() if found}
    assert len(code) >= 14
    for page in [p for p in code if 'zh-CN' in p]:
        english = page.replace('zh-CN/', '').replace('.zh-CN', '')
        assert ast.dump(ast.parse(code[page])) == ast.dump(ast.parse(code[english])), page
    (tmp_path / 'validate.py').write_text('import sys, timm; assert timm.is_model("seresnet50_ascend"), sys.argv')
    program = '''
import sys, timm, torch, seresnet_timm
torch.set_num_threads(1)
timm.models.save_for_hf(timm.create_model('seresnet18_ascend', channels=(8, 16, 32, 64)), 'model',
                        model_args=dict(channels=(8, 16, 32, 64)), safe_serialization=True)
'''
    for page, text in code.items():
        if 'zh-CN' not in page:
            for name, instead in WITHOUT_NETWORK.items():
                text = text.replace(name, instead)
            program += 'sys.argv = ["with_models.py", "validate.py"]\n'
            program += f'exec(compile({text!r}, {page!r}, "exec"), {{}})\n'
    result = subprocess.run([preloaded.python(), '-c', program], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


# --- links and texts --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('page', documents.pages())
def test_links_lead_to_a_file_and_a_heading(page):
    wrong = []
    for path, anchor in documents.links(page):
        target = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page
        if not (ROOT / target).exists() or anchor and anchor not in documents.anchors(target):
            wrong.append(f'{path}#{anchor}')
    assert not wrong


@pytest.mark.parametrize('page', documents.READMES)
def test_readme_is_short(page):
    assert len(documents.read(page).split()) <= MAX_WORDS


def test_readmes_agree():
    """The same headings, commands and verbs; the Chinese one links the Chinese pages."""
    english, chinese = (documents.read(page) for page in documents.READMES)
    for text in (english, chinese):
        listed = re.findall(r'\[`([a-z-]+)`\]\(', text)
        assert sorted(listed) == sorted(VERBS)
    assert re.findall(r'^(#+) ', english, re.M) == re.findall(r'^(#+) ', chinese, re.M)
    assert [c.text.replace('<class>', '') for c in documents.commands('README.md')] == [
        c.text for c in documents.commands('README.zh-CN.md')]
    there = {p.name for p in (ROOT / 'docs' / 'zh-CN').glob('*.md')}
    linked = {path for path, _ in documents.links('README.zh-CN.md')}
    assert not [path for path in linked if path.startswith('docs/') and '/zh-CN/' not in path
                and path.count('/') == 1 and os.path.basename(path) in there]


def test_the_pages_of_a_tutorial_agree_in_both_languages():
    """The same commands and the same errors."""
    tutorials = ('first-run', 'one-own-data', 'imagenet-8-npus', 'gpu-to-npu', 'several-machines', 'publish',
                 'deploy-om', 'troubleshooting')
    for name in tutorials:
        english, chinese = f'docs/{name}.md', f'docs/zh-CN/{name}.md'
        assert [c.text for c in documents.commands(english)] == [c.text for c in documents.commands(chinese)], name
        assert error_texts(english) == error_texts(chinese)
        assert f'](zh-CN/{name}.md)' in documents.read(english) and f'](../{name}.md)' in documents.read(chinese)


def error_texts(page: str) -> list:
    return re.findall(r'^### `(.+)`$', documents.read(page), re.M)


def test_error_texts_are_those_of_the_code():
    """Troubleshooting goes by the texts that the package prints; … stands for what differs."""
    pieces = []
    for path in (ROOT / 'seresnet_timm').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.JoinedStr):
                pieces.append(''.join(v.value if isinstance(v, ast.Constant) else '…' for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                pieces.append(node.value)
    code = '\n'.join(pieces)
    texts = error_texts('docs/troubleshooting.md')
    assert len(texts) > 20
    missing = [text for text in texts for part in text.split('…') if part.strip(" .:,'?()") and part not in code]
    assert not missing


# --- Chinese ----------------------------------------------------------------------------------------------------------

def glossary() -> list:
    rows = [[cell.strip() for cell in line.strip('|').split('|')]
            for line in documents.read('docs/zh-CN/glossary.md').splitlines() if line.startswith('|')][2:]
    return [(term, forbidden.split('、')) for _, term, forbidden in rows]


def wrong_words(text: str) -> list:
    """Words that the glossary does not use, Chinese ones in comments of code too."""
    prose = documents.prose(text)
    return [f'{word}: {term}' for term, forbidden in glossary() for word in forbidden
            if (re.search(rf'(?<![\w-]){re.escape(word)}(?![\w-])', prose, re.I) if word.isascii() else word in text)]


@pytest.mark.parametrize('page', [p for p in documents.chinese_pages() if not p.endswith('glossary.md')])
def test_chinese_pages_use_the_words_of_the_glossary(page):
    assert not wrong_words(documents.read(page))


def test_the_glossary_finds_wrong_words():
    for text in ('这张图片', '100 个 epoch', '捷径连接', '热身 5 轮', '```bash\nmake demo  # 图片\n```', '评测'):
        assert wrong_words(text), text
    assert not wrong_words('图像 `--epochs`，`checkpoint` 训练 5 轮\n```bash\nseresnet-timm train --epochs 1\n```')
    terms = [term for term, _ in glossary()]
    assert {'图像', '检查点', '评估', '轮', '残差连接', '预热', '混合精度'} <= set(terms)
    assert len(terms) == len(set(terms))


# --- written pages and the web site -----------------------------------------------------------------------------------

@pytest.fixture
def write_reference():
    return load_file(ROOT / 'docs' / 'write_reference.py')


def test_the_reference_is_that_of_the_parsers(write_reference):
    assert write_reference.check() == [], 'run python docs/write_reference.py'


def test_a_reference_that_does_not_agree_is_found(write_reference, tmp_path):
    shutil.copytree(write_reference.FOLDER, tmp_path / 'reference')
    write_reference.FOLDER = tmp_path / 'reference'
    page = tmp_path / 'reference' / 'split.md'
    page.write_text(page.read_text().replace('| 0.1 |', '| 0.2 |', 1))
    (tmp_path / 'reference' / 'gone.md').touch()
    assert write_reference.check() == ['gone.md', 'split.md']


def test_every_flag_of_help_is_in_the_reference():
    """By argparse's own text, not by what writes the page."""
    for verb in VERBS:
        help_text = run_here(verb, '--help').stdout
        flags = set(re.findall(r'(?<![\w-])--[a-z][\w-]*', help_text.partition('\n\nNext:')[0]))
        page = documents.read(f'docs/reference/{verb}.md')
        options = {flag for flag in flags if re.search(rf'^ +(-\w[^\n]*, )?{flag}\b', help_text, re.M)} - {'--help'}
        assert not [flag for flag in options if f'{flag}' not in page], verb


def test_no_table_has_a_bar_in_code():
    """GitHub ends a cell at a bare one, MkDocs shows the backslash of an escaped one."""
    wrong = [f'{page}: {code}' for page in documents.pages() for line in documents.read(page).splitlines()
             if line.startswith('|') for code in re.findall(r'`[^`]*`', line) if '|' in code]
    assert not wrong, '\n'.join(wrong)


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip('mkdocs', reason="pip install '.[docs]'")
    pytest.importorskip('material', reason="pip install '.[docs]'")
    result = subprocess.run(
        [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', tmp_path], cwd=ROOT, capture_output=True,
        text=True, env={**os.environ, 'NO_MKDOCS_2_WARNING': '1'})
    assert result.returncode == 0, result.stderr
    built = list(tmp_path.rglob('*.html'))
    assert len(built) == len(documents.pages()) - len(documents.READMES) + 1  # 404.html
    for path in built:
        loaded = re.findall(r'<(?:script|img|iframe)[^>]+src="?([^" >]+)|<link[^>]+href="?([^" >]+)', path.read_text())
        assert not [a or b for a, b in loaded if re.match('(https?:)?//', a or b)], path
