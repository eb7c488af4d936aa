"""What --tensorboard, --log-wandb, --patience and --early-stop need before a run"""
import importlib.util
import json
import os
import subprocess
import sys
from importlib import metadata
from typing import Any, Dict, Iterator, Optional

from seresnet_timm.errors import printable
from seresnet_timm.runs.settings import RunSettings, num_epochs

TENSORBOARD, OLDEST_TENSORBOARD = "'tensorboard>=2.16,<3'", (2, 16)  # as in setup.cfg
TIMEOUT = 120  # seconds for the import of wandb on a slow disk
# in a process of its own: wandb starts another one, and may write on the terminal
ASK_WANDB = '''
import inspect, json, wandb
settings = wandb.setup().settings
asks = 'prompt' in inspect.signature(wandb.login).parameters
has_key = None
if settings.mode == 'online':
    has_key = bool(wandb.login(prompt=False) if asks else wandb.api.api_key)
print(json.dumps({'mode': settings.mode, 'has_key': has_key, 'host': settings.base_url}))
'''


def check_trackers(settings: RunSettings) -> Iterator[str]:
    """What is missing for the flags of a run, on the node that logs; each a sentence."""
    if settings.verb != 'train':
        flags = ('patience', 'early_stop', 'tensorboard')
        given = [f'--{flag.replace("_", "-")}' for flag in flags if getattr(settings, flag)]
        if given:
            is_one = len(given) == 1
            yield (f'{", ".join(given)} {"is a flag" if is_one else "are flags"} of train: leave '
                   f'{"it" if is_one else "them"} out.')
        return
    yield from _patience(settings)
    if settings.tensorboard:
        yield from _tensorboard()
    if settings.args.get('log_wandb'):
        yield from _wandb(settings.args)


def _patience(settings: RunSettings) -> Iterator[str]:
    args, patience = settings.args, settings.patience
    if settings.early_stop and patience is None:
        yield '--early-stop ends a run whose metric does not move for --patience N epochs: add --patience N.'
    if patience is None:
        return
    if not args.get('val_split'):
        yield (f'--patience {patience} waits for a better metric of the evaluation, and --val-split is empty: leave '
               'out one.')
    epochs = num_epochs(args)
    if patience >= epochs:
        yield (f'--patience {patience} is not less than the epochs of the run ({epochs}), so that it would '
               'have no effect: lower it.')


def _tensorboard() -> Iterator[str]:
    try:
        version = metadata.version('tensorboard')
    except metadata.PackageNotFoundError:
        yield f'--tensorboard needs the package tensorboard: {sys.executable} -m pip install {TENSORBOARD}'
        return
    numbers = version.split('.')[:2]
    if all(n.isdigit() for n in numbers) and tuple(map(int, numbers)) < OLDEST_TENSORBOARD:
        yield (f'--tensorboard needs tensorboard 2.16 or later, {version} is installed: {sys.executable} -m pip '
               f'install {TENSORBOARD}')


def _wandb(args: Dict[str, Any]) -> Iterator[str]:
    if args.get('wandb_resume_id') and not args.get('resume'):
        yield (f'--wandb-resume-id {args["wandb_resume_id"]} goes on with a run of Weights & Biases: add --resume, or '
               'leave it out.')
    if importlib.util.find_spec('wandb') is None:
        yield '--log-wandb needs wandb: pip install wandb.'
        return
    answer = _ask_wandb()
    if 'error' in answer:
        yield f'--log-wandb: wandb cannot be used ({answer["error"]}).'
    elif answer['has_key'] is False:
        yield (f'--log-wandb: there is no key for {answer["host"]}, and a run cannot ask for it: run `wandb login` '
               'first, set WANDB_API_KEY, or keep the log on this machine with WANDB_MODE=offline (`wandb sync` sends '
               'it later).')


def _ask_wandb() -> Dict[str, Any]:
    """How wandb would log: `mode`, `has_key` (None where it needs none) and `host`; or `error`."""
    try:
        asked = subprocess.run([sys.executable, '-c', ASK_WANDB], stdin=subprocess.DEVNULL, capture_output=True,
                               text=True, timeout=TIMEOUT, env={**os.environ, 'WANDB_SILENT': 'true'})
    except subprocess.TimeoutExpired:
        return {'error': f'it does not answer within {TIMEOUT} s'}
    found = _last_object(asked.stdout)
    if found is not None:
        return found
    lines = [line.strip() for line in asked.stderr.splitlines() if line.strip()]
    return {'error': printable(' '.join(lines[-3:])) or f'exit code {asked.returncode}'}


def _last_object(text: str) -> Optional[Dict[str, Any]]:
    for line in reversed(text.splitlines()):
        if line.startswith('{'):
            return json.loads(line)
    return None
