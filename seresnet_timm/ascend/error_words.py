"""Which lines of a log are looked at: those with a word of an error, of a kind that has not told nothing before"""
import re
from typing import Dict

MAX_KINDS = 50_000
MAX_LINE = 8000  # characters that are looked at
_SAME_DIGIT = str.maketrans('123456789', '0' * 9)
_HEX = re.compile('0x[0-9a-fA-F]+|[0-9a-f]{8,}')  # addresses, and hashes in names of kernels
# of plog: no errors
_QUIET = re.compile(r'\[(?:TRACE|DEBUG|INFO|EVENT|WARNING)\] ?[A-Z][A-Z0-9_]*\(\d(?!.*status\[LOST\])')
# lines in which the number itself may tell, or that begin an error
_MATTERS = re.compile(
    r'(?i:traceback|function error|errno|code|\bret|stat[:=]|status=|exit|signal|result|drv|\bhal|dsmi|dcmi|0x|scale)|'
    r'(?<![\d.])\d{6}(?![\d.])')

# lines without one of these words tell nothing; most lines of a log are such
_WORDS = re.compile(
    r'PID|ERROR|Traceback|stream|kernel_name|[Oo]p_?[Nn]ame|opType|rror|ERR\d|\bE[A-Z\d]\d{4}|[Ff]ail|FORCE STOP|'
    r'xception|imed? ?out|imeout|[Ww]arning|not found|[Cc]annot|undefined symbol|memory|[Nn]o |exitcode|Signal|killed|'
    r'fault|peer|overflow|oss scaler|down|removed|Could not run|core dumped|terminate|Non finite|double|nan\b|inf\b|'
    r'NaN|\brank\s*: \d|grad-norm|abnormal|[Ll]ost|LOST|Duplicated|in use|ret is|[Rr]etCode|Broken pipe|HCCL|hccl|oom|'
    r'init|version|bound|listen|port|set ASCEND|Two accel|TLS|Notify|[Kk]ill|[Dd]enied|[Ee]rrno|npu-smi|wheel|ELF|'
    r'[Ee]xec|[Ee]xit|[Dd]etected|[Ii]nvalid|status|/dev/|[Cc]onnect|[Uu]nable|start new|items of|Name or|resol|type:|'
    r'taskType|[\u4e00-\u9fff]|^\s*\d{6}\s*$|CANCELLED|srun|Insufficient|nhealthy|not enough|not ready|'
    r'busy|open file|Evicted|low on|incompatible|requires|missing tools|HwHiAiUser|nsupported|'
    r'do not match|ERROR:root|certificate|externally|quota|forbidden|controller|relocating|Illegal|HASHES|stat:\d|'
    r'task type|MTE|VEC|UB |CUBE|CCU|unhealthy|Python\.h|space|architecture|modprobe|insmod|probe|heartbeat|'
    r'Descriptors|not support|check|chdir|CHDIR|depends on|can.t be installed|was not found|unrecognized|different|'
    r'fork|alloc|Error|driver|Docker|image|mount|AICPU|FAILED|multiarray|Health|health|enqueue|parse|timeout|manifest|'
    r'^\s*\|\s*\d|panic|LOCKUP|stall|blocked|exhausted|[Rr]eason|service:|DeviceReset|Null |NULL|invalid|'
    r'conntrack|[Ee]vent|\bnot\b|unsafe|irq|\[(?:Parse|Init|Recv|Send|Rank)|[Tt]ls|\bmsg\b|retries|satisfies|Auth|Image|'
    r'reaches|time limit|same|reject|info_config|TBE|BiSheng|firewall|sqSw|cqeStatus|hal[A-Z]|reachable|abort|HDC|'
    r"preamble|appears|device type|Resolution|Not ?Found|device <|Ipc Mem|must |doesn't|Unknown")


def _kind(text: str) -> str:
    return _HEX.sub('', text.translate(_SAME_DIGIT))


class Kinds:
    """Lines that differ in digits only are of one kind, about which one decision is made: a log has millions."""

    def __init__(self) -> None:
        self._wanted: Dict[str, bool] = {}

    def wants(self, text: str) -> bool:
        """Whether a line is looked at."""
        if text.startswith('[') and _QUIET.match(text):
            return False
        kind = _kind(text)
        wanted = self._wanted.get(kind)
        if wanted is None:
            wanted = _WORDS.search(text, 0, MAX_LINE) is not None
            self._remember(kind, wanted)
        return wanted

    def tell_nothing(self, text: str) -> None:
        """A line has told nothing: further ones of its kind are not looked at, unless it is the number that tells."""
        if not _MATTERS.search(text):
            self._remember(_kind(text), False)

    def _remember(self, kind: str, wanted: bool) -> None:
        if len(self._wanted) < MAX_KINDS and len(kind) < 1000:
            self._wanted[kind] = wanted
