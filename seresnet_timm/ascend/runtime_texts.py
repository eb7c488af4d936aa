"""Words of CANN's runtime, of the driver (in plog and `dmesg`) and of the host's kernel: see `error_texts.py`

The runtime gives the reason of a call that failed in words, each of which stands for a number of ACL.
"""
import re
from typing import Dict, List, Optional, Tuple

from seresnet_timm.ascend.error_pattern import Pattern, Told, groups, pattern

_REASON = re.compile(r'(?:\breason ?= ?|\bdesc ?= ?|\bReason: )\[?(?P<words>[^\[\]]+)', re.IGNORECASE)
# words, the number of ACL; the first that is found counts
_WORDS: Tuple[Tuple[str, int], ...] = (
    ('captur|task group|default stream', 107030), ('debug', 507001),
    ('(?:aicore|ai core|aivec|aivector|aicpu|sdma) over ?flow', 207003),
    ('aicore trap read', 507042), ('aicore trap write', 507043), ('aicore trap', 507016),
    ('vector core trap read', 507044), ('vector core trap write', 507045), ('vector core trap', 507036),
    ('aicore time ?out', 507014), ('aicore exception', 507015), ('vector core time ?out', 507034),
    ('vector core exception', 507035), ('aicpu time ?out', 507017), ('aicpu (?:exception|internal)', 507018),
    ('sdma (?:copy|reduce)? ?error|pcie dma copy', 507013), ('fftsplus time ?out', 507048),
    ('fftsplus (?:trap )?exception', 507049), ('ccu time ?out', 507915), ('hccl op retry failed', 507904),
    ('device network link error', 507056), ('hbm multi', 507054), ('suspect device mem', 507055),
    ('remote mem error|suspect remote', 507057), ('device (?:local )?mem error', 507053),
    ('driver error: ?out of memory|host memory has been exhausted', 207001),
    ('driver error: ?(?:no valid|invalid) device', 107001), ('driver error: ?operation no permitted', 207006),
    (r'driver error: ?no \w+ resource|driver error: ?resource alloc|resources? reach\w* the max|sq full', 207005),
    ('driver error: ?(?:feature not support|current driver version)|invalid link type', 207000),
    ('driver error: ?copy data', 507052), ('driver error: ?internal', 507899), ('stream sync time ?out', 507046),
    ('event sync time ?out', 507047), ('stream abort|device (?:task )?abort|task abort', 107022),
    ('context (?:pointer null|is a null)', 107002), ('report time ?out', 507012),
    (r'\btask time ?out|\b(?:wait|driver|alloc batch) time ?out', 107020),
    ('model (?:stream )?execute failed', 507011), ('hdc (?:disconnect|send msg fail)|socket close', 507901),
    ('lost heartbeat|heartbeat lost', 507010),
    ('device oom', 207018), ('device (?:pointer null|retain error)', 507033), ('device id error', 107001),
    ('soc version', 507008), ('not support', 207000), ('alloc memory error', 207001),
    ('kernel (?:lookup|duplicate)', 507027), ('sys dma', 507013), ('ccu exception', 507916),
    (r'aicpu [\w ]+response error', 507900), ('device ub mem', 507914),
    ('out of use|queue full|over limit|buffer full|id alloc failed|array space', 207005),
    (r'^(?:cdqe?|group|subscribe) |memory (?:range )?(?:already|has not)', 107000),
    (r'\btscpu|\bts [a-z]|\btsfw\b|^task (?:\w+ )*(?:error|exception)|^pcie dma|^dbg cmd|\bsqe\b|^sched|model stream',
     507001),
    (r'\binvalid\b|\bnot (?:in|set|belong|registered)\b|\brepeated init|(?:open|write) file failed|name error', 107000))
_REASONS = tuple((re.compile(words, re.IGNORECASE), number) for words, number in _WORDS)


def reason(text: str) -> Optional[int]:
    """The number of ACL for the reason that the runtime names; None if there is none."""
    if 'rtGetDevMsg' in text:  # it asks for the message of an error, and is none itself
        return None
    for match in _REASON.finditer(text):
        for words, number in _REASONS:
            if words.search(match['words']):
                return number
    return None


# --- codes of the chip ------------------------------------------------------------------------------------------------

# what reports a fault: the first four digits of the code in hexadecimal
_PARTS: Dict[str, str] = {code: part for codes, part in (
    ('80A1', 'a CPU core'), ('80A3 80A5 80B7 80CD', 'a cache'), ('80B9', 'PCIe'), ('80BB', 'RoCE'),
    ('80BD', 'the network adapter'), ('80C7 80F7 80FA 80FB 812E', 'the task scheduler'), ('80C9', 'an AI Core'),
    ('80CB', 'a vector core'), ('80CF', 'memory copies (SDMA)'), ('80DE 80DF 80F1', 'memory (DDR)'),
    ('80E0 80E1 80F2 80F3', 'memory (HBM)'), ('80E2 80E3', 'power (LPM)'), ('8107', 'a network port'), ('819B', 'HCCS'),
    ('819D 81A3', 'an HCCS port'), ('81AB', 'RoH'), ('81AD', 'a RoH port'), ('81AE 81AF', 'UB'), ('81B1', 'a UB port'),
    ('81B3', 'collectives (CCU)'), ('40F8', 'the board'), ('80AD 80B1 80B5', 'a bus'),
    ('80D3 80D5 80D9 80DB 80DD', 'image and video units (DVPP)'),
    ('8C03 8C04 8C06 8C08 8C0A 8C0C 8C0E 8C10 8C12 8C17 8C19 8C1D 8C1F 8C20 8C2F 8C46',
     "a process of the device's system")) for code in codes.split()}
_LINKS = ('80BB', '80BD', '8107', '819B', '819D', '81A3', '81AB', '81AD', '81AE', '81AF', '81B1')
_CHIP_CODE = (r'(?i:(?:fault|error|alarm|event)[_ ]?(?:code|id)s?)\W{0,40}?(?:0[xX])?'
              r'(?P<code>(?:8[01C]|40)[0-9A-Fa-f]{6})\b')


def _chip(match: 're.Match[str]') -> Told:
    code = match['code'].upper()
    part = _PARTS.get(code[:4], 'an unknown part')
    facts = {'code': code, 'part': part}
    if code == '81078603':
        return 'link_hardware', facts
    if 'memory (' in part:
        return 'chip_memory', facts
    if code[:4] in _LINKS:
        return 'chip_link', facts
    return 'chip_fault', facts


def _system(match: 're.Match[str]') -> Told:
    return 'host_fault', groups(match)


def _busy_port(match: 're.Match[str]') -> Told:
    facts = groups(match)
    return ('port_device' if facts.get('port') == '16666' else 'port_host'), facts


RUNTIME_PATTERNS: List[Pattern] = [
    pattern(_CHIP_CODE, _chip, 45),
    # HCCL
    pattern(r'ra listen start failed|rs_connect_bind_client_failed|listen on ip\W+[\w.:]+\W+and specific port\W+'
            r'(?P<port>\d+)', _busy_port, 88),
    pattern('connection failure between this device and', 'connect_timeout', 60),
    pattern(r'rt rdma send fail|\[Send\]\[RaWr(?:list)?\]', 'hccl_link', 55),
    pattern(r'rt ?(?:Set|Open|set|open) ?[Ii]pc ?[Mm]emory|rt (?:memory|reduce) async (?:copy )?fail|'
            r'ffts context type is invalid', 'hccl_general', 40),
    pattern(r'Invalid usage of tensors with different dtypes|Tensor list input to scatter/gather must match|'
            r'Expected parameter .{1,80} to be of type \W*(?:List\[)?torch\.Tensor', 'hccl_argument', 60),
    # the runtime
    pattern(r'\bctx is NULL|Null (?:rt|api)Instance pointer|[Cc]an ?not destroy primary ctx|argCount ?\S* is invalid|'
            r'is not belong to the launch prog|stream is invalid, stream_id', 'wrong_use', 30),
    pattern(r'\bnew (?:context|task|davinci|\w+_?(?:\.\w+)?) .{0,30}failed\b|failed to alloc newStream', 'memory_host',
            30),
    pattern(r'[Ff]ailed to submit [\w ]*task|[Tt]ask submit failed|[Ff]ailed to load args|[Kk]ernel task failed|'
            r'[Ff]ailed to init kernel task|[Ff]ailed to alloc task|Execute op failed|Real task exception|'
            r'Run graph (?:async |with stream async )?failed|Synchronize defaultStream fail', 'task_failed', 22),
    pattern(r'Process\w*SdmaErrorInfo|\bcqeStatus=0x|CQE status is [1-9]', 'dma', 45),
    pattern(r'DeviceReset (?:context|get device|failed)', 'device_lost', 20),
    pattern('GEInitialize failed', 'compiler_start', 30),
    pattern('(?:Build|Compile) graph failed', 'compile', 24),
    pattern(r'load model from data failed', 'model_argument', 30),
    pattern(r'params? .{0,40}!= nullptr failed|\bonly support range\b', 'argument', 40),
    # the driver
    pattern(r'\bdrv\w+IdAlloc(?: \d+\])?:? (?:ioctl )?failed|fail to alloc \w+ id|'
            r'(?:Alloc|alloc) (?:sq id|chan|res id|batch) fail|Alloc batch fail|No ava(?:il|l)iable session|'
            r'reaches max process num', 'resources', 40),
    pattern(r'Mbox (?:send|wait) fail|Device irq not resp|Message send finish.{0,20}no resp|Send msg failed|'
            r'devdrv_sync_(?:non_trans_)?msg\w*.{0,20}(?:Send failed|Device is abnormal)', 'device_lost', 35),
    pattern(r'\bD(?:MA|ma) (?:copy failed|chan\w* (?:init failed|wait timeout)|timeout)|dma_sync_link_copy fail', 'dma',
            40),
    pattern(r'\[dmp\].*(?:sendmsg fail|_send_msg|->send_msg|dev_mon_send_request error)', 'driver_start', 56),
    pattern('Server create open pcie device failed|set service level failed', 'driver_start', 45),
    pattern(r'wait process init failed', 'device_start', 45),
    pattern(r'mm populate failed|\bpage allocation failure', 'memory_host', 45),
    pattern(r'devdrv_p2p_para_check.{0,20}Not support p2p', 'not_supported', 40),
    pattern(r'Virtual address is not alloced|\bVa error\b.*input argument|fault_huge_pages failed|'
            r'Reserve addr not support fault|Va not bar addr', 'wrong_use', 35),
    # the host
    pattern(r'(?P<reason>Kernel panic - not syncing.*|Watchdog detected hard LOCKUP.*|unable to handle page fault.*|'
            r'(?:divide error|invalid opcode|general protection fault): 0000 .*|PANIC: double fault.*|'
            r'process (?:user|kernel)space SEA exception.*|EDAC \w+: \d+ UE .*|Machine check events logged.*|'
            r'Uncorrected (?:hardware )?(?:memory )?error.*)', _system, 60),
    pattern(r'(?P<reason>task \S+ blocked for more than \d+ seconds|.{0,30}self-detected stall on CPU|.{0,30}detected '
            r'stalls on CPU.{0,20})', 'host_hang', 55),
    pattern('(?P<reason>nf_conntrack: table full)', 'network', 50),
    pattern(r'EXT4-fs (?:error|\(\w+\): error)', 'disk_error', 50),
    pattern(r'(?P<reason>(?:docker|isulad|containerd)\.service: Main process exited.*|'
            r'error gathering device information.*)',
            'container_start', 60),
    # Python
    pattern(r'Attempted to set the storage of a tensor on device "?(?P<device>[\w:]+)"? to a storage on different '
            'device', 'other_device', 60),
]
