"""The loss of a training"""
import torch.nn as nn
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

from seresnet_timm.data.loaders import mixup_active


def training_loss(args) -> nn.Module:
    """The loss that the flags ask for: JSD, binary or plain cross entropy, with soft targets or smoothed labels."""
    soft_targets = mixup_active(args)  # mixup smooths the labels itself
    if args.jsd_loss:
        return JsdCrossEntropy(num_splits=args.aug_splits, smoothing=args.smoothing)
    if args.bce_loss and (soft_targets or args.smoothing):
        smoothing = {} if soft_targets else dict(smoothing=args.smoothing)
        return BinaryCrossEntropy(
            target_threshold=args.bce_target_thresh,
            sum_classes=args.bce_sum,
            pos_weight=args.bce_pos_weight,
            **smoothing,
        )
    if soft_targets:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(smoothing=args.smoothing) if args.smoothing else nn.CrossEntropyLoss()
