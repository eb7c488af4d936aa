"""`seresnet-timm recipe NAME ...`: a training or evaluation of the ModelZoo. The launcher parses its flags."""
import argparse

from seresnet_timm.argument_parser import HELP_FLAGS, ArgumentParser
from seresnet_timm.errors import UsageError, did_you_mean


def add_arguments(parser: ArgumentParser) -> None:
    parser.leave_unparsed('argv')


def run(args: argparse.Namespace) -> None:
    from seresnet_timm.launch.parse import print_help_if_asked
    from seresnet_timm.launch.recipes import recipes_dir, runnable_recipes
    recipes = runnable_recipes()
    name = args.argv[0] if args.argv else '--help'
    if name in HELP_FLAGS:
        print('usage: seresnet-timm recipe <name> --data_path=DIR [options]   (= bash recipes/<name>.sh ...)\n')
        for name, recipe in recipes.items():
            print(f'  {name:<22}{recipe.description}  [{recipe.source}]')
        print(f'\nFiles: {recipes_dir()}')
        return
    if name not in recipes:
        raise UsageError(f"Unknown recipe '{name}': {did_you_mean(name, recipes)}")
    verb, argv = recipes[name].verb, args.argv[1:]
    if not print_help_if_asked(verb, argv, name):
        from seresnet_timm.launch import run as launch
        launch.run(verb, argv, recipe_name=name)
