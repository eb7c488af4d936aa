"""What can go wrong on an NPU: what it means, likely causes, what to do, which log tells more

`error_codes.py` says which code means which fault, `error_texts.py` which words do. In a sentence, `{name}` is a value
found in the text; a part in square brackets is left out if a value in it was not found.
"""
from typing import Dict

from seresnet_timm.ascend.fault import (
    ADVICE,
    BLOCKING,
    CAUSE,
    DMESG,
    DRIVER,
    ELSEWHERE,
    HEALTH,
    MESSENGER,
    OTHERS,
    PYTHON_PACKAGES,
    SICK,
    THIS,
    Fault,
)
from seresnet_timm.ascend.install_faults import INSTALL_FAULTS
from seresnet_timm.ascend.rank_faults import RANK_FAULTS

FAULTS: Dict[str, Fault] = {
    **INSTALL_FAULTS,
    # --- device -------------------------------------------------------------------------------------------------------
    'visible_devices': Fault(
        CAUSE, 'this machine or container does not have a device that was asked for[: {variable}={value}][; its '
        'devices are numbered {range}]',
        ('ASCEND_RT_VISIBLE_DEVICES was set for another machine', 'the container has fewer devices'),
        'correct ASCEND_RT_VISIBLE_DEVICES, or choose with --devices or --nproc; `npu-smi info` lists the devices'),
    'visible_order': Fault(
        CAUSE, 'the NPUs in {variable}[ ({value})] are not in ascending order, which this CANN needs', (),
        'write them in ascending order: a process numbers them from 0 anyway', THIS),
    'device_start': Fault(
        CAUSE, 'the device does not start',
        ('another container or process holds it', 'the operator packages do not belong to this driver or chip',
         'no memory is left on it', 'it is unhealthy'),
        f'{HEALTH}; end the process that holds it; the code below the number names the cause'),
    'device_taken': Fault(
        CAUSE, 'the device belongs to another container or process[ (device {device})]',
        ('another container holds it', 'the container lacks rights or device files'),
        'give each device to one container; mount /dev/davinciN, davinci_manager, devmm_svm and hisi_hdc; use '
        f'--privileged where the driver asks for it; {HEALTH}'),
    'driver_start': Fault(
        CAUSE, "the driver's interface (DCMI, HDC) did not start",
        ('the container lacks rights, /dev/davinci_manager or /dev/hisi_hdc', 'the driver is not loaded',
         'another container holds the devices'),
        'mount the driver, /dev/davinci_manager and /dev/hisi_hdc; use --privileged where the driver asks for it; '
        '`npu-smi info` on the host', DMESG),
    'device_absent': Fault(
        CAUSE, 'no such device[: {asked}][; the devices here are numbered {range}]',
        ('the device is not in this container', 'the device is not healthy', 'its number is too high'),
        f'{HEALTH}; check ASCEND_RT_VISIBLE_DEVICES, --devices and --nproc', DMESG),
    'permission': Fault(
        CAUSE, 'this user may not use the device or the file[ {path}]',
        ('the user is not in the group HwHiAiUser', 'the container lacks rights'),
        '`sudo usermod -aG HwHiAiUser $USER`, then log in again; in a container mount the devices', DMESG),
    'ai_core': Fault(
        CAUSE, '{an_operator} failed on an AI Core[ of device {device}][: {error}]',
        ('an address or index out of range, for example a label outside the classes',
         'an error of the operator in this CANN', 'hardware'),
        f'{BLOCKING}; check that all labels are below the number of classes; try a newer CANN; if only one device '
        'fails, leave it out'),
    'ai_core_timeout': Fault(
        CAUSE, '{an_operator} did not end in time on an AI Core[ of device {device}]',
        ('an error of the operator in this CANN', 'hardware'), f'{BLOCKING}; try a newer CANN; {HEALTH}'),
    'ai_cpu': Fault(
        CAUSE, '{an_operator} failed on the AI CPU[ of device {device}]',
        ('an argument out of range', 'an error of the operator in this CANN'), BLOCKING),
    'task_failed': Fault(
        CAUSE, 'a task failed on the device[ {device}]',
        ('an operator failed on an AI Core', 'an operator was given a wrong argument', 'the device is not healthy'),
        f'the text below the number names the cause; {BLOCKING}'),
    'dma': Fault(
        CAUSE, "the device's memory copy (DMA) failed",
        ('an address that is not valid', 'the memory is full', 'hardware'),
        f'{BLOCKING}; {HEALTH}'),
    'ecc': Fault(
        CAUSE, 'the memory of the device[ {device}] is damaged (hardware; not a full memory)', ('hardware',),
        'resume on other devices (--devices); `npu-smi info -t ecc -i ID`; reset or replace the NPU', DMESG),
    'link_hardware': Fault(
        CAUSE, 'the link between devices failed (hardware)', ('a cable, module or port', 'the device at its other end'),
        f'resume on other devices; {SICK}; `hccn_tool -i ID -link -g`; check cables', DMESG),
    'force_stop': Fault(
        ELSEWHERE, 'the device was stopped on purpose (FORCE STOP), not by a fault of this rank',
        ('a recovery stopped all ranks because another one failed',), 'look for the rank that failed first', OTHERS),
    'suspect_remote': Fault(
        ELSEWHERE, 'the device reports a suspected fault of a device elsewhere', ('another rank or its device failed',),
        'look for the rank that failed first', OTHERS),
    'virtual_memory': Fault(
        CAUSE, "a copy on the device failed in the device's task scheduler",
        ('expandable segments: the driver does not support virtual memory', 'the driver is older than CANN'),
        'set PYTORCH_NPU_ALLOC_CONF=expandable_segments:False; install the driver that belongs to CANN'),
    'scheduler': Fault(
        CAUSE, "an error in the device's task scheduler",
        ('an earlier fault of the device', 'expandable segments with a driver that does not support it',
         'hardware'),
        'read the lines before it; try PYTORCH_NPU_ALLOC_CONF=expandable_segments:False; `npu-smi info`'),
    'device_unhealthy': Fault(
        CAUSE, 'MindCluster takes {name} out of use[ ({level})][: fault {error}]',
        ('a fault of the hardware', 'a fault that a reset of the NPU clears'),
        f'{SICK}; resume on other devices with `--resume auto`', DMESG),
    'health': Fault(
        ADVICE, 'npu-smi says[ of NPU {device}][ ({name})]: {health}[, fault {error}]',
        ('a fault of the hardware, of its network or of its cooling, now or earlier',), SICK, DMESG),
    'chip_fault': Fault(
        CAUSE, 'the NPU reports a fault of {part}[ of device {device}] (code {code})',
        ('hardware', "a process of the device's system that has ended"), SICK, DMESG),
    'chip_memory': Fault(
        CAUSE, 'the NPU reports a fault of its {part}[ of device {device}] (code {code}; hardware, not a full memory)',
        ('hardware',), 'resume on other devices (--devices); `npu-smi info -t ecc -i ID`; reset or exchange the NPU',
        DMESG),
    'chip_link': Fault(
        CAUSE, 'the NPU reports a fault of {part}[ of device {device}] (code {code})',
        ('a cable, module or port', 'the device at its other end'),
        f'resume on other devices; {SICK}; `hccn_tool -i ID -link -g`; check cables', DMESG),
    'device_lost': Fault(
        CAUSE, '{subject} stopped working',
        ('the device was reset, or hung', 'hardware', 'a process on the device died'),
        f'{HEALTH}; resume on other devices', DMESG),
    'driver_install': Fault(
        CAUSE, 'the driver was not installed[: {reason}]',
        ('headers of this kernel, gcc or dkms are missing', 'a package for another system or architecture',
         'the user HwHiAiUser does not exist'),
        'install gcc, make, dkms, pciutils, net-tools and the headers of this kernel (`uname -r`), add the user '
        'HwHiAiUser, and install the driver again', '/var/log/ascend_seclog/ascend_install.log'),
    'driver_module': Fault(
        CAUSE, 'a kernel module of the driver was not loaded[: {reason}]',
        ('the kernel was updated after the driver was installed',
         'secure boot refuses a module that is not signed (Required key not available)', 'the device does not answer'),
        'install the driver again for this kernel (`uname -r`), with its headers; sign the module or switch secure '
        'boot off', DMESG),
    'pcie': Fault(
        CAUSE, 'the PCIe link of a device failed (hardware)', ('a card, its slot or its power',),
        f'{HEALTH}; restart the server; resume on other devices', DMESG),
    'driver_old': Fault(
        ADVICE, 'the driver is older than CANN, or does not belong to it', ('CANN was updated without the driver',),
        DRIVER, '/usr/local/Ascend/driver/version.info'),
    'driver_version': Fault(
        CAUSE, 'the driver is too old for a function of CANN[ ({operator})]', ('CANN was updated without the driver',),
        DRIVER, '/usr/local/Ascend/driver/version.info'),
    'device_nodes': Fault(
        CAUSE, 'the device node[ {path}] does not exist',
        ('the container was started without it', 'the driver is not loaded', 'its number is too high'),
        'start the container with --device /dev/davinciN for each NPU and --device /dev/davinci_manager, '
        '/dev/devmm_svm, /dev/hisi_hdc; `ls /dev/davinci*` on the host lists the nodes', DMESG),
    'driver_internal': Fault(
        CAUSE, 'the driver reports an internal error',
        ('the driver is older than CANN', 'the device is not healthy', 'the container lacks rights'),
        f'{DRIVER}; {HEALTH}', DMESG),
    'cann_internal': Fault(
        CAUSE, 'CANN reports an internal error', ('an earlier fault', 'parts of CANN of different versions'),
        'read the lines before and below it; compare the versions of driver, CANN, kernels and torch_npu '
        '(`seresnet-timm doctor`)'),
    'chip_unknown': Fault(
        CAUSE, 'CANN does not know this chip, or cannot read what it is',
        ('CANN is older than the chip', 'the container has only a part of the driver'),
        'install a CANN for this chip; mount /usr/local/Ascend/driver'),
    'resources': Fault(
        CAUSE, 'a resource of the device is used up (streams, events, tasks or queues)',
        ('too many processes or communicators on one device',), f'{HEALTH}; use fewer processes per device'),
    # --- memory -------------------------------------------------------------------------------------------------------
    'memory': Fault(
        CAUSE, '{kind} {device} is out of memory[: {size} more were asked for][, {total} in total][, {allocated} '
        'allocated by this process][, {free} free]', ('the batch is too large',),
        'use a smaller batch (-b), with --grad-accum-steps for the same number of images per optimizer step',
        'OOM_SNAPSHOT_ENABLE=1 writes what held the memory'),
    'memory_of_others': Fault(
        CAUSE, '{kind} {device} is out of memory[: {size} more were asked for]; other processes hold about {other}'
        '[ of {total}][, this process only {allocated}][, {free} are free]',
        ('another process uses this NPU',), f'{HEALTH}; end the other process or choose other devices; '
        'else use a smaller batch (-b)', 'OOM_SNAPSHOT_ENABLE=1 writes what held the memory'),
    'memory_fragmented': Fault(
        CAUSE, '{kind} {device} is out of memory[: {size} more were asked for]; {unused} are reserved by this process '
        'and unused, in pieces that are too small', ('fragmented memory',),
        'set PYTORCH_NPU_ALLOC_CONF=expandable_segments:True; else use a smaller batch (-b)',
        'OOM_SNAPSHOT_ENABLE=1 writes what held the memory'),
    'memory_device': Fault(
        CAUSE, 'the device[ {device}] is out of memory[ ({size} were asked for)]',
        ('the batch is too large', 'other processes, or CANN itself, use the rest'),
        f'use a smaller batch (-b); {HEALTH}: leave enough memory for the other processes'),
    'memory_hccl': Fault(
        CAUSE, 'no memory is left on the device for HCCL[ ({size} were asked for)]',
        ('the batch is too large',
         'HCCL_BUFFSIZE is too large (200 MB unless set; each communicator takes twice as much)',
         'another process uses this NPU'),
        f'use a smaller batch (-b), or a smaller HCCL_BUFFSIZE (in MB); {HEALTH}'),
    'memory_fraction': Fault(
        CAUSE, 'an allocation was refused: it would exceed the limit that set_per_process_memory_fraction has set', (),
        'raise or remove the limit of set_per_process_memory_fraction, or use a smaller batch (-b)', THIS),
    'memory_host': Fault(
        CAUSE, "the host's memory is used up[: the kernel killed process {pid}]",
        ('too many loader workers or processes', 'the memory limit of the container'),
        'use fewer loader workers (-j), or raise the limit', DMESG),
    'shared_memory': Fault(
        CAUSE, 'shared memory (/dev/shm) is full or too small: a loader worker then ends with a bus error',
        ('a container has 64 MB of it by default',),
        'start the container with --shm-size 16g, or use fewer loader workers (-j)', '`df -h /dev/shm`'),
    # --- operators ----------------------------------------------------------------------------------------------------
    'dtype': Fault(
        CAUSE, '{an_operator} does not take the dtype [{dtype} ]of its argument[ {argument}][; it takes {dtypes}]',
        ('the precision of the run', 'an operator that this chip or CANN has for other dtypes only'),
        'use another precision (--amp-dtype, --precision, or float32), or a CANN that has the operator for this dtype'),
    'argument': Fault(
        CAUSE, '{an_operator} refused an argument[ ({reason})]',
        ('a shape, dtype or value that it does not take', 'torch_npu and CANN do not match'),
        f'the text below the number names the argument; {BLOCKING}; compare the versions of CANN and torch_npu'),
    'no_kernel': Fault(
        CAUSE, 'the installed CANN has no kernel of {an_operator} for this chip, format or dtype[ ({dtype})]',
        ('the kernels (ops) package is missing, or is for another chip', 'the operator does not take this dtype',
         'CANN is older than torch_npu needs'),
        'install the kernels package of the same CANN version for this chip; else use another precision'),
    'kernels_missing': Fault(
        CAUSE, "CANN's kernels (ops) package is not installed, or cannot be read[ (operator {operator})]",
        ('only the toolkit was installed', 'set_env.sh of another CANN was sourced'),
        'install the kernels package of the same CANN version for this chip, then source set_env.sh again'),
    'model_argument': Fault(
        CAUSE, 'the model compiler (ATC, GE) does not take an argument, or a file that it names[: {reason}]',
        ('a wrong name of an input, shape, file or --soc_version',),
        'correct the argument that the text names; `npu-smi info` shows the chip for --soc_version', THIS),
    'model_operator': Fault(
        CAUSE, 'the model has an operator that the model compiler (ATC) does not know[: {operator}]',
        ('an operator of another opset, or one of PyTorch without a counterpart in ONNX',),
        'export with another opset; else replace the operator, or use a newer CANN', THIS),
    'compile': Fault(
        CAUSE, "CANN's compiler could not build {an_operator}",
        ('CANN is older than torch_npu needs', 'Python packages that CANN needs are missing',
         'the disk is full'),
        f'install versions of CANN and torch_npu that match; {PYTHON_PACKAGES}; free space in /tmp'),
    'not_supported': Fault(
        CAUSE, 'a function is not supported here[: {operator}]',
        ('the driver, the chip or CANN does not have it', 'the driver is older than CANN'),
        'compare the versions of driver, CANN and torch_npu (`seresnet-timm doctor`)'),
    'no_npu_operator': Fault(
        CAUSE, '{an_operator} has no kernel on the NPU',
        ('TORCH_NPU_FALLBACK_CPU_DISABLE=1 makes this an error instead of a slow run on the CPU',),
        'report the operator; without TORCH_NPU_FALLBACK_CPU_DISABLE=1 it runs on the CPU', THIS),
    'cpu_tensor': Fault(
        CAUSE, 'a tensor on the CPU was given to an operator among tensors on the NPU',
        ('code of a model or script that does not move a tensor to the device',),
        "move the tensor with .to(device); in this package's own code it is a bug: report it with `seresnet-timm "
        'diagnose RUN --bundle FILE.tar.gz`', 'the Python traceback'),
    'not_contiguous': Fault(
        CAUSE, 'a tensor that is not contiguous was given to a collective',
        ('channels_last, or a view',), 'do not use channels_last on the NPU; call .contiguous() before the collective',
        'the Python traceback'),
    'no_context': Fault(
        CAUSE, 'no device was set in this thread or process',
        ('code that uses the NPU in a new thread', 'a process that was started before torch_npu was set up in it'),
        'call torch.npu.set_device(...) in each thread and process before its first use of the NPU', 'the Python '
        'traceback'),
    'other_device': Fault(
        CAUSE, 'a tensor of another device was used on this one[ ({device})]',
        ('the process did not choose its own NPU', 'torch.load without map_location'),
        "call torch.npu.set_device(LOCAL_RANK) first in each process; torch.load(..., map_location='cpu')",
        'the Python traceback'),
    'wrong_use': Fault(
        CAUSE, 'CANN was called with a wrong argument or at the wrong time',
        ('an earlier fault', 'code that uses streams, devices or memory of another process',
         'torch_npu and CANN do not match'),
        f'read the lines before it; {BLOCKING}'),
    'graph_capture': Fault(
        CAUSE, 'a call is not possible while a graph is captured, or the capture of a graph was aborted',
        ('code that waits for the device, copies to the host or uses the default stream within the capture',
         'an error of an operator within the capture'),
        'run without --graph, or in other code without torch.npu.graph; the text below the number names the call'),
    'asynchronous': Fault(
        MESSENGER,
        '{an_operator} failed before the line of Python that the error names[; the text does not say which operator]',
        ('operators run later than their calls',), BLOCKING),
    # --- numbers ------------------------------------------------------------------------------------------------------
    'diverged': Fault(
        CAUSE, 'the training has diverged[: {reason}]',
        ('the learning rate is too high', 'damaged images or wrong labels', 'fp16 overflows'),
        'lower --lr; use bf16 on A2 and newer (--amp-dtype bfloat16); check the data with `seresnet-timm check-data`; '
        'if the error of an operator follows, install a newer CANN', 'the losses in summary.csv and the log of rank 0'),
    'overflow': Fault(
        CAUSE, 'a value in an operator became too large for its dtype (overflow)',
        ('fp16', 'the training has diverged'),
        'lower --lr; use a dynamic loss scale (no --loss-scale); use bf16 on A2 and newer'),
    'corruption': Fault(
        CAUSE, 'the device[ {device}] may have computed wrong results (silent data corruption)', ('hardware',),
        "test the device (torch.npu.stress_detect('aic')); resume on other devices from an earlier checkpoint",
        DMESG),
    **RANK_FAULTS,
}
