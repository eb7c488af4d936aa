"""What a training step of a network computes."""
import copy

import torch


def numbers_of_step(model, x, seed=0) -> dict:
    """Output, gradients and buffers."""
    model, x = copy.deepcopy(model), x.clone().requires_grad_()
    torch.manual_seed(seed)
    out = model(x)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    (out * weight).sum().backward()
    return {'out': out.detach(), 'x': x.grad, **{n: p.grad for n, p in model.named_parameters()}, **dict(
        model.named_buffers())}
