"""Lines as torch_npu, CANN, the driver, MindCluster, containers, pip and Python print them, one or a few a text."""
import time

import pytest

from seresnet_timm.ascend.error_events import EventReader
from seresnet_timm.ascend.errors import diagnose_text


def plog(component, text):
    return f'[ERROR] {component}(4242,python):2025-06-08-04:41:08.266.505 {text}'


# fault, words of the sentence, of its remedy or of a code; the text, with names and numbers replaced
TEXTS = (
    ('cann_missing', 'its runtime package', 'Exception: ASCEND_RUNTIME_PATH : /p/runtime does not exist. Please check '
     'whether the runtime package has been installed.'),
    ('cann_missing', 'set_env.sh', 'Exception: ASCEND_HOME_PATH : /gone does not exist. Please run set_env.sh'),
    ('tls', 'TLS', plog('HCCL', '[7][InitGroupStage][RanktableCheck] Value Disable for config "tls" is invalid.')),
    ('connect_timeout', '', 'EI0006: Getting socket times out. Reason: 1. The remote is late. 2. (For example, the IP '
     'addresses are not on one network or the TLS configurations are inconsistent.)'),
    ('hccl_interface', 'eth7', plog('HCCL', '[x.cc:8] [7]set ifname to [eth7] by HCCL_SOCKET_IFNAME, but not found in '
                                    'the environment') + '\n' +
     plog('HCCL', '[x.cc:8] [7]get host ip fail by socket Ifname. name[lo] ip[127.0.0.1%lo]')),
    ('hccl_interface', '2001:db8::6', plog('HCCP', 'listen(8) : bind fail! 2001:db8::6, port:60000, sock:25, '
                                           'ret:0xffffffff, error:99')),
    ('hccl_interface', 'fe80::f019', plog('HCCP', '[x.c:8]tid:7,connect(8) : client bind fail! IP:fe80::f019, sock:5, '
                                          'ret:-1, error:99')),
    ('hccp_busy', '', plog('HCCP', '[x.c:8]tid:7,ra_hdc_server_init(8) : Create Server failed, ret(61)')),
    ('rank_table', 'last read', plog('HCCL', '[x.cc:8][7]JSON parse error: [json] at line 2; last read: ","')),
    ('rank_table', 'super_device_id', plog('HCCP', 'f(8) : get_vnic_ip_by_sdid fail! sdid:0xffffffff ret:1')),
    ('argument', 'the k axis of a(6) and b(9) must be equal',
     'EZ9999: Inner Error!\nEZ9999: [PID: 7] 2025-06-08-04:41:08.266.505 the k axis of a(6) and b(9) must be equal'
     '[FUNC:InferShape][FILE:matrix_ops.cc][LINE:2]'),
    ('argument', 'reduce_x', "RuntimeError: ({'errCode': 'E80012', 'op_name': 'reduce_x'}, 'too many dimensions.')"),
    ('compile', 'Slice', plog('TEFUSION', '[x.cc:8]7 Report Compile op[Slice] failed, oppath[/p/slice.py]')),
    ('ecc', '507053', 'Aicore kernel execute failed, device_id=0, fault kernel_name=mix_aic.[FUNC:GetError]\n'
     'rtStreamSynchronize execute failed, reason=[device mem error]\nsynchronize failed, runtime result = 507053'),
    ('resources', '', plog('DRV', '[x.c:8][devdrv] [drvStreamIdAlloc 172] ioctl failed, devId(0) tsid(0), ret(-1).')),
    ('driver_start', '', plog('DRV', '[x.c:8][dmp] [dm_send_req 7] failed call intf->send_msg, ret = 2.')),
    ('device_absent', '9; the devices here are numbered [0, 8)',
     'EE1001: The argument is invalid.Reason: set device=9, valid device range is [0, 8)'),
    ('diverged', 'nan', plog('AICPU', '[x.cc:8][F][tid:7]SilentCheckV3 ComputeL1Error:val = [nan], max = [nan]')),
    ('corruption', '', plog('AICPU', '[x.cc:8][F][tid:7]SilentCheckV3 ComputeL1Error:val = [3e+9], max = [3e+9]')),
    ('communicator', '', 'Ascend collective Error: "HcclCommInitRootInfo failed. | Error Number 2'),
    ('hccl_variable', '',
     plog('HCCL', '[hccl_impl.cc:652][4242][Init][EnvVarParam]errNo[0x0000000005000001] In init environtment '
                  'variable param, parse HCCL_CONNECT_TIMEOUT failed. errorno[1]')),
    ('port_device', '16666',
     plog('HCCP', '[rs_socket.c:652]bind and listen fail, err_no:98, listen_fd:12, listen state:0, '
                  'server_port:16666')),
    ('hccl_argument', '',
     plog('HCCL', '[hccl_impl.cc:652][4242][Check][DataType]DataType check fail, dataType[12] not supported. '
                  'support range: int8, int16, int32, float16, float32, bfp16')),
    ('peer_lost', '',
     plog('HCCL', '[hccl_impl.cc:652][4242][Recv][RaSocket]recv fail, remote closed the socket, ret[-1]')),
    ('device_lost', '',
     plog('HCCP', '[ra_hdc.c:652]tid:4243,ra_hdc_recv(652) : [recv][ra_hdc_msg]HDC recv msg err ret(16) phy_id(3)')),
    ('root_detect', '',
     plog('HCCL', '[topoinfo_exchange_agent.cc:652][4242][Verify][ClusterInfo]rank num[4] is different with rank '
                  'list size[3] in total topo rank info.')),
    ('device_start', '',
     plog('RUNTIME', '[api_impl.cc:652]4243 SetDevice:Get device count failed, retCode=0x7020010, Device count=0')),
    ('resources', '', plog('RUNTIME', '[task_info.cc:652]4243 Register:Program register failed, program out of 50000')),
    ('wrong_use', '',
     plog('RUNTIME', '[task_info.cc:652]4243 KernelLaunch:Kernel launch failed, stream is not in current ctx, '
                     'stream_id=5.')),
    ('no_kernel', '', plog('RUNTIME', '[task_info.cc:652]4243 GetKernel:Can not find kernel by function[0xfffd]')),
    ('dma', '',
     plog('RUNTIME', '[task_info.cc:652]4243 PrintErrorInfo:Memory async copy failed, device_id=0, stream_id=3, '
                     'task_id=2, flip_num=0, copy_type=10, memcpy_type=0, copy_data_type=0, length=4096.')),
    ('exec_timeout', '',
     plog('RUNTIME', '[task_info.cc:652]4243 PrintErrorInfo:fftsplus task execute failed, device_id=0, '
                     'stream_id=3, report_stream_id=3, task_id=2, flip_num=0, context_id=3, thread_id=0, '
                     'err_type=4[fftsplus timeout]')),
    ('sync_timeout', '', plog('RUNTIME', '[task_info.cc:652]4243 event wait error, retCode=0x105, [task timeout]')),
    ('task_failed', '',
     plog('RUNTIME', '[model_execute_task_info.cc:652]4243 ReportErrorInfoForModelExecuteTask:model execute error, '
                     'Real fault task, device_id=3, stream_id=7, task_id=9, type=33')),
    ('ai_cpu', '', plog('TSD', '[x.cpp:70]4242 Subprocess abnormal, close hdc server')),
    ('compile', '', "<built-in>:1:10: fatal error: '__clang_cce_runtime_wrapper.h' file not found"),
    ('dtype', '', plog('OP', '[x.cpp:70]4242 data type int64 of input x is not supported')),
    ('resources', '', plog('DRV', '[ascend][curpid: 4242, 4243][drv][x][f 652]No idle credit. (sqid=3; devid=0)')),
    ('device_start', '',
     plog('DRV', '[ascend][curpid: 4242, 4243][drv][x][f 652]hdcdrv_connect pcie not ready. (dev_id=3)')),
    ('resources', '',
     plog('DRV', '[ascend][curpid: 4242, 4243][drv][x][f 652]hdcdrv_connect No session resources available. '
                 '(dev_id=3)')),
    ('environment_half_set', '',
     plog('FE', '[x.cc:70]4242 The value of OPP_PATH for environment variable ASCEND_OPP_PATH is invalid when load '
                'buildin op store')),
    ('chip_unknown', '', '[ERROR] x Get Soc Version failed'),
    ('cann_missing', '', 'ImportError: liboptiling.so: cannot open shared object file: No such file or directory'),
    ('not_scheduled', '',
     '[ERROR]    2024/01/10 03:30:38.643330 17      npu.go:10 enqueue failed, require npu num is <16>, but cluster '
     'npu num is <8>'),
    ('not_scheduled', '',
     'E0111 03:29:15.991928       1 reschedule.go:533]    Failed to get plugin volcano-npu_v6.0.0_linux-aarch64'),
    ('not_scheduled', '',
     'E0111 03:29:15.700191       1 queue_controller.go:258]    Failed to create pod mindx-dls-test-worker-0 for '
     'Job vcjob/mindx-dls-test, err pods is forbidden'),
    ('container_start', '',
     '[INFO]     2024/01/10 03:29:09.354927 1       hwlog/api.go:108    failed to check files, owner not right '
     '/usr/bin/runc 1001'),
    ('driver_start', '',
     '[ERROR]    2024/01/10 02:29:39.034681 60      collector/npu_collector.go:1924    deviceManager init failed, '
     'prepare dcmi failed, err: cannot found valid driver lib, fromEnv: lib path is invalid, '
     '[/usr/local/Ascend/driver/lib64/driver/libdcmi.so: check uid or mode failed; /usr/local/dcmi/libdcmi.so: '
     'check uid or mode failed;]'),
    ('driver_internal', '',
     'E1125 02:29:39.034681 60 manager.go:95] failed to get device health:ret code: -8010,health code: 4'),
    ('health', '',
     '\tHealth Status                  : Alarm\n\tError Code                     : A4025021 8C03A000 8C084E00\n\t'
     'Error Information              : ascend_monitor adda heart beat lost error\n'),
    ('hccl_link', '',
     '/usr/local/Ascend/driver/tools/hccn_tool -i 0 -net_health -g\nnet health status: Socket failed\n'),
    ('container_start', '', 'Failed to parse oci config file'),
    ('processes', '', 'Jul  3 10:00:00 n7 kernel: alloc pid failed.pid number has exceeded 32768'),
    ('processes', '', 'Jul  3 10:00:00 n7 kernel: cgroup: alloc pid failed in /docker/3f2a'),
    ('processes', '', 'Jul  3 10:00:00 n7 kernel: cgroup: fork rejected by pids controller in /docker/3f2a'),
    ('disk_error', '',
     'Mar 15 03:40:50 dn360 kernel: EXT4-fs error (device sdb): ext4_lookup:1441: inode #4014082: comm updatedb: '
     'deleted inode referenced: 4251748'),
    ('disk_error', '', 'Mar 15 03:40:50 dn360 kernel: blk_update_request: I/O error, dev sdb, sector 23423'),
    ('pcie', '',
     'Mar 15 03:40:50 dn360 kernel: pcieport 0000:80:00.0: PCIe Bus Error: severity=Uncorrected (Fatal), '
     'type=Transaction Layer'),
    ('arguments', '--local-rank',
     'usage: launch.py [-h] [--nnodes NNODES]\nlaunch.py: error: unrecognized arguments: --local-rank=0'),
    ('arguments', '--local-rank', 'usage: train.py [-h]\ntrain.py: error: unrecognized arguments: --local-rank=3\n'),
    ('torch_npu_not_loaded', '', 'RuntimeError: Device type NPU is not supported for torch.Generator() api.'),
    ('disk_full', '',
     'RuntimeError: [enforce fail at inline_container.cc:603] . PytorchStreamWriter failed writing file data/12: '
     'file write failed'),
    ('device_absent', '',
     'RuntimeError: 0 <= device && device < device_num INTERNAL ASSERT FAILED at '
     '"torch_npu/csrc/core/npu/NPUCachingAllocator.cpp":1234'),
    ('ecc', '',
     'RuntimeError: There is unsafe data in the input tensor. \n[ERROR] 2025-08-05-08:05:26 (PID:5068, Device:0, '
     'RankID:-1) ERR00100 PTA call acl api failed'),
    ('graph_capture', '',
     '(Worker pid=16884) (Worker_DP0_TP1_EP1 pid=16884) ERROR 03-25 06:14:02 [multiproc_executor.py:880] '
     'RuntimeError: synchronize:build/CMakeFiles/torch_npu.dir/compiler_depend.ts:361 NPU function error: '
     'c10_npu::acl::AclrtSynchronizeStreamWithTimeout(stream()), error code is 507011\n(Worker pid=16884) '
     '(Worker_DP0_TP1_EP1 pid=16884) ERROR 03-25 06:14:02 [multiproc_executor.py:880] [ERROR] 2026-03-25-06:14:02 '
     '(PID:16884, Device:1, RankID:-1) ERR00100 PTA call acl api failed\n(Worker pid=16884) (Worker_DP0_TP1_EP1 '
     'pid=16884) ERROR 03-25 06:14:02 [multiproc_executor.py:880] [Error]: Model execution failed.\n(Worker '
     'pid=16884) (Worker_DP0_TP1_EP1 pid=16884) ERROR 03-25 06:14:02 [multiproc_executor.py:880] EE9999: Inner '
     'Error!\n(Worker pid=16884) (Worker_DP0_TP1_EP1 pid=16884) ERROR 03-25 06:14:02 [multiproc_executor.py:880] '
     'EE9999[PID: 16884] 2026-03-24-09:58:00.084.676 (EE9999):  rtMemcpy execution failed, reason=the current '
     'capture mode does not support this operation[FUNC:FuncErrorReason][FILE:error_message_manage.cc][LINE:61]'),
    ('visible_order', 'ascending',
     'RuntimeError: init:build/CMakeFiles/torch_npu.dir/compiler_depend.ts:292 NPU function error: '
     'aclrtGetDeviceCount(&device_count), error code is 207004\n[ERROR] 2025-08-05-08:05:26 (PID:5068, Device:-1, '
     'RankID:-1) ERR00100 PTA call acl api failed\n[Error]: The device is unavailable.\nEE1001: [PID: 112081] '
     '2025-07-17-08:06:53.296.370 The argument is invalid.Reason: set ASCEND_RT_VISIBLE_DEVICES:0,2,4,6,1,3,5,7 '
     'error, it must be configured in ascending order'),
    ('graph_capture', '',
     'RuntimeError: Cannot run aclop operators during NPU graph capture. Current working aclop is TransData. If '
     'you need this call to be captured, please try to set torch.npu.config.allow_internal_format = False.'),
    ('compile', 'Slice',
     '[ERROR] TEFUSION(3536113,python):2023-07-14-20:35:57.663.523 [fusion_op.cc:5504]3774464 PrintOp Failed to '
     'compile node [name Slice, type Slice]. Detailed compilation info is:\n[ERROR] '
     'TEFUSION(3536113,python):2023-07-14-20:35:57.663.632 [fusion_op.cc:5857]3774464 GetFinishedCompilationTask '
     'Index[0]: taskID[281450054074736:9084], status[1], result[single op compile failed. kernel[te_slice_5f4f] '
     'module[impl.dynamic.slice] func[slice]]'),
    ('cann_old', '', 'ImportError: /x/mindie_turbo/_C.so: undefined symbol: _ZNK6AsdOps3Ops18GetOperationByNameERKSs'),
    ('wheel_missing', 'torchaudio',
     "error: Distribution `torchaudio==2.6.0+cpu @ registry+https:/index.example/cpu/` can't be installed because "
     "it doesn't have a source distribution or wheel for the current platform"),
    ('wheel_missing', 'torch-npu',
     '  × No solution found when resolving dependencies:\n  ╰─▶ Because there is no version of torch-npu==2.3.1 '
     'and you require torch-npu==2.3.1, we can conclude that your requirements are unsatisfiable.'),
    ('torch_pair', '',
     'The conflict is caused by:\n    The user requested torch==2.6.0\n    torch-npu 2.6.0 depends on '
     'torch==2.6.0+cpu\n'),
    ('container_start', '',
     'docker: Error response from daemon: could not select device driver "" with capabilities: [[gpu]].'),
    ('container_start', '',
     'docker: Error response from daemon: Conflict. The container name "/npu" is already in use by container '
     '"3f2a". You have to remove (or rename) that container to be able to reuse that name.'),
    ('container_start', '',
     'docker: Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?'),
    ('wrong_architecture', '', 'no matching manifest for linux/arm64/v8 in the manifest list entries'),
    ('image_missing', '',
     'Error response from daemon: toomanyrequests: You have reached your pull rate limit. You may increase the '
     'limit by authenticating and upgrading'),
    ('certificate', '',
     'Error response from daemon: Get "https://192.0.2.1:5000/v2/": x509: certificate signed by unknown authority'),
    ('network', '',
     'Error response from daemon: Get "https://registry.example/v2/": net/http: request canceled while waiting for '
     'connection (Client.Timeout exceeded while awaiting headers)'),
    ('network', '',
     'Error response from daemon: Get "https://registry.example/v2/": dial tcp 192.0.2.1:443: i/o timeout'),
    ('network', '',
     "pip._vendor.urllib3.exceptions.ReadTimeoutError: HTTPSConnectionPool(host='index.example', port=443): Read "
     'timed out.'),
    ('network', '',
     'WARNING: Retrying (Retry(total=0, connect=None, read=None, redirect=None, status=None)) after connection '
     "broken by 'NewConnectionError('<pip._vendor.urllib3.connection.HTTPSConnection object at 0xffff>: Failed to "
     "establish a new connection: [Errno 101] Network is unreachable')': /simple/torch-npu/\nERROR: Could not find "
     'a version that satisfies the requirement torch-npu (from versions: none)\nERROR: No matching distribution '
     'found for torch-npu'),
    ('file_permission', '',
     'ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied: '
     "'/usr/local/lib/python3.10/site-packages/torch'\nConsider using the `--user` option or check the permissions."),
    ('python_built_without', '',
     'WARNING: pip is configured with locations that require TLS/SSL, however the ssl module in Python is not '
     'available.'),
    ('python_built_without', 'libffi', "ModuleNotFoundError: No module named '_ctypes'"),
    ('python_built_without', 'bz', "ModuleNotFoundError: No module named '_bz2'"),
    ('python_module', 'setuptools', "ModuleNotFoundError: No module named 'pkg_resources'"),
    ('python_module', 'setuptools', "ModuleNotFoundError: No module named 'distutils'"),
    ('numpy_abi', '', 'ImportError: numpy.core.multiarray failed to import'),
    ('numpy_abi', '',
     'ValueError: numpy.dtype size changed, may indicate binary incompatibility. Expected 96 from C header, got 88 '
     'from PyObject'),
    ('numpy_new', '', 'RuntimeError: Numpy is not available'),
    ('torchvision_pair', 'torchvision', 'RuntimeError: operator torchvision::nms does not exist'),
    ('library_damaged', '',
     'Verifying archive integrity...  100%   Error in MD5 checksums: 1234 is different from 5678'),
    ('library_damaged', '', 'Verifying archive integrity... Error in SHA256 checksums: 1234 is different from 5678'),
    ('driver_install', '',
     '[Driver] [2024-08-01 10:00:00] [ERROR]The davinci nodes are occupied by some processes, please stop '
     'processes and install or uninstall again'),
    ('driver_install', '',
     '[Driver] [2024-08-01 10:00:00] [ERROR]ERR_NO:0x0093;ERR_DES:permission denied, current user is not root'),
    ('shared_memory', '',
     'RuntimeError: unable to mmap 64 bytes from file </torch_123_4_5>: Cannot allocate memory (12)'),
    ('container_start', '',
     'Warning  FailedCreatePodSandBox  5s kubelet  Failed to create pod sandbox: rpc error: code = Unknown desc = '
     'failed to setup network for sandbox "3f": plugin type="calico" failed (add): error getting ClusterInformation'),
    ('task_failed', '507011', '[ERROR]  Execute model(om_models/x.om) error:507011'),
    ('ai_cpu', '', 'The error from device(chipId:0, dieId:0), serial number is 13, an exception occurred during AICPU '
     'execution, stream_id:2, task_id:19016, errcode:21008'),
    ('nccl', 'ibv_modify_qp', 'ibvwrap.c:262 NCCL WARN Call to ibv_modify_qp failed with 110 Connection timed out'),
    ('compile', '500002', '[ERROR]  load model from file failed, model file is ../x.om, errorCode is 500002'),
    ('container_start', '/usr/local/Ascend/driver',
     "Error response from daemon: error while creating mount source path '/usr/local/Ascend/driver': mkdir "
     '/usr/local/Ascend: read-only file system'),
    ('container_start', 'reserve', 'Error: context deadline exceeded: failed to reserve container name'),
    ('network', '', 'CondaHTTPError: HTTP 000 CONNECTION FAILED for url <https://index.example/linux-aarch64/x.json>'),
)
HARMLESS = (
    'kernel: pcieport 0000:80:00.0: PCIe Bus Error: severity=Corrected, type=Data Link Layer, (Transmitter ID)',
    '/x/collect_env.py:58: UserWarning: Warning: The /usr/local/Ascend/latest owner does not match the current owner.',
    '[W LegacyTypeDispatch.h:79] Warning: AutoNonVariableTypeMode is deprecated (function operator())',
    'transfer_to_npu.py:347: ImportWarning: \n'
    '    The backend in torch.distributed.init_process_group set to hccl now..',
    '[Warning]: tiling struct [ReduceOpTilingDataV2] is conflict with one in file lp_norm_reduce.cc, line 41',
    'UserWarning: resource_tracker: There appear to be 1 leaked semaphore objects to clean up at shutdown',
    '[rank0]:[W1031 21:35:04.838 ProcessGroupHCCL.cpp:57] Warning: WARNING: destroy_process_group() was not called '
    'before program exit, which can leak resources. (function ~ProcessGroupHCCL)',
    '[INFO] TDT(1,python):2025-05-19-15:59:07.741.638 [process_mode_manager.cpp:103] enter into open process',
)


@pytest.mark.parametrize('fault, words, text', TEXTS)
def test_text_names_its_fault(fault, words, text):
    first = diagnose_text(text).first
    assert first is not None and first.fault == fault and first.known
    assert words in f'{first.what} {first.remedy} {first.evidence()}'


@pytest.mark.parametrize('stamp', [
    '2025/11/19 11:10:00.123456 17 ', 'Nov 19 11:10:00 n7 python: ', 'Nov 19 2025 11:10:00 ',
    '[E1119 11:10:00.1 x.cpp:1] ', 'ERROR 11-19 11:10:00 [core.py:8] ', '2025-11-19T03:10:00+00:00 '])
def test_times_are_read_in_every_form(stamp, monkeypatch):
    monkeypatch.setenv('TZ', 'Asia/Shanghai')
    time.tzset()
    try:
        event = EventReader().read_text([f'{stamp}HBM MULTI BIT ECC ERROR'], 2025).events[0]
        assert time.strftime('%F %T', time.localtime(event.time)) == '2025-11-19 11:10:00'
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize('prefix', [
    '(Worker_TP1 pid=7) ERROR 03-25 06:14:02 [x.py:8] ', 'log/x.log:11454:', 'x.log-7-[rank3]: ', '  log/x.log:14:',
    'Nov 19 11:10:00 n7 python[12]: ', '11月 19 11:10:00 n7 python[12]: ', '192.0.2.7: ', 'node7: ', '{"log":"'])
def test_prefixes_are_left_out(prefix):
    text = f'{prefix}EI0006: [PID: 7] 2025-11-19-11:10:00.000.000 Getting socket times out. Reason: x'
    assert diagnose_text(text).first.fault == 'connect_timeout'


@pytest.mark.parametrize('text', HARMLESS)
def test_warning_is_no_fault(text):
    assert diagnose_text(text).first is None
