"""Write docs/reference/: every verb with every flag, its default, unit, values and meaning, from the parsers

    python docs/write_reference.py            # after a change of a flag, its help, its unit or its values
    python docs/write_reference.py --check    # compares only

The list of these pages in mkdocs.yml is written too. What is said of a flag is what `seresnet-timm help VERB FLAG`
says: its owner is seresnet_timm/cli/flag_help.py.
"""
import argparse
import re
import sys
from pathlib import Path
from typing import Dict, Iterator, List

from seresnet_timm.argument_parser import ArgumentParser
from seresnet_timm.cli import flag_help
from seresnet_timm.cli.main import TASKS, VERBS
from seresnet_timm.engine.flags import TimmOnly

FOLDER = Path(__file__).resolve().parent / 'reference'
SITE = Path(__file__).resolve().parent.parent / 'mkdocs.yml'
NOTE = '<!-- written by docs/write_reference.py -->\n\n'
COLUMNS = ('meaning', 'default', 'unit', 'values')
TIMM_ONLY = "Only with timm's own script (`--scripts timm`)"


def pages() -> Dict[str, str]:
    """Name of a page -> its text."""
    found = {f'{verb}.md': verb_page(verb) for verb in VERBS}
    return {'index.md': index(), **found}


def index() -> str:
    lines = [f'{NOTE}# Verbs and flags', '',
             '`seresnet-timm VERB --help` and `seresnet-timm help VERB FLAG` say the same.']
    for task, verbs in TASKS.items():
        lines += ['', f'## {task}', '', '| verb | what it does |', '|---|---|']
        lines += [f'| [`{verb}`]({verb}.md) | {cell(text)} |' for verb, text in verbs.items()]
    return '\n'.join(lines) + '\n'


def verb_page(verb: str) -> str:
    lines: List[str] = []
    for parser in flag_help.parser_of(verb).parsers():
        words = parser.prog.removeprefix('seresnet-timm ')
        lines += ['', f'{"##" if lines else "#"} {words}']
        text = parser.description or VERBS[verb]
        lines += ['', cell(text[:1].upper() + text[1:].rstrip('.')) + '.']
        if parser.examples:
            lines += ['', '```bash', *parser.examples, '```']
        for title, actions in groups(parser):
            lines += ['', f'{"##" if words == verb else "###"} {title}', '', *table(verb, parser, actions)]
    return NOTE + '\n'.join(lines).lstrip('\n') + '\n'


def groups(parser: ArgumentParser) -> Iterator[tuple]:
    """Titles of groups, each with its arguments; flags that do nothing any more are left out."""
    for group in parser._action_groups:
        actions = [a for a in group._group_actions if a.help is not argparse.SUPPRESS and a.dest not in ('help', 'argv')
                   and not isinstance(a, (argparse._SubParsersAction, TimmOnly))]
        if actions:
            title = {'positional arguments': 'Arguments', 'options': 'Flags'}.get(group.title, group.title)
            yield title[:1].upper() + title[1:], actions
    of_timm = [a for a in parser._actions if isinstance(a, TimmOnly)]
    if of_timm:
        yield TIMM_ONLY, of_timm


def table(verb: str, parser: ArgumentParser, actions: List[argparse.Action]) -> List[str]:
    rows = ['| ' + ' | '.join(('flag' if any(a.option_strings for a in actions) else 'argument', *COLUMNS)) + ' |',
            '|---' * (1 + len(COLUMNS)) + '|']
    for action in actions:
        facts = flag_help.facts(verb, parser, action)
        if 'ModelZoo' in facts:
            facts['meaning'] += f'. ModelZoo: {facts["ModelZoo"]}'
        rows.append(f'| {name(action)} | ' + ' | '.join(
            cell(facts.get(column, '')) for column in COLUMNS) + ' |')
    return rows


def name(action: argparse.Action) -> str:
    """An argument as code. A bar in code is shown differently by GitHub and by MkDocs in a table, so there is none."""
    first, *others = [f'`{part}`' for part in flag_help.written(action).split('|')]
    return ' or '.join(filter(None, (', '.join([first, *others[:-1]]), *others[-1:])))


def cell(text: str) -> str:
    """A text as Markdown: nothing in it is a tag, a table or a style."""
    text = ' '.join(text.split())
    parts = re.split(r'(`[^`]*`)', text)
    plain = [re.sub(r'([\\*_\[\]])', r'\\\1', part).replace('<', '&lt;').replace('>', '&gt;') for part in parts[::2]]
    parts[::2] = [re.sub(r'(?<![\w`])(--[a-z][\w\\-]*)', lambda m: '`' + m[1].replace('\\', '') + '`', part)
                  for part in plain]
    return ''.join(parts).replace('|', r'\|')


def site() -> str:
    """mkdocs.yml with the pages of all verbs."""
    before, begin, rest = SITE.read_text(encoding='utf-8').partition('      - reference/index.md\n')
    after = re.sub(r'(      - [^\n]*: reference/[^\n]*\n)*', '', rest, count=1)
    return before + begin + ''.join(f'      - {verb}: reference/{verb}.md\n' for verb in sorted(VERBS)) + after


def check() -> List[str]:
    """Pages that do not agree with the parsers."""
    there = {p.name: p.read_text(encoding='utf-8') for p in FOLDER.glob('*.md')}
    there[SITE.name] = SITE.read_text(encoding='utf-8')
    wanted = {**pages(), SITE.name: site()}
    return sorted(name for name in {*there, *wanted} if there.get(name) != wanted.get(name))


def main(argv: List[str]) -> None:
    args = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    args.add_argument('--check', action='store_true', help='compare only')
    if args.parse_args(argv).check:
        wrong = check()
        names = ', '.join(wrong)
        sys.exit(f'out of date in docs/reference or mkdocs.yml: {names}: run docs/write_reference.py' if wrong else 0)
    FOLDER.mkdir(exist_ok=True)
    wanted = pages()
    for path in FOLDER.glob('*.md'):
        if path.name not in wanted:
            path.unlink()
    SITE.write_text(site(), encoding='utf-8')
    for name, text in wanted.items():
        (FOLDER / name).write_text(text, encoding='utf-8')


if __name__ == '__main__':
    main(sys.argv[1:])
