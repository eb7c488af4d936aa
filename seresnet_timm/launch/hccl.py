"""HCCL before a run on several NPUs: interface, ports, time-outs, and NPUs that other processes use

Everything is decided from the environment before a rank starts, and said in the plan.
"""
import os
from contextlib import ExitStack
from dataclasses import replace
from typing import Dict, List, Mapping, Optional, Tuple

from seresnet_timm import device as devices
from seresnet_timm.ascend import hccl, hccl_network, hccl_ports, hccl_timeouts
from seresnet_timm.launch.cluster import uses_agent_store
from seresnet_timm.launch.plan import Node
from seresnet_timm.runs.settings import RunSettings


def prepare(
        settings: RunSettings, node: Node, user: Mapping[str, str], keep: ExitStack) -> Tuple[RunSettings, List[str]]:
    """Check HCCL's variables, and set what a run needs; problems, each a sentence.

    Args:
        settings: Settings of the run.
        node: This node's part.
        user: The environment as the user set it.
        keep: Keeps the ports of the run until it is closed.
    """
    if not settings.device.startswith('npu') or settings.world_size == 1:
        return settings, []
    machine = hccl.inspect(chip(), user)
    nodes = hccl_network.Nodes(settings.nnodes, node.rank, node.master_addr, node.local_addr)
    interface, found = hccl_network.choose_interface(user, nodes)
    found.add(hccl_timeouts.check_timeouts(user, machine, waits(settings, node)))
    if node.is_first_of_node:
        can_choose = not node.is_rank or uses_agent_store(os.environ)  # else each rank has its own environment
        wish = hccl_ports.Wish(settings.nproc, settings.nnodes, interface.address, can_choose=can_choose)
        found.add(hccl_ports.decide_ports(user, machine, wish, keep))
    os.environ.update(found.environ)
    notes = [n for n in settings.notes if not any(n.startswith(f'{name}=') for name in found.environ)]
    return replace(settings, notes=notes + found.notes), found.problems


def chip() -> Optional[str]:
    """Name of the chip; None if there is no NPU, as in a dry run elsewhere. No memory of an NPU is used."""
    return None if devices.why_unavailable('npu') else devices.device_name('npu')


def waits(settings: RunSettings, node: Node) -> Dict[str, float]:
    """Seconds that ranks may wait for one of them, by flag."""
    found = {'--hang-timeout': settings.hang_timeout, '--rdzv-timeout': node.rdzv_timeout}
    if settings.verb == 'train':
        found['--data-timeout'] = settings.data_timeout
    return {flag: seconds or 0 for flag, seconds in found.items()}
