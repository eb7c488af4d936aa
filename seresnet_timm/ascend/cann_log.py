"""Lines that CANN writes into plog: what they are, and words in them that tell a fault without a code"""
import re
from typing import Dict, NamedTuple, Optional, Tuple

from seresnet_timm.ascend.error_pattern import Pattern, Told, groups, pattern

# [ERROR] HCCL(2345,python3):2025-11-19-11:14:58.516.606 [file.cc:12] [2345][Part][Function]what happened
_HEAD = re.compile(r'\s*\[(?P<level>TRACE|DEBUG|INFO|EVENT|WARNING|ERROR)\] ?(?P<component>[A-Z][A-Z0-9_]*)'
                   r'\(\d+,[^)]*\):\d[\d.:-]*\s*(?P<text>.*)$')
_PLACE = re.compile(r'\s*(?:\[[\w./-]+\.\w+:\d+\]|\[?tid:? ?\d+\]?,?|\(tid:\d+\)|\[\d+\]|\d{2,}\b|call trace:.*$)')
_TSD, _TBE = 'the process manager (TSD)', 'the operator compiler (TBE)'
_REPORTERS = {
    'HCCL': 'HCCL', 'HCCP': 'HCCP (network)', 'RUNTIME': 'the runtime', 'ASCENDCL': 'ACL', 'DRV': 'the driver',
    'TDT': _TSD, 'TSD': _TSD, 'GE': 'the graph compiler (GE)', 'FE': 'the fusion compiler (FE)', 'TEFUSION': _TBE,
    'TBE': _TBE,
    'CCECPU': 'the AI CPU', 'AICPU': 'the AI CPU', 'OP': 'an operator', 'PROFILING': 'profiling'}


class LogLine(NamedTuple):
    """A line of CANN's log.

    Attributes:
        is_error: Its level is ERROR.
        reporter: Who wrote it.
        text: What it says, without time and place in the sources.
    """
    is_error: bool
    reporter: str
    text: str


def parse(text: str) -> Optional[LogLine]:
    """A line of CANN's log; None if it is another line."""
    match = _HEAD.match(text)
    if not match:
        return None
    rest = match['text']
    place = _PLACE.match(rest)
    while place and place.end():
        rest = rest[place.end():]
        place = _PLACE.match(rest)
    component = match['component']
    return LogLine(match['level'] == 'ERROR', _REPORTERS.get(component, component), rest.strip())


def _link(match: 're.Match[str]') -> Told:
    """A row of HCCL's table of links that were not made: the other end, and this one."""
    return 'connect_timeout', {'remote': match['remote']}


def _notify(match: 're.Match[str]') -> Told:
    remote = match['remote'] or ''  # -1 is written as 4294967295
    return 'exec_timeout', ({'remote': remote} if remote.isdigit() and int(remote) < 2 ** 31 else {})


def _listen(match: 're.Match[str]') -> Told:
    facts = groups(match)
    return ('port_device' if facts.get('port') == '16666' else 'port_host'), facts


def _opp_path(match: 're.Match[str]') -> Told:
    return 'environment_half_set', {'variable': 'ASCEND_OPP_PATH'}


def _no_super_device(match: 're.Match[str]') -> Told:
    return 'rank_table', {'reason': 'super_device_id is missing or wrong'}


def _missing(match: 're.Match[str]') -> Told:
    facts: Dict[str, str] = {}
    if match['missing']:
        facts['missing'] = ', '.join(re.findall(r'\d+', match['missing']))
    return 'root_detect', facts


PLOG_PATTERNS: Tuple[Pattern, ...] = (
    # HCCL begins
    pattern(r'ip ?\[(?P<value>[^\]]*)\] of \[(?P<variable>[^\]]*)\] is not found in the nic list',
            'hccl_interface', 97),
    pattern(r'set ifname to \[(?P<value>[^\]]*)\] by (?P<variable>HCCL_\w+),? but not found', 'hccl_interface', 98),
    pattern(r'no valid host ?(?:if|nic|ip)\b.*?\[(?P<value>[^\]]*)\]', 'hccl_interface', 97),
    pattern(r'get host ip fail by socket Ifname(?:.*?name ?\[(?P<value>[^\]]*)\])?', 'hccl_interface', 97),
    pattern(r'ra socket listen start fail|bind and listen fail(?:.*?server_port: ?(?P<port>\d+))?', _listen, 90),
    pattern(r'\bbind fail! ?(?:family: ?\d+, ?)?(?:IP: ?)?(?P<value>[\da-fA-F:.]+),.*\berror: ?99\b',
            'hccl_interface', 95),
    pattern(r'\bbind fail\b.*?IP: ?(?P<ip>[\w.:]+?),? port: ?(?P<port>\d+)', _listen, 94),
    pattern(r'\bparse (?P<variable>HCCL_\w+) failed|\[Init\]\[EnvVarParam\]', 'hccl_variable', 60),
    pattern(r'DataType check fail|dataType ?\[\w+\] (?:is )?not support', 'hccl_argument', 60),
    pattern(r'rank num ?\[?\d+\]? ?is different with rank list size', 'root_detect', 80),
    pattern(r'List of unconnected ranks: "?\[(?P<missing>[\d, ]*)\]', _missing, 98),
    pattern(r'TopoDetect ERROR occur.*Failed to connect agent\[(?P<missing>[\d,]*)\]', _missing, 98),
    pattern(r'topo exchange (?:server|agent) (?:get socket timeout|connect client failed)', 'root_detect', 95),
    pattern(r'\[Recv\]\[ClusterInfoMsg\]\s*receive|setup topo detect error', 'root_detect', 60),
    pattern(r'(?P<reason>firewall is incorrectly configured)', 'root_detect', 70),
    pattern(r'HCCL\(.*JSON parse error: ?(?P<reason>.{5,200})', 'rank_table', 70),
    pattern(r'get_vnic_ip_by_sdid fail|sdid: ?0x[fF]{8}\b', _no_super_device, 60),
    pattern(r'\[HcomLoadRanktableFile\]|load file ?\[(?P<path>[^\]]*)\] to json fail|\[Parse\]\[ClusterInfo\]|'
            r'HCCP.*\[?check\]? ?\[?ip\]? ?fail', 'rank_table', 90),
    pattern(r'\[RankConsistent\w*\]\[CompareFrame\]', 'different_arguments', 90),
    pattern(r'[Ss]ome ranks tlsStatus are inconsistent', 'tls', 96),
    pattern(r'ra_hdc_server_init\b.*Create Server failed|\bhccp init error', 'hccp_busy', 55),
    # links
    pattern(r'\|\s*[\d.:a-fA-F]+\((?P<remote>\d+)\)\s*\|(?:\s*\d+\s*\|)?\s*[\d.:a-fA-F]+\(\d+\)\s*\|(?:\s*\d+\s*\|)?\s*'
            r'(?:client|server)\s*\|\s*(?:time ?out|no connect)', _link, 97),
    pattern(r'wait socket establish timeout|\bget socket timeout|links? establish(?:ed)? (?:completed )?failed|'
            r'[Ww]ait timeout for (?:get P2P status|sockets recv)|connected p2p timeout|Wait Enable P2P Failed',
            'connect_timeout', 66),
    pattern(r'ra hdc message process failed,? ?ret\(-67\)|[Nn]etwork port is down', 'link_hardware', 85),
    pattern(r'\[TransportManager\]\[PrintErrorInfo\]', 'hccl_link', 50),
    pattern(r'get qp status timeout|ra qp create fail|rdma init fail', 'hccl_link', 62),
    pattern(r'cqe err(?:or)? stat(?:us)?\[?(?P<reason_> ?\d+)?\]?(?:.*(?:remoteIP|\bip)[:{]? ?\[?(?P<peer>[\d.]+))?',
            'hccl_link', 64),
    pattern(r'\[Recv\]\[RaSocket\]', 'peer_lost', 40),
    pattern(r'HDC (?:recv msg err|send err),? ?ret\(16\)', 'device_lost', 30),
    pattern(r'HDC (?:recv msg err|send err),? ?ret\(25\)|Receive no msg by (?:socket closed|hdc down)', 'peer_lost',
            30),
    # while it runs
    pattern(r'rank \[[^\]]*\]: rank \[(?P<remote>[^\]]*)\] status\[LOST\]', 'heartbeat', 70),
    pattern(r'taskType ?\[Notify Wait\]|type:NOTIFY WAIT(?:, localRank:\d+)?(?:, remoteRank:(?P<remote>\d+))?|'
            r'[Nn]otify wait (?:execute failed|timeout)|[Ww]ait task timeout,? ?type=[57]|'
            r'[Ee]vent wait (?:task )?timeout', _notify, 68),
    pattern(r'Task run failed.*remote rank:\[(?P<remote>\d+)\]', _notify, 69),
    pattern(r'taskType ?\[(?:Memcpy|Reduce Inline)\]', 'hccl_link', 60),
    # the runtime and the driver
    pattern(r'fftsplus task execute failed.*\[fftsplus timeout\]', 'exec_timeout', 60),
    pattern(r'\[task timeout\]|(?:retCode|sqSwStatus)=0x105\b', 'sync_timeout', 34),
    pattern(r'sync stream time ?out|[Ss]tream sync time ?out|Device synchronize failed', 'sync_timeout', 34),
    pattern(r'[Dd]evice(?:\[\d+\])? lost heartbear?t|device heartbeat (?:is )?lost', 'device_lost', 70),
    pattern(r'halMemAlloc failed|DevMemAlloc\w*\s?:? ?failed', 'memory_device', 55),
    pattern(r'halResourceId?Alloc|Alloc sq cq fail|\bNo res\. ?\(devId|driver error: ?no \w+ resource|'
            r'Notify create failed|Program register failed|No idle credit|No session resources available',
            'resources', 45),
    pattern(r'stream is not in current ctx', 'wrong_use', 45),
    pattern(r'[Cc]an ?not find kernel by function', 'no_kernel', 45),
    pattern(r'Memory async copy failed', 'dma', 40),
    pattern(r'[Dd]ata ?type (?P<dtype>\w+) of (?:input )?(?P<argument>\w+) is not supported', 'dtype', 60),
    pattern(r'OPP_PATH\b.* is invalid', _opp_path, 60),
    pattern(r'Open TsdClient failed|ReportFailCodeToClient|Start aicpu executor failed|'
            r'Get (?:device|chip) (?:count|list) failed|New device failed|Device info is NULL|pcie not ready',
            'device_start', 42),
    pattern(r'Subprocess abnormal, close hdc server', 'ai_cpu', 30),
    pattern(r'AICORE Kernel task happen error|fftsplus task execute failed|model execute error|Real fault task',
            'task_failed', 24),
)
