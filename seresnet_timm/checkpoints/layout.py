"""Where a file keeps its weights, and under which names: keys of nesting, and prefixes that wrappers add"""
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple

import torch

from seresnet_timm.errors import UsageError, first_names, printable, shell_line

# what tools call a network's weights, the usual first, and their moving average
WEIGHTS_KEYS = ('state_dict', 'model', 'model_state_dict', 'model_state', 'net', 'network', 'weights', 'module',
                'params', 'net_state_dict', 'network_state_dict', 'base_model')
EMA_KEYS = ('state_dict_ema', 'model_ema', 'ema_state_dict', 'model_ema_state_dict', 'model_ema_state', 'ema_model',
            'ema_state', 'ema', 'params_ema', 'averaged_model')
TIMM_KEYS = WEIGHTS_KEYS[:2] + EMA_KEYS[:2]
WRAPPERS = ('module.', '_orig_mod.')  # of DDP and torch.compile, before all names
# of torch.compile, FSDP, activation checkpointing and Lightning's Fabric, wherever a part of the network was wrapped
PART_WRAPPERS = ('_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module', '_forward_module')
# names under which tools hold the network; taken off where all weights share them, even if the network is not known
NETWORK_WORDS = ('model', 'net', 'network', 'backbone', 'encoder', 'student', 'teacher', 'ema_model', 'model_ema',
                 'ema', 'base_model', 'online_network', 'classifier_model', 'averaged_model', 'trunk')
COUNTERS = ('n_averaged',)  # of torch's AveragedModel
BATCHES = '.num_batches_tracked'  # of BatchNorm; files from before torch 0.4.1 and of other tools do not have it
SPLIT_BN = '.aux_bn.'  # BatchNorm of the further augmentation splits, which only training uses
MAX_DEPTH = 3  # of nesting, and of prefixes
MAX_NAMED = 4


@dataclass(frozen=True)
class Named:
    """Weights under a network's own names.

    Attributes:
        weights: The weights.
        prefixes: What was taken off their names in the file, without the wrappers.
        left_out: Names in the file that do not belong to the network.
    """
    weights: Dict[str, Any]
    prefixes: List[str] = field(default_factory=list)
    left_out: List[str] = field(default_factory=list)

    def describe(self) -> str:
        """What was done to the names, as a clause; '' if nothing was."""
        parts = []
        if self.prefixes:
            parts.append(f'the prefix {" and ".join(self.prefixes)} was taken off the names of its weights')
        if self.left_out:
            parts.append(f'left out: {first_names(self.left_out, MAX_NAMED)}')
        return printable('; '.join(parts))


def find_weights(content: Dict[str, Any], keys: Sequence[str]) -> Optional[Tuple[str, Dict[str, Any]]]:
    """The first entry of a file that holds weights, and its key (`a.b` for b in a); None if there is none."""
    fallback = None
    for key in keys:
        value = content.get(key)
        if not isinstance(value, dict):
            continue
        if _has_tensors(value):
            return key, value
        inner = find_weights(value, WEIGHTS_KEYS)
        if inner is not None and inner[0].count('.') < MAX_DEPTH:
            return f'{key}.{inner[0]}', inner[1]
        if key in TIMM_KEYS and fallback is None:
            fallback = key, value
    return fallback


def weights_under_usual_keys(content: Dict[str, Any]) -> List[str]:
    """Keys of all entries that hold the weights of a network or their average, as `find_weights` gives them."""
    found = (find_weights(content, (key,)) for key in WEIGHTS_KEYS + EMA_KEYS)
    return [key for key, weights in filter(None, found) if _is_network(weights)]


def is_average(key: str) -> bool:
    """Whether a key, or the first of nested ones, is that of a moving average."""
    return key.partition('.')[0] in EMA_KEYS


def other_networks(content: Dict[str, Any]) -> List[str]:
    """Keys of further entries that look like the weights of a network."""
    return [k for k, v in content.items() if isinstance(k, str) and k not in WEIGHTS_KEYS + EMA_KEYS
            and isinstance(v, dict) and _is_network(v)]


def _has_tensors(value: Dict[str, Any]) -> bool:
    return any(isinstance(v, torch.Tensor) for v in value.values())


def _is_network(value: Dict[str, Any]) -> bool:
    return all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items()) and any(
        v.ndim > 1 for v in value.values())


def deeper_networks(content: Dict[str, Any], above: str = '') -> Dict[str, Dict[str, Any]]:
    """Entries deep in a file that look like the weights of a network, by their keys (`a.b` for b in a)."""
    found: Dict[str, Dict[str, Any]] = {}
    for key, value in content.items():
        is_entry = isinstance(key, str) and 'optim' not in key.lower() and isinstance(value, dict) and bool(value)
        if is_entry and above.count('.') < MAX_DEPTH:
            found.update({above + key: value} if _is_network(value) else deeper_networks(value, f'{above}{key}.'))
    return found


def plain_names(weights: Dict[str, Any], origin: str) -> Dict[str, Any]:
    """Names without the prefixes of DDP and torch.compile, and without counters.

    Raises:
        UsageError: Two weights would get one name.
    """
    result: Dict[str, Any] = {}
    for name, value in weights.items():
        short = _without_wrappers(name)
        if short in result:
            prefix = name.removesuffix(short) if name.endswith(short) else ''
            raise UsageError(
                f'{origin} holds two networks: {printable(short)} is in it with and without the prefix '
                f'{printable(prefix or WRAPPERS[0])}. {_how_to_choose(origin, WRAPPERS[0])}')
        if short.endswith(BATCHES) and getattr(value, 'shape', None) == (1,):
            value = value[0]  # as torch loads those of before 0.4
        if short not in COUNTERS:
            result[short] = value
    return result


def _without_wrappers(name: str) -> str:
    if any(word in name for word in PART_WRAPPERS):
        name = '.'.join(part for part in name.split('.') if part not in PART_WRAPPERS)
    while name.startswith(WRAPPERS):
        name = name.partition('.')[2]
    return name


def strip_network_words(weights: Dict[str, Any]) -> Tuple[Dict[str, Any], str]:
    """Take off a prefix that all names share, if it is a usual name of a network in a larger one; it comes second."""
    prefix = ''
    while weights:
        firsts = {name.partition('.')[0] for name in weights}
        word = next(iter(firsts))
        if len(firsts) > 1 or word not in NETWORK_WORDS or any('.' not in name for name in weights):
            break
        prefix += f'{word}.'
        weights = {_without_wrappers(name.partition('.')[2]): v for name, v in weights.items()}
    return weights, prefix


def prefixes_of(names: Iterable[str], anchors: Sequence[str]) -> List[str]:
    """Prefixes under which one of the anchors is among the names; '' too, if so."""
    names = set(names)
    result = []
    for name in names:
        for anchor in anchors:
            prefix = name[:len(name) - len(anchor)]
            if name.endswith(anchor) and (not prefix or prefix.endswith('.')) and prefix.count('.') <= MAX_DEPTH:
                result.append(prefix)
    return sorted(set(result))


def under(weights: Dict[str, Any], prefix: str) -> Dict[str, Any]:
    """The weights whose names begin with a prefix, without it and without wrappers behind it."""
    return {_without_wrappers(n[len(prefix):]): v for n, v in weights.items() if n.startswith(prefix)}


def part_of(weights: Dict[str, Any], word: str) -> Dict[str, Any]:
    """The weights whose names begin with a prefix; for '' those that are no copy of others under a prefix."""
    if word:
        return under(weights, f'{word}.') or under({_without_wrappers(k): v for k, v in weights.items()}, f'{word}.')
    groups: Dict[str, List[str]] = {}
    for name in weights:
        groups.setdefault(name.partition('.')[0], []).append(name)
    copies = {word for word, names in groups.items() if all(n.partition('.')[2] in weights for n in names)}
    return {k: v for k, v in weights.items() if k.partition('.')[0] not in copies}


def expected_names(own: Dict[str, Any], weights: Dict[str, Any]) -> Dict[str, Any]:
    """State dict of a network without the counters of BatchNorm, if the weights of a file have none of them."""
    if any(name.endswith(BATCHES) for name in weights):
        return own
    return {name: value for name, value in own.items() if not name.endswith(BATCHES)}


def names_for(
        weights: Dict[str, Any],
        own: Dict[str, Any],
        head: Sequence[str],
        origin: str,
        rename: Callable[[Dict[str, Any]], Dict[str, Any]],
) -> Named:
    """The weights under the names of a network; as they are, where no prefix explains the difference.

    Args:
        weights: As in the file.
        own: State dict of the network.
        head: Names of its classifier's weights.
        origin: The file, for messages.
        rename: Changes other writers' names of the network's layers to its own.

    Raises:
        UsageError: Several networks in the file fit.
    """
    plain = rename(plain_names(weights, origin))
    if not any(SPLIT_BN in name for name in own):
        plain = {k: v for k, v in plain.items() if SPLIT_BN not in k}
    own = expected_names(own, plain)
    if plain.keys() == own.keys() or not own:
        return Named(plain)
    body = [k for k in own if k not in head]
    anchors = body[:1] + body[-1:] if body else list(head)[:1]
    parts = {p: under(plain, p) for p in prefixes_of(plain, anchors)}
    full = [p for p, part in parts.items() if p and own.keys() <= part.keys()]
    if '' in parts:
        rest = {k: v for k, v in plain.items() if not any(k.startswith(p) for p in full)}
        if own.keys() <= rest.keys():
            full.insert(0, '')
    if len(full) > 1:
        of_shape = [p for p in full if all(getattr(parts[p][k], 'shape', None) == v.shape for k, v in own.items())]
        full = of_shape if len(of_shape) == 1 else full
    if len(full) > 1:
        raise several_networks(origin, full)
    if full and full[0]:
        return _taken(plain, full[0], parts[full[0]])
    joined = None if full else _with_head_elsewhere(plain, own, head, parts)
    return joined or _nearest(plain, own, parts, origin) or Named(plain)


def _taken(plain: Dict[str, Any], prefix: str, part: Dict[str, Any]) -> Named:
    return Named(part, [prefix], [k for k in plain if not k.startswith(prefix)])


def _with_head_elsewhere(
        plain: Dict[str, Any], own: Dict[str, Any], head: Sequence[str], parts: Dict[str, Dict[str, Any]],
) -> Optional[Named]:
    """Body and classifier under a prefix each, and nothing else in the file (mmpretrain: `backbone.`, `head.`)."""
    for prefix, part in parts.items():
        missing = [k for k in own if k not in part]
        if not prefix or not missing or not set(missing) <= set(head):
            continue
        for other in prefixes_of(plain, missing[:1]):
            found = {k: plain.get(other + k) for k in missing}
            merged = {**part, **found}
            if None not in found.values() and merged.keys() == own.keys() and len(plain) == len(merged):
                return Named({k: merged[k] for k in own}, [prefix, other] if other else [prefix])
    return None


def _nearest(
        plain: Dict[str, Any], own: Dict[str, Any], parts: Dict[str, Dict[str, Any]], origin: str,
) -> Optional[Named]:
    """The part of the file that has most of the network's names, so that a message names what is missing there."""
    counts = {p: len(own.keys() & part.keys()) for p, part in parts.items()}
    most = max(counts.values(), default=0)
    best = [p for p, n in counts.items() if n == most]
    if 2 * most < len(own) or best == ['']:
        return None
    if len(best) > 1:
        raise several_networks(origin, best)
    return _taken(plain, best[0], parts[best[0]])


def several_networks(origin: str, prefixes: Sequence[str], keys: bool = False) -> UsageError:
    """The error of a file with more than one network, with how to choose."""
    names = ' and '.join(printable(p) or 'without a prefix' for p in prefixes)
    where = f'under the keys {names}' if keys else f'the names of their weights begin with {names}'
    return UsageError(f'{origin} holds several networks: {where}. {_how_to_choose(origin, prefixes[-1])}')


def _how_to_choose(origin: str, name: str) -> str:
    path = origin.removeprefix('Checkpoint ')
    command = ['seresnet-timm', 'convert', path, 'OUT.safetensors', '--network', name.rstrip('.')]
    return f'Choose one: `{shell_line(command)}` writes it alone.'
