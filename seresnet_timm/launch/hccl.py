"""HCCL before a run on several NPUs: interface, ports, time-outs, and NPUs that other processes use

Everything is decided from the environment before a rank starts, and said in the plan.
"""
import os
from contextlib import ExitStack
from dataclasses import replace
from typing import Dict, List, Mapping, Optional, Tuple

import psutil

from seresnet_timm import device as devices
from seresnet_timm.ascend import fault_tolerance, hccl, hccl_network, hccl_ports, hccl_timeouts, npu_users
from seresnet_timm.ascend.fault import SICK
from seresnet_timm.launch.cluster import uses_agent_store
from seresnet_timm.launch.devices import real_numbers
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
    if not settings.device.startswith('npu'):
        return settings, []
    machine = hccl.inspect(chip(), user)
    shared, notes, problems = check_users(settings, node, machine, user)
    notes += fault_tolerance.describe_set(user, settings.dtypes)
    settings = replace(settings, notes=settings.notes + notes)
    if settings.world_size == 1:
        return settings, problems
    nodes = hccl_network.Nodes(settings.nnodes, node.rank, node.master_addr, node.local_addr)
    interface, found = hccl_network.choose_interface(user, nodes)
    found.add(hccl_timeouts.check_timeouts(
        user, machine, waits(settings, node), fault_tolerance.knows(fault_tolerance.SYNC)))
    if node.is_first_of_node:
        can_choose = not node.is_rank or uses_agent_store(os.environ)  # else each rank has its own environment
        wish = hccl_ports.Wish(settings.nproc, settings.nnodes, node.rank, interface.address, shared, can_choose)
        found.add(hccl_ports.decide_ports(user, machine, wish, keep))
    os.environ.update(found.environ)
    notes = [n for n in settings.notes if not any(n.startswith(f'{name}=') for name in found.environ)]
    return replace(settings, notes=notes + found.notes), problems + found.problems


def check_users(
        settings: RunSettings, node: Node, machine: hccl.Machine, user: Mapping[str, str],
) -> Tuple[bool, List[str], List[str]]:
    """Processes that use an NPU of this run: whether there are some, notes for the plan, and problems.

    Processes can share an NPU, but HCCL of two of them only with ports of their own on the NPU.
    """
    if not node.is_first_of_node or machine.is_first_910 is None:
        return False, [], []
    _, _, index = settings.device.partition(':')
    count = devices.device_count('npu')
    used = [int(index)] if index else range(settings.nproc)
    real = {number: here for number, here in real_numbers(count, os.environ).items() if here in used}
    usage = npu_users.find_users(os.environ)
    notes = [f'{name} is not healthy (`npu-smi info`: {health}): {SICK}.' for number, name, health in usage.sick
             if number in real]
    mine = [u for u in usage.users if u.device in real]
    if not mine:
        return False, notes, []
    by_device: Dict[str, List[str]] = {}
    for u in mine:
        by_device.setdefault(u.where, []).append(u.describe())
    told = '; '.join(f'{where}: {", ".join(names[:3])}' for where, names in by_device.items())
    taken = {u.device for u in usage.users}
    visible = real_numbers(usage.devices, user)  # by the user, before --devices
    free = [str(n) for n in visible if n not in taken]
    others = f'pick others with --devices {",".join(free)}' if free else 'pick others with --devices'
    sentence = f'Other processes use NPUs of this run, by {usage.how}: {told}.'
    can_share = hccl_ports.NPU in user or machine.takes_port_ranges and settings.nnodes == 1
    if settings.world_size > 1 and not can_share and any(psutil.pid_exists(u.pid) for u in mine):
        return True, notes, [f'{sentence} HCCL fails there (EJ0001): end them, wait 10 s if they have just ended, or '
                             f'{others}.']
    return True, notes + [f'{sentence} They take memory and time of this run: end them, or {others}.'], []


def chip() -> Optional[str]:
    """Name of the chip; None if there is no NPU, as in a dry run elsewhere. No memory of an NPU is used."""
    return None if devices.why_unavailable('npu') else devices.device_name('npu')


def waits(settings: RunSettings, node: Node) -> Dict[str, float]:
    """Seconds that ranks may wait for one of them, by flag."""
    found = {'--hang-timeout': settings.hang_timeout, '--rdzv-timeout': node.rdzv_timeout}
    if settings.verb == 'train':
        found['--data-timeout'] = settings.data_timeout
    return {flag: seconds or 0 for flag, seconds in found.items()}
