"""run.json: what a run was started with and how it went, the same for both train scripts and for evaluation

`run.schema.json` describes it. A value that is not known is null, never left out. This file does not import torch.
"""
import logging
import os
import platform
import time
from dataclasses import asdict, fields
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

from seresnet_timm.errors import RunError, UsageError, first_line, printable
from seresnet_timm.files import from_json, set_aside, why_not_text, write_json
from seresnet_timm.runs.folder import RunFolder
from seresnet_timm.runs.settings import RunSettings
from seresnet_timm.version import __version__

_logger = logging.getLogger('train')
SCHEMA = 1
MOST_BYTES = 5 * 10 ** 7  # 20 times a run of 600 epochs on 20,000 classes
EPOCH_FIELDS = ('epoch', 'train_seconds', 'steps', 'images', 'fps', 'data_wait_share', 'eval_seconds', 'peak_gib',
                'total_gib', 'bad_steps', 'loss_scale')
EPOCH_UNREADABLE = ('unreadable_train', 'unreadable_val')  # images that could not be read
EVALUATION_FIELDS = ('images', 'seconds', 'top1', 'top5', 'loss')
HISTORY = ('started', 'epochs', 'best', 'faults', 'resumes')
# of JSON
TYPES: Dict[str, Any] = {
    'object': dict, 'array': list, 'string': str, 'integer': int, 'number': (int, float), 'boolean': bool,
    'null': type(None)}
MAY_LACK = ('settings.args', 'versions')  # fields, in older records
PACKAGES = ('timm', 'torch', 'torchvision', 'torch_npu')


class DamagedRecord(UsageError):
    """A run.json that is not the record of a run."""


class RunRecord:
    """The record of a run that starts now. Used on rank 0 only; every method writes the file.

    Args:
        settings: Settings of the run.
        folder: Folder of the run.
        model_info: The network and its preprocessing, as `ModelInfo.to_dict` gives them.
        device_name: Name of the device by its driver, such as 'Ascend910B2'.
    """

    def __init__(
            self,
            settings: RunSettings,
            folder: Union[str, Path],
            model_info: Optional[Dict[str, Any]] = None,
            device_name: Optional[str] = None,
    ):
        self.settings, self.folder = settings, RunFolder(folder)
        self.content: Dict[str, Any] = {
            'schema': SCHEMA,
            'command': list(settings.command),
            'settings': dict(
                asdict(settings), precision=settings.precision, global_batch_size=settings.global_batch_size),
            'model_info': model_info,
            'versions': installed_versions(),
            'machine': {'system': platform.platform(), 'cpus': os.cpu_count(), 'device': device_name},
            'started': _now(),
            'finished': None,
            'diverged': None,
            'early_stop': None,
            'epochs': [],
            'best': None,
            'evaluation': None,
            'faults': [],
            'resumes': [],
        }
        self.error: Optional[str] = None  # of the last write; None if it succeeded
        self._has_begun = False

    def history(self) -> Dict[str, Any]:
        """What a checkpoint holds of the record, so that a run can go on without the file."""
        return {key: self.content[key] for key in HISTORY}

    def continue_from(
            self,
            start_epoch: int,
            is_same_run: bool = False,
            history: Optional[Mapping[str, Any]] = None,
    ) -> None:
        """Begin at an epoch; what is known of those before it is that of the folder's record.

        Args:
            start_epoch: Its number; above 0 the run is that of the folder.
            is_same_run: It is that of the folder, also at epoch 0.
            history: What the checkpoint holds of the record, see `history`; None if nothing.

        Raises:
            UsageError: The folder's record is damaged, and the checkpoint holds nothing of it.
            RunError: The file cannot be written.
        """
        if (start_epoch > 0 or is_same_run) and (self.folder.record.exists() or history):
            old = self._read(history)
            self.content['epochs'] = [e for e in old['epochs'] if e['epoch'] < start_epoch]
            self.content['started'] = old['started']
            self.content['best'] = old['best']
            self.content['faults'], self.content['resumes'] = old['faults'], old['resumes']
            if not self.settings.restarts:  # which are faults of their own
                self.content['resumes'].append({'time': _now(), 'epoch': start_epoch})
        known = {fault['time'] for fault in self.content['faults'] if fault['kind'] == 'restart'}
        for restart in self.settings.restarts:
            when, _, text = restart.partition(' ')
            if when not in known:
                self.content['faults'].append({
                    'time': when, 'kind': 'restart', 'epoch': start_epoch, 'text': text})
        self._write()
        if self.error:
            raise RunError(self.error)

    def _read(self, history: Optional[Mapping[str, Any]]) -> Mapping[str, Any]:
        """The record of the run so far: that of the folder; that of the checkpoint for what it does not have."""
        try:
            old = read_record(self.folder.path)
        except UsageError as e:
            if not history or not isinstance(e, DamagedRecord) and self.folder.record.exists():
                raise
            moved = f', moved to {set_aside(self.folder.record)}' if self.folder.record.exists() else ''
            _logger.warning(f'{self.folder.record} is missing or damaged{moved}: the record goes on with what the '
                            'checkpoint holds of it.')
            return history
        known = {epoch['epoch'] for epoch in old['epochs']}
        missing = [epoch for epoch in (history or {}).get('epochs', ()) if epoch['epoch'] not in known]
        return dict(old, epochs=sorted([*old['epochs'], *missing], key=lambda epoch: epoch['epoch']))

    def add_epoch(self, figures: Dict[str, Any]) -> None:
        """Append an epoch; it takes the place of one with its number.

        Args:
            figures: `epoch`, and what is known of `EPOCH_FIELDS`; and of `EPOCH_UNREADABLE`, each an object with
                `count` and `files`.
        """
        unreadable = {k: _unreadable(figures.get(k)) for k in EPOCH_UNREADABLE}
        self.content['epochs'] = [e for e in self.content['epochs'] if e['epoch'] != figures['epoch']]
        self.content['epochs'].append({**{k: figures.get(k) for k in EPOCH_FIELDS}, **unreadable, 'finished': _now()})
        self._write()

    def add_fault(self, kind: str, epoch: Optional[int], text: str, when: Optional[float] = None) -> None:
        """Append something that went wrong and did not end the run, or the reason why it ended.

        Args:
            kind: 'save', 'bad_steps', 'bad_images', 'data_wait', 'worker' or 'restart'.
            epoch: Epoch in which it happened.
            text: A sentence.
            when: Seconds since 1970; None for now.
        """
        self.content['faults'].append({'time': _now(when), 'kind': kind, 'epoch': epoch, 'text': text})
        self._write()

    def set_best(self, metric: str, value: Optional[float], epoch: Optional[int]) -> None:
        self.content['best'] = None if value is None else {'metric': metric, 'value': value, 'epoch': epoch}
        self._write()

    def set_evaluation(self, figures: Dict[str, Any]) -> None:
        """Set the result of an evaluation.

        Args:
            figures: What is known of `EVALUATION_FIELDS`; top1 and top5 in percent; and `unreadable`, as in an epoch.
        """
        self.content['evaluation'] = {
            **{k: figures.get(k) for k in EVALUATION_FIELDS}, 'unreadable': _unreadable(figures.get('unreadable'))}
        self._write()

    def set_early_stop(self, stop: Dict[str, Any]) -> None:
        """Note that the run ends before its last epoch, as the metric has not moved.

        Args:
            stop: Last `epoch`, `patience`, `metric`, its `best` value and `best_epoch`.
        """
        self.content['early_stop'] = stop
        self._write()

    def set_diverged(self, reason: str) -> None:
        """Note that the run ends because loss or weights are no longer finite numbers.

        Args:
            reason: A sentence.
        """
        self.content['diverged'] = reason
        self._write()

    def finish(self) -> None:
        self.content['finished'] = _now()
        self._write()

    def _write(self) -> None:
        """Write the file; if that fails, for example because the disk is full, the next call writes all of it."""
        try:
            if not self._has_begun:  # later: its file system may be unmounted, and the disk below is not meant
                self.folder.path.mkdir(parents=True, exist_ok=True)
            write_json(self.folder.record, self.content)
            self._has_begun = True
        except OSError as e:
            self.error = f'{self.folder.record} could not be written ({e.strerror}).'
            _logger.error(f'NOT SAVED: {self.error} It is tried again after the next epoch.')
        else:
            self.error = None


def _unreadable(images: Optional[Any]) -> Optional[Dict[str, Any]]:
    return None if images is None else {'count': images.count, 'files': list(images.files)}


def installed_versions(further: Sequence[str] = ()) -> Dict[str, Optional[str]]:
    """Versions of what the numbers depend on, and of further packages; None for one that is not installed."""
    versions: Dict[str, Optional[str]] = {'seresnet_timm': __version__, 'python': platform.python_version()}
    return {**versions, **{name: _version(name) for name in (*PACKAGES, *further)}}


@cache
def _version(name: str) -> Optional[str]:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _now(when: Optional[float] = None) -> str:
    return time.strftime('%Y-%m-%dT%H:%M:%S%z', time.localtime(when))


# --- reading ----------------------------------------------------------------------------------------------------------

def read_record(folder: Union[str, Path]) -> Dict[str, Any]:
    """Read the record of a run, of any schema.

    Args:
        folder: Folder of the run.

    Returns:
        The record in the shape of the newest schema; None for what an older one does not have.

    Raises:
        UsageError: There is none, it is not one, or it is from a later version of this package.
    """
    path = RunFolder(folder).record
    if not path.is_file():
        if RunFolder(folder).holds_a_run():
            raise UsageError(f"{folder} has no {path.name}: it was removed, or timm's own train.py, which writes none, "
                             'made this run.')
        runs = sorted(str(p.parent) for p in Path(folder).glob(f'*/{path.name}'))
        such = f'such as {runs[-1]}' if runs else 'the one with summary.csv in it'
        has = f'has no {path.name}' if os.path.isdir(folder) else (
            'is not a folder' if os.path.exists(folder) else 'does not exist')
        raise UsageError(f'{folder} {has}: name the folder of a run, {such}.')
    reason = why_not_text(path, MOST_BYTES)
    if reason:
        raise UsageError(f'{printable(path)} cannot be read: {reason}.')
    try:
        record = from_json(path.read_text(encoding='utf-8'))
    except OSError as e:
        raise UsageError(f'{path} cannot be read ({e.strerror}).')
    except ValueError as e:
        raise DamagedRecord(f'{path} is not the record of a run ({first_line(e)}): move it away to go on '
                            'with the run.')
    schema = record.get('schema', 0) if isinstance(record, dict) else 0
    if isinstance(schema, int) and schema > SCHEMA:
        raise UsageError(f'{path} was written by a later version of seresnet-timm (schema {schema}, this one reads up '
                         f'to {SCHEMA}): update the package.')
    try:
        if schema == 0:
            record = _from_schema_0(record)
        _add_later_fields(record)
        _check(record, _schema())
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        what = f'no {e}' if isinstance(e, KeyError) else first_line(e)
        raise DamagedRecord(f'{path} is not the record of a run ({what}): move it away to go on with the run.')
    return record


def is_unfinished_run_of(folder: Union[str, Path], command: Sequence[str]) -> bool:
    """Whether a folder holds a run that has not ended, and was started by the same command on any of its machines.

    Args:
        folder: Folder of the run; need not exist.
        command: Command line.
    """
    try:
        record = read_record(folder)
    except UsageError:
        return False
    return record['finished'] is None and _of_all_starts(record['command']) == _of_all_starts(command)


def _of_all_starts(command: Sequence[str]) -> List[List[str]]:
    """The flags of a command line, but for those that differ from start to start, or say where the folder is.

    The command that a stopped run prints has them in another order.
    """
    flags: List[List[str]] = [[]]
    for word in command:
        if word == '--dry-run':
            continue
        if word.startswith('--') or word[:1] == '-' and word[1:2].isalpha():
            flags.append([])
        flags[-1] += word.split('=', 1) if word.startswith('--') else [word]
    own = ('--resume', '--node-rank', '--node_rank', '--output', '--experiment')
    return sorted(words for words in flags if not words or words[0] not in own)


def _add_later_fields(record: Dict[str, Any]) -> None:
    """Set the fields to null that a record of the same schema did not have at first."""
    record.setdefault('diverged', None)
    record.setdefault('early_stop', None)
    record.setdefault('faults', [])
    record.setdefault('resumes', [])
    record['machine'].setdefault('device', None)
    record['settings'].setdefault('checkpoint_minutes', None)
    for epoch in record['epochs']:
        for key in ('bad_steps', 'loss_scale', *EPOCH_UNREADABLE, 'finished'):
            epoch.setdefault(key, None)
    if record['evaluation']:
        record['evaluation'].setdefault('unreadable', None)


def _check(value: Any, schema: Mapping[str, Any], place: str = '') -> None:
    """Refuse a record that lacks what readers use, or holds it in another type: types and required fields alone.

    Args:
        value: A value of the record.
        schema: Its part of `run.schema.json`.
        place: Where it is; '' for the record itself.

    Raises:
        KeyError, ValueError: The value is not as the schema says.
    """
    if '$ref' in schema:
        schema = _schema()['$defs'][schema['$ref'].rpartition('/')[2]]
    kinds = schema.get('type', [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(isinstance(value, TYPES[kind]) and isinstance(value, bool) <= (kind == 'boolean')
                         for kind in kinds):
        raise ValueError(f'{place} is a {type(value).__name__}')
    if isinstance(value, dict):
        for key in () if place in MAY_LACK else schema.get('required', ()):
            value[key]
        known, others = schema.get('properties', {}), schema.get('additionalProperties')
        for key, item in value.items():
            _check(item, known.get(key, others if isinstance(others, dict) else {}), f'{place}.{key}'.lstrip('.'))
    elif isinstance(value, list) and 'items' in schema:
        for item in value:
            _check(item, schema['items'], f'an entry of {place}')


@cache
def _schema() -> Dict[str, Any]:
    return from_json(Path(__file__).with_name('run.schema.json').read_text(encoding='utf-8'))


def _from_schema_0(old: Dict[str, Any]) -> Dict[str, Any]:
    """A record from before the number of the schema, in the shape of schema 1."""
    plan = dict(old['plan'])
    world_size, nnodes = plan['world_size'], plan.get('nnodes') or 1
    batch_size = plan['global_batch_size'] // world_size  # accumulated steps included
    precision = plan['precision']
    amp = precision.startswith(('amp ', 'O2'))
    texts = ('device_reason', 'loss scaler', 'loss_scaler', 'learning rate', 'images', 'step', 'patches')
    settings: Dict[str, Any] = {f.name: None for f in fields(RunSettings)}
    settings.update(
        verb='train',
        script=dict(name='train.py', path=None, reason=plan.get('script') or '', sha256='', tag=None),
        args={'model': plan['model'], 'batch_size': batch_size, 'lr': plan.get('lr'), 'epochs': plan.get('epochs'),
              'workers': plan.get('workers'), 'device': plan['device'], 'amp': amp,
              'amp_dtype': precision[len('amp '):] if precision.startswith('amp ') else 'float16',
              'model_dtype': None if amp or precision == 'float32' else precision},
        command=_command_0(old.get('command')),
        device=plan['device'],
        nnodes=nnodes,
        nproc=world_size // nnodes,
        world_size=world_size,
        amp_level='O2' if precision.startswith('O2') else None,
        output=plan.get('output'),
        num_images={},
        reasons={k: str(plan[k]) for k in texts if k in plan},
        notes=[],
        precision=precision,
        global_batch_size=plan['global_batch_size'],
    )
    return {
        'schema': SCHEMA,
        'command': settings['command'],
        'settings': settings,
        'model_info': None,
        'versions': {**dict.fromkeys(PACKAGES), **old['versions']},
        'machine': {'system': None, 'cpus': None, **(old.get('machine') or {})},
        'started': old['started'],
        'finished': old.get('finished'),
        'diverged': None,
        'early_stop': None,
        'epochs': [{k: e.get(k) for k in EPOCH_FIELDS} for e in old['epochs']],
        'best': old['best'],
        'evaluation': None,
        'faults': [],
        'resumes': [],
    }


def _command_0(command: Any) -> List[str]:
    """The command of a schema-0 record; [] where it is a rank's, which no user typed."""
    if not isinstance(command, list) or not all(isinstance(c, str) for c in command):
        return []
    return [] if command and command[-1].endswith('job.json') else command
