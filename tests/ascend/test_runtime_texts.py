"""Reasons of the runtime in words, codes of the chip, lines of the driver and of the host's kernel."""
import pytest
from ascend.test_cann_log_texts import of_runtime, plog
from ascend.told import assert_told

from seresnet_timm.ascend.errors import diagnose_text

REASON = ('EE9999: [PID: 5] 2026-03-01-10:20:30.100.200 rtStreamSynchronize execution failed, reason=[{}]'
          '[FUNC:FuncErrorReason][FILE:error_message_manage.cc][LINE:53]')
STAMP = '[ 9931.420134] '
LINES = {
    'chip, memory': ('        Error Code                     : 80E01801', 'chip_memory', 'memory (HBM)', 'ecc'),
    'chip, core': ('get device fault code: 0x80C98009, device id: 3', 'chip_fault', 'an AI Core', 'npu-smi'),
    'chip, link': ('fault_code=81078603 phyid 3', 'link_hardware', 'link between devices', 'cables'),
    'event of the chip': ('Fault Event Information  : event id=0x81AF8000, severity=2', 'chip_link',
                          'UB', 'cables'),
    'driver, half': ('The driver package may not be completely installed, which may cause function abnormal.',
                     'driver_install', 'driver', 'again'),
    'driver, session': (plog('drvHdcSend failed, ret=44', 'DRV'), 'device_lost', 'stopped', 'npu-smi'),
    'chip, HCCS': ('event_id: 0x819B800A', 'chip_link', 'HCCS', 'cables'),
    'chip, not known': ('fault code [8FFF1234] or 81FF1234; error code 81FF1234', 'chip_fault', 'an unknown part', ''),
    'thread': ('RuntimeError: f:x.cpp:1 NPU error, error code is 107002', 'no_context', 'thread', 'set_device'),
    'other device': ('RuntimeError: Attempted to set the storage of a tensor on device "npu:4" to a storage on '
                     'different device "npu:0"', 'other_device', 'npu:4', 'map_location'),
    'copies': (plog('ProcessStarsSdmaErrorInfo: cqeStatus=0x3', 'RUNTIME'), 'dma', 'memory copy', 'npu-smi'),
    'operator, time': (of_runtime('Aicore kernel execute timeout, device_id=0, fault kernel_name=Conv2D_12'),
                       'ai_core_timeout', 'Conv2D', 'ASCEND_LAUNCH_BLOCKING'),
    'host memory': (of_runtime('new context failed'), 'memory_host', 'memory', '-j'),
    'mailbox': (plog('Mbox send fail. (devid=3)', 'DRV'), 'device_lost', 'stopped', 'npu-smi'),
    'sessions': (plog('halHdcSessionConnectEx: No avaliable session', 'DRV'), 'resources', 'used up', 'fewer'),
    'dtypes': ('RuntimeError: Invalid usage of tensors with different dtypesFound torch.float16 and torch.float32',
               'hccl_argument', 'collective', ''),
    'kernel': (STAMP + 'Kernel panic - not syncing: Fatal machine check', 'host_fault', 'Fatal machine check',
               'another'),
    'kernel, memory': (STAMP + 'EDAC MC1: 1 UE memory scrubbing error on DIMM3', 'host_fault', 'UE memory', 'BMC'),
    'storage': (STAMP + 'INFO: task python:30912 blocked for more than 120 seconds.', 'host_hang', 'python:30912',
                'storage'),
    'file system': (STAMP + 'EXT4-fs error: ext4_lookup:1590: inode #2', 'disk_error', 'input/output',
                    'kernel'),
    'connections': (STAMP + 'nf_conntrack: nf_conntrack: table full, dropping packet', 'network', 'table full', ''),
    'Docker': ('systemd[1]: docker.service: Main process exited, code=exited, status=2', 'container_start',
               'docker.service', 'systemctl'),
    'set_env.sh': ('bash: /usr/local/Ascend/ascend-toolkit/set_env.sh: 没有那个文件或目录', 'cann_missing', 'CANN',
                   '/usr/local/Ascend/cann/set_env.sh'),
    'path': ('bash: ./run_8p.sh: No such file or directory', 'file_missing', './run_8p.sh', 'path'),
    'DCMI': ('DCMI模块初始化失败，返回值 -8005', 'driver_start', 'DCMI', '/dev/davinci_manager'),
    'conda': ('PackagesNotFoundError: The following packages are not available:\n\n  - torch_npu', 'wheel_missing',
              'no such package', 'doctor'),
    'Hub': ("OSError: We couldn't connect to 'https://huggingface.co' to load this file", 'network', 'huggingface.co',
            'HF_ENDPOINT'),
}


@pytest.mark.parametrize('name', LINES)
def test_line(name):
    assert_told(*LINES[name])


@pytest.mark.parametrize('words, fault', [
    ('aicore exception', 'ai_core'), ('vector core timeout', 'ai_core_timeout'), ('aicore overflow', 'overflow'),
    ('aicore trap read overflow', 'ai_core'), ('aicpu timeout', 'ai_cpu'), ('sdma copy error', 'dma'),
    ('fftsplus timeout', 'exec_timeout'), ('task timeout', 'sync_timeout'), ('stream sync timeout', 'sync_timeout'),
    ('driver error:out of memory', 'memory_device'), ('driver error:no event resource', 'resources'),
    ('driver error:invalid device', 'device_absent'), ('driver error:operation no permitted', 'permission'),
    ('driver error:feature not support', 'not_supported'), ('device oom', 'memory_device'),
    ('hdc disconnect', 'device_lost'), ('device network link error', 'link_hardware'),
    ('hccl op retry failed', 'hccl_link'), ('stream abort', 'force_stop'), ('context pointer null', 'no_context'),
    ('the current capture mode does not support this operation', 'graph_capture'),
    ('stream is captured', 'graph_capture'),
    ('soc version error', 'chip_unknown'), ('tsfw unknown error', 'scheduler'), ('device mem error', 'ecc'),
    ('the model stream execute failed', 'task_failed'), ('invalid handle', 'wrong_use')])
def test_reason(words, fault):
    """As the runtime prints it among the errors, and in plog."""
    assert diagnose_text(REASON.format(words)).first.fault == fault
    assert diagnose_text(of_runtime(f'rtStreamSynchronize execution failed, reason={words}')).first.fault == fault


def test_the_message_of_an_error_that_cannot_be_read_is_none():
    text = 'EE1001: The argument is invalid.Reason: rtGetDevMsg execute failed, reason=[context pointer null]'
    first = diagnose_text(f'NPU error, error code is 507015\n{text}').first
    assert first.fault == 'ai_core'


@pytest.mark.parametrize('text', [
    'Warning : ASCEND_HOME_PATH environment variable is not set.',
    STAMP + 'EDAC MC0: 1 CE memory read error on CPU_SrcID#0',
    'ImportWarning: The torch.Tensor.cuda and torch.nn.Module.cuda are replaced with torch.Tensor.npu',
    "WARNING: Retrying (Retry(total=4, connect=None)) after connection broken by 'ReadTimeoutError'"])
def test_harmless(text):
    diagnosis = diagnose_text(text)
    assert diagnosis.first is None and diagnosis.harmless


@pytest.mark.parametrize('line', [
    'Train: 3 [ 120/5004 (  2%)]  Loss: 6.23 (6.42)  Time: 0.123s, 2080.12/s  LR: 1.000e-01  Data: 0.010 (0.012)',
    'top-1 error 23.45, top-5 error 6.12', 'loss scale 1024, no overflow in 200 steps', 'exit code 0',
    '[INFO] RUNTIME(88,python):2026-03-01-10:20:30.100.200 [x.cc:1] 9 stream sync, timeout=-1',
    '[WARNING] TDT(88,python):2026-03-01-10:20:30.100.200 [log.cpp:202] device not ready, retry',
    'W0301 10:20:30.000 torch/distributed/run.py:774] Setting OMP_NUM_THREADS environment variable for each process',
    '[W301 10:20:30.1 socket.cpp:464] [c10d] Waiting for workers to connect.',
    'Normal  Pulled  11s  kubelet  Container image "ascend:1" already present on machine',
    'EXT4-fs (sda1): mounted filesystem with ordered data mode. Opts: errors=remount-ro',
    'IPv6: ADDRCONF(NETDEV_UP): eth0: link is not ready', 'net health status: Success', 'device 0, TLS switch: 0',
    '| No running processes found in NPU 0                                                            |',
    'Reason: early stopping', 'data/n01440764/n01440764_10026.JPEG not used', 'The event loop is not closed',
    '[Rank 0] ProcessGroupHCCL initialization options: TIMEOUT(ms): 1800000'])
def test_lines_of_a_run_that_is_well(line):
    assert diagnose_text(line).first is None
