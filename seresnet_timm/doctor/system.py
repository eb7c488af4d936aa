"""Checks of `seresnet-timm doctor` on what wheels need of the system: C library, page size, kind of Python"""
import os
import sysconfig
from dataclasses import dataclass
from typing import List, Optional, Tuple

from seresnet_timm.doctor.check import Check
from seresnet_timm.doctor.machine import Machine

WHEELS_GLIBC = (2, 28)  # of the manylinux_2_28 wheels of torch and torch_npu
USUAL_PAGE = 4096


@dataclass(frozen=True)
class System:
    """What wheels need of a system.

    Attributes:
        glibc: Version of the GNU C library; None if the C library is another one, such as musl.
        page_size: Bytes.
        is_free_threaded: Python was built without the global lock.
    """
    glibc: Optional[Tuple[int, ...]]
    page_size: int
    is_free_threaded: bool


def this_system() -> System:
    """The system that this process runs on."""
    try:
        libc = os.confstr('CS_GNU_LIBC_VERSION') or ''
    except (ValueError, OSError):  # musl does not know the name
        libc = ''
    version = libc.rpartition(' ')[2].split('.') if libc.startswith('glibc') else []
    glibc = tuple(int(part) for part in version if part.isdigit()) or None
    return System(glibc, os.sysconf('SC_PAGE_SIZE'), bool(sysconfig.get_config_var('Py_GIL_DISABLED')))


def check_system(machine: Machine, system: Optional[System] = None) -> List[Check]:
    """Whether wheels fit this system; what torch has shown to work is not doubted."""
    system = system or this_system()
    fault = 'note' if machine.torch_works else 'error'
    checks = []
    if system.glibc is None:
        checks.append(Check('versions', 'C library', fault, 'not glibc (musl?): torch and CANN are built for glibc',
                            'use a system or image with glibc, such as openEuler, Ubuntu or Debian'))
    elif system.glibc < WHEELS_GLIBC:
        text = '.'.join(map(str, system.glibc))
        checks.append(Check('versions', 'C library', fault, f'glibc {text}: wheels of newer torch and torch_npu need '
                            '2.28', 'use a newer system or image, or versions with manylinux2014 wheels'))
    if system.is_free_threaded:
        status = machine.npu_fault if machine.has_ascend else 'note'
        checks.append(Check('versions', 'free threads', status, 'this Python is a free-threaded build, for which '
                            'torch_npu has no wheels', 'make an environment with the usual build of Python'))
    if system.page_size != USUAL_PAGE:
        preload = machine.environ.get('LD_PRELOAD', '')
        is_preloaded = 'jemalloc' in preload or 'tcmalloc' in preload
        checks.append(Check(
            'versions', 'page size', 'warning' if is_preloaded else 'note',
            f'{system.page_size // 1024} KiB' + (f', and LD_PRELOAD={preload} may be built for 4 KiB' if is_preloaded
                                                  else ': libraries that are built for 4 KiB do not load'),
            'unset LD_PRELOAD, or name a build for such pages' if is_preloaded else None))
    return checks
