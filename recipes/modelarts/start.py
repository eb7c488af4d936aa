#!/usr/bin/env python3
"""Boot file of a ModelArts job: runs a recipe on all machines and devices of the job.

Code directory: this checkout. Boot file: recipes/modelarts/start.py. Hyperparameters:

    --recipe=train_8p --data_url=INPUT --train_url=OUTPUT [any option of train.py]

INPUT holds train/ and val/; the run is written to OUTPUT. Machines, devices and the address of the first machine are
read from what ModelArts sets. Where it runs this file once per device, one process per machine starts the ranks.
"""
import os
import sys

NAMES = {'--data_url': '--data_path', '--train_url': '--output'}  # what ModelArts calls them


def command(arguments):
    """The command of a recipe, from a job's arguments."""
    words = []
    for argument in arguments:  # --name=value, or --name value
        name, equals, value = argument.partition('=')
        words += [NAMES.get(name, name) + equals + value]
    name = 'train_8p'
    for index, word in enumerate(words):
        if word == '--recipe' and index + 1 < len(words):
            name = words[index + 1]
            del words[index:index + 2]
            break
        if word.startswith('--recipe='):
            name = word.partition('=')[2]
            del words[index]
            break
    recipes = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return ['bash', os.path.join(recipes, 'run.sh'), name, *words]


if __name__ == '__main__':
    os.environ.setdefault('PYTHON', sys.executable)
    os.execvp('bash', command(sys.argv[1:]))
