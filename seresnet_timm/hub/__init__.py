"""Models to and from the Hugging Face Hub."""
from seresnet_timm import models  # noqa: F401  (registers the models)
from seresnet_timm.hub.pull import pull
from seresnet_timm.hub.push import push

__all__ = ['pull', 'push']
