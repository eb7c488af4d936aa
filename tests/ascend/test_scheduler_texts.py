"""Texts of schedulers, containers, pip, ModelArts and MindCluster, and of CANN where two lines tell two things."""
import pytest
from ascend.npu_texts import call, cann, err
from ascend.told import assert_told

from seresnet_timm.ascend.errors import diagnose_text

# text, fault, words of the sentence, of the remedy
TEXTS = {
    # Slurm
    'time limit': ('slurmstepd: error: *** JOB 77 ON n3 CANCELLED AT 2026-03-02T01:01:01 DUE TO TIME LIMIT ***',
                   'time_limit', 'job 77', '--time'),
    'limit of a batch script': ('error: *** STEP 77.batch ON n3 CANCELLED AT 2026-03-02T01:01:01 DUE TO TIME LIMIT ***',
                                'time_limit', '77.batch', '--resume auto'),
    'preempted': ('slurmstepd: error: *** STEP 77.0 ON n3 CANCELLED AT 2026-03-02T01:01:01 DUE TO PREEMPTION ***',
                  'job_ended', 'PREEMPTION', '--requeue'),
    'cancelled': ('slurmstepd: error: *** STEP 77.0 ON n3 CANCELLED AT 2026-03-02T01:01:01 ***', 'step_ended', '77.0',
                  'sacct'),
    'node': ('srun: error: Node failure on n3', 'node_lost', 'n3', '--exclude'),
    'memory': ('slurmstepd: error: Detected 2 oom_kill events in StepId=77.0. Some of the step tasks have been OOM '
               'Killed.', 'memory_host', "host's memory", 'workers'),
    'memory of a task': ('srun: error: n3: task 5: Out Of Memory', 'memory_host', "host's memory", 'workers'),
    'killed': ('srun: error: n3: task 5: Killed', 'killed', 'rank 5', 'dmesg'),
    'crash': ('srun: error: n3: tasks 4-7: Segmentation fault (core dumped)', 'killed', 'rank 4', 'dmesg'),
    'refused': ('sbatch: error: Batch job submission failed: Requested node configuration is not available',
                'not_scheduled', 'node configuration', 'sinfo'),
    'no program': ('slurmstepd: error: execve(): torchrun: No such file or directory', 'program_missing', 'torchrun',
                   'activate'),
    # Kubernetes, Docker
    'pending': ('Warning  FailedScheduling  9s  default-scheduler  0/3 nodes are available: 3 Insufficient '
                'huawei.com/Ascend910. preemption: none', 'not_scheduled', '3 Insufficient huawei.com/Ascend910',
                'kubectl'),
    'pending, Volcano': ('Warning  FailedScheduling  9s  volcano  pod group is not ready, 2 Pending, 2 minAvailable',
                         'not_scheduled', 'pod group', 'kubectl'),
    'pending, of one kind': ('2 nodes are unavailable: 2 Insufficient huawei.com/npu', 'not_scheduled',
                             'Insufficient huawei.com/npu', 'kubectl'),
    'device plugin': ('Warning  UnexpectedAdmissionError  9s  kubelet  Allocate failed due to no healthy devices '
                      'present; cannot allocate unhealthy devices huawei.com/Ascend910, which is unexpected',
                      'not_scheduled', 'no healthy devices', 'kubectl'),
    'evicted': ('The node was low on resource: ephemeral-storage. Container main was using 99Gi, request is 0.',
                'evicted', 'ephemeral-storage', 'volume'),
    'image': ('Failed to pull image "my/image:2": rpc error: code = NotFound', 'image_missing', 'my/image:2', 'load'),
    'volume': ('MountVolume.SetUp failed for volume "data" : mount failed: exit status 32', 'volume', 'data',
               'address'),
    'exit code': ('      Reason:       Error\n      Exit Code:    137', 'killed', 'SIGKILL', 'dmesg'),
    'hook of Ascend Docker Runtime': (
        'OCI runtime create failed: error running prestart hook #0: exit status 255, stderr: failed to mount src: '
        '/usr/local/bin/npu-smi.failed to mount dev.', 'container_start', '/usr/local/bin/npu-smi', 'npu-smi info'),
    'runtime': ('docker: Error response from daemon: unknown or invalid runtime name: ascend.', 'container_start',
                'container', 'Ascend Docker Runtime'),
    'shared memory': ('RuntimeError: unable to write to file </torch_9_1>: No space left on device (28)',
                      'shared_memory', '/dev/shm', '--shm-size'),
    'shared memory of MindIE': ('[ERROR] [share_memory.cpp:7] : [MIE04E1] Shared memory available is not enough on the '
                                'filesystem.', 'shared_memory', '/dev/shm', '--shm-size'),
    'tool in a container': (
        'npu-smi: error while loading shared libraries: libc_sec.so: cannot open shared object file: No such file',
        'driver_missing', 'driver', 'mount'),
    'device of another container': ('npu is busy, check again.', 'device_taken', 'another container', 'one container'),
    # ModelArts, MindCluster, npu-smi
    'process of ModelArts': ('[ModelArts Service Log]2026-03-02 01:01:01,178 - ERROR - proc-rank-3-device-3 (pid: 9) '
                             'has exited with non-zero code: -9', 'killed', 'SIGKILL', 'memory'),
    'OBS': ("MoxFileNotExistsException(resp, 'file or directory or bucket not found.')", 'object_storage', 'OBS',
            'path'),
    'driver': ('[ERROR]Dkms install failed, details in : /var/log/ascend_seclog/ascend_install.log.', 'driver_install',
               'Dkms install failed', 'headers of this kernel'),
    'firmware': ('[WARN]x.ts:77:Feature is not supported and the possible cause is that driver and firmware packages '
                 'do not match.', 'driver_old', 'driver is older', 'version table'),
    'NPU of MindCluster': ('[{"fault_type":"CardUnhealthy","npu_name":"Ascend910-4","fault_level":"SeparateNPU",'
                           '"fault_code":"80E18402"}]', 'device_unhealthy', 'Ascend910-4', 'npu-smi info -t health'),
    'the same, escaped': (r'"[{\"fault_type\": \"CardUnhealthy\", \"npu_name\": \"Ascend910-2\", \"large_model_fault_'
                          r'level\": \"SeparateNPU\", \"fault_level\": \"SeparateNPU\", \"fault_code\": \"80E1\"}]"',
                          'device_unhealthy', 'fault 80E1', 'resume auto'),
    'network of an NPU': ('{"fault_type":"CardNetworkUnhealthy","npu_name":"Ascend910-0"}', 'link_hardware', 'link',
                          'cables'),
    'npu-smi': ('| 3     Ascend910           | Alarm         | 161.8       34                0    / 0             |',
                'health', 'NPU 3 (Ascend910): Alarm', '--devices'),
    # pip, Python
    'no wheel': ('ERROR: No matching distribution found for torch_npu==2.9.0', 'wheel_missing', 'torch_npu==2.9.0',
                 'python -V'),
    'torch was moved': ('torch-npu 2.9.0 requires torch==2.9.0, but you have torch 2.14.1 which is incompatible.',
                        'torch_pair', 'torch_npu', 'doctor'),
    'modules of CANN': ('te 0.4.0 requires cloudpickle, which is not installed.', 'cann_python', 'cloudpickle',
                        'absl-py'),
    'packages': ('foo 1.2 requires numpy<2, but you have numpy 2.4 which is incompatible.', 'package_conflict',
                 'foo 1.2 requires numpy<2', 'constraints'),
    'extension module': ('ImportError: /p/torch_npu/_C.cpython-311-aarch64-linux-gnu.so: undefined symbol: _ZN5torch1x',
                         'torch_pair', '_ZN5torch1x', 'same version'),
    'script': ("python: can't open file '/job/train.py': [Errno 2] No such file or directory", 'file_missing',
               '/job/train.py', 'mount'),
    'read-only': ("OSError: [Errno 30] Read-only file system: '/out/run'", 'read_only', '/out/run', 'folder'),
    'worker that crashed': ('RuntimeError: DataLoader worker (pid 9) is killed by signal: Segmentation fault. ',
                            'killed', 'Segmentation fault', 'dmesg'),
    'worker': ('RuntimeError: DataLoader worker (pid(s) 9, 10) exited unexpectedly', 'worker_ended', 'worker', '-j 0'),
    'sizes': ('RuntimeError: [/p/gloo/transport/tcp/pair.cc:456] op.preamble.length <= op.nbytes. 4 vs 3',
              'different_arguments', 'different arguments', 'same command'),
    'store': ("DistBackendError: [3] is setting up HCCL communicator and retrieving hcclUniqueId from [0] via c10d "
              "key-value store by key '0', but store->get('0') got error: failed to recv, got 0 bytes", 'peer_lost',
              'closed', 'other ranks'),
    'dump of a watchdog': ('[rank3]:[E1127 11:11:11.0 x.cpp:1] [Rank 3] Received a dump signal due to a collective '
                           'timeout from rank 5 and we will try our best to dump the debug info.', 'watchdog',
                           'watchdog', 'other ranks'),
    # CANN
    'operator that hangs': (call('NPU', 'AclrtSynchronizeStreamWithTimeout(s)', 507014, cann(
        'EZ9999', 'The error from device(chipId:2), there is an exception of aicore error, core id is 13'),
        '   The extend info: errcode:(0, 0, 0) errorStr: timeout or trap error. x',
        '   Kernel task happen error, retCode=0x25, [aicore timeout].'), 'ai_core_timeout', 'in time', 'newer CANN'),
    'collective on A2': ('EE9999  fftsplus task execute failed, dev_id=7, err_type=13[hccl fftsplus timeout]\n'
                         '        rtDeviceSynchronize execute failed, reason=[task timeout]', 'exec_timeout',
                         'collective', 'earliest error'),
    'no message': ('Call aclInit(nullptr) failed : 507008 at file x.cc\nEE1001: 2026-03-02-01:01:01.580.593 The '
                   'argument is invalid.Reason: rtGetDevMsg execute failed, reason=[context pointer null]',
                   'chip_unknown', 'chip', 'CANN for this chip'),
    'chip': ('RuntimeError: Unsupported soc version: Ascend310', 'chip_unknown', 'chip', 'CANN for this chip'),
    'pyACL': ('acl.rt.set_device failed ret_int=507033', 'device_start', 'start', 'npu-smi info'),
    'number of HCCL': ('[ERROR] HCCL(9,python3):2026-03-02-01:01:01.068.817 [op_base.cc:9][9][Init][Comm]errNo'
                       '[0x0000000005000002]HcclCommInitRootInfo failed.', 'communicator', 'HcclCommInitRootInfo',
                       'versions'),
    'dtype': ('RuntimeError: call aclnnCast failed, detail:EZ1001: 2026-03-02-01:01:01.325.061 self not implemented '
              'for DT_BFLOAT16, should be in dtype support list [DT_FLOAT16,DT_FLOAT,].', 'dtype', 'DT_BFLOAT16 of '
              'its argument self', 'precision'),
    'dtype of an index': ('RuntimeError: call aclnnIndexSelect failed, error code is 161002\n' + cann(
        'EZ1001', 'Expected dtype of tensor index to be DT_INT64 or DT_INT32, but got DT_FLOAT.'), 'dtype',
        'it takes DT_INT64 or DT_INT32', 'precision'),
    'workspace': ('RuntimeError: NPU out of memory. NPUWorkspaceAllocator tried to allocate 4.17 GiB(NPU 1; 60.97 GiB '
                  'total capacity; 1.75 GiB free).', 'memory', '4.17 GiB', '(-b)'),
}


@pytest.mark.parametrize('name', TEXTS)
def test_text(name):
    assert_told(*TEXTS[name])


@pytest.mark.parametrize('text', [
    '[W compiler_depend.ts:148] Warning: Failed to find function aclsysGetCANNVersion (function operator())',
    '[W compiler_depend.ts:51] Warning: Version: is invalid. (function operator())'])
def test_functions_that_torch_npu_does_without(text):
    diagnosis = diagnose_text(text)
    assert diagnosis.first is None and 'only a warning' in list(diagnosis.harmless)[0]


@pytest.mark.parametrize('text', [
    'srun: error: n3: task 5: Exited with exit code 1', 'srun: Terminating StepId=77.0',
    '| 0     910B2               | OK            | 95.0        45                0    / 0             |',
    '| 0                         | 0000:01:00.0  | 0           0    / 0          3372 / 65536         |',
    '| 4       0                 | 3046287       | python3.9                | 62                      |',
    '| 1 abc | Alarm | 3 |', '{"fault_type":"CardUnhealthy","npu_name":"Ascend910-4","fault_level":"NotHandleFault"}',
    '[W] torch.distributed.elastic.multiprocessing.api: Sending process 9 closing signal SIGTERM'])
def test_nothing_is_found_where_nothing_is(text):
    assert diagnose_text(text).first is None


def test_slurm_ends_the_other_tasks_after_one_failed():
    first = diagnose_text('\n'.join((
        '3: ' + call('NPU', 'AclrtSynchronizeStreamWithTimeout(s)', 507015),
        'srun: error: n3: task 3: Exited with exit code 1',
        'slurmstepd: error: *** STEP 77.0 ON n3 CANCELLED AT 2026-03-02T01:01:09 ***'))).first
    assert (first.fault, first.rank) == ('ai_core', 3)


def test_an_npu_that_is_not_healthy_is_advice():
    """Many logs begin with the table of npu-smi: the fault is below it."""
    diagnosis = diagnose_text(f"{TEXTS['npu-smi'][0]}\nValueError: no such model\n{err('ERR99999 UNKNOWN')}")
    assert diagnosis.first.fault == 'python' and diagnosis.first.role == 'cause'
    waits = diagnose_text(f"{TEXTS['npu-smi'][0]}\n" + 'x\n' * 99 + TEXTS['collective on A2'][0])
    assert waits.first.fault == 'exec_timeout' and [e.fault for e in waits.others] == ['health']
