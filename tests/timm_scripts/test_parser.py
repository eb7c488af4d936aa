"""The flags of timm's script are read from its text, without executing it."""
import ast

import pytest

from seresnet_timm.timm_scripts.parser import read_parser

SCRIPT = '''
import argparse
import os
open('executed', 'w')
config_parser = parser = argparse.ArgumentParser(description='x', add_help=False)
parser.add_argument('-c', '--config', default='', type=str, metavar='FILE')
parser = argparse.ArgumentParser(description='Training')
parser.add_argument('data', nargs='?', const=None)
group = parser.add_argument_group('A')
group.add_argument('--ratio', type=float, nargs='+', default=[3. / 4., 4. / 3.])
group.add_argument('--aa', type=str, default=None, help='x'),
group.add_argument('--model-kwargs', nargs='*', default={}, action=utils.ParseKwargs)
other = parser.add_mutually_exclusive_group()
other.add_argument('--amp', action='store_true', default=False)

def main():
    parser.parse_args()
'''


def test_a_parser_is_read_and_nothing_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = read_parser(ast.parse(SCRIPT)).parse_args(['d', '--model-kwargs', 'a=1', '--amp', '--aa', 'v0'])
    assert vars(args) == dict(data='d', ratio=[0.75, 4 / 3], aa='v0', model_kwargs={'a': 1}, amp=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('line', (
    'for flag in FLAGS:\n    parser.add_argument(flag)', "parser.add_argument('--x', default=os.environ['HOME'])",
    "group.add_argument('--x', type=str2bool)", 'add_more(parser)', "parser.add_argument('--ratio')",
))
def test_a_parser_that_is_made_in_another_way_is_not(line):
    assert read_parser(ast.parse(SCRIPT + line + '\n')) is None


def test_a_script_without_a_parser():
    assert read_parser(ast.parse('x = 1\n')) is None
