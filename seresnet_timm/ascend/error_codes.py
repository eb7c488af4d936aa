"""The one table of codes: numbers of ACL and HCCL, codes of CANN and torch_npu, names of hardware faults

A row gives the codes, what they mean, the fault in `faults.py` (causes, remedy, log), and how much the code tells: the
code with the highest weight in an error explains it. docs/errors.md is written from this table.
"""
from dataclasses import dataclass
from typing import Dict, Optional, Tuple

GENERAL, NUMBER, SPECIFIC, EXACT = 5, 20, 60, 96  # weights


@dataclass(frozen=True)
class Code:
    """A code.

    Attributes:
        name: As it is printed to users, e.g. 'ACL 507015', 'HCCL 9', 'EI0006', 'ERR00008'.
        meaning: What it means, a few words.
        fault: Key of `FAULTS`; None where the code alone tells too little.
        weight: How much it tells.
    """
    name: str
    meaning: str
    fault: Optional[str]
    weight: int


# codes, meaning, fault, weight
ACL: Tuple[Tuple[str, str, Optional[str], int], ...] = (
    ('100000 107000', 'wrong argument of a call', 'wrong_use', NUMBER),
    ('100001', 'ACL is not initialised', 'wrong_use', NUMBER),
    ('100002', 'initialised or loaded twice', 'wrong_use', NUMBER),
    ('100003 100004 107009 107010', 'a file cannot be opened or written', 'wrong_use', NUMBER),
    ('100024 100025 100028 100029', 'an operator is not found, or not registered', 'no_kernel', NUMBER),
    ('100026 100027', 'dtype or format that is not supported', 'no_kernel', NUMBER),
    ('100039', 'a stub library, meant for compiling only, is loaded', 'cann_missing', NUMBER),
    ('107001 200002', 'wrong device number', 'device_absent', NUMBER),
    ('107002', 'no context: no device was set in this thread', 'no_context', NUMBER),
    ('107003', 'a stream of another context', 'wrong_use', NUMBER),
    ('107004 107005 107006 107007 107008 107011 107012 107013 107014 107015 107016 107018 107021 107037 107039 107040 '
     '107042 107043 107044 207015 507910 507911',
     'wrong use of a model, event, group, callback or memory', 'wrong_use', NUMBER),
    ('107017 200005', 'a handle that is not valid', 'wrong_use', NUMBER),
    ('107019', 'a task took too long', 'sync_timeout', NUMBER),
    ('107022 107023 107035', 'the tasks of the device were stopped', 'force_stop', 40),
    ('107024 107025 107026 107027 107028 107029 107030 107031 107032 107033 107034 107036 107038 '
     '107045 507903',
     'not possible while a graph is captured, or the capture was aborted', 'graph_capture', 40),
    ('107020', 'a wait took too long (old number)', 'sync_timeout', NUMBER),
    ('148049', 'ASCEND_OPP_PATH is not set or wrong', 'environment_half_set', SPECIFIC),
    ('161001 161002 161003', 'aclnn: wrong argument of an operator', 'argument', 40),
    ('200000', 'memory cannot be allocated', 'memory_device', 40),
    ('200001 200006 207000 207019 207021 507009', 'not supported', 'not_supported', NUMBER),
    ('207001', 'memory cannot be allocated', 'memory_device', 40),
    ('207002', 'memory cannot be freed', 'wrong_use', NUMBER),
    ('207003 207016 207017', 'overflow in an operator', 'overflow', 40),
    ('207004', 'no device', 'device_absent', NUMBER),
    ('207020', 'a wait took too long', 'sync_timeout', NUMBER),
    ('207013', 'a queue is empty', 'resources', NUMBER),
    ('207005 207007 207008 207009 207010 207011 207012 207014 507032', 'a resource is exhausted', 'resources', NUMBER),
    ('207006', 'no permission', 'permission', NUMBER),
    ('207018', 'the memory of the device is used up', 'memory_device', 40),
    ('300000', 'storage limit exceeded', 'resources', NUMBER),
    ('361001', 'aclnn: a call of the runtime failed', 'task_failed', NUMBER),
    ('500000', 'unknown internal error', 'cann_internal', 10),
    ('500001', 'internal error of ACL: the operator compiler did not start', 'compiler_start', 10),
    ('500002', 'internal error of the graph compiler (GE)', 'compile', 10),
    ('500003', 'internal error of the runtime', 'cann_internal', 10),
    ('500004', 'internal error of the driver', 'driver_internal', 10),
    ('500005', 'internal error of profiling', 'cann_internal', 10),
    ('507000', 'internal error of the runtime', 'cann_internal', 10),
    ('507001', "internal error of the device's task scheduler", 'scheduler', NUMBER),
    ('507002', 'too many tasks in a stream', 'resources', NUMBER),
    ('507008', 'unknown chip', 'chip_unknown', NUMBER),
    ('507003 507004 507005 507006 507007 507023 507024 507025 507026 507029 507030 507031 507037 '
     '507038 507039 507040 507041 507905 507906 507907 507908 507909 507912 507913',
     'internal error of the runtime', 'cann_internal', 10),
    ('507010', 'the task scheduler lost the heartbeat', 'device_lost', 40),
    ('507011', 'a model or task failed', 'task_failed', NUMBER),
    ('507012', 'no message of the task scheduler', 'device_lost', NUMBER),
    ('507013 507052', 'memory copy (DMA) failed', 'dma', 40),
    ('507014', 'an operator on an AI Core took too long', 'ai_core_timeout', 40),
    ('507015 507016', 'an operator failed on an AI Core', 'ai_core', 40),
    ('507042 507043', 'an operator on an AI Core used an address out of bounds', 'ai_core', 40),
    ('507017', 'an operator on the AI CPU took too long', 'ai_cpu', 40),
    ('507018 507019 507020 507900 507902', 'an operator failed on the AI CPU', 'ai_cpu', 40),
    ('507021', 'profiling failed', 'cann_internal', NUMBER),
    ('507022', 'processes cannot talk to each other', 'cann_internal', NUMBER),
    ('507027 507028', 'a kernel is not registered, or is registered twice', 'no_kernel', NUMBER),
    ('507033', 'the device was not started', 'device_start', 30),
    ('507034', 'an operator on a vector core took too long', 'ai_core_timeout', 40),
    ('507035 507036', 'an operator failed on a vector core', 'ai_core', 40),
    ('507044 507045', 'an operator on a vector core used an address out of bounds', 'ai_core', 40),
    ('507046', 'the wait for a stream took too long', 'sync_timeout', 30),
    ('507047', 'the wait for an event took too long', 'sync_timeout', 30),
    ('507048', 'a collective (FFTS+) took too long', 'exec_timeout', 30),
    ('507915', 'a collective (CCU) took too long', 'exec_timeout', 30),
    ('507916', 'a task of a collective (CCU) failed', 'task_failed', NUMBER),
    ('507049 507050', 'a fused task (FFTS+) failed', 'task_failed', NUMBER),
    ('507053', "the device's memory failed", 'ecc', EXACT - 1),
    ('507054', 'ECC fault of the memory', 'ecc', EXACT - 1),
    ('507055', 'suspected fault of the memory', 'ecc', EXACT - 1),
    ('507056 507914', 'the link between devices failed', 'link_hardware', EXACT - 1),
    ('507057', 'suspected fault elsewhere', 'suspect_remote', SPECIFIC),
    ('507899', 'the driver failed', 'driver_internal', NUMBER),
    ('507051 507901', 'the connection to the device is lost', 'device_lost', NUMBER),
    ('507904', 'a collective failed again after a retry', 'hccl_link', 40),
    ('561000 561101 561102 561107 561108 561109 561110 561111 561112', 'aclnn: internal error', 'no_kernel', NUMBER),
    ('561001', 'aclnn: the shape of the result cannot be computed', 'argument', 40),
    ('561002', 'aclnn: the work cannot be divided (tiling)', 'argument', 40),
    ('561003 561103', 'aclnn: no kernel for these arguments', 'no_kernel', 40),
    ('574006 574007 574008 574009', 'the stress test of the device failed', 'corruption', SPECIFIC),
    ('561119 561120 561121', 'aclnn: the kernels package is not found', 'kernels_missing', 40),
)
HCCL: Tuple[Tuple[str, str, Optional[str], int], ...] = (
    ('1', 'wrong parameter', 'hccl_general', 10), ('2', 'null pointer', 'hccl_general', 10),
    ('3', 'out of memory', 'memory_hccl', 15),
    ('4', 'internal error', 'hccl_general', 10), ('5', 'not supported', 'not_supported', 10),
    ('6', 'not found', 'hccl_general', 10), ('7', 'unavailable', 'hccl_general', 10),
    ('8', 'a system call failed', 'hccl_general', 10), ('9', 'time-out', 'exec_timeout', 15),
    ('10', 'a file cannot be opened', 'hccl_general', 10), ('11', 'a TCP connection failed', 'hccl_link', 10),
    ('12', 'a RoCE connection failed', 'hccl_link', 15), ('13 14', 'a transfer failed', 'hccl_link', 10),
    ('15', 'the runtime failed', 'hccl_general', 10), ('16', 'the driver failed', 'hccl_general', 10),
    ('17', 'profiling failed', 'hccl_general', 10), ('18', 'CCE failed', 'hccl_general', 10),
    ('19', 'the network failed', 'hccl_link', 15), ('20', 'try again', 'hccl_general', 10),
    ('21', 'the other end failed', 'peer_lost', 15), ('22', 'suspended', 'force_stop', 15),
    ('23', 'a retry is needed', 'hccl_link', 15), ('24', 'out of memory', 'memory_hccl', 15),
)
CANN: Tuple[Tuple[str, str, Optional[str], int], ...] = (
    ('EI0001', 'a variable of HCCL is out of range', 'hccl_variable', SPECIFIC),
    ('EI0002', 'a rank did not take part in a collective in time', 'exec_timeout', SPECIFIC),
    ('EI0003', 'wrong argument of a collective', 'hccl_argument', SPECIFIC),
    ('EI0004', 'the rank table cannot be read', 'rank_table', SPECIFIC),
    ('EI0005', 'ranks call collectives with different arguments', 'different_arguments', SPECIFIC),
    ('EI0006', 'a link was not made in time', 'connect_timeout', SPECIFIC),
    ('EI0007 EI0011', 'no memory for HCCL', 'memory_hccl', SPECIFIC),
    ('EI0008', 'CANN versions differ', 'versions_differ', SPECIFIC),
    ('EI0009 EI0010', 'a link between devices was not made', 'hccl_link', SPECIFIC),
    ('EI0012', 'a memory copy between devices (SDMA) failed', 'hccl_link', SPECIFIC),
    ('EI0013 EI0018', 'packets between devices were lost (RoCE, UB)', 'hccl_link', SPECIFIC),
    ('EI0014 EI0017', 'the rank table does not fit the devices', 'rank_table', SPECIFIC),
    ('EI0015', 'not all ranks reported to rank 0', 'root_detect', SPECIFIC),
    ('EI0016', 'a setting of HCCL is not valid', 'hccl_variable', SPECIFIC),
    ('EI0019', "a port of the host's network is taken", 'port_host', SPECIFIC),
    ('EI0020', "a port of the device's network is taken", 'port_device', SPECIFIC),
    ('EJ0001', 'the process of HCCP does not start: an earlier one is still ending', 'hccp_busy', SPECIFIC),
    ('EJ0002', 'the network port of the device is down', 'link_hardware', SPECIFIC),
    ('EJ0003', 'a port is taken (until CANN 8.5)', 'port_host', SPECIFIC),
    ('EJ0004', 'an address in the rank table is not that of the device', 'rank_table', SPECIFIC),
    ('EL0001', 'no device', 'device_absent', SPECIFIC),
    ('EL0002', 'wrong device number', 'device_absent', SPECIFIC),
    ('EL0003', 'wrong argument', 'wrong_use', 15),
    ('EL0004 EL0019', 'memory cannot be allocated', 'memory_device', SPECIFIC),
    ('EL0005', 'the device is busy', 'device_taken', SPECIFIC),
    ('EL0006 EL0008 EL0009 EL0010 EL0011 EL0012 EL0013', 'a resource of the device is used up', 'resources', 40),
    ('EL0007', 'no permission', 'permission', SPECIFIC),
    ('EL0014', 'not supported', 'not_supported', 40),
    ('EL0015', 'an address that is not of this device', 'wrong_use', 40),
    ('EE1001 EE1003 EE1011 EE1012 EE1017', 'wrong argument', 'wrong_use', 25),
    ('EE1018', 'a call at the wrong time', 'wrong_use', 25),
    ('EE1013 EH0010 EK0202', 'no memory on the host', 'memory_host', SPECIFIC),
    ('EE1022', 'wrong argument', 'wrong_use', 25),
    ('EE1023', 'a resource is used up or not there', 'resources', 25),
    ('EE4004 EK0001 EK0002 EK0003 EK0005 EK0006 EK0007', 'wrong use of profiling', 'wrong_use', 25),
    ('EK0004', 'profiling of this is not supported here', 'not_supported', 25),
    ('EK0203', 'no thread can be started on the host', 'processes', SPECIFIC),
    ('EK0204', 'the disk is full', 'disk_full', SPECIFIC),
    ('EE1014', 'the file of an operator cannot be read', 'kernels_missing', 40),
    ('EE1015', 'the driver is too old', 'driver_version', SPECIFIC),
    ('EE1019', 'tasks cannot be given to a stream', 'task_failed', 25),
    ('EE1020', 'a call of the operating system failed', 'cann_internal', 25),
    ('EE1021', 'a resource of the host is used up', 'resources', 40),
    ('EE1002', 'a synchronisation took too long', 'sync_timeout', 40),
    ('EE1004', 'a pointer is null', 'wrong_use', 25),
    ('EE1005 EE1006 EE1016', 'not supported', 'not_supported', 40),
    ('EE1007 EE4001 EE4002', 'a model or stream cannot be bound', 'wrong_use', 25),
    ('EE1008', 'a kernel cannot be loaded', 'kernels_missing', 40),
    ('EE1009', 'a model failed', 'task_failed', 25),
    ('EE1010', 'the context is not valid', 'wrong_use', 25),
    ('EE2002', 'an environment variable is not valid', 'environment_half_set', 25),
    ('EH0001 EH0002 EH0005 EH0007 EH0008 EH0009 EH0012 EH0014 E39001', 'wrong argument', 'wrong_use', 25),
    ('EH0013 E10063', 'a call of the operating system failed', 'cann_internal', 25),
    ('EP0001 EP0002 EP0003 EP0004 EP0005 EP0006 EP0007 EP0008', 'a wrong setting of dump', 'wrong_use', 25),
    ('EH0003 EH0004', 'a file or path is not valid', 'wrong_use', 25),
    ('EH0006 EH0011 E10055', 'not supported', 'not_supported', 40),
    ('EZ0001 EZ0002 EZ0003 EZ0004 EZ0005 EZ0006 EZ0008 EZ0009 EZ0010 EZ0011 EZ0012 EZ0013 EZ0014 EZ0015 EZ0016 EZ0017 '
     'EZ0018 EZ0022 EZ0023 EZ0024 EZ0025 EZ0026 EZ0027 EZ0028 EZ0035 EZ0036 EZ0037 EZ0038',
     'shape, attribute or format that the operator does not take', 'argument', SPECIFIC),
    ('EZ0007 EZ0019 EZ0020 EZ0021 EZ1007', 'dtype that the operator does not take', 'dtype', SPECIFIC),
    ('EZ0501 EZ3002 EZ3003 EZ9010', 'no such operator here', 'no_kernel', SPECIFIC),
    ('EZ1001 EZ1008 EZ1010 EZ1011 EZ1012', 'wrong argument of an operator', 'argument', SPECIFIC),
    ('EZ1002 EZ1003', 'an environment variable is not set or not valid', 'environment_half_set', SPECIFIC),
    ('EZ1004 EZ1005 EZ1006 EZ1013 EZ0029 EZ0030 EZ0031 EZ0032 EZ0033 EZ0034',
     'a file of the operator packages cannot be read', 'kernels_missing', SPECIFIC),
    ('EZ1009', 'an operator cannot be prepared (tiling, shape)', 'argument', 40),
    ('EZ9903 EZ1014 EZ2001', 'the runtime failed under an operator', 'task_failed', 25),
    ('E13024 E20002 E40001 E68016 EF0003', 'an environment variable is not set or not valid', 'compiler_start', 40),
    ('E10501', 'no such operator here', 'no_kernel', SPECIFIC),
    ('E10001 E10002 E10003 E10004 E10005 E10006 E10007 E10008 E10009 E10010 E10011 E10012 E10013 E10014 E10015 E10016 '
     'E10017 E10018 E10019 E10020 E10021 E10022 E10024 E10026 E10032 E10035 E10036 E10037 E10038 E10039 E10040 E10401 '
     'E10410 E20101 '
     'E10023 E10025 E10027 E10029 E10030 E10031 E10034 E10041 E10045 E10046 E10047 E10048 E10049 E10050 E10051 E10052 '
     'E10054 E10056 E10057 E10058 E10059 E10060 E10061 E10062 E10402 E10403 E10404 E10405 E10406 E14001 E14002 E17777 '
     'E20003 E20103 E40003 E40022 E40023 EO0001 EO0002 EO0003 EO0004 EF2001 EF2002 EF2003 EF2004 EF2005 EF2006 EF2007 '
     'EF2008',
     'an argument of the model compiler is not valid', 'model_argument', SPECIFIC),
    ('E13000 E13001 E13002 E13003 E13004 E13005 E13006 E13015 E13018 E13023 E13026',
     'a file of the model compiler cannot be used', 'model_argument', SPECIFIC),
    ('E11001 E11003 E11004 E11005 E11012 E11014 E11015 E11016 E11017 E11018 E11021 E11022 E11023 E11024 E11027 E11029 '
     'E11032 E11033 E11035 E11036 E11037 E12004 E12009 E12013 E12029 E13009 E13014 E13025 E13031 E16001 E16004 E16005',
     'the model does not fit the model compiler', 'model_argument', SPECIFIC),
    ('E11008 E11009 E13010 E16002 E19010 E76002', 'the model compiler does not know an operator', 'model_operator',
     SPECIFIC),
    ('E50049 E60020 E60035 E60109 E60110 E60118 E61001 E61203 E61204 E61205 E61300 E61301 E61500 E61501 E61601 E61603 '
     'E62006 E62306 E64002 E65003 E65005 E65008 E65009 E68052 E68054 E68055 E68056 E68059 E68063 E68064 E68066 E68077 '
     'E68078 E68081 E68082 E68085 E68086 E70005 E70006 E70008 E70009',
     'the operator compiler refuses an argument of an operator', 'argument', SPECIFIC),
    ('E13027', 'another process is not reached', 'hccl_link', 40),
    ('E21001 E21002', 'a file of the operator packages cannot be read', 'kernels_missing', 40),
    ('E30003', 'too many processes on the device: an earlier one is still ending', 'hccp_busy', SPECIFIC),
    ('E30004 E30006 E30009 E39006 E39008 E39011',
     'the operator packages do not match driver or chip', 'opp_mismatch', SPECIFIC),
    ('E30005 E39002 E39004 E39005 E39007 E39009 EM9001 EM9002', 'the device does not answer', 'device_start', SPECIFIC),
    ('E30007 E39010', 'no right to add a process to a cgroup', 'permission', SPECIFIC),
    ('E30008', 'an operator on the AI CPU took too long', 'ai_cpu', SPECIFIC),
    ('E40002', 'CANN does not work with this version of Python', 'compiler_start', SPECIFIC),
    ('E40020 E40024 EC0010', 'a Python module of the operator compiler cannot be imported', 'cann_python', SPECIFIC),
    ('E13028 E13029 E13030 E20001 E20007 E22001 E40021 E80001 E90000 E90001 E90002 E90003 EB0000 EB0500 '
     'EB1000 EB3000 EB4000 EB9000',
     'an operator cannot be compiled', 'compile', SPECIFIC),
    ('EK0201', 'no memory on the host for profiling', 'memory_host', 40),
)
# torch_npu prints the name of a hardware fault in place of the call
NAMES: Tuple[Tuple[str, str, Optional[str], int], ...] = (
    ('FORCE STOP', 'the device was stopped on purpose', 'force_stop', EXACT),
    ('UCE ERROR', "the device's memory failed", 'ecc', EXACT),
    ('HBM MULTI BIT ECC ERROR', 'ECC fault of the memory', 'ecc', EXACT),
    ('SUSPECT MEM ERROR', 'suspected fault of the memory', 'ecc', EXACT),
    ('HCCS LINK ERROR', 'the link between devices failed', 'link_hardware', EXACT),
    ('UB LINK ERROR', 'the link between devices failed (Ascend 950)', 'link_hardware', EXACT),
    ('HCCL OP RETRY FAILED', 'a collective failed again after a retry', 'hccl_link', EXACT),
    ('SUSPECT REMOTE ERROR', 'suspected fault elsewhere', 'suspect_remote', EXACT),
)
# what functions of the driver return: DCMI's are negative
DRIVER: Tuple[Tuple[str, str, Optional[str], int], ...] = (
    ('-8001 -8004 -8009 -8010 -8011 -8014 -8015 -8016', 'DCMI: internal error', 'driver_internal', NUMBER),
    ('-8002 -8013', 'DCMI: not permitted, or not in a container', 'permission', SPECIFIC),
    ('-8003', 'DCMI: a memory operation failed', 'driver_internal', NUMBER),
    ('-8005', 'DCMI does not start', 'driver_start', SPECIFIC),
    ('-8006 -8012', 'DCMI: the device does not answer, or is not ready', 'device_start', SPECIFIC),
    ('-8007 -8008', 'DCMI: no such device', 'device_absent', SPECIFIC),
    ('-8017', 'DCMI: the firmware is being updated', 'device_start', SPECIFIC),
    ('-8020', 'the device is used by another container or process', 'device_taken', SPECIFIC),
    ('-8255', 'DCMI: not supported', 'not_supported', NUMBER),
    ('1 2', 'no such device', 'device_absent', NUMBER), ('6 40', 'memory cannot be allocated', 'memory_device', NUMBER),
    ('13 23 28', 'busy', 'device_taken', NUMBER), ('14 47 48 49 50 60', 'a resource is exhausted', 'resources', NUMBER),
    ('3 4 5 8 9 10 11 12 41 65 66 71 79 83', 'wrong argument, or a call at the wrong time', 'wrong_use', 10),
    ('25 26 27 35 44 62 81 95 96 97 99', 'the connection to the device is lost', 'device_lost', 15),
    ('42 63 68 69', 'a process of the device has ended', 'device_lost', 10),
    ('15 37 39 54 67 75 76 84', 'a resource is exhausted', 'resources', 15),
    ('7 18 19 20 21 22 24 29 30 31 32 36 38 51 52 53 55 56 57 58 59 61 64 70 72 73 74 77 78 80 82 85 86 89 94 98',
     'the driver failed', 'driver_internal', 8),
    ('16', 'time-out', 'driver_internal', 10), ('17', 'a call of the driver failed', 'driver_internal', 10),
    ('33 43', 'the device is gone or hangs', 'device_lost', 40),
    ('34 45', 'the device is not ready, or is reset', 'device_start', NUMBER),
    ('46 88', 'not permitted', 'permission', NUMBER),
    ('87', 'the device belongs to another container, or rights are missing', 'device_taken', SPECIFIC),
    ('65534', 'not supported', 'not_supported', NUMBER),
)
# of ERRmmkkk: who reports, what kind; with the fault of a kind that no other code explains
MODULES = {'00': 'torch_npu', '01': 'operators', '02': 'HCCL (distributed)', '03': 'graph', '04': 'profiler',
           '99': 'no part of the NPU'}
KINDS: Dict[str, Tuple[str, Optional[str]]] = {
    '001': ('wrong parameter', 'wrong_use'), '002': ('wrong type', 'wrong_use'), '003': ('wrong value', 'wrong_use'),
    '004': ('wrong pointer', 'wrong_use'), '005': ('internal error', None), '006': ('memory', 'memory_device'),
    '007': ('not supported', 'not_supported'), '008': ('not found', None), '009': ('unavailable', None),
    '010': ('system call failed', None), '011': ('time-out', 'sync_timeout'), '012': ('no permission', 'permission'),
    '100': ('a call of ACL failed', None), '200': ('a call of HCCL failed', None), '300': ('a call of GE failed', None),
    '999': ('an exception of the application', None),
}
# second letter of a CANN code: who reports it
REPORTERS = {
    '1': 'the graph compiler (GE)', '2': 'the fusion compiler (FE)', '3': 'the AI CPU',
    '4': 'the operator compiler (TBE)', '5': 'a compiler of operators', '6': 'a compiler of operators',
    '7': 'an operator plug-in', '8': 'vector operators', '9': 'an operator', 'B': 'the operator compiler (TBE)',
    'C': 'auto tune', 'D': 'tuning', 'E': 'the runtime', 'F': 'fusion', 'G': 'AOE (tuning)', 'H': 'ACL', 'I': 'HCCL',
    'J': 'HCCP (network)', 'K': 'profiling', 'L': 'the driver', 'M': 'the queue scheduler', 'N': 'DVPP (images)',
    'O': 'AMCT (quantisation)', 'P': 'dump', 'Z': 'operators (AI Core, AI CPU, aclnn)',
}
# numbers of ACL that the table does not have, by their first digits
RANGES = (
    ('161', 'arguments of aclnn'), ('561', 'internal errors of aclnn'), ('207', 'resources'), ('507', 'the device'),
    ('500', 'internal errors of ACL and GE'), ('1', 'wrong use'), ('2', 'resources'), ('5', 'internal errors'))


def _table() -> Dict[str, Code]:
    codes: Dict[str, Code] = {}
    for space, rows in (('ACL ', ACL), ('HCCL ', HCCL), ('', CANN), ('driver ', DRIVER)):
        for names, meaning, fault, weight in rows:
            codes.update({space + n: Code(space + n, meaning, fault, weight) for n in names.split()})
    codes.update({name: Code(name, meaning, fault, weight) for name, meaning, fault, weight in NAMES})
    return codes


CODES = _table()


def find(name: str) -> Optional[Code]:
    """The row of a code; for inner errors (9999) and codes of torch_npu one that is made of their parts.

    Args:
        name: As in `Code.name`.

    Returns:
        The row; None if the code is unknown.
    """
    if name in CODES:
        return CODES[name]
    if name.startswith('ERR') and name[3:5] in MODULES and name[5:] in KINDS:
        kind, fault = KINDS[name[5:]]
        return Code(name, f'{MODULES[name[3:5]]}: {kind}', fault, 3 if fault else 1)
    if len(name) == 6 and name.endswith('9999') and name[1] in REPORTERS:
        return Code(name, f'internal error of {REPORTERS[name[1]]}', None, GENERAL)
    return None


def describe_unknown(name: str) -> str:
    """What is known of a code that the table does not have: who reports it."""
    space, _, number = name.rpartition(' ')
    if space == 'ACL':
        about = next((what for digits, what in RANGES if len(number) == 6 and number.startswith(digits)), None)
        return f'{number} is not a number of ACL that is known here' + (
            f'; numbers like it are about {about}' if about else '')
    if space == 'HCCL':
        return f'{number} is not a number of HCCL that is known here'
    if name.startswith('ERR'):
        who = MODULES.get(name[3:5])
        kind = KINDS.get(name[5:], (None,))[0]
        parts = [f'its module is {who}' if who else 'its module is unknown',
                 f'its kind is {kind}' if kind else 'its kind is unknown']
        return f'{name} is not a code of torch_npu that is known here; {", ".join(parts)}'
    who = REPORTERS.get(name[1])
    inner = ' as an internal error' if name[2:3] == '9' else ''
    return f'{name} is not a code that is known here; codes that begin with {name[:2]} are reported by ' + (
        f'{who}{inner}' if who else 'an unknown part of CANN')
