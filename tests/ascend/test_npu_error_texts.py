"""Errors of torch_npu, CANN, HCCL and the driver: each kind of text gets its fault, its values and its remedy."""
import pytest
from ascend.npu_texts import ADVICE, call, cann, err, out_of_memory, prefixed, waits
from ascend.told import assert_told

from seresnet_timm.ascend.errors import diagnose_text, explain, explain_import

MISSING = 'cannot open shared object file: No such file or directory'
SOURCE = "Please run 'source set_env.sh' in the CANN installation path."

# name: text, fault, words of the sentence, of the remedy
INSTALL = {
    'E1': (f'ImportError: libhccl.so: {MISSING}. Please check that the cann package is installed. {SOURCE}\n'
           + err('ERR00008 PTA resource not found', device=-1), 'cann_missing', 'libhccl.so', 'set_env.sh'),
    'E1 part': (f'ImportError: libge_runner.so: {MISSING}. Please check that the compiler package is installed. '
    f'{SOURCE}',
                'cann_missing', 'compiler package', 'set_env.sh'),
    'E2': (f'ImportError: libascend_hal.so: {MISSING}', 'driver_missing', 'libascend_hal.so', 'driver/lib64'),
    'E2 dcmi': (f'OSError: /opt/x/libdcmi.so: {MISSING}', 'driver_missing', 'libdcmi.so', 'mount'),
    'E3': ('RuntimeError: Failed to load the backend extension: torch_npu. You can disable extension auto-loading with '
           'TORCH_DEVICE_BACKEND_AUTOLOAD=0.', 'backend_not_loaded', 'failed to load', 'AUTOLOAD=0'),
    'E4': ('Exception: ASCEND_OPP_PATH environment variable is not set', 'environment_half_set', 'ASCEND_OPP_PATH',
           'set_env.sh'),
    'E5': ("ModuleNotFoundError: No module named 'torch_npu._C'", 'source_folder', 'source folder', 'another folder'),
    'E6': ('ImportError: /p/torch_npu/lib/libtorch_npu.so: undefined symbol: _ZN3c1010ValueErrorC1ESs', 'torch_pair',
           '_ZN3c1010ValueErrorC1ESs', 'same version of both'),
    'symbol of CANN': ('ImportError: /p/torch_npu/lib/libtorch_npu.so: undefined symbol: aclrtGetMemUceInfo',
    'cann_old',
                       'aclrtGetMemUceInfo', 'CANN that belongs'),
    'E7': ('ImportError: /p/scikit_learn.libs/libgomp-d22c30c5.so.1.0.0: cannot allocate memory in static TLS block',
           'static_tls', 'libgomp-d22c30c5.so.1.0.0', 'LD_PRELOAD=/p/scikit_learn.libs/libgomp-d22c30c5.so.1.0.0'),
    'E8': ('EH9999: Inner Error!\nEH9999  [Init][Env]init env '
    'failed![FUNC:ReportInnerError][FILE:log_inner.cpp][LINE:145]\n'
           '        TraceBack (most recent call last):\n        build op model failed, result = 500001[FUNC:x]',
           'compiler_start', 'operator compiler', 'sympy'),
    'E8 module': ("ModuleNotFoundError: No module named 'te.platform'", 'cann_python', 'te.platform', 'set_env.sh'),
    'E8 need': (call('NPU', 'at_npu::native::AclSetCompileopt(aclCompileOpt::ACL_OP_JIT_COMPILE, "x")', 500001,
                     cann('EC0010', "Failed to import Python module [ModuleNotFoundError: No module named "
                     "'decorator'].")),
                'cann_python', 'decorator', 'absl-py'),
    'E9': (call('NPU', 'at_npu::native::AclSetCompileopt(aclCompileOpt::ACL_PRECISION_MODE, mode)', 500001,
                function='Initialize'), 'compiler_start', 'could not start', 'kernels package'),
    'E10': (call('NPU', 'c10_npu::SetDevice(device_id_)', 507033,
                 cann('E30006', 'Failed to verify the OPP', 7), ADVICE), 'opp_mismatch', 'OPP', 'same CANN version'),
    'E11': ('[ERROR] TBE(88,python3):2024-12-10-10:11:12 msg_mgr_dump raise error[[Errno 28] No space left on device]',
            'disk_full', 'disk is full', 'ASCEND_WORK_PATH'),
    'E11 path': ("OSError: [Errno 28] No space left on device: '/tmp/kernel_meta'", 'disk_full', '/tmp/kernel_meta',
    'free'),
    'E12': ("RuntimeError: Duplicated key 'pinned_reserve_segment_size_mb'", 'cuda_build', 'CUDA build', 'CPU build'),
    'E13': ('RuntimeError: Two accelerators cannot be used at the same time in PyTorch: npu and cuda.\n'
            + err('ERR00007 PTA feature not supported'), 'cuda_build', 'CUDA build', 'CPU build'),
    'E14': ("RuntimeError: Cannot re-initialize NPU in forked subprocess. To use NPU with multiprocessing, you must "
    "use "
            "the 'spawn' start method\n" + err('ERR00005 PTA internal error'), 'fork', 'fork', 'spawn'),
    'numpy 2': ('EC0010: Failed to import Python module [AttributeError: `np.float_` was removed in the NumPy 2.0 '
                'release.]', 'numpy_new', 'numpy', "'numpy<2'"),
    'cuda': ('AssertionError: Torch not compiled with CUDA enabled', 'cuda_used', 'CUDA', 'transfer_to_npu'),
    'old system': ("ImportError: /lib64/libstdc++.so.6: version `GLIBCXX_3.4.29' not found", 'system_old',
                   'GLIBCXX_3.4.29', 'newer system'),
}
DEVICE = {
    'D1': (call('NPU', 'aclrtGetDeviceCount(&device_count)', 207004, cann(
        'EE1001', 'The argument is invalid.Reason: set ASCEND_RT_VISIBLE_DEVICES:6 error, input data rang[0-4)')),
        'visible_devices', 'ASCEND_RT_VISIBLE_DEVICES=6', '--devices'),
    'D2': (call('NPU', 'c10_npu::SetDevice(device_id_)', 507033), 'device_start', 'does not start', 'npu-smi info'),
    'D2 open': (call('NPU', 'c10_npu::SetDevice(device_id_)', 507033, cann('EE1001', 'The argument is invalid.Reason: '
                'rtSetDevice, Failed to open device, retCode=0x7020014, deviceId=0')), 'device_start', 'start',
                'end the process that'),
    'D3': ('dcmi module initialize failed. ret is -8005', 'driver_start', 'DCMI', '--privileged'),
    'D3 used': ('dcmi model initialized failed, because the device is used. ret is -8020', 'device_taken',
                'another container', 'one container'),
    'D3 driver': ('[ERROR] DRV(3,python):2025-01-01-01:01:01 open failed drvRetCode=87', 'device_taken', 'another',
    'mount'),
    'D4': (call('NPU', 'c10_npu::acl::AclrtSynchronizeStreamWithTimeout(copy_stream)', 507015, 'EZ9999: Inner Error!',
                cann('EZ9999', 'The error from device(chipId:2, dieId:0), serial number is 7, there is an aicore error '
                     'exception, core id is 3'), '        kernel_name=Index_fp16_high_performance', device=5),
           'ai_core', 'Index_fp16_high_performance', 'ASCEND_LAUNCH_BLOCKING=1'),
    'D5': ('[758] [2026-05-08 03:20:32:000] torch.distributed: [ERROR] [859] Find exception when '
           'finishedNPUExecutionInternal, ' + call('NPU', 'acl::AclQueryEventRecordedStatus(event_, &status)', 507011,
           cann(
               'EL0003', 'The argument is invalid.', 8.3, name='Invalid_Argument'),
               '        The error from device(chipId:4), there is an exception of fftsplus aicore error, core id is 0',
               device=9).partition(': ')[2]
           + '\n[rank9]:[E508 03:20:31.678676591 compiler_depend.ts:1693] [Rank 9] HCCL watchdog thread terminated '
           'with '
             'exception:', 'ai_core', 'device 9', 'ASCEND_LAUNCH_BLOCKING=1'),
    'D6': (call('NPU', 'HBM MULTI BIT ECC ERROR', 507054, device=3), 'ecc', 'device 3 is damaged', 'other devices'),
    'D7': (call('HCCL', 'HCCS LINK ERROR', 507056), 'link_hardware', 'link', 'cables'),
    'D7 950': (call('HCCL', 'device error type 4, UB LINK ERROR', 507056), 'link_hardware', 'link', 'npu-smi'),
    'D8': (call('NPU', 'FORCE STOP', 107022), 'force_stop', 'on purpose', 'failed first'),
    'suspect': (call('NPU', 'SUSPECT REMOTE ERROR', 507057), 'suspect_remote', 'elsewhere', 'failed first'),
    'uce': (call('NPU', 'UCE ERROR', 507053), 'ecc', 'memory', 'ecc'),
    'retry': (call('HCCL', 'HCCL OP RETRY FAILED', 507900), 'hccl_link', 'link', 'other end'),
    'D9': (call('NPU', 'c10_npu::queue::LaunchAsyncCopyTask(dst, n, src, n, kind)', 507001, function='copy_d2d'),
           'virtual_memory', 'copy on the device', 'expandable_segments:False'),
    'D10': ('[W compiler_depend.ts:1] Warning: AclrtGetDeviceInfo failed to get total global memory, error code is '
    '507899 '
            '(function f)\n driver version is too old or does not match CANN', 'driver_old', 'driver is older',
            'driver that belongs to'),
    'vector core': (call('NPU', 'AclrtSynchronizeDeviceWithTimeout', 507035, cann('EZ9999', 'there is an exception of '
                    'fftsplus aivector error', 8.5), '  errorStr: The DDR address of the MTE instruction is out of '
                    'range. x'),
                    'ai_core', 'The DDR address of the MTE instruction is out of range', 'labels'),
    'time-out of a core': (call('NPU', 'AclrtSynchronizeStreamWithTimeout(s)', 507014), 'ai_core_timeout', 'in time',
                           'newer CANN'),
    'AI CPU': (call('OPS', 'IndexPut', 507018, cann('E39999', 'Aicpu kernel execute failed', 7)), 'ai_cpu', 'IndexPut',
               'BLOCKING'),
    'lost': (call('NPU', 'aclrtMemcpy', 507010), 'device_lost', 'stopped working', 'resume'),
    'busy': (cann('EL0005', 'The resources are busy.', 8.3), 'device_taken', 'another', 'one container'),
    'permission': (cann('EL0007', 'The operation is not permitted.'), 'permission', 'may not', 'HwHiAiUser'),
    'no device': (call('NPU', 'c10_npu::SetDevice(9)', 107001), 'device_absent', 'no such device', '--devices'),
    'chip': (call('NPU', 'aclInit(path)', 507008), 'chip_unknown', 'chip', 'CANN for this chip'),
}
MEMORY = {
    'M1': (f'RuntimeError: {out_of_memory(3)}', 'memory', '386.00 MiB more were asked for, 60.97 GiB in total', '(-b)'),
    'M1 2.10': (f'torch.OutOfMemoryError: {out_of_memory()}\n' + err('ERR99999 UNKNOWN applicaiton exception'),
    'memory',
                'NPU 2 is out of memory', '(-b)'),
    'M1 others': (f'RuntimeError: {out_of_memory(1, allocated=10.24, free="20.00 MiB", reserved=10.65)}',
                  'memory_of_others', 'other processes hold about 50.3 GiB', 'end the other process'),
    'M1 pieces': (f'RuntimeError: {out_of_memory(0, allocated=30.0, reserved=59.0)}', 'memory_fragmented', '29.0 GiB',
                  'expandable_segments:True'),
    'M2': (call('NPU', 'AclrtSynchronizeDeviceWithTimeout', 507013, cann('EL0004', 'Failed to allocate memory.'),
    ADVICE,
                '        alloc device memory failed, runtime result = 207001[FUNC:ReportCallError]'), 'memory_device',
           'device 0 is out of memory', '(-b)'),
    'M3': (cann('EI0011', 'Failed to allocate [size: [0.5MB, 6MB], Affected by QP depth configuration.] bytes of NPU '
                'memory.', 8.3), 'memory_hccl', '0.5MB, 6MB', 'HCCL_BUFFSIZE'),
    'M3 old': (cann('EI0007', 'Failed to allocate resource[DeviceMemory] with info [size:209715200]. Reason: Memory '
                    'resources are exhausted.'), 'memory_hccl', '200.0 MiB', 'HCCL_BUFFSIZE'),
    'M4': ('RuntimeError: NPU out of memory. Allocation was preemptively rejected because it would exceed '
           'per_process_memory_fraction', 'memory_fraction', 'limit', 'raise'),
    'EL0019': (call('NPU', 'aclrtMallocAlign32(ptr, size)', 207018, cann('EL0019', 'Out of memory', 8.3)),
    'memory_device',
               'out of memory', 'smaller batch'),
    'HCCL 3': (call('OPS', 'HcclBroadcast', 3), 'memory_hccl', 'HCCL', 'smaller batch'),
}
OPERATORS = {
    'O1': (call('NPU', 'call aclnnBatchNorm failed', 161002, cann(
        'EZ1001', 'Tensor weight not implemented for DT_DOUBLE, should be in dtype support list '
        '[DT_FLOAT,DT_FLOAT16,].',
        8.3, name='AclNN_Parameter_Error')), 'dtype',
        'operator aclnnBatchNorm does not take the dtype DT_DOUBLE of its argument weight; it takes '
        '[DT_FLOAT,DT_FLOAT16]',
        'precision'),
    'O2': ('RuntimeError: call aclnnInplaceCopy failed, error code is 561103\n' + err(), 'no_kernel',
    'aclnnInplaceCopy',
           'kernels package'),
    'O3': ('RuntimeError: call aclnnArange failed, detail:EZ9999: Inner Error!\n' + cann(
        'EZ9999', 'Cannot find bin of op Range, integral key 0/1/|int64/ND/int64/ND/.') + '\n       Cannot find '
        'binary for op '
        'Range.\n' + err('ERR01100 OPS call acl api failed'), 'no_kernel',
        'operator Range for this chip, format or dtype '
        '(int64)', 'kernels package'),
    'O4': (cann('EZ1001', 'Get path and read binary_info_config.json failed, please check if the opp_kernel package is '
                'installed!'), 'kernels_missing', 'not installed', 'kernels package'),
    'O5': (call('OPS', 'Conv2D', 500002, cann('E40021',
    'Failed to compile Op [Conv2D7,[Conv2D,Conv2D]]. (oppath: [x])')),
           'compile', 'Conv2D7', 'that match'),
    'O6': ('RuntimeError: Expected all tensors to be on the same device. Expected NPU tensor, please check whether '
    'the input '
           'tensor device is correct.\n' + err('ERR01002 OPS invalid type'), 'cpu_tensor', 'on the CPU', '.to(device)'),
    'O7': ('RuntimeError: Tensors must be contiguous\n' + err('ERR02002 DIST invalid type'), 'not_contiguous',
    'contiguous',
           'channels_last'),
    'O8 as an error': ("RuntimeError: The operator 'aten::isin.Tensor_Tensor' is not currently supported on the NPU "
    "backend.",
                       'no_npu_operator', 'aten::isin.Tensor_Tensor', 'report'),
    'no kernel': ("NotImplementedError: Could not run 'torchvision::nms' with arguments from the 'PrivateUse1' "
    "backend.",
                  'no_npu_operator', 'torchvision::nms', 'report'),
    'O10': ('  Message info[0]:RTS_HWTS: aicore exception, slot_id=31, stream_id=3\n'
            '    Other info[0]:time=2024-05-10-10:44:52.267.860, error code=0x26\n'
            'RuntimeError: The Inner error is reported as above.\n Since the operator is called asynchronously, set '
            'ASCEND_LAUNCH_BLOCKING=1.', 'ai_core', 'AI Core', 'ASCEND_LAUNCH_BLOCKING=1'),
    'O10 named': ('RuntimeError: The Inner error is reported as above. The process exits for this inner error, and the '
                  'current working operator name is aclnnGelu.\n' + err(), 'asynchronous', 'operator aclnnGelu failed '
                  'before', 'ASCEND_LAUNCH_BLOCKING=1'),
    'shapes': ('RuntimeError: call aclnnAdd failed, error code is 161002\n' + cann(
        'EZ1001', "Shape of self and other can't broadcast."), 'argument', "can't broadcast", 'BLOCKING'),
    'overflow': (call('NPU', 'AclrtSynchronizeStreamWithTimeout(s)', 207003), 'overflow', 'too large', '--lr'),
}
NUMBERS = {
    'N1': ('Gradient overflow. Skipping step\nLoss scaler reducing loss scale to 2.0\nGradient overflow. Skipping '
    'step\n'
           'Loss scaler reducing loss scale to 0.5', 'diverged', 'loss scale', '--lr'),
    'N3': ('step 9 grad_norm: nan\n' + 'RuntimeError: The Inner error is reported as above. The process exits for '
    'this inner '
           'error, and the current working operator name is aclnnMul.\n' + err(), 'diverged', 'grad_norm became nan',
           'bf16'),
    'N4': ('[WARN] feature detection detects abnormal results!', 'corruption', 'data corruption', 'stress_detect'),
}
HCCL = {
    'H1': (prefixed(call('HCCL', 'HcclGetRootInfo(&hcclID)', 11, cann(
        'EJ0003', 'Failed to bind the IP port. Reason: The IP address and port have been bound already.'),
        '        host nic listen start failed, port[60003], return[11][FUNC:StartListenSocket]'), '[rank0]: '),
        'port_host', 'port 60003 of this host', 'HCCL_HOST_SOCKET_PORT_RANGE=auto'),
    'H1 8.3': (cann('EI0019', 'Failed to enable listening for the host network adapter socket. Reason: The IP address '
                    '192.0.2.7 and port 60012 have been bound already', 8.3), 'port_host', '60012',
                    'HCCL_IF_BASE_PORT'),
    'H2': ('[ERROR] HCCL(60570,):2025-12-04-14:46:07.911.312 [hccl_socket.cc:106] [60570][HcclSocket][Listen] socket '
           'type[1], listen on ip[192.0.2.195] and specific port[16666] fail. Please check the port status',
           'port_device', '16666 of the device', 'HCCL_NPU_SOCKET_PORT_RANGE=auto'),
    'H2 host': ('[HcclSocket][Listen] socket type[2], listen on ip[192.0.2.195] and specific port[60000] fail.',
                'port_host', '60000 of this host', 'HCCL_IF_BASE_PORT'),
    'H3': ('RuntimeError: [ERROR] HCCL error in: torch_npu/csrc/distributed/ProcessGroupHCCL.cpp:64\n'
           + err('ERR02200 DIST call hccl api failed.', rank=3, device=3) + '\n' + cann(
               'EJ0001', 'Failed to initialize the HCCP process. Reason: Maybe the last training process is running.',
               7),
           'hccp_busy', 'earlier run', 'ten seconds'),
    'H4': (call('OPS', 'HcclAllreduce', 6, cann('EI0006',
    'Getting socket times out. Reason: Remote Rank did not send the '
           'data in time.')), 'connect_timeout', 'in time', 'HCCL_CONNECT_TIMEOUT'),
    'H5': (cann('EI0006', 'Getting socket times out. Reason: No abnormal periods were discovered.', 8.3),
    'connect_timeout',
           'in time', 'other ranks first'),
    'H5 tls': (cann('EI0006', 'Getting socket times out. Reason: The TLS configurations are inconsistent', 8.3), 'tls',
    'TLS',
               'hccn_tool'),
    'H6': (cann('EI0015', 'Failed to collect cluster information of the communicator. Reason: rank num 3 is less '
    'than 4', 8.3),
           'root_detect', 'rank num 3', 'HCCL_SOCKET_IFNAME'),
    'H7': (waits(5, remote=24), 'exec_timeout', 'rank 24 did not take part', 'rank 24'),
    'H8': ('[W compiler_depend.ts:487] Warning: NPU warning, error code is 507048[Error]: \n[Error]: The execution '
    'of the '
           'internal task times out. \n' + cann('EI0002',
           'The wait execution of the Notify register times out. Reason: The '
           'Notify register has not received the Notify record from remote rank [unknown].') + '\nthere are(is) 1 '
           'abnormal '
           'device(s):\n    Cluster Exception Location[IP/ID]:[192.0.2.240/1], Arrival Time:[Thu Nov 28 11:56:34 '
           '2024], '
           'Discoverer:[192.0.2.240/0], ExceptionType:[Heartbeat Lost Occurred], Possible Reason:1. Process has exited',
           'heartbeat', '192.0.2.240/1', 'that device'),
    'H9': ('RuntimeError: ACL stream synchronize failed.\nEI9999: Inner Error!\n' + cann(
        'EI9999', 'The error from device(chipId:3), hccl fftsplus task timeout occurred during task execution, stuck '
        'notify '
        'num:1, timeout:30min(default).', 7), 'exec_timeout', '30min', 'HCCL_EXEC_TIMEOUT'),
    'H10': (prefixed('[W NPUStream.cpp:365] Warning: NPU warning, error code is 107020[Error]: .\nEH9999: Inner '
    'Error!\n'
                     '        rtDeviceSynchronize execute failed, reason=[task timeout][FUNC:FuncErrorReason]',
                     'worker-1: '),
            'sync_timeout', 'rank 1 lost contact', 'other ranks first'),
    'H10 new': (call('NPU', 'AclrtSynchronizeDeviceWithTimeout', 507046), 'sync_timeout', 'did not end in time',
    'other'),
    'H11': (call('HCCL', 'hcclCommInitRootInfoConfig(numRanks, &rootInfo, rank, config, &(comm->hcclComm_))', 15,
                 'EE9999: Inner Error!', cann('EE9999', 'get error: phyid:0 realDeviceId:0 is err:0x7010003')),
            'communicator_device_number', 'by its number', 'CANN 8.1'),
    'H11 1': (call('HCCL', 'hcclCommInitRootInfoConfig(n, &info, rank, config, &(c->c_))', 1), 'communicator_driver',
              'parameter', 'driver'),
    'H11 5': (call('HCCL', 'HcclCommInitRootInfo(n, &info, rank, &(c->c_))', 5), 'not_supported',
    'HcclCommInitRootInfo',
              'versions'),
    'H12': ('[W x] Warning: The HCCL execution timeout was set to 0(never timeout), so it is bigger than watchdog '
    'timeout '
            '1800000ms which is set by init_process_group!', 'timeout_order', '1800000 ms', "below torch's"),
    'H13': (cann('EI0004', 'Failed to parse the ranktable file /x/hccl.json. Reason: file does not exist'),
    'rank_table',
            '/x/hccl.json', 'RANK_TABLE_FILE'),
    'H13 fit': (cann('EI0014', 'Value 3 for ranktable variable device_id is invalid.', 8.3), 'rank_table', 'device_id',
                'unset'),
    'H13 address': (cann('EJ0004', 'The IP address 192.0.2.1 in the ranktable is inconsistent'), 'rank_table',
    '192.0.2.1',
                    'hccn_tool'),
    'H14': ('[W socket.cpp:436] [c10d] The server socket has failed to bind to [::]:29501 (errno: 98 - Address '
    'already in '
            'use).', 'port_torch', "torchrun's port 29501", '--master-port'),
    'variable': (cann('EI0001', 'Value 9 for environment variable HCCL_CONNECT_TIMEOUT is invalid. Expected value: '
    '[120, '
                      '7200].', 8.3), 'hccl_variable', 'HCCL_CONNECT_TIMEOUT=9; it takes [120, 7200]', 'unset'),
    'arguments': (cann('EI0005', 'The arguments for collective communication are inconsistent between ranks: tag [t], '
                       'parameter [count], local [512], remote [1024]'), 'different_arguments',
                       'count is 512 here and 1024 '
                  'there', 'same command'),
    'versions': (cann('EI0008', 'The HCCL versions are inconsistent. The local version is 8.1, while the remote '
    'version is '
                      '8.0.', 8.3), 'versions_differ', '8.1 here, 8.0 there', 'same CANN'),
    'packets': (cann('EI0013', 'An error CQE occurred during operator execution. Local information: server '
    '192.0.2.1, device '
                     'ID 3, device IP 192.0.2.3. Peer information: server 192.0.2.9, device ID 1, device IP '
                     '192.0.2.19.', 8.3),
                'hccl_link', 'server 192.0.2.9, device ID 1', 'other end'),
    'copy': (cann('EI0012', 'SDMA memory copy task exception occurred. Remote rank: [5]. Base information: [x]'),
    'hccl_link',
             'remote rank 5', 'other end'),
    'phase': ('[ERROR] HCCL(6,python3):2025-12-04-14:46:07.911.312 [a.cc:1][6][InitChannelStage][Timeout]no data',
              'connect_timeout', 'in time', 'HCCL_CONNECT_TIMEOUT'),
    'start': ('torch.distributed.DistStoreError: Timed out after 1801 seconds waiting for clients. 7/8 clients joined.',
              'rendezvous', '7/8 came within 1801 s', '--rdzv-timeout'),
    'watchdog': ('[rank0]:[E ProcessGroupHCCL.cpp:488] [Rank 0] Watchdog caught collective operation timeout: WorkHCCL('
                 'SeqNum=12, OpType=ALLREDUCE, Timeout(ms)=1800000) ran for 1800123 milliseconds before timing out.',
                 'watchdog', 'ALLREDUCE after 1800.12 s', 'other ranks first'),
}
KINDS = {**INSTALL, **DEVICE, **MEMORY, **OPERATORS, **NUMBERS, **HCCL}


@pytest.mark.parametrize('name', KINDS)
def test_kind(name):
    assert_told(*KINDS[name])


PREFIXES = ('[rank3]: ', 'worker-3: ', '\x1b[31m2025-11-19 11:14:58,123 - root - ERROR - ', '[default3]:')


@pytest.mark.parametrize('name, prefix', [(name, PREFIXES[i % 4]) for i, name in enumerate(KINDS)])
def test_kind_with_prefixes_colours_and_twice(name, prefix):
    """Prefixes of launchers and loggers, carriage returns, colours, and the same text again change nothing."""
    text, fault, _, remedy = KINDS[name]
    first = diagnose_text((prefixed(text, prefix) + '\n' + prefixed(text, prefix)).replace('\n', '\r\n')).first
    assert first.fault == fault and remedy in first.remedy
    assert first.rank is not None or 'rank' not in prefix


def test_error_inside_a_long_log_is_found():
    log = 'Train: 3 [ 100/1251 (  8%)]  Loss: 6.9 (6.9)  Time: 0.3s\n' * 500
    first = diagnose_text(log + KINDS['D6'][0] + '\n' + log).first
    assert first.fault == 'ecc' and first.line == 501


def test_a_number_means_different_things_in_acl_and_hccl():
    assert diagnose_text(call('OPS', 'HcclAllGather', 9)).first.fault == 'exec_timeout'
    assert diagnose_text(call('HCCL', 'HcclReduceScatter(a, b)', 9)).first.fault == 'exec_timeout'
    assert 'not a number of ACL' in diagnose_text(call('NPU', 'aclrtX(a, b)', 9)).first.unknown[0]
    # a number of ACL under a call of HCCL
    assert diagnose_text(call('HCCL', 'HcclAllReduce(a, b)', 507015)).first.fault == 'ai_core'


@pytest.mark.parametrize('text, words', [
    (call('NPU', 'aclrtX(a, b)', 507998), ['507998', 'the device']),
    (call('NPU', 'call aclnnX failed', 161777), ['161777', 'aclnn']),
    (call('HCCL', 'HcclX(a)', 77), ['77', 'HCCL']),
    (cann('EI0077', 'Something new.', 8.3), ['EI0077', 'HCCL', 'Something new']),
    (cann('EZ4711', 'Odd.'), ['EZ4711', 'operators', 'Odd']), (cann('EL0077', 'Odd.', 7), ['EL0077', 'driver']),
    (cann('EK9876', 'Odd.', 8.5), ['EK9876', 'profiling', 'internal error']), (cann('E20777', 'Odd.'), ['E20777',
        'fusion compiler']),
    (cann('EX1234', 'Odd.'), ['EX1234', 'unknown part']), (err('ERR02777 DIST new'), ['ERR02777', 'HCCL']),
    (err('ERR55011 NEW timeout'), ['ERR55011', 'unknown', 'time-out']),
])
def test_unknown_codes_are_said_to_be_unknown(text, words):
    first = diagnose_text(text).first
    assert not first.known and 'not' in first.unknown[0] and 'known' in first.unknown[0]
    assert all(word in first.unknown[0] for word in words) and 'plog' in first.log


def test_unknown_code_beside_a_known_one_is_named():
    first = diagnose_text(call('NPU', 'x', 507015, cann('EZ4711', 'Odd thing.'))).first
    assert first.fault == 'ai_core' and first.known and 'EZ4711' in first.unknown[0]


@pytest.mark.parametrize('text, note', [
    ('Gradient overflow. Skipping step\nLoss scaler reducing loss scale to 512.0', 'normal'),
    ('Gradient overflow.  Skipping step, loss scaler 0 reducing loss scale to 32768.0', 'normal'),
    ('Warning: Non finite check and unscale on NPU device!', 'check runs'),
    ("[W] Warning: CAUTION: The operator 'aten::roll' is not currently supported on the NPU backend and will fall "
    "back to "
     'run on the CPU.', 'operator aten::roll runs on the CPU'),
    ('Warning: Device do not support double dtype now, dtype cast replace with float.', 'float64'),
    ('[W compiler_depend.ts:9] Warning: NPU warning, error code is 507899[Error]: \n[Error]: An internal error '
    'occurs in the '
     'Driver module. \n        Rectify the fault (function f)', '507899'),
    (err('ERR99999 UNKNOWN applicaiton exception'), 'nothing of the NPU'),
    ("image.py:14: UserWarning: Failed to load image Python extension: 'libc10_cuda.so: cannot open shared object "
     "file: No such file or directory'If you don't plan on using image functionality", 'torchvision'),
    (cann('W11001', 'Op [Conv] does not hit the high-priority operator information library'), 'warning of CANN'),
])
def test_harmless(text, note):
    diagnosis = diagnose_text(text)
    assert diagnosis.first is None and note in list(diagnosis.harmless)[0]
    assert explain(text, 'npu:0') is None


@pytest.mark.parametrize('text', [
    '', 'Train: 0 [0/10] Loss: 2.3\nbest 45.2', 'all is well, exit code 0', '0 errors, 0 warnings',
    'HCCL_CONNECT_TIMEOUT=1800',
    'rank 0 of 8 on npu:0', 'error code is 0', 'epoch 507015 of 600000', '\x00\xff\ufffd' * 50])
def test_nothing_is_found_where_nothing_is(text):
    assert diagnose_text(text).first is None


def test_variables_that_an_old_cann_does_not_read_are_not_recommended():
    old = diagnose_text(cann('EJ0003', 'Failed to bind the IP port. Reason: port[60000] has been bound already.',
        7)).first
    assert 'HCCL_IF_BASE_PORT' in old.remedy and 'RANGE' not in old.remedy


@pytest.mark.parametrize('sentence, fault', [
    ('Failed to start the device.', 'device_start'), ('The aicore execution is abnormal.', 'ai_core'),
    ('Getting socket times out. Reason: Remote Rank did not send the data in time.', 'connect_timeout'),
    ('Failed to allocate memory.', 'memory_device'), ('Failed to verify the OPP', 'opp_mismatch'),
    ('In the specified timeout waiting event, all tasks in the specified stream are not completed.', 'sync_timeout'),
    ('Something that nobody knows.', 'reported')])
def test_compact_output(sentence, fault):
    first = diagnose_text(f'RuntimeError: CANN error: {sentence}').first
    assert first.fault == fault and first.known == (fault != 'reported')


def test_sentence_of_a_rank(monkeypatch):
    """What a run prints: device, fault, code, number and remedy in one sentence, and nothing for other errors."""
    text = explain(call('NPU', 'aclrtMemcpy', 507010), 'npu:1')
    assert text.startswith('npu:1 stopped working (ACL 507010')
    assert 'loses the heartbeat' in text and 'aclrtMemcpy' in text
    monkeypatch.setenv('HCCL_EXEC_TIMEOUT', '77')
    text = explain(waits(0, remote=3), 'npu:0')
    assert text.startswith('npu:0 lost contact with the other ranks: rank 3') and 'HCCL waits 77 s' in text
    assert 'EI0002' in text
    for other in ('ValueError: x', 'Connection closed by peer', 'CUDA error', "No module named 'foo'", 'OSError: no'):
        assert explain(other, 'cpu') is None


def test_sentence_of_an_import():
    cause = f'libhccl.so: {MISSING}. Please check that the cann package is installed. {SOURCE}'
    text = explain_import(f'{cause}\nFailed to load the backend extension: torch_npu.')
    assert 'libhccl.so' in text and 'set_env.sh' in text and 'AUTOLOAD=0' in text
    assert 'set_env.sh' in explain_import('Failed to load the backend extension: torch_npu.')
