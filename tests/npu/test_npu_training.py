"""Training on npu tensors: the same as on the CPU, without the host waiting, with copies beside the computation."""
import pytest
import torch
from ascend_emulator import counters
from conftest import train_flags

from seresnet_timm.engine import train


class Waits:
    """How often the host waited for the device between two readings of the loss, in one epoch each."""

    def __init__(self):
        self.between = []
        self._last = None

    def meter(self, base):
        outer = self

        class Meter(base):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                outer._last = None  # a new epoch

            def read(self):
                now = counters()['host_waits']
                if outer._last is not None:
                    outer.between.append(now - outer._last)
                result = super().read()
                outer._last = counters()['host_waits']
                return result
        return Meter


@pytest.mark.parametrize('flags', [
    ('--pin-mem',), ('--pin-mem', '--amp'), ('--pin-mem', '--workers', 1), ('--model-ema',), ('--amp', '--amp-dtype', 'bfloat16'), ('--clip-grad', 1.0),
    ('--opt', 'npufusedsgd'), ('--reprob', 0.5), ('--mixup', 0.2)], ids=lambda f: ' '.join(map(str, f)) or 'float32')
def test_x(few_digits, tmp_path, monkeypatch, flags):
    waits = Waits()
    monkeypatch.setattr(train, 'LossMeter', waits.meter(train.LossMeter))
    from seresnet_timm.ascend import optim
    train.main([str(a) for a in train_flags(few_digits, tmp_path, '--device', 'npu', '-b', 8, '--epochs', 1, '--log-interval', 3, *flags)[1:]])
    print(waits.between)
    assert 0
