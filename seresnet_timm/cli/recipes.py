"""`seresnet-timm recipes [NAME]`: the recipes, what they cost and what they should give; or all about one of them."""
import argparse
import json
import os
import sys
from typing import Dict, List, Tuple

from seresnet_timm.argument_parser import ArgumentParser
from seresnet_timm.errors import UsageError, did_you_mean

EXAMPLES = (
    'seresnet-timm recipes                   # all, with cost and expected top-1',
    'seresnet-timm recipes rsb_a2            # one: source, command, differences, settings',
    'seresnet-timm recipes --json')
NEXT = ('seresnet-timm train --preset rsb_a2 --data-dir ImageNet --dry-run',)


def add_arguments(parser: ArgumentParser) -> None:
    parser.description = 'List the recipes with their cost and expected top-1, or show one.'
    parser.add_argument('recipe', nargs='?', metavar='NAME', help='show this recipe: header, cost, settings')
    parser.add_argument('--json', dest='as_json', action='store_true', help='print JSON')


def run(args: argparse.Namespace) -> None:
    from seresnet_timm.launch import recipe_costs
    from seresnet_timm.launch.recipes import all_recipes
    recipes = all_recipes()
    name = args.recipe
    if name is not None:
        name = name[:-len('.yaml')] if name.endswith('.yaml') else name
        if name not in recipes:
            raise UsageError(f"No recipe '{name}': {did_you_mean(name.lower(), recipes)}")
        recipes = {name: recipes[name]}
    if args.as_json:
        found = {'basis': recipe_costs.basis(), 'recipes': [recipe_costs.as_json(r) for r in recipes.values()]}
        print(json.dumps(found, indent=2))
    elif name is not None:
        print('\n'.join(show(recipes[name])))
    else:
        print('\n'.join(table(recipes)))


def show(recipe) -> List[str]:
    """All about one recipe."""
    from seresnet_timm.launch import recipe_costs
    from seresnet_timm.launch.recipes import header, recipe_path, settings_text
    cost = recipe_costs.cost_of(recipe)
    lines = [header(recipe.name) or f'{recipe.name}: {recipe.description}', '']
    if cost:
        rates = '; '.join(f'{recipe_costs.number(hours)} at the rate of {name}' for name, hours in cost.hours.items())
        lines += [f'NPU-hours: {rates}.', *recipe_costs.basis(), '']
    lines += ["Settings, by timm's names:", '', settings_text(recipe.name), '']
    return [*lines, f'File: {recipe_path(recipe.name)}']


def table(recipes: Dict) -> List[str]:
    """The recipes for ImageNet and the others, a line each."""
    from seresnet_timm.launch import recipe_costs
    from seresnet_timm.runs.show import is_terminal
    rows: List[Tuple[str, ...]] = [
        ('name', 'epochs', 'batch', 'NPU-hours', 'top-1 expected', 'top-1 published', 'ours')]
    others = []
    for name, recipe in recipes.items():
        cost = recipe_costs.cost_of(recipe)
        if cost is None:
            others.append(f'  {name:<22}{recipe.description}')
            continue
        batch = f'{recipe.global_batch_size:,}' if recipe.global_batch_size else f'{recipe.settings["batch_size"]} each'
        rows.append((name, str(cost.epochs), batch, recipe_costs.describe(cost), recipe.expected or '-',
                     recipe.published or '-', recipe.measured or 'not measured'))
    lines = _lines(rows)
    width = os.get_terminal_size(sys.stdout.fileno()).columns if is_terminal(sys.stdout) else None
    while width and max(map(len, lines)) >= width and len(rows[0]) > 5:
        rows = [(*row[:5], *row[6:]) for row in rows]  # without what `recipes NAME` says too
        lines = _lines(rows)
    return ['For ImageNet-1k: seresnet-timm train --preset NAME --data-dir ImageNet', '', *lines, '',
            *recipe_costs.basis(), '', 'Others:', *others, '',
            'seresnet-timm recipes NAME shows one. `seresnet-timm recipe` runs those of the ModelZoo.']


def _lines(rows: List[Tuple[str, ...]]) -> List[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ['  ' + '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
