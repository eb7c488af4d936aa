"""Lines of plog, and new codes: HCCL that does not start, links, waits, the runtime, the driver."""
import pytest
from ascend.npu_texts import call, cann
from ascend.told import assert_told

from seresnet_timm.ascend.error_events import EventReader
from seresnet_timm.ascend.errors import diagnose, diagnose_text


def plog(text, component='HCCL', pid=2345, time='2025-11-19-11:14:58.516.606', level='ERROR', place='file_x.cc:77'):
    """A line of plog."""
    return f'[{level}] {component}({pid},python3):{time} [{place}] [{pid}]{text}'


def of_runtime(text):
    return f'[ERROR] RUNTIME(2345,python3):2025-11-19-11:14:58.516.606 [file_x.cc:77]2345 Function:{text}'


TABLE = '\n'.join(map(plog, (
    '   |  dest_ip(user_rank)  |   dest_port   |  src_ip(user_rank)   |   src_port   |   MyRole   |   Status   |',
    '   |--------------------|--------------------|----------|------------|-----------------|-----------------|',
    '   |  192.0.2.7(9)   |  16666  |   192.0.2.4(12)   |  0  |  client  | time out |  ')))
# text, fault, words of the sentence, of the remedy
LINES = {
    'address': (plog('[Find][LocalHostIP]ip [192.0.2.3] of [HCCL_IF_IP] is not found in the nic list'),
                'hccl_interface', '192.0.2.3', 'ip -br addr'),
    'interface': (plog('[Get][LocalServerId]get host ip fail by socket Ifname, name[eth7], ip[0.0.0.0]'),
                  'hccl_interface', 'eth7', 'HCCL_SOCKET_IFNAME'),
    'listen': (plog('ra socket listen start fail, return[328008]'), 'port_host', 'port', 'HCCL_IF_BASE_PORT'),
    'bind': (plog('tid:99,rs_socket_listen(90) : bind fail! family:2, IP:192.0.2.3, port:60003, sock:44, ret:-1, '
                  'error:98, '
                  'Possible Cause: the IP address and port have been bound already', 'HCCP'),
             'port_host', '60003', 'HCCL_IF_BASE_PORT'),
    'root': (plog('[Get][Connection]topo exchange server get socket timeout! timeout[120 s]') + '\n' + plog(
        'call trace: hcclRet -> 9'), 'root_detect', 'rank 0', 'HCCL_SOCKET_IFNAME'),
    'agent': (plog('[Get][Connection]topo exchange agent get socket timeout! timeout[120 s]'), 'root_detect', 'rank 0',
              'HCCL_CONNECT_TIMEOUT'),
    'firewall': (plog('[Recv][RaSocket]errNo[0x05000013] Wait timeout for sockets recv, size[4], The most common '
                      'cause is '
                      'that the firewall is incorrectly configured.'), 'root_detect', 'firewall', 'HCCL_SOCKET_IFNAME'),
    'missing ranks': (call('HCCL', 'hcclCommInitRootInfoConfig(n, &info, rank, config, &(comm->c_))', 1, cann(
        'EI0015', 'Failed to collect cluster information of the communicator based on rootInfo detection. Reason: No '
        'rank '
        'can connect to the root node. List of unconnected ranks: "[3,5,]".', 8.3)), 'root_detect', 'rank 3, 5',
        'other ranks'),
    'link': (plog('[Wait][LinkEstablish]wait socket establish timeout, role[1] rank[12] timeout[130]') + '\n' + TABLE,
             'connect_timeout', 'rank 9', 'other ranks first'),
    'p2p': (plog('[Wait][P2PConnected]connected p2p timeout, timeout:130 s. local logicDevid:3, remote physic id:1.'),
            'connect_timeout', 'connection', 'other ranks'),
    'rank table': (plog('[Read][File]errNo[0x05010001] load file[/job/table.json] to json fail. please check json '
                        'file!'),
                   'rank_table', '/job/table.json', 'RANK_TABLE_FILE'),
    'wait': (plog('[TaskExceptionHandler][Callback]Task run failed, base information is streamID:[3], taskID[7], '
                  'taskType[Notify Wait], tag[AllReduce_1]') + '\n' + plog(
        '[TaskExceptionHandler][Callback]Task run failed, para information is notify id:[0x5], remote rank:[3].'),
        'exec_timeout', 'rank 3', 'log of rank 3'),
    'wait on the AI CPU': (plog('[TaskException]base information is streamId:149, type:NOTIFY WAIT, localRank:1, '
                                'remoteRank:0, taskId:26064'), 'exec_timeout', 'rank 0', 'rank 0'),
    'wait for nobody named': (plog('[TaskException]base information is streamId:149, type:NOTIFY WAIT, localRank:1, '
                                   'remoteRank:4294967295, taskId:2'), 'exec_timeout', 'another rank', 'another rank'),
    'heartbeat': (plog('[HCCL_TRACE]rank [192.0.2.1/2]: rank [192.0.2.7/5] status[LOST] by rank [192.0.2.7/6]',
                       level='INFO'), 'heartbeat', '192.0.2.7/5', 'rank on that device'),
    'packets': (plog('[Heartbeat]cqe error status[12] remoteIP:[192.0.2.9]'), 'hccl_link', '192.0.2.9', 'hccn_tool'),
    'tls': (plog('[Check]Some ranks tlsStatus are inconsistent'), 'tls', 'TLS', '-tls'),
    'port down': (plog('tid:9,ra_hdc(1) : ra hdc message process failed ret(-67)', 'HCCP'), 'link_hardware', 'link',
                  'cables'),
    'port down, code': (call('HCCL', 'HcclCommInitRootInfo(n)', 12, cann('EJ0002', 'The network port is down.Suggest: '
                                                                      'x')),
                        'link_hardware', 'link', 'cables'),
    'arguments': (plog('[RankConsistentImpl][CompareFrame]cclOp tag compare fail'), 'different_arguments', 'different',
                  'same command'),
    'operator': (of_runtime('Aicore kernel execute failed, device_id=0, stream_id=2, fault '
                            'kernel_name=RealDiv_ee98_high_precision_21, program id=9'), 'ai_core', 'RealDiv',
                            'labels'),
    'event': (of_runtime('event wait timeout occurred during task execution, stream_id:5'), 'exec_timeout',
              'collective',
              'another rank'),
    'synchronise': (of_runtime('sync stream timeout, stream_id=3'), 'sync_timeout', 'wait', 'other ranks'),
    'device lost': (of_runtime('Device lost heartbeat, device_id=3'), 'device_lost', 'stopped working', 'resume'),
    'memory': (of_runtime('[drv api] halMemAlloc failed: device_id=0, size=1073741824(bytes), type=2, drvRetCode=6!'),
               'memory_device', 'out of memory', '(-b)'),
    'streams': (of_runtime('[drv api] halResourceIdAlloc streamid failed, drvRetCode=14'), 'resources', 'resource',
                'fewer processes'),
    'driver': (plog('ioctl failed, ret: 87', 'DRV'), 'device_taken', 'another container', 'one container'),
    'driver, not permitted': (plog('open failed, drvRetCode=46', 'DRV'), 'permission', 'may not', 'HwHiAiUser'),
    # codes
    'processes': (call('NPU', 'c10_npu::SetDevice(device_id_)', 507033, cann(
        'E30003', 'The number of started NN processes exceeds the limit.', 7)), 'hccp_busy', 'earlier run', 'ten '
        'seconds'),
    'capture': (call('NPU', 'c10_npu::acl::AclrtSynchronizeStreamWithTimeout(stream)', 107027), 'graph_capture',
                'graph',
                '--graph'),
    'capture broken': (call('NPU', 'c10_npu::acl::AclmdlRICaptureEnd(stream_, &model_)', 507903), 'graph_capture',
                       'graph',
                       '--graph'),
    'driver too old': (call('NPU', 'aclrtX(a)', 207000, cann('EE1015', 'aclrtX failed. Reason: The driver version '
                                                             'capacity '
                                                             'is insufficient.', 8.3)), 'driver_version', 'too old',
                       'version table'),
    'host memory': (cann('EE1013', 'Failed to allocate 4096 bytes host memory for Runtime.', 8.3), 'memory_host',
                    'host',
                    'workers'),
    'dtype': (call('NPU', 'call aclnnCumsum failed', 161002, cann(
        'EZ1007', 'Operator aclnnCumsum does not support data type DT_DOUBLE.', 8.3)), 'dtype', 'aclnnCumsum',
        'precision'),
    'device number': (call('NPU', 'c10_npu::SetDevice(d.index())', 107001, cann(
        'EE1001', 'The argument is invalid.Reason: Set device failed, invalid device, set device=9, valid device '
        'range is '
        '[0, 8)')), 'device_absent', 'no such device', '--devices'),
    'function of CANN': ('RuntimeError: Failed to find function HcclCommInitRootInfoConfig', 'cann_old',
                         'HcclCommInitRootInfoConfig', 'CANN that belongs'),
    'operator of CANN': ('RuntimeError: aclnnApplyAdamW or aclnnApplyAdamWGetWorkspaceSize not in libopapi.so, or '
                         'libopapi.sonot found.', 'cann_old', 'aclnnApplyAdamW', 'CANN that belongs'),
    'dcmi': ('dcmi module initialize failed. ret is -8002', 'permission', 'may not', 'container'),
    'dcmi in Chinese': ('dcmi 模块初始化失败，返回值为 -8005', 'driver_start', 'DCMI', 'davinci_manager'),
}


@pytest.mark.parametrize('name', LINES)
def test_line(name):
    assert_told(*LINES[name])


@pytest.mark.parametrize('level', ['DEBUG', 'INFO', 'EVENT', 'WARNING'])
def test_lines_that_are_no_errors(level):
    """A run's plog is full of them; many name time-outs and failures."""
    for text in ('socket timeout is 120, HCCL_CONNECT_TIMEOUT is set', 'Connection reset by peer, EI0006, retry',
                 'notify wait timeout is 1836', 'get P2P status, error code is 507015'):
        assert diagnose_text(plog(text, level=level)).first is None


def test_an_error_of_plog_that_is_not_known_is_shown():
    first = diagnose_text(plog('[Build][Ring]ring 7 has no successor', 'HCCL')).first
    assert first.fault == 'plog' and not first.known and first.pid == 2345
    assert first.what == 'HCCL of CANN wrote an error that is not known here: [Build][Ring]ring 7 has no successor'
    assert 'the runtime' in diagnose_text(of_runtime('odd')).first.what
    # and is not taken for the cause where another line tells it
    text = f"{plog('[Build][Ring]ring 7 has no successor')}\n{LINES['memory'][0]}"
    assert diagnose_text(text).first.fault == 'memory_device'


def test_plog_of_several_ranks_tells_who_waits_for_whom():
    """Rank 12 waits for rank 9, whose log has the fault, three minutes later by a clock that is ahead."""
    waiting = EventReader('plog/plog-1.log', pid=2345).read_text(TABLE.split('\n'))
    failed = EventReader('plog/plog-2.log', 9, 2).read_text(
        LINES['memory'][0].replace('11:14:58', '11:17:58').replace('2345', '2').split('\n'))
    diagnosis = diagnose([waiting, failed])
    assert (diagnosis.first.fault, diagnosis.first.rank) == ('memory_device', 9)
    assert [(e.fault, e.rank) for e in diagnosis.others] == [('connect_timeout', 12)]
    assert 'rank 9' in diagnosis.others[0].what
