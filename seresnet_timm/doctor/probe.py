"""Checks that may abort their process: `python -m seresnet_timm.doctor.probe WHAT [ARGUMENTS]`.

doctor runs each in a process of its own. Each prints its results as JSON, one object a line.
"""
import json
import os
import sys
import time


def report(**values) -> None:
    print(json.dumps(values), flush=True)


def probe_packages() -> None:
    """What every training imports; the environment says whether torch loads torch_npu."""
    import torch
    report(torch=torch.__version__)
    report(cuda_devices=[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())])
    import timm
    import torchvision
    from timm.data import create_loader  # noqa: F401
    report(timm=timm.__version__, torchvision=torchvision.__version__)


def probe_npu() -> None:
    """torch_npu, and the NPUs that it sees."""
    from seresnet_timm.ascend import runtime
    devices = runtime.list_devices()
    report(devices=devices, bf16=bool(devices) and runtime.supports_bfloat16())


def probe_jpeg() -> None:
    """The JPEG decoders: each decodes a picture."""
    import io

    import PIL
    from PIL import Image, features
    picture = io.BytesIO()
    Image.new('RGB', (16, 16), (200, 100, 50)).save(picture, 'JPEG')
    with Image.open(io.BytesIO(picture.getvalue())) as image:
        image.convert('RGB').load()
    found = dict(pillow=PIL.__version__, libjpeg_turbo=features.check_feature('libjpeg_turbo'), simplejpeg=None)
    try:
        import simplejpeg
        assert simplejpeg.decode_jpeg(picture.getvalue()).shape == (16, 16, 3)
        found['simplejpeg'] = getattr(simplejpeg, '__version__', 'installed')
    except ImportError:
        pass
    try:
        from seresnet_timm.data import _jpeg
        found['c'] = _jpeg.size(picture.getvalue()) == (16, 16) and _jpeg.libjpeg_turbo
    except ImportError:
        found['c'] = None
    report(**found)


def probe_smoke(kind: str, seconds: float) -> None:
    """One rank of the smoke test: matrix products on this rank's device, then all-reduces between the ranks.

    Numbers are small integers, whose products and sums are exact in float32, TF32 and HF32.
    """
    rank, world_size, index = (int(os.environ[name]) for name in ('RANK', 'WORLD_SIZE', 'SMOKE_DEVICE'))
    report(phase='import')
    import datetime

    import torch
    import torch.distributed as dist

    if kind == 'npu':
        from seresnet_timm.ascend.setup import set_up
        set_up(f'npu:{index}')
    elif kind == 'cuda':
        torch.cuda.set_device(index)
    device = torch.device(kind) if kind == 'cpu' else torch.device(kind, index)
    wait = torch.get_device_module(kind).synchronize

    report(phase='matmul')
    size = 1024
    generator = torch.Generator().manual_seed(rank)
    a, b = (torch.randint(-4, 5, (size, size), generator=generator).float() for _ in range(2))
    x, y = a.to(device), b.to(device)
    product = x @ y
    rows = slice(0, 64)
    if not torch.equal(product[rows].cpu().double(), a[rows].double() @ b.double()):
        raise SystemExit('a matrix product is wrong')
    wait()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds / 2:
        for _ in range(4):
            product = x @ y
        wait()
        count += 4
    report(tflops=2 * size ** 3 * count / (time.perf_counter() - start) / 1e12)

    report(phase='all-reduce')
    backend = {'cpu': 'gloo', 'cuda': 'nccl', 'npu': 'hccl'}[kind]
    if kind == 'npu':  # HCCL gives up before torch's time-out below, and names the rank
        os.environ.update(HCCL_EXEC_TIMEOUT='68', HCCL_EVENT_TIMEOUT='100', HCCL_CONNECT_TIMEOUT='120')
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=120))
    numbers = torch.full((1 << 20,), float(rank + 1), device=device)
    dist.all_reduce(numbers)
    if not bool((numbers == world_size * (world_size + 1) // 2).all()):
        raise SystemExit('an all-reduce is wrong')
    numbers.zero_()
    wait()
    start, count = time.perf_counter(), 0
    keep_going = torch.ones(1, device=device)
    while bool(keep_going):  # until the time is over for one of the ranks
        for _ in range(4):
            dist.all_reduce(numbers)
        count += 4
        keep_going.fill_(float(time.perf_counter() - start < seconds / 2))
        dist.all_reduce(keep_going, op=dist.ReduceOp.MIN)
    wait()
    report(all_reduce_mb_per_s=numbers.numel() * 4 * count / (time.perf_counter() - start) / 1e6)
    dist.destroy_process_group()
    report(phase='done')


def probe_stress(index: int) -> None:
    """torch_npu's stress detection on one NPU."""
    from seresnet_timm.ascend import fault_tolerance
    result, remark = fault_tolerance.stress_detect(index)
    report(result=1 if result is None else result, remark=remark)


def probe_operators() -> None:
    """What the steps of the recipes reach on the NPU."""
    from seresnet_timm.doctor.operators import watch
    report(**watch())


def main() -> None:
    what, *arguments = sys.argv[1:]
    if what == 'smoke':
        probe_smoke(arguments[0], float(arguments[1]))
    elif what == 'stress':
        probe_stress(int(arguments[0]))
    else:
        {'packages': probe_packages, 'npu': probe_npu, 'jpeg': probe_jpeg, 'operators': probe_operators}[what]()


if __name__ == '__main__':
    main()
