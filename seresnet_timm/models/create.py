"""The model that a script's flags describe."""
import timm
import torch.nn as nn
from timm.models import parse_model_name

from seresnet_timm.errors import UsageError


def create_model(args, **kwargs) -> nn.Module:
    """Create the model that `--model` names, in the shape that the flags ask for.

    A model on the Hub is verified first: timm would load whatever has arrived.

    Args:
        args: Flags; those of the model's shape are read.
        kwargs: Further arguments of the model; None leaves one at its default.

    Raises:
        UsageError: The model does not take one of the arguments.
        RunError: The Hub failed.
    """
    in_chans = args.in_chans
    if in_chans is None:
        in_chans = args.input_size[0] if args.input_size is not None else 3
    name = args.model
    source, rest = parse_model_name(name)
    if source == 'hf-hub':
        from seresnet_timm.hub.pull import pull_pinned
        name = pull_pinned(rest, with_weights=bool(kwargs.get('pretrained')))
    try:
        return timm.create_model(
            name,
            num_classes=args.num_classes,
            in_chans=in_chans,
            global_pool=args.gp,
            **kwargs,
            **args.model_kwargs,
        )
    except TypeError as e:
        if 'unexpected keyword argument' not in str(e):
            raise
        name = str(e).rsplit("'", 2)[1]
        raise UsageError(f"{args.model} does not take '{name}': leave out --{name.replace('_', '-')}, or the key in "
                         '--model-kwargs.')
