"""`seresnet-timm recipe NAME ...`: a training or evaluation of the ModelZoo. The launcher parses its flags."""
import argparse

from seresnet_timm.argument_parser import HELP_FLAGS, ArgumentParser, guide
from seresnet_timm.errors import UsageError, did_you_mean

EXAMPLES = (
    'seresnet-timm recipe train_8p --data_path=ImageNet',
    'bash recipes/train_8p.sh --data_path=ImageNet   # the same, in a checkout')
NEXT = ('seresnet-timm report output/train/RUN   # the folder that the training names',)


def add_arguments(parser: ArgumentParser) -> None:
    parser.leave_unparsed()


def run(args: argparse.Namespace) -> None:
    from seresnet_timm.launch.parse import help_parser
    from seresnet_timm.launch.recipes import all_recipes, recipes_dir, runnable_recipes
    recipes = runnable_recipes()
    name = args.argv[0] if args.argv else '--help'
    if name in HELP_FLAGS:
        lines = [f'  {name:<22}{recipe.description}  [{recipe.source}]' for name, recipe in recipes.items()]
        usage = 'usage: seresnet-timm recipe <name> --data_path=DIR [options]   (= bash recipes/<name>.sh ...)'
        print(guide('\n'.join([usage, '', *lines, '', f'Files: {recipes_dir()}', '']), EXAMPLES, NEXT), end='')
        return
    if name in all_recipes() and name not in recipes:
        raise UsageError(f'{name} is a recipe for `train`: seresnet-timm train --preset {name} --data-dir DIR')
    if name not in recipes:
        raise UsageError(f"Unknown recipe '{name}': {did_you_mean(name, recipes)}")
    verb, argv = recipes[name].verb, args.argv[1:]
    if HELP_FLAGS.intersection(argv):
        parser = help_parser(verb, f'bash recipes/{name}.sh')
        parser.examples, parser.next_steps = (f'seresnet-timm recipe {name} --data_path=ImageNet',), NEXT
        parser.print_help()
        return
    from seresnet_timm.launch import run as launch
    launch.run(verb, argv, recipe_name=name)
