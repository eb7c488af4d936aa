"""Errors of torch.distributed, gloo, Python, shells and containers that users meet beside those of the NPU."""
import pytest
from ascend.npu_texts import prefixed

from seresnet_timm.ascend.errors import diagnose_text, explain, is_consequence


def of_socket(side, what, number):
    return f'[c10d] The {side} socket has failed to {what} (errno: {number}).'


# text, fault, words of the sentence, of the remedy
TEXTS = {
    'refused': ('torch.distributed.DistNetworkError: The client socket has failed to connect to any network address of '
                '(192.0.2.1, 29511). The client socket has failed to connect to 192.0.2.1:29511 (errno: 111 - '
                'Connection '
                'refused).', 'rendezvous', '192.0.2.1', '--master-addr'),
    'timed out': ('torch.distributed.DistNetworkError: The client socket has timed out after 60000ms while trying to '
                  'connect '
                  'to (node-7, 29511).', 'rendezvous', 'node-7', '--master-port'),
    'no route': ('[E] ' + of_socket('client', 'connect to [192.0.2.9]:29511', '113 - No route to host'), 'rendezvous',
                 '192.0.2.9', '--master-addr'),
    'port': ('RuntimeError: ' + of_socket('server', 'bind to 0.0.0.0:29511', '98 - Address already in use'),
             'port_torch', '29511', '--master-port'),
    'port, new words': ('torch.distributed.DistNetworkError: The server socket has failed to listen on any local '
                        'network '
                        'address. port: 29511, useIpv6: false, code: -98, name: EADDRINUSE, message: address already '
                        'in '
                        'use', 'port_torch', '29511', '--master-port'),
    'address': ('RuntimeError: ' + of_socket('server', 'bind to 192.0.2.9:29511', '99 - Cannot assign requested '
                                             'address'),
                'address_of_another', '192.0.2.9', 'rank 0'),
    'low port': ('RuntimeError: ' + of_socket('server', 'bind to 0.0.0.0:80', '13 - Permission denied'), 'port_low',
                 '80',
                 'above 1024'),
    'name': ('socket.gaierror: [Errno -2] Name or service not known', 'host_unknown', 'name', '/etc/hosts'),
    'elastic': ('torch.distributed.elastic.rendezvous.api.RendezvousTimeoutError', 'rendezvous', 'met',
                '--rdzv-timeout'),
    'store gone': ('torch.distributed.elastic.rendezvous.api.RendezvousConnectionError: The connection to the C10d '
                   'store '
                   'has failed. See inner exception for details.', 'rendezvous', 'met', 'master-addr'),
    'closed': ('torch.distributed.elastic.rendezvous.api.RendezvousClosedError', 'peer_lost', 'closed', 'other ranks'),
    'agent': ("[W] The node 'n7_12_0' has failed to send a keep-alive heartbeat to the rendezvous '77' due to an "
              "error of "
              'type RendezvousConnectionError.', 'peer_lost|rendezvous', 'lost contact', 'logs'),
    'gloo closed': ('RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:77] Connection closed by peer '
                    '[192.0.2.2]:33333', 'peer_lost', '192.0.2.2', 'other ranks'),
    'gloo late': ('RuntimeError: [../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:77] Timed out waiting '
                  '90000ms '
                  'for recv operation to complete', 'peer_timeout', '90 s', 'other ranks'),
    'store late': ('torch.distributed.DistStoreError: wait timeout after 45000ms, keys: /none/torchelastic/rank/1',
                   'peer_timeout', '45 s', 'other ranks'),
    'gloo interface': ('RuntimeError: [enforce fail at ../gloo/transport/tcp/device.cc:77] ifa != nullptr. Unable to '
                       'find '
                       'interface for: [eth7]', 'host_address', 'eth7', 'GLOO_SOCKET_IFNAME'),
    'gloo own name': ('RuntimeError: [enforce fail at ../gloo/transport/tcp/device.cc:77] ifa != nullptr. Unable to '
                      'find '
                      'address for: n7', 'host_address', 'n7', 'ip -br addr'),
    'barrier': ('RuntimeError: [Rank 0] Ranks 3, 5 failed to pass monitoredBarrier in 60000 ms', 'barrier', 'rank 3, 5',
                'other ranks'),
    'collectives': ('RuntimeError: Detected mismatch between collectives on ranks. Rank 0 is running collective: A, '
                    'but '
                    'Rank 1 is running collective: B', 'different_arguments', 'different', 'same command'),
    'shapes': ('RuntimeError: [1]: params[0] in this process with sizes [10, 8] appears not to match sizes of the '
               'same param '
               'in process 0.', 'different_arguments', 'different', 'same command'),
    'variables': ('ValueError: Error initializing torch.distributed using env:// rendezvous: environment variable '
                  'MASTER_PORT '
                  'expected, but not set', 'not_launched', 'MASTER_PORT', 'torchrun'),
    'CPU tensor': ('RuntimeError: No backend type associated with device type cpu', 'cpu_tensor', 'CPU', '.to(device)'),
    'no HCCL': ("RuntimeError: Distributed package doesn't have HCCL built in", 'torch_npu_not_loaded', 'torch_npu',
                'install torch_npu'),
    'NCCL': ('torch.distributed.DistBackendError: NCCL error in: ../ProcessGroupNCCL.cpp:77, unhandled system error',
             'nccl',
             'NCCL', 'NCCL_DEBUG'),
    # limits
    'killed': ('/tmp/job.sh: line 12:  2345 Killed                  python train.py', 'killed', 'SIGKILL', 'dmesg'),
    'exit code': ('command terminated with exit code 137', 'killed', 'SIGKILL', 'memory'),
    'crash': ('Process exited with code 139', 'killed', 'SIGSEGV', 'dmesg'),
    'container': ('      Reason:       OOMKilled', 'memory_host', "host's memory", 'limit'),
    'memory': ('numpy.core._exceptions._ArrayMemoryError: Unable to allocate 7.5 GiB for an array', 'memory_host',
               'host',
               'workers'),
    'shared memory': ('RuntimeError: unable to allocate shared memory(shm) for file </torch_1>: Resource temporarily '
                      'unavailable (11)', 'shared_memory', '/dev/shm', '--shm-size'),
    'shared memory full': ("OSError: [Errno 28] No space left on device: '/dev/shm/torch_7'", 'shared_memory',
                           '/dev/shm',
                           '--shm-size'),
    'worker': ('ERROR: Unexpected bus error encountered in worker. This might be caused by insufficient shared memory '
               '(shm).', 'shared_memory', '/dev/shm', '--shm-size'),
    'files': ('OSError: [Errno 24] Too many open files', 'open_files', 'open', 'ulimit -n'),
    'files in shared memory': ('RuntimeError: unable to open shared memory object </torch_7> in read-write mode: Too '
                               'many '
                               'open files (24)', 'open_files', 'open', 'ulimit -n'),
    'threads': ("RuntimeError: can't start new thread", 'processes', 'thread', 'pids-limit'),
    'disk': ("OSError: [Errno 5] Input/output error: '/data/7.jpg'", 'disk_error', '/data/7.jpg', 'kernel'),
    'disk full': ('write /var/lib/docker: no space left on device', 'disk_full', 'full', 'free'),
    # devices and programs
    'node': ("PermissionError: [Errno 13] Permission denied: '/dev/davinci7'", 'permission', '/dev/davinci7',
             'HwHiAiUser'),
    'node in C': ('open /dev/davinci_manager failed, fd(-1), errno(13)', 'permission', '/dev/davinci_manager',
                  'container'),
    'no node': ("FileNotFoundError: [Errno 2] No such file or directory: '/dev/devmm_svm'", 'device_nodes',
                '/dev/devmm_svm',
                '--device'),
    'docker': ('docker: Error response from daemon: error gathering device information while adding custom device '
               '"/dev/davinci7": no such file or directory.', 'device_nodes', '/dev/davinci7', 'ls /dev/davinci'),
    'tool': ('bash: npu-smi: command not found', 'npu_smi_missing', 'npu-smi', 'mount'),
    'tool in Python': ("FileNotFoundError: [Errno 2] No such file or directory: 'npu-smi'", 'npu_smi_missing',
                       'npu-smi',
                       'PATH|mount'),
    'architecture': ('bash: /opt/py/bin/python3: cannot execute binary file: Exec format error', 'wrong_architecture',
                     '/opt/py/bin/python3', 'uname -m'),
    'container of another architecture': ('exec /usr/bin/bash: exec format error', 'wrong_architecture', 'architecture',
                                          'uname -m'),
    'wheel': ('ERROR: torch_npu-2.9.0-cp310-cp310-manylinux_2_28_aarch64.whl is not a supported wheel on this '
              'platform.',
              'wrong_wheel', 'cp310', 'python -V'),
    # as a system in Chinese prints them
    'Chinese tool': ('bash：npu-smi：未找到命令', 'npu_smi_missing', 'npu-smi', 'mount'),
    'Chinese permission': ("PermissionError: [Errno 13] 权限不够: '/dev/davinci0'", 'permission', '/dev/davinci0',
                           'HwHiAiUser'),
    'Chinese disk': ("OSError: [Errno 28] 设备上没有空间: '/tmp/kernel_meta'", 'disk_full', '/tmp/kernel_meta', 'free'),
    'Chinese port': ('RuntimeError: The server socket has failed to bind to [::]:29511 (errno: 98 - 地址已在使用).',
                     'port_torch', '29511', '--master-port'),
    'Chinese end': ('train.sh：行 3： 2345 已杀死               python train.py', 'killed', 'SIGKILL', 'memory'),
    'Chinese library': ('ImportError: libascend_hal.so: 无法打开共享对象文件: 没有那个文件或目录', 'driver_missing',
                        'libascend_hal.so', 'mount'),
}


@pytest.mark.parametrize('name', TEXTS)
def test_text(name):
    text, fault, what, remedy = TEXTS[name]
    for form in (text, prefixed(text, '[rank3]: '), f'Traceback (most recent call last):\n{text}\r'):
        first = diagnose_text(form).first
        assert first.fault in fault.split('|') and first.known
        assert what in first.what and any(word in first.remedy for word in remedy.split('|'))
        assert '{' not in first.what + first.remedy and '?' not in first.what
        if fault in ('killed', 'wrong_architecture'):
            break  # a shell's line has no prefix


@pytest.mark.parametrize('text', [
    '[W socket.cpp:464] [c10d] The server socket cannot be initialized on [::]:29511 (errno: 97 - Address family not '
    'supported by protocol).',
    '[W1119 11:14:58.1 socket.cpp:601] [c10d] The client socket has failed to connect to [localhost]:29511 (errno: 99 '
    '- '
    'Cannot assign requested address).',
    '[W socket.cpp:697] [c10d] The IPv6 network addresses of (n7, 29511) cannot be retrieved (gai error: -2 - Name or '
    'service not known).'])
def test_warnings_of_torch_while_it_tries(text):
    diagnosis = diagnose_text(text)
    assert diagnosis.first is None and 'warning of torch' in list(diagnosis.harmless)[0]


@pytest.mark.parametrize('text', [
    'exit code 0', 'process 137 exited with code 0', 'exit status: 1', 'Killed 0 workers', 'listening on port 29511',
    'opened /dev/davinci0', 'connect timeout is 60 s', '训练完成，精度 76.5', 'MemoryError is handled', '12 files, 137 '
    'images'])
def test_nothing_is_found_where_nothing_is(text):
    assert diagnose_text(text).first is None


def test_waits_are_consequences_and_limits_are_not():
    for name in ('gloo late', 'barrier', 'store late', 'closed', 'refused'):
        assert is_consequence(TEXTS[name][0])
    for name in ('files', 'port', 'shared memory'):
        assert not is_consequence(TEXTS[name][0])
    assert explain(TEXTS['name'][0], 'npu:0') is None  # of the Hub, of a data set
    assert 'ulimit -n' in explain(TEXTS['files'][0], 'npu:0')


@pytest.mark.parametrize('text, fault', (
    ('OSError: dlopen: cannot load any more object with static TLS', 'static_tls'),
    ('<jemalloc>: Unsupported system page size\nterminate called after throwing an instance of x', 'page_size'),
    ('ImportError: libx.so: ELF load command alignment not page-aligned', 'page_size'),
    ('ImportError: /v/libtorch_npu.so: file too short', 'library_damaged'),
    ("OSError: /v/libx.so: ELF file's phentsize not the expected size", 'wrong_architecture'),
    ("ImportError: cannot import name 'x' from 'te' (unknown location)", 'cann_python'),
    ("ImportError: cannot import name 'x' from 'shop'", 'python'),
    ('bash: /usr/local/bin/npu-smi: 权限不够', 'permission'),
    ('[ERROR] TSD(12,python):2026-01-02-03:04:05.678.901 open device failed, Operation not permitted /dev/davinci0',
     'permission'),
    ("systemd[1]: t.service: Main process exited, code=killed, status=9/KILL\n"
     "systemd[1]: t.service: Failed with result 'oom-kill'.", 'memory_host'),
    ('systemd[1]: t.service: Main process exited, code=dumped, status=11/SEGV', 'killed'),
    ("systemd[1]: t.service: Failed with result 'timeout'.", 'time_limit'),
    ('slurmstepd: error: Job 47 exceeded memory limit (26 > 25), being killed', 'memory_host'),
    ('salloc: error: Job submit/allocate failed: Requested node configuration is not available', 'not_scheduled'),
    ('[ModelArts Service Log][init] obs path obs://bucket/code/ not exist', 'object_storage'),
    ('[E1120 TCPStore.cpp:343] [c10d] TCP client failed to connect/validate to host 192.0.2.1:29511 - timed out (try=9',
     'rendezvous'),
    ('[W1120 TCPStore.cpp:343] [c10d] TCP client failed to connect/validate to host 192.0.2.1:29511 - retrying (try=0)',
     None),  # as long as rank 0 is not there
    ('torch.OutOfMemoryError: NPU out of memory. Tried to allocate 3.00 GiB. NPU 0 has a total capacity of 60.97 GiB '
     'of which 200.00 MiB is free. Of the allocated memory 40.00 GiB is allocated by PyTorch, and 19.00 GiB is '
     'reserved by PyTorch but unallocated.', 'memory_fragmented'),
))
def test_fault_of_system_and_services(text, fault):
    first = diagnose_text(text).first
    assert (first and first.fault) == fault
    assert first is None or '{' not in first.what + first.remedy and '?' not in first.what


@pytest.mark.parametrize('text, fault, words', (
    # pip and packages
    ("AttributeError: module 'numpy' has no attribute 'int'.", 'numpy_alias', "'numpy<1.24'"),
    ('TypeError: Descriptors cannot be created directly.', 'protobuf_new', 'protobuf==3.20'),
    ('curl: (60) SSL certificate problem: self-signed certificate', 'certificate', 'REQUESTS_CA_BUNDLE'),
    ("NewConnectionError('...: Failed to establish a new connection: [Errno 101] Network is unreachable')", 'network',
     'wheelhouse.sh'),
    ("OSError('Tunnel connection failed: 407 Proxy Authentication Required')", 'network', 'https_proxy'),
    ('error: externally-managed-environment', 'externally_managed', 'venv'),
    ("ERROR: Package 'seresnet_timm' requires a different Python: 3.7.3 not in '>=3.10'", 'python_version', 'Python'),
    ('ImportError: /v/torch_npu/_C.so: undefined symbol: _PyThreadState_UncheckedGet', 'python_version', 'Python'),
    ('ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE', 'library_damaged', 'install'),
    ("error: command 'aarch64-linux-gnu-gcc' failed: No such file or directory", 'build_tools', 'gcc'),
    ('x.c:3:10: fatal error: Python.h: No such file or directory', 'build_tools', 'python3-devel'),
    ('Error relocating /v/libc10.so: __memcpy_chk: symbol not found', 'musl', 'glibc'),
    ('ImportError: /v/libtorch_npu.so: undefined symbol: _ZN3atb7ContextC1Ev', 'cann_old', 'CANN'),
    ('Illegal instruction (core dumped)', 'illegal_instruction', 'lscpu'),
    ('Process finished with exit code 132', 'illegal_instruction', 'wheel'),
    # the driver and the kernel
    ('modprobe: FATAL: Module drv_x not found in directory /lib/modules/5.10.0', 'driver_module', 'uname -r'),
    ('insmod: ERROR: could not insert module drv_x.ko: Required key not available', 'driver_module', 'secure boot'),
    ('pcieport 0000:01:00.0: AER: Uncorrected (Fatal) error received: 0000:02:00.0', 'pcie', 'resume'),
    ('[devdrv] device heartbeat lost. (dev_id=5)', 'device_lost', 'other devices'),
    ('/tmp has not enough space left (1 KB) to decompress x.run', 'disk_full', 'free'),
    ('[ERROR] the package architecture(x86_64) is inconsistent with the current environment', 'wrong_architecture',
     'uname -m'),
    ('2026 [WARN] logic id 5, unhealthy, fault codes [80CB8009]', 'device_unhealthy', 'resume'),
    # ATC, compilers and operators
    ('E10001: Value [1,3] for parameter [--input_shape] is invalid. Reason: no name.', 'model_argument', 'soc_version'),
    ('E19010: No parser is registered for Op [a_1, optype [ai.onnx::17::Foo]].', 'model_operator', 'opset'),
    ('bisheng: error: clang frontend command failed with exit code 139', 'compile', 'versions'),
    ("bishengir-compile: for the --target option: Cannot find option named 'Ascend310X'!", 'chip_unknown', 'CANN'),
    ('  Exception info:TGID=1, model id=1, task id=3, task type=aicpu kernel, task phase=RUN', 'ai_cpu', 'BLOCKING'),
    ('The DDR address of the MTE instruction is out of range', 'ai_core', 'labels'),
    ('OSError: (External) ACL error, the error code is : 507015', 'ai_core', 'BLOCKING'),
    # numbers as other frameworks print them, and packages beside torch_npu
    ('[ERROR]  acl set device 0 failed, errorCode = 507033', 'device_start', 'npu-smi info'),
    ('[E:onnxruntime:Default, c.cc:139 CannCall] CANN failure 507013: (see acl.h) ; NPU=0 ; expr=f(x);', 'dma', 'DMA'),
    ('CANN failure 100002: ACL_ERROR_REPEAT_INITIALIZE ; NPU=0 ; expr=aclInit(nullptr);', 'wrong_use', 'wrong time'),
    ("RuntimeError: Distributed package doesn't have NCCL built in", 'cuda_used', "backend='hccl'"),
    ('RuntimeError: nms_impl: implementation for device npu:0 not found.', 'extension_build', 'FORCE_NPU=1'),
    ("AttributeError: module 'torch_npu' has no attribute 'npu_geglu'", 'torch_npu_name', 'torch_npu has no npu_geglu'),
    ("AttributeError: module 'torch_npu' has no attribute '_autoload'\n\nRuntimeError: Failed to load the backend "
     'extension: torch_npu.', 'torch_npu_name', '__file__'),
    # operators and devices, words without a code
    ('[ERROR] DRV(9,atc.bin):2025-09-02-21:07:20.698.597 [hdc_core.c:396][hdc] [hdcPcieInit 396] HDC init failed, '
     'driver may not load.', 'driver_start', '/dev/hisi_hdc'),
    ('EZ9999[PID: 12] 2026-05-07-10:00:00.000.000 (EZ9999):  BinaryGetFunction failed, opType is Roll.', 'no_kernel',
     'operator Roll'),
    ('[ERROR] GE(9,python):2023-07-14-11:54:10.552.099 [a.cc:357]9 GetName: ErrorNo: 1343242282(assign engine failed) '
     '[COMP][SUB_OPT]Op type Conv2DX of ops kernel AIcoreEngine is unsupported, reason : x', 'no_kernel', 'Conv2DX'),
    ('EL0001: 2026-05-01-10:59:14.702.326 Device not found or invalid.\n        TraceBack (most recent call last):\n'
     '        Device[1] lost heartbeat.[FUNC:SyncTask][FILE:e.cc][LINE:407]', 'device_lost', 'resume on other devices'),
    ('[ERROR] HCCL(9,all_reduce):2025-10-23-14:56:18.215.877 [t.cc:119] [9][Recv][ClusterInfoMsg] TopoDetect ERROR '
     'occur !!! fault_type[1], fault_info["Failed to connect agent[9,11,]"]', 'root_detect', 'no report of rank 9, 11'),
    # schedulers
    ('slurm_load_partitions: Unable to contact slurm controller (connect failure)', 'slurm_service', 'munge'),
    ('srun: error: Unable to create step for job 7: More processors requested', 'not_scheduled', 'sinfo'),
    ('pods "a" is forbidden: exceeded quota: q, requested: requests.huawei.com/npu=8', 'not_scheduled', 'kubectl'),
    ("slurmstepd: error: couldn't chdir to `/data/run': No such file or directory: going to /tmp", 'file_missing',
     'mount'),
    ('a.service: Failed at step EXEC spawning /opt/x: No such file or directory', 'program_missing', 'activate'),
    ('[ModelArts Service Log]ERROR:root:Failed to call:\n\tfunc=x\n\tstat:403', 'object_storage', 'bucket'),
))
def test_fault_of_packages_driver_and_services(text, fault, words):
    first = diagnose_text(text).first
    assert (first and first.fault) == fault
    assert words in first.remedy + first.what + ''.join(first.causes)
    assert '{' not in first.what + first.remedy and '?' not in first.what


@pytest.mark.parametrize('text', (
    'Epoch 3: 120 images/s, space left on /data 12 GiB',
    'checking certificates: all are valid',
    'VEC units: 48, UB 192 KB, CUBE 24',
    'UserWarning: TypedStorage is deprecated.',
    'E10001x is the name of a folder',
))
def test_text_that_is_no_fault(text):
    assert diagnose_text(text).first is None
