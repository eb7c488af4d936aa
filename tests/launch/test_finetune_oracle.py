"""The recipe for one's own classes against an independent statement of its settings."""
import timm
import torch
from test_recipe_oracles import U, args_of, cosine, loader_of, steps, texts
from timm.data import resolve_data_config
from timm.optim import optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from torch import nn
from torchvision import transforms

from seresnet_timm.data import loaders
from seresnet_timm.engine.loss import training_loss
from seresnet_timm.step.fast import create_optimizer

MODEL = 'seresnet50.ra2_in1k'  # bicubic, crop of 0.95 at 288 and 0.875 at 224, in its pretrained configuration


def learning_rate(step: int) -> float:
    """20 epochs of cosine, stepped after each; the first two grow from 1e-6."""
    e = step // U
    return 1e-6 + (3e-4 - 1e-6) * e / 2 if e < 2 else cosine(3e-4, 1e-6, e / 20)


def test_learning_rate_of_every_step():
    args = args_of('finetune')
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=args.lr)
    scheduler, num_epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=U)
    assert num_epochs == 20
    found = []
    for step in range(20 * U):
        found.append(optimizer.param_groups[0]['lr'])
        scheduler.step_update(step + 1)
        if (step + 1) % U == 0:
            scheduler.step((step + 1) // U)
    torch.testing.assert_close(
        torch.tensor(found, dtype=torch.double), torch.tensor([learning_rate(s) for s in range(20 * U)]).double())


def test_network_and_optimizer():
    """Pretrained, as many outputs as the folder has; AdamW, whose decay spares biases and BatchNorm."""
    args = args_of('finetune')
    assert (args.model, args.pretrained, args.batch_size, args.grad_accum_steps) == (MODEL, True, 32, 1)
    assert args.num_classes is None and not args.model_ema and args.clip_grad is None
    with torch.device('meta'):
        network = timm.create_model(args.model, num_classes=7)
    optimizer = create_optimizer(network, **optimizer_kwargs(cfg=args), **args.opt_kwargs)
    assert type(optimizer) is torch.optim.AdamW
    decay = {id(p): g['weight_decay'] for g in optimizer.param_groups for p in g['params']}
    assert {n: decay[id(p)] for n, p in network.named_parameters()} == {
        n: 0.05 if p.ndim > 1 else 0 for n, p in network.named_parameters()}
    for group in optimizer.param_groups:
        assert (group['lr'], group['betas'], group['eps']) == (3e-4, (0.9, 0.999), 1e-8)


def test_images():
    """Crops of at least 35 % of the area, mirrored, light colour jitter; evaluated as the network was."""
    args = args_of('finetune')
    loader, images, setup = loader_of(args)
    jitter = 'ColorJitter(brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.8, 1.2), hue=None)'
    assert texts(images.transform) == steps(224, jitter, scale=0.35)
    assert loader.random_erasing is None and not isinstance(loader.loader.collate_fn, timm.data.FastCollateMixup)
    with torch.device('meta'):
        config = resolve_data_config(vars(args), model=timm.create_model(MODEL))
    assert (config['interpolation'], config['crop_pct'], config['input_size']) == ('bicubic', 0.875, (3, 224, 224))
    loaders.eval_loader(setup, 'val', 4, dataset=images, crop_pct=0.875)
    resize, crop, _ = images.transform.transforms
    assert type(resize) is transforms.Resize and (resize.size, crop.size[0]) == (256, 224)


def test_loss():
    """Cross entropy with a tenth of the target spread over the classes."""
    x, labels = torch.randn(4, 7, dtype=torch.double), torch.tensor([3, 1, 4, 1])
    log_p = x.log_softmax(1)
    expected = -(0.9 * log_p[range(4), labels] + 0.1 * log_p.mean(1)).mean()
    torch.testing.assert_close(training_loss(args_of('finetune'))(x, labels), expected)
