"""What is pushed, as read from a run or a checkpoint"""
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

import torch
import yaml

from seresnet_timm.checkpoints.checkpoint import Checkpoint
from seresnet_timm.checkpoints.fit import refuse_misfit, weights_for, with_channels
from seresnet_timm.checkpoints.read import read_checkpoint, why_endless
from seresnet_timm.data.label_files import read_class_names
from seresnet_timm.errors import UsageError
from seresnet_timm.files import MOST_BYTES_OF_CONFIG, why_not_text
from seresnet_timm.hub.names import is_remote
from seresnet_timm.hub.pull import network_of
from seresnet_timm.models.create import check_model_name, create_from_info
from seresnet_timm.models.info import ModelInfo
from seresnet_timm.runs import report


@dataclass
class Source:
    """What is pushed, as read from a run or a file.

    Attributes:
        path: The checkpoint.
        weights: Weights under the names of the model.
        model: The network (nn.Module), in shapes only.
        info: What the model was made from, its classes and preprocessing.
        args: Flags of the training, unchecked: for the card only.
        run: The training; None if only a file is known.
        row: Row of `summary.csv` of the pushed epoch, if these weights were evaluated.
        origin: Model whose weights the training started from.
        weights_are: What the weights are, e.g. 'moving average of the weights', for the results.
        notes: What was decided, with the reason.
    """
    path: Path
    weights: Dict[str, torch.Tensor]
    model: Any
    info: ModelInfo
    args: Dict[str, Any]
    run: Optional[report.Run] = None
    row: Optional[Dict[str, float]] = None
    origin: Optional[str] = None
    weights_are: str = ''
    notes: List[str] = field(default_factory=list)

    @property
    def architecture(self) -> str:
        return self.model.pretrained_cfg['architecture']


def read_source(
        source: Union[str, Path],
        model: Optional[str] = None,
        num_classes: Optional[int] = None,
        use_ema: Optional[bool] = None,
        class_names: Optional[Union[str, Path]] = None,
) -> Source:
    """Read what is to be pushed. The network is used only if an older file names a model on the Hub as its origin.

    Args:
        source: Output folder of a training, or a checkpoint.
        model: Architecture, over the one that the file names.
        num_classes: Number of classes that the file must have.
        use_ema: Take the moving average (True) or the raw weights; None takes those whose top-1 the run reports.
        class_names: File with the name of a class a line, over the names in the file.

    Raises:
        UsageError: It cannot be read, or does not tell which model it is.
    """
    path, run, notes = _find_checkpoint(Path(source))
    checkpoint = read_checkpoint(path)
    args = _arguments(checkpoint, run)
    if not checkpoint.args and args:
        checkpoint = replace(checkpoint, content=dict(checkpoint.content, args=args))
    info = checkpoint.typed_info()
    if model is not None:
        check_model_name(model)
        info = replace(info, name=model)
    name = info.name
    if name is None:
        raise UsageError(f'{path} does not tell which model it is: name its architecture with --model.')
    if num_classes is not None and num_classes != info.num_classes:
        info = replace(info, num_classes=num_classes, class_names=None)

    takes_ema, is_evaluated = _choose_weights(checkpoint, args, run is not None, use_ema, notes)
    info, folder = network_of(checkpoint, with_channels(checkpoint, info))
    shapes: Any = create_from_info(info, str(path), meta=True, folder=folder)
    weights = weights_for(checkpoint, shapes, takes_ema)
    refuse_misfit(checkpoint, weights, shapes, name)
    unknown = info.unknown_preprocessing()
    if unknown:
        notes.append(f"preprocessing: not in the file, timm's values of {name} are taken: {', '.join(unknown)}")
    if info.image_mode is not None:
        notes.append(f'images: the network takes them in the mode {info.image_mode}, for which config.json has no '
                     f'field: who evaluates it has to give --input-img-mode {info.image_mode}')
    if class_names is not None:
        info = replace(info, class_names=read_class_names(class_names, shapes.num_classes))
    elif info.class_names is None:
        notes.append('class names: unknown, as the file does not hold them; --class-names FILE adds them')

    row = None
    if run and is_evaluated:
        row = next((r for r in run.rows if r['epoch'] == checkpoint.epoch), None)
    started_from = str(args.get('model') or '')
    return Source(
        path=path,
        weights=weights,
        model=shapes,
        info=info,
        args=args,
        run=run,
        row=row,
        origin=started_from if is_remote(started_from) or args.get('pretrained') else None,
        weights_are='moving average of the weights' if takes_ema else '',
        notes=notes,
    )


def _choose_weights(
        checkpoint: Checkpoint,
        args: Dict[str, Any],
        is_run: bool,
        use_ema: Optional[bool],
        notes: List[str],
) -> Tuple[bool, bool]:
    """Whether the moving average is taken, and whether the run evaluated what is taken; adds a note on the choice."""
    if use_ema and not checkpoint.has_ema:
        raise UsageError(f'{checkpoint.path} holds no moving average: leave out --use-ema.')
    if not checkpoint.has_ema:
        choice = checkpoint.describe_choice()
        notes += [f'weights: {choice}'] if choice else []
        return False, True
    evaluates_ema = bool(args.get('model_ema')) and not args.get('model_ema_force_cpu')
    takes_ema = use_ema if use_ema is not None else is_run and evaluates_ema
    chosen = 'moving average of the weights' if takes_ema else 'raw weights'
    why = (', whose top-1 the run reports; --no-use-ema takes the raw weights' if takes_ema else
           '; --use-ema takes their moving average')
    notes.append(f'weights: the {chosen}{why if use_ema is None else ""}')
    return takes_ema, takes_ema == evaluates_ema


def _find_checkpoint(source: Path) -> Tuple[Path, Optional[report.Run], List[str]]:
    """Checkpoint that a run or a file means, the run, and notes."""
    if not source.is_dir():
        return source, None, []
    run = report.read_run(source)
    path = run.folder.checkpoint()
    if path is None:
        raise UsageError(f'{source} holds neither {run.folder.best.name} nor {run.folder.last.name}.')
    is_last = path == run.folder.last
    return path, run, [f'{path}: the last epoch, as there is no {run.folder.best.name}'] if is_last else []


def _arguments(checkpoint: Checkpoint, run: Optional[report.Run]) -> Dict[str, Any]:
    """Flags of the training that wrote a checkpoint: from the file, else from args.yaml of its run."""
    if checkpoint.content.get('args') is not None:
        return checkpoint.args
    if run is None or not run.folder.args.is_file():
        return {}
    reason = why_not_text(run.folder.args, MOST_BYTES_OF_CONFIG)
    if reason:
        raise UsageError(f'{run.folder.args} cannot be read: {reason}.')
    try:
        args = yaml.safe_load(run.folder.args.read_text(encoding='utf-8'))
    except (ValueError, RecursionError, yaml.YAMLError):
        raise UsageError(f'{run.folder.args} is not valid YAML: it is damaged.')
    reason = why_endless(args, run.folder.args.stat().st_size)
    if reason:
        raise UsageError(f'{run.folder.args} is refused: {reason}.')
    return args if isinstance(args, dict) else {}
