"""An independent SE-ResNet on torchvision's ResNet."""
from collections import OrderedDict

import torch
import torch.nn as nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from seresnet_timm.models import checkpoint_filter_fn

DEPTHS = {18: (BasicBlock, [2, 2, 2, 2]), 34: (BasicBlock, [3, 4, 6, 3]), 50: (Bottleneck, [3, 4, 6, 3]),
          101: (Bottleneck, [3, 4, 23, 3]), 152: (Bottleneck, [3, 8, 36, 3])}


class LinearSE(nn.Module):
    """Squeeze-and-Excitation as in the paper (section 3), with linear layers without bias, reduction 16."""

    def __init__(self, channels):
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // 16, bias=False), nn.ReLU(),
            nn.Linear(channels // 16, channels, bias=False), nn.Sigmoid())

    def forward(self, x):
        gate = self.fc(x.mean(dim=(2, 3)))
        return x * gate[:, :, None, None]


def reference_network(depth, num_classes=1000):
    """torchvision's ResNet with the SE block after the last BatchNorm of every block."""
    block, layers = DEPTHS[depth]
    model = ResNet(block, layers, num_classes=num_classes)
    last_bn = 'bn2' if block is BasicBlock else 'bn3'
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for b in stage:
            bn = getattr(b, last_bn)
            b.se = LinearSE(bn.num_features)
            bn.register_forward_hook(lambda _module, _input, output, se=b.se: se(output))
    return model


def randomize(model, seed=0):
    """Random weights and BatchNorm statistics that keep activations of order one."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_(0, 0.1, generator=g)
                m.running_var.uniform_(0.8, 1.2, generator=g)
                m.weight.uniform_(0.5, 1.0, generator=g)
                m.bias.normal_(0, 0.1, generator=g)
            elif isinstance(m, nn.Linear):
                m.weight.normal_(0, m.in_features ** -0.5, generator=g)
            elif isinstance(m, nn.Conv2d):
                m.weight.normal_(0, (2 / (m.in_channels * m.kernel_size[0] ** 2)) ** 0.5, generator=g)
    return model


def _formats():
    reference = randomize(reference_network(18, 10)).eval()
    linear = reference.state_dict()
    own = checkpoint_filter_fn(linear, None)
    ddp = OrderedDict(('module.' + k, v) for k, v in linear.items())
    modelzoo = {'epoch': 100, 'arch': 'resnext101_32x8d', 'state_dict': ddp, 'best_acc1': torch.tensor(77.5),
                'optimizer': {'state': {}, 'param_groups': []}, 'amp': {'loss_scaler0': {'loss_scale': 1024.0}}}
    return reference, {
        'timm': own, 'torchvision-style': linear, 'DDP prefix': ddp, 'ModelZoo': modelzoo,
        'timm checkpoint': {'epoch': 1, 'state_dict': own, 'version': 2},
        'compiled': OrderedDict(('_orig_mod.' + k, v) for k, v in own.items()),
    }
