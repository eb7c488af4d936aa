"""The networks; importing this package registers them with timm."""
from seresnet_timm.models.seresnet import SEResNet, checkpoint_filter_fn

__all__ = ['SEResNet', 'checkpoint_filter_fn']
