import random

import numpy as np
import torch

from seresnet_timm.data.random_state import own_state, set_own_state


def test_random_state_round_trip():
    device = torch.device('cpu')
    state = own_state(device)

    def draw():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), np.random.randn()
    expected = draw()
    set_own_state(state, device)
    assert draw() == expected
