"""RunSettings: what a run was asked for and what was decided, made once and equal in the launcher and in all ranks

`launch/plan.py` makes it; everything else reads it. It goes to the ranks and into run.json as JSON, so all values are
plain. What differs from node to node (its number, its address) is not in it. This file imports neither torch nor timm.
"""
import argparse
import copy
import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

from seresnet_timm.version import __version__


@dataclass(frozen=True)
class Script:
    """The script that runs.

    Attributes:
        name: 'train.py' or 'validate.py'; 'predict' for that verb.
        path: File of timm's script; None for the package's own.
        reason: Why this one.
        sha256: Hash of the file; '' for the package's own.
        tag: Release of timm that the file belongs to, if it is a known one.
    """
    name: str
    path: Optional[str] = None
    reason: str = ''
    sha256: str = ''
    tag: Optional[str] = None

    @property
    def is_bundled(self) -> bool:
        return self.path is None

    def describe(self) -> str:
        if self.is_bundled:
            return f'bundled {self.name} of seresnet_timm {__version__} ({self.reason})'
        version = self.tag or 'of an unknown version'
        return f"timm's {self.name} {version}, sha256 {self.sha256[:12]} ({self.reason}: {self.path})"


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run.

    Attributes:
        verb: 'train', 'validate' or 'predict'.
        script: The script that runs.
        args: Every flag of the script or verb, by timm's names; `device`, `workers`, `lr`, `batch_size` and so on as
            decided.
        command: What the user typed, from the program's name on.
        recipe: Name of the recipe or preset that gave the defaults, if any.
        device: Device for torch, e.g. 'npu', 'cuda:1', 'cpu'.
        nnodes: Number of nodes.
        nproc: Processes of a node.
        world_size: Processes of all nodes.
        model_folder: Folder of a model that was pulled from the Hub, which `args['model']` names; else None.
        model_commit: Its commit on the Hub.
        img_sizes: Sides of the images that an evaluation at several sizes has, in its order; None for one size.
        teacher_folder: Folder of a model that was pulled from the Hub, which `args['kd_model_name']` names; else None.
        amp_level: apex's name of the precision, 'O0', 'O1' or 'O2', if it was asked for.
        loss_scale: Fixed loss scale of fp16 mixed precision; None for a dynamic one.
        fast_jpeg: Fast decoding: 'auto', 'on' or 'off' (timm's own loading, bit for bit).
        fast_step: The fastest correct set-up of the step; False for timm's own.
        lean_se: SE blocks that compute some activations twice to save memory: 'on' or 'off' in a training.
            The plan decides 'auto', and `reasons` says why.
        graph: The kernels of a step are captured and started together; where it was asked for and is not possible,
            `reasons` says why.
        internal_format: torch_npu may lay tensors out in formats of the NPU; None for the default of its release.
        fuse_bn: Fold BatchNorm for evaluation: 'auto', 'on' or 'off'.
        cpu_affinity: 'auto', 'cores' or 'none'.
        max_bad_steps: Steps in a row without a finite loss and gradients that end the run.
        max_bad_images: Training images that cannot be read and do not end the run: a number, or a share such as '0.1%'.
        data_timeout: Seconds to wait for a data folder that is gone; 0 to end at once.
        max_restarts: Restarts of the processes after a failure, at most.
        hang_timeout: Seconds without a step of a rank that end the processes; 0 for no limit.
        restarts: Restarts so far: time and reason, a sentence each.
        freeze: Last layer that is not trained, nor those before it; 'backbone' for all but the classifier.
        prof: Folder of a profile of five training steps; None for no profile.
        patience: Epochs without a new best after which a line is printed; None for never.
        early_stop: The run ends then.
        tensorboard: Write event files of TensorBoard into the run's folder.
        verbosity: -1 for results and warnings only, 0, or 1 for more lines.
        checkpoint_minutes: Minutes between checkpoints in the middle of an epoch; 0 for none.
        output: Folder of the run; None for an evaluation that writes no folder.
        class_names: Names of the classes by index, where the data are folders of images; else None.
        num_images: Images by split ('train', 'val'), where the data are folders of images; of predict: 'images'.
        reasons: Why a value is what it is, by its name.
        notes: Further sentences for the plan.
    """
    verb: str
    script: Script
    args: Dict[str, Any]
    command: List[str] = field(default_factory=list)
    recipe: Optional[str] = None
    device: str = 'cpu'
    nnodes: int = 1
    nproc: int = 1
    world_size: int = 1
    model_folder: Optional[str] = None
    model_commit: Optional[str] = None
    img_sizes: Optional[List[int]] = None
    teacher_folder: Optional[str] = None
    amp_level: Optional[str] = None
    loss_scale: Optional[float] = None
    fast_jpeg: str = 'auto'
    fast_step: bool = True
    lean_se: str = 'auto'
    graph: bool = False
    internal_format: Optional[bool] = None
    fuse_bn: str = 'auto'
    cpu_affinity: str = 'auto'
    max_bad_steps: int = 20
    max_bad_images: str = '0.1%'
    data_timeout: float = 600
    max_restarts: int = 0
    hang_timeout: float = 600
    restarts: List[str] = field(default_factory=list)
    freeze: Optional[str] = None
    prof: Optional[str] = None
    patience: Optional[int] = None
    early_stop: bool = False
    tensorboard: bool = False
    verbosity: int = 0
    checkpoint_minutes: float = 10.
    output: Optional[str] = None
    class_names: Optional[List[str]] = None
    num_images: Dict[str, int] = field(default_factory=dict)
    reasons: Dict[str, str] = field(default_factory=dict)
    notes: List[str] = field(default_factory=list)

    def namespace(self) -> argparse.Namespace:
        """The script's flags as its parser would give them; a copy, which the script may change."""
        return argparse.Namespace(**copy.deepcopy(self.args))

    @property
    def half_weights(self) -> bool:
        """fp16 weights with float32 masters (O2)."""
        return self.amp_level == 'O2' and self.verb == 'train'

    @property
    def block_end(self) -> str:
        """How residual blocks of this package end: 'light' (few kernels), 'lean' (less memory) or 'timm'."""
        if self.lean_se == 'on':
            return 'lean'
        return 'light' if self.fast_step else 'timm'

    @property
    def global_batch_size(self) -> int:
        """Images of an optimizer step, of all processes."""
        return self.args['batch_size'] * self.world_size * max(1, self.args.get('grad_accum_steps') or 1)

    @property
    def dtypes(self) -> List[Optional[str]]:
        """Names of the dtypes that the run computes in, None for float32."""
        return [self.args['amp_dtype'] if self.args.get('amp') else None, self.args.get('model_dtype')]

    @property
    def precision(self) -> str:
        if self.half_weights:
            return 'O2: fp16 weights, float32 masters and BatchNorm'
        if self.args.get('amp'):
            return f'amp {self.args["amp_dtype"]}'
        return self.args.get('model_dtype') or 'float32'

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> 'RunSettings':
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, values: Dict[str, Any]) -> 'RunSettings':
        """Settings from `asdict`, or from `settings` of a run.json, which holds more."""
        own = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        return cls(**dict(own, script=Script(**values['script'])))

    @classmethod
    def read(cls, path: Path) -> 'RunSettings':
        return cls.from_json(Path(path).read_text(encoding='utf-8'))


def num_epochs(args: Mapping[str, Any]) -> int:
    """Epochs of a run, as timm's `create_scheduler_v2` has them: with cycles, warm-up and cooldown where they count.

    Args:
        args: Flags of train.py, with timm's default for what is missing.
    """
    sched, epochs = args.get('sched', 'cosine'), args.get('epochs', 300)
    cooldown = args.get('cooldown_epochs') or 0
    if sched in ('cosine', 'tanh', 'poly'):
        cycles, factor = max(1, args.get('lr_cycle_limit', 1)), args.get('lr_cycle_mul', 1.)
        epochs = epochs * cycles if factor == 1 else math.floor(-epochs * (factor ** cycles - 1) / (1 - factor))
    elif sched not in ('wsd', 'rsqrt'):
        cooldown = 0
    return epochs + cooldown + (args.get('warmup_epochs', 5) if args.get('warmup_prefix') else 0)
