"""What every --help begins and ends with, one flag explained, and completion."""
import argparse
import importlib
import json
import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import time

import pytest
from conftest import MODEL, ROOT, run_here

from seresnet_timm.argument_parser import HELP_FLAGS
from seresnet_timm.cli import flag_help
from seresnet_timm.cli.bench import BENCHES
from seresnet_timm.cli.main import EXAMPLES, NEXT, TASKS, VERBS, make_parser, module_of
from seresnet_timm.engine.values import UNITS
from seresnet_timm.launch.flags import PREFIX
from seresnet_timm.launch.parse import parse

# numbers without a unit
NO_UNIT = set(
    'mean std head_init_scale head_init_bias opt_eps opt_betas momentum mom weight_decay wd layer_decay lr lr_base '
    'layer_decay_min_scale layer_decay_no_opt_scale lr_base_size lr_noise lr_noise_pct lr_noise_std lr_cycle_mul '
    'lr_cycle_decay lr_cycle_limit lr_k_decay warmup_lr min_lr decay_rate learning_rate color_jitter bce_target_thresh '
    'bce_pos_weight recount mixup cutmix cutmix_minmax smoothing bn_momentum bn_eps model_ema_decay seed node_rank '
    'rank gpu rtol atol master_port loss_scale local_rank drop_connect num_gpu quality opset '
    'atc_batch_size train_size_probs train_size_schedule_spread kd_temperature distill_loss_weight '
    'task_loss_weight'.split())


def commands(text: str) -> list:
    """The command lines of this package in the lines of a text, without comments and redirections."""
    lines = re.findall(r'^  (seresnet-timm [^\n]*)', text, re.M)
    return [shlex.split(line.partition(' > ')[0], comments=True)[1:] for line in lines if '<verb>' not in line]


def all_help() -> dict:
    texts = {'': run_here('help').stdout}
    for words in [*([verb] for verb in VERBS), ['scripts', 'fetch'], ['weights', 'fetch'], ['recipe', 'train_8p'],
                  *(['bench', name] for name in BENCHES)]:
        texts[' '.join(words)] = run_here(*words, '--help').stdout
    return texts


@pytest.fixture(scope='module')
def texts():
    return all_help()


def test_every_help_begins_with_examples_and_ends_with_the_next_step(texts):
    for name, text in texts.items():
        blocks = text.rstrip('\n').split('\n\n')
        assert re.match(r'Examples?:\n  seresnet-timm ', text), name
        assert commands(blocks[0])[0][:len(name.split())] == name.split(), name
        assert blocks[-1].startswith('Next:\n  '), name


def test_every_command_in_a_help_is_understood(texts):
    """By the parser that would read it; train, validate and recipe by the launcher's."""
    found = [command for text in texts.values() for command in commands(text)]
    assert {command[0] for command in found} == set(VERBS)
    check_commands(found)


@pytest.mark.parametrize('name, count', (('one-own-data.md', 12), ('report.md', 5), ('explain.md', 2)))
def test_every_command_on_a_page_is_understood_and_in_both_languages(name, count):
    pages = [(ROOT / 'docs' / folder / name).read_text(encoding='utf-8') for folder in ('', 'zh-CN')]
    english, chinese = (commands(re.sub('^seresnet-timm', '  seresnet-timm', page, flags=re.M)) for page in pages)
    assert english == chinese and len(english) == count
    check_commands(english)


def check_commands(found: list) -> None:
    for verb, *argv in found:
        if verb in ('train', 'validate'):
            parse(verb, argv)
        elif verb == 'recipe':
            assert not parse('train', argv[1:]).problems
        elif verb == 'tune':
            assert not parse('train', module_of(verb).help_parser().parse_known_args(argv)[1]).problems
        elif not HELP_FLAGS.intersection(argv):
            make_parser(verb, module_of(verb)).parse_args([verb, *argv])
        if verb == 'help':
            assert 'meaning' in run_here(verb, *argv).stdout or 'usage:' in run_here(verb, *argv).stdout


@pytest.mark.slow
def test_the_examples_of_the_demo_run_one_after_the_other(tmp_path, monkeypatch, texts):
    """Those of the digits and of output/run, as they are written; the training is shorter."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TIMM_SCRIPTS', '')
    from conftest import run_cli
    done = set()
    for verb in ('demo-data', 'check-data', 'train', 'report', 'validate', 'inspect', 'convert', 'predict', 'scripts'):
        for command in commands(texts[verb].split('\n\n')[0]):
            if 'digits' not in command and 'output/run' not in command and verb != 'scripts' or '--dry-run' in command:
                continue
            shorter = [*map(str, MODEL), '--epochs', '1', '--workers', '0'] if verb == 'train' else []
            result = run_cli(*command, *shorter, cwd=tmp_path, fresh=False)
            assert result.returncode == 0, (command, result.stderr)
            done.add(verb)
    assert len(done) == 9
    assert (tmp_path / 'classes.csv').is_file() and (tmp_path / 'model.safetensors').is_file()


def test_train_examples_pass_all_checks_before_a_run(few_digits, tmp_path, monkeypatch, texts):
    (tmp_path / 'digits').symlink_to(few_digits)
    monkeypatch.chdir(tmp_path)
    result = run_here(*commands(texts['train'])[0], '--dry-run')
    assert result.returncode == 0, result.stderr
    assert 'output/run' in result.stderr


def test_the_verbs_are_listed_by_task(texts):
    text = run_here().stdout
    assert text == texts['']
    places = [text.index(f'\n{task}:\n') for task in TASKS]
    assert places == sorted(places) and text.startswith('Examples:\n  ' + EXAMPLES[0]) and NEXT[0] in text
    for (task, verbs), place in zip(TASKS.items(), places):
        section = text[place:].split('\n\n')[0]
        assert re.findall(r'^  ([a-z-]+)  ', section, re.M) == list(verbs), task
    assert sum(map(len, TASKS.values())) == len(VERBS)


def test_help_of_a_verb_is_its_help(texts):
    for words in ('train', 'scripts fetch', 'recipe train_8p', 'bench', 'help'):
        assert run_here('help', *words.split()).stdout == run_here(*words.split(), '--help').stdout
    assert "Unknown verb 'trian': did you mean train?" in run_here('help', 'trian').stderr


@pytest.mark.parametrize('words, lines', (
    ('train --lr', ('--lr LR', 'meaning   learning rate', 'values    a number: more than 0',
                    'ModelZoo  --learning-rate', "from      timm's train.py")),
    ('train epochs', ('--epochs N', 'default   300', 'unit      epochs', 'values    a whole number: at least 1',
                      'ModelZoo  --train_epochs')),
    ('train -b', ('-b, --batch-size N', 'default   128', 'unit      images of one process', 'ModelZoo  --batch_size')),
    ('train --batch_size', ("the ModelZoo's name for: -b", 'images of all processes', "from      the ModelZoo's")),
    ('train hang_timeout', ('default   600', 'unit      seconds', 'values    a number: at least 0', 'the launcher')),
    ('train --max-bad-images', ('default   0.1%', 'a share in percent')),
    ('train --naflex-max-seq-len', ('default   576', '--scripts timm')),
    ('train --kd-temperature', ('default   4\n', 'more than 0')),
    ('train --amp', ('default   off', 'none: a switch')),
    ('recipe train_8p --lr', ('--lr LR',)),
    ('recipe --workers', ('default   its cores less one, at most 16', 'the launcher decides')),
    ('train --device', ('default   auto\n',)), ('train --master-port', ('default   29500\n',)),
    ('train --preset', ('default   none\n',)), ('train --quiet', ('default   off\n',)),
    ('train --learning-rate', ('default   none\n',)), ('validate --num-classes', ('default   train: as many as',)),
    ('report -b', ('default   32\n', 'unit      images\n')), ('split --val', ('default   0.1\n',)),
    ('explain --layer', ('default   that of the last feature map',)),
    ('validate --resume', ('the same as --checkpoint', "from      the ModelZoo's")),
    ('predict --topk', ('default   5', 'values    a whole number: at least 1', 'from      seresnet-timm predict')),
    ('predict image', ('IMAGE|DIR', 'one or more of: a path')),
    ('scripts fetch --tag', ('--tag TAG', 'from      seresnet-timm scripts')),
    ('push --use-ema', ('--no-use-ema',)),
    ('export --format', ('values    onnx, torch',)),
))
def test_a_flag_is_explained(words, lines):
    result = run_here('help', *words.split())
    assert result.returncode == 0 and not [line for line in lines if line not in result.stdout], result.stdout


@pytest.mark.parametrize('verb', ('train', 'validate'))
def test_whose_flag_it_is(verb):
    """The flags of timm's scripts of v1.0.28, read from these, are timm's, and no others are said to be."""
    timms = json.loads((ROOT / 'tests/golden/timm_v1.0.28_flags.json').read_text())[verb]
    timms = {flag for entry in timms.values() for flag in entry['flags']} | ({'--config'} if verb == 'train' else set())
    for action in flag_help.parser_of(verb)._actions:
        text = flag_help.origin(verb, action)
        if action.option_strings:
            is_timms = bool(timms.intersection(action.option_strings))
            says_so = text.startswith(f"timm's {verb}.py") and 'after v1.0.28' not in text or "timm's flag" in text
            assert says_so == is_timms, (action.option_strings, text)
    for flag, words in (('train --train-img-sizes', 'after v1.0.28'), ('train --graph', 'only with the bundled script'),
                        ('validate --device-modules', 'the bundled validate.py'), ('train -h', 'seresnet-timm train')):
        verb, flag = flag.split()
        parser = flag_help.parser_of(verb)
        assert words in flag_help.origin(verb, flag_help.find(parser, flag))


def test_two_flags_are_explained_and_an_unknown_one_is_refused():
    assert run_here('help', 'train', '--opt', '--momentum').stdout.count('meaning') == 2
    result = run_here('help', 'train', '--learning-rat')
    assert result.returncode == 2 and "Unknown flag '--learning-rat': did you mean --learning-rate?" in result.stderr
    assert 'did you mean --opt?' in run_here('help', 'train', 'optimizer').stderr


def test_every_argument_of_every_verb_can_be_explained():
    """With a meaning and values, a default, and a unit where it takes a number that has one."""
    for verb in VERBS:
        for parser in flag_help.parser_of(verb).parsers():
            for action in parser._actions:
                if isinstance(action, argparse._SubParsersAction) or action.dest == 'argv':
                    continue
                text = flag_help.describe(verb, parser, (action.option_strings or [action.dest])[0])
                if action.help is not argparse.SUPPRESS:
                    assert action.help, (verb, action.dest)
                    assert 'not used any more' not in text
                if action.type in (int, float) and action.help is not argparse.SUPPRESS:
                    name = action.dest.removeprefix(PREFIX)
                    assert (name in UNITS) != (name in NO_UNIT), name
                assert '%(' not in text and '%%' not in text


def test_values_and_defaults_that_are_explained_are_those_of_a_run():
    """The default is taken and the range is kept by the parser of a run."""
    assert parse('train', []).defaults['epochs'] == 300
    assert parse('train', ['--epochs', '0']).problems == ['--epochs 0 is too small: give at least 1.']


@pytest.fixture(scope='module')
def bash_script(tmp_path_factory):
    pytest.importorskip('shtab', reason='make test installs shtab')
    path = tmp_path_factory.mktemp('completion') / 'seresnet-timm.bash'
    path.write_text(run_here('completion', 'bash').stdout)
    return path


def completed(script, folder, *words) -> list:
    """What bash offers for the last of the words."""
    words = ['seresnet-timm', *words]
    code = (f'source {script}; COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; '
            'function=$(complete -p seresnet-timm | sed "s/.*-F \\([^ ]*\\).*/\\1/"); '
            '$function; printf "%s\\n" "${COMPREPLY[@]}"')
    result = subprocess.run(['bash', '-c', code], capture_output=True, text=True, cwd=folder)
    assert not result.stderr
    return [line.strip() for line in result.stdout.split('\n') if line.strip()]


def test_bash_completes_verbs_flags_values_and_files(bash_script, tmp_path):
    (tmp_path / 'ImageNet').mkdir()
    (tmp_path / 'last.pth.tar').touch()
    for words, expected in (
            (['tra'], ['train']), (['prepare-'], ['prepare-imagenet']), (['comple'], ['completion']),
            (['train', '--warmup-p'], ['--warmup-prefix']), (['train', '--data_p'], ['--data_path']),
            (['train', '--preset', 'digits'], ['digits_demo']), (['train', '--amp-level', ''], ['O0', 'O1', 'O2']),
            (['train', '--data-dir', 'I'], ['ImageNet']), (['train', '--resume', 'l'], ['last.pth.tar']),
            (['validate', '--results-f'], ['--results-file', '--results-format']), (['scripts', 'f'], ['fetch']),
            (['train', '--sched', 'cos'], ['cosine']), (['recipe', 'train_m'], ['train_multinode']),
            (['completion', 'z'], ['zsh']), (['help', 'tra'], ['train']),
            (['help', 'train', '--warmup-p'], ['--warmup-prefix']), (['help', 'predict', '--top'], ['--topk']),
            (['help', 'validate', '--lr', '--results-fo'], ['--results-format']),
            (['help', 'train', '--amp-level', '--warmup-p'], ['--warmup-prefix']),
            (['help', 'scripts', 'fetch', '--ta'], ['--tag']), (['help', 'recipe', 'train_m'], ['train_multinode']),
            (['help', 'recipe', 'train_8p', '--warmup-p'], ['--warmup-prefix']),
            (['recipe', 'train_8p', '--warmup-p'], ['--warmup-prefix']), (['bench', 'end'], ['end2end'])):
        assert completed(bash_script, tmp_path, *words) == expected, words
    assert not [flag for flag in completed(bash_script, tmp_path, 'train', '--na') if flag.startswith('--naflex')]


def test_completion_for_zsh_and_for_no_other_shell(monkeypatch):
    pytest.importorskip('shtab', reason='make test installs shtab')
    text = run_here('completion', 'zsh').stdout
    assert text.startswith('#compdef seresnet-timm') and '--warmup-prefix' in text and 'check-data' in text
    assert 'SHELL fish is unknown: there are bash, zsh' in run_here('completion', 'fish').stderr
    monkeypatch.setitem(importlib.sys.modules, 'shtab', None)
    result = run_here('completion', 'bash')
    assert result.returncode == 1 and 'pip install shtab' in result.stderr


ZSH = shutil.which('zsh')


@pytest.mark.skipif(ZSH is None, reason='zsh is not installed (Debian: apt install zsh)')
def test_zsh_completes_verbs_flags_values_and_files(tmp_path):
    """In an interactive zsh on a terminal: what stands in the line after the tab key."""
    pytest.importorskip('shtab', reason='make test installs shtab')
    (tmp_path / 'functions').mkdir()
    (tmp_path / 'functions' / '_seresnet-timm').write_text(run_here('completion', 'zsh').stdout)
    (tmp_path / 'last.pth.tar').touch()
    cases = {
        'demo-d': 'demo-data', 'check-': 'check-data', 'train --warmup-pre': 'train --warmup-prefix',
        'train --preset digits': 'train --preset digits_demo', 'recipe train_mu': 'recipe train_multinode',
        'train --resume la': 'train --resume last.pth.tar', 'train --sched cos': 'train --sched cosine',
        'completion z': 'completion zsh', 'help train --warmup-pre': 'help train --warmup-prefix',
        'recipe train_8p --warmup-pre': 'recipe train_8p --warmup-prefix'}
    lines = ['PS1=; fpath=(./functions $fpath); autoload -U compinit; compinit -u -D',
             'seresnet-timm() { print -r -- G"OT<$*>" }', 'unsetopt zle_bracketed_paste 2>/dev/null; print READY',
             *(f'seresnet-timm {words}\t' for words in cases), 'exit']
    shell, terminal = pty.openpty()
    process = subprocess.Popen([ZSH, '-f', '-i'], stdin=terminal, stdout=terminal, stderr=terminal, cwd=tmp_path,
                               env={'PATH': os.environ['PATH'], 'TERM': 'dumb', 'HOME': str(tmp_path)})
    os.close(terminal)
    out = b''
    for i, line in enumerate(lines):
        os.write(shell, line.encode() + b'\n')
        wanted, end = out.count(b'GOT<') + 1, time.monotonic() + 30
        while i > 2 and line != 'exit' and out.count(b'GOT<') < wanted and time.monotonic() < end:
            if select.select([shell], [], [], 1)[0]:
                out += os.read(shell, 65536)
    process.wait(30)
    os.close(shell)
    got = [words.strip() for words in re.findall(r'GOT<([^>]*)>', out.decode(errors='replace'))]
    assert got == list(cases.values()), out.decode(errors='replace')[-2000:]


def test_every_help_tells_the_default_of_a_flag_once(texts):
    """The number that timm's parser has, in the words that `help VERB FLAG` and the reference have too."""
    for verb in VERBS:
        told = {}  # flags with their help, from the lines of the text
        for line in re.split(r'\n  (?=-)', texts[verb]):
            flags, text = re.match(r'((?:-[\w-]+(?: [^ ,]+| \{[^}]*\}| \[[^]]*\])*(?:, )?)*)((?s:.*))', line).groups()
            told.update((flag, ' '.join(text.split('\n\n')[0].split())) for flag in re.findall(r'--?[\w-]+', flags))
        parser = flag_help.parser_of(verb)
        for action in parser._actions:
            shown = action.option_strings and action.help not in (None, argparse.SUPPRESS) and verb in texts
            if not shown or action.nargs == 0 or action.dest.startswith(PREFIX):
                continue
            default = flag_help.default(verb, parser, action)
            if default not in (None, 'none', 'prof'):  # --prof is off without a value
                assert told[action.option_strings[-1]].count('default: ') == 1, (verb, action.option_strings)
                assert f'default: {default}' in told[action.option_strings[-1]], (verb, action.option_strings)
    assert '(default: 300)' in texts['train'] and '(default: 0.75 1.33333)' in texts['train']
