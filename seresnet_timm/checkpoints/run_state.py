"""Whether the `run_state` of a checkpoint has the fields that a resume reads, each of its type

Another tool may have removed some, a file may be damaged, and a later version may write others.
"""
from typing import Any, Dict, List, Optional

import torch

NUMBER = (int, float)
NONE = type(None)


class Maybe(dict):
    """Fields of a dictionary that may be None instead."""


# A dictionary has fields, which may be missing where their name ends in `?`; a list has the shape of its entries.
GENERATORS = {
    'torch': torch.Tensor, 'device': (torch.Tensor, NONE), 'python': tuple, 'numpy': tuple}
LOADER = Maybe({
    'seeds': [int], 'drawn': int, 'generators': (dict, NONE), 'workers': dict, 'base_seed': (int, NONE),
    'next_worker': int, 'num_workers': int, 'has_started': bool, 'mixes?': (bool, NONE), 'order?': (int, NONE)})
LOSSES = {'pending': [NUMBER], 'pending_count': NUMBER, 'sum': NUMBER, 'count': NUMBER, 'left_out?': NUMBER}
RANK = {
    'loader': LOADER, 'losses': Maybe(LOSSES), 'optimizer?': (dict, NONE), 'buffers?': (dict, NONE),
    'ema_buffers?': (dict, NONE), 'figures?': (list, tuple, NONE), 'unreadable?': (list, NONE),
    'bad_steps?': Maybe(total=NUMBER, row=NUMBER, longest=NUMBER, began=NUMBER, step=int)}
THROUGHPUT = {'seconds': NUMBER, 'steps': int, 'images': int, 'wait': NUMBER, 'warm': (list, tuple, NONE)}
SCHEDULE = {
    'best': NUMBER, 'num_bad_epochs': int, 'cooldown_counter': int, 'last_epoch': int,
    'restore_lr': (*NUMBER, list, NONE), 'lrs': [NUMBER]}
RECORD = {  # of run.json
    'started': str, 'epochs': [{'epoch': int}], 'best': (dict, NONE), 'faults': list, 'resumes': list}
ALWAYS = {
    'epoch': int, 'world_size': int, 'rng': [GENERATORS], 'batches?': int, 'is_trained?': bool, 'batch_size?': int,
    'seed?': int, 'images?': Maybe({'count': int, 'names?': object}), 'ranks?': [RANK], 'schedule?': Maybe(SCHEDULE),
    'history?': Maybe(record=RECORD, summary=str), 'has_evaluated?': bool, 'metric?': (*NUMBER, NONE),
    'throughput?': Maybe(THROUGHPUT),
    'trained?': Maybe(metrics=dict, figures={'unreadable_train': (dict, NONE)})}
# in the middle of an epoch; before its evaluation
WITHIN = {'batch_size': int, 'ranks': [dict(RANK, losses=LOSSES)], 'throughput': THROUGHPUT}
TRAINED = {'batch_size': int, 'ranks': [RANK], 'trained': dict}
LEAST = {'epoch': 0, 'batches': 0, 'world_size': 1, 'batch_size': 1}
NAMES = {bool: 'true or false', int: 'a whole number', dict: 'a dictionary', list: 'a list'}


def what_is_wrong(state: Any) -> Optional[str]:
    """What a resume could not read, as a clause such as 'no world_size'; None if nothing.

    Args:
        state: `run_state` of a checkpoint.
    """
    wrong = _wrong(state, ALWAYS, '')
    if wrong is None and state.get('is_trained'):
        wrong = _wrong(state, TRAINED, '')
    elif wrong is None and state.get('batches', 0) > 0:
        wrong = _wrong(state, WITHIN, '')
    if wrong is not None:
        return wrong
    for name, least in LEAST.items():
        if state.get(name, least) < least:
            return f'{name} is {state[name]}'
    for name in ('rng', 'ranks'):
        if name in state and len(state[name]) != state['world_size']:
            return f'{name} has {len(state[name])} entries for {state["world_size"]} processes'
    return None


def _wrong(value: Any, shape: Any, name: str) -> Optional[str]:
    if isinstance(shape, Maybe) and value is None:
        return None
    if isinstance(shape, dict):
        return _wrong_fields(value, shape, name)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _is_a(value, list, name)
        found: List[Optional[str]] = [_wrong(v, shape[0], f'{name}[{i}]') for i, v in enumerate(value)]
        return next(filter(None, found), None)
    kinds = shape if isinstance(shape, tuple) else (shape,)
    is_right = isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds or object in kinds)
    return None if is_right else _is_a(value, kinds[0], name)


def _wrong_fields(value: Any, shape: Dict[str, Any], name: str) -> Optional[str]:
    if not isinstance(value, dict):
        return _is_a(value, dict, name)
    for field, inner in shape.items():
        key = field.rstrip('?')
        whole = f'{name}.{key}' if name else key
        if key in value:
            wrong = _wrong(value[key], inner, whole)
            if wrong is not None:
                return wrong
        elif key == field:
            return f'no {whole}'
    return None


def _is_a(value: Any, kind: type, name: str) -> str:
    return f'{name or "it"} is of the type {type(value).__name__}, not {NAMES.get(kind, kind.__name__)}'
