"""Words that tell a fault where no code does, or more than the code: patterns, the fault, and the values they name"""
import re
from typing import List, Tuple

from seresnet_timm.ascend.cann_log import PLOG_PATTERNS
from seresnet_timm.ascend.error_pattern import Pattern, Told, groups
from seresnet_timm.ascend.error_pattern import pattern as _p
from seresnet_timm.ascend.fault import HEALTHY
from seresnet_timm.ascend.host_texts import HOST_PATTERNS
from seresnet_timm.ascend.runtime_texts import RUNTIME_PATTERNS

# --- choices ----------------------------------------------------------------------------------------------------------

_DRIVER = ('libascend_hal', 'libdcmi', 'libdrvdsmi', 'libdevmmap', 'libdrv', 'libdsmi')
_CANN = ('libhccl', 'libascend', 'libacl', 'libge_', 'libgraph', 'libruntime', 'libplatform', 'libprofapi',
         'libnnopbase', 'libopapi', 'libc_sec', 'liberror_manager', 'libmsprof', 'libmmpa', 'libregister',
         'libexe_graph', 'libtsd', 'libunified_dlog', 'libhccp', 'libop_compile', 'liblowering', 'libhcom', 'libalog',
         'libatb', 'libcann', 'liboptiling', 'libops_', 'libopskernel', 'libaicpu', 'libcpu_kernels',
         'libparser_common', 'libfmk_', 'libmetadef', 'libtbe', 'libte_fusion', 'libadump', 'libhybrid_executor')
_CUDA = ('libcu', 'libnv', 'libnccl', 'libtorch_cuda', 'libc10_cuda')
_CANNS_OWN = ('tbe', 'te', 'te_fusion', 'impl', 'topi', 'opc_tool', 'auto_tune')
# and modules that CANN's own Python packages need, as E8 of its guide lists them
_OF_CANN = (*_CANNS_OWN, 'numpy', 'decorator', 'sympy', 'cffi', 'google', 'attr', 'attrs', 'yaml', 'scipy', 'psutil',
            'absl', 'tornado', 'ml_dtypes', 'cloudpickle')
_PACKAGES = {'attr': 'attrs', 'yaml': 'pyyaml', 'absl': 'absl-py', 'google': 'protobuf', 'PIL': 'pillow',
             'cv2': 'opencv-python', 'sklearn': 'scikit-learn', 'pkg_resources': "'setuptools<81'",
             'distutils': 'setuptools'}
# modules of Python that need a library when it is built, and the package of its headers
_BUILT_IN = {'_ctypes': 'libffi-devel, libffi-dev', '_bz2': 'bzip2-devel, libbz2-dev', '_lzma': 'xz-devel, liblzma-dev',
             '_sqlite3': 'sqlite-devel, libsqlite3-dev', '_ssl': 'openssl-devel, libssl-dev',
             'ssl': 'openssl-devel, libssl-dev', 'zlib': 'zlib-devel, zlib1g-dev'}
_OF_CANN_SYMBOL = re.compile(
    r'acl|Hccl|Hcom|hccl|rt[A-Z]|ge[A-Z]|_ZNK?2ge|_ZN4hccl|_ZNK?(?:3atb|3Mki|6AsdOps)|dcmi|dsmi|drv|hal|Adx|Msprof|GE')
_OF_TORCH_SYMBOL = re.compile(r'_ZNK?(?:5torch|3c10|2at|6caffe2)|.*(?:torch|c10)')


def _library(match: 're.Match[str]') -> Told:
    library, line = match['library'].rpartition('/')[2], match.string
    part = re.search(r'check that the (\w+) package', line) or re.match(r'lib(atb)\b', library)
    facts = {'library': library}
    if part and part[1] != 'cann':
        facts['part'] = {'atb': 'nnal (ATB)'}.get(part[1], part[1])
    if library.startswith(_DRIVER) or 'npu-smi:' in line:
        return 'driver_missing', facts
    if library.startswith('libtorch_npu'):
        return 'torch_npu_missing', {}
    if library.startswith(_CUDA):
        return 'cuda_library', facts
    if library.startswith(_CANN) or 'set_env.sh' in line or 'cann package' in line:
        return 'cann_missing', facts
    return 'library_missing', facts


def _module(match: 're.Match[str]') -> Told:
    module = match['module']
    root = module.partition('.')[0]
    if module.startswith('torch_npu._C'):
        return 'source_folder', {}
    if root == 'torch_npu':
        return 'torch_npu_missing', {}
    if root in _OF_CANN:
        return 'cann_python', {'module': module}
    if root in _BUILT_IN:
        return 'python_built_without', {'module': root, 'package': _BUILT_IN[root]}
    return 'python_module', {'module': module, 'package': _PACKAGES.get(root, root)}


def _import(match: 're.Match[str]') -> Told:
    module = match['module']
    return ('cann_python', {'module': module}) if module.partition('.')[0] in _CANNS_OWN else None


def _symbol(match: 're.Match[str]') -> Told:
    facts = {'library': match['library'].rpartition('/')[2], 'symbol': match['symbol']}
    if re.match(r'_?Py[A-Z]', facts['symbol']):
        return 'python_version', {'library': facts['library']}
    if _OF_CANN_SYMBOL.match(facts['symbol']):
        return 'cann_old', facts
    if 'torch' in facts['library'] or _OF_TORCH_SYMBOL.match(facts['symbol']):
        return 'torch_pair', facts
    return 'symbol', facts


def gib(text: str) -> float:
    """Memory such as '19.52 MiB' in GiB."""
    number, unit = re.match(r'([\d.]+) ?(\w+)', text).groups()
    return float(number) * {'k': 2 ** -20, 'm': 2 ** -10, 'g': 1, 't': 1024}.get(unit[0].lower(), 2 ** -30)


def _memory(match: 're.Match[str]') -> Told:
    """An allocator's sentence, of torch_npu or torch: whose is the memory?"""
    line = match.string
    if 'per_process_memory_fraction' in line:
        return 'memory_fraction', {}
    patterns = (
        ('size', r'[Tt]ried to allocate ([\d.]+ ?\w+)'),
        ('device', r'\((?:NPU|GPU) (\d+)'), ('device', r'(?:NPU|GPU) (\d+) has'),
        ('total', r'([\d.]+ ?\w+) total capacity'), ('total', r'total capacity of ([\d.]+ ?\w+)'),
        ('allocated', r'([\d.]+ ?\w+) already allocated'), ('allocated', r'([\d.]+ ?\w+) is allocated by PyTorch'),
        ('free', r'([\d.]+ ?\w+) free'), ('free', r'of which ([\d.]+ ?\w+) is free'),
        ('reserved', r'([\d.]+ ?\w+) reserved in total'),
        ('unused', r'([\d.]+ ?\w+) is reserved by PyTorch but'),
        ('own', r'this process has ([\d.]+ ?\w+) memory in use'))
    facts = {'kind': match['kind'].upper()}
    for name, pattern in patterns:
        found = re.search(pattern, line)
        if found:
            facts[name] = found[1]
    have = {k: gib(facts[k]) for k in ('total', 'allocated', 'free', 'reserved', 'own', 'size') if k in facts}
    if 'unused' in facts and 'allocated' in have:
        have['reserved'] = have['allocated'] + gib(facts.pop('unused'))
    own = have.get('own') or have.get('reserved') or have.get('allocated')
    if own is not None and 'total' in have and 'free' in have:
        others = have['total'] - have['free'] - own
        if others > max(4., .15 * have['total']):  # the driver and CANN take up to some GiB
            return 'memory_of_others', {**facts, 'other': f'{others:.1f} GiB'}
    if {'reserved', 'allocated', 'size'} <= set(have):
        unused = have['reserved'] - have['allocated']
        if unused > max(1., have['size'], .1 * have['reserved']):
            return 'memory_fragmented', {**facts, 'unused': f'{unused:.1f} GiB'}
    return 'memory', facts


def _port(match: 're.Match[str]') -> Told:
    """Which network a port belongs to: that of the host, or of the device."""
    line = match.string
    found = {'port': re.search(r'port ?[\[:]? ?\[?(\d{4,5})', line),
             'ip': re.search(r'(?:ip|IP address) ?[\[:]? ?\[?(\d+\.\d+\.\d+\.\d+)', line)}
    facts = {k: m[1] for k, m in found.items() if m}
    kind = re.search(r'socket type\[(\d)\]', line)
    is_device = kind[1] in '01' if kind else (
        bool(re.search(r'NPU network adapter|device nic|vnic', line)) or facts.get('port') == '16666')
    return ('port_device' if is_device else 'port_host'), facts


def _cluster_exception(match: 're.Match[str]') -> Told:
    what = match['reason'].lower()
    facts = {'remote': match['remote'], 'reason': match['reason']}
    if 'cqe' in what or 'retry' in what:
        return 'hccl_link', facts
    if 'stuck' in what:
        return 'exec_timeout', {'remote_name': f'the device {match["remote"]}'}
    return 'heartbeat', facts


def _stage(match: 're.Match[str]') -> Told:
    """Phase and kind in HCCL's own lines, from CANN 8.5 on."""
    stage, kind = match[1], match[2]
    if kind == 'Timeout':
        return {'InitGroupStage': 'root_detect', 'InitChannelStage': 'connect_timeout'}.get(stage, 'exec_timeout'), {}
    faults = {'EnvConfig': 'hccl_variable', 'RanktableConfig': 'rank_table', 'RanktableCheck': 'rank_table',
              'RanktableDetect': 'root_detect', 'ParameterConflict': 'different_arguments',
              'VersionConflict': 'versions_differ', 'HeartbeatAbnormal': 'heartbeat'}
    return faults.get(kind, 'hccl_general'), {}


def _watchdog(match: 're.Match[str]') -> Told:
    facts = groups(match)
    if 'ms' in facts:
        facts['seconds'] = f'{int(facts["ms"]) / 1000:g} s'
    return 'watchdog', facts


def _kernel(match: 're.Match[str]') -> Told:
    facts = groups(match)
    types = re.findall(r'\b(?:u?int\d+|b?float\d+|bool|double|complex\d+)\b', facts.pop('key', ''))
    return 'no_kernel', {**facts, **({'dtype': ', '.join(dict.fromkeys(types))} if types else {})}


def _function(match: 're.Match[str]') -> Told:
    """A function of CANN that torch_npu calls and CANN does not have."""
    return 'cann_old', {'library': 'torch_npu', **groups(match)}


def _checksum(match: 're.Match[str]') -> Told:
    return 'library_damaged', {'library': 'of the package that is installed here'}


def _health(match: 're.Match[str]') -> Told:
    """A row of the table of npu-smi."""
    return None if match['health'].upper() in HEALTHY else ('health', groups(match))


def _unhealthy(match: 're.Match[str]') -> Told:
    """What MindCluster writes of an NPU."""
    if match['level'] == 'NotHandleFault':
        return None
    return ('link_hardware' if match['network'] else 'device_unhealthy'), groups(match)


def _refused(match: 're.Match[str]') -> Told:
    """What a check of an operator's arguments says, without code, process and time before it."""
    reason = re.sub(r'^\s*E\w{5}\b|\[PID: ?\d+\]|\d{4}-\d\d-\d\d-[\d:.]+|\(E\w{5}\):|^[\s:]+', '', match['reason'])
    return 'argument', {'reason': reason.strip(' :.')}


def _silent(match: 're.Match[str]') -> Told:
    """Of the check for silent data corruption: a value that is not finite is more often a training that diverged."""
    if match['value'].strip().lower() in ('nan', 'inf', '-inf'):
        return 'diverged', {'reason': f'a gradient became {match["value"].strip().lower()}'}
    return 'corruption', {}


def _operator_missing(match: 're.Match[str]') -> Told:
    return None if 'fall back' in match.string else ('no_npu_operator', groups(match))


def _architecture(match: 're.Match[str]') -> Told:
    return 'wrong_architecture', {'library': 'a package, program or image', **groups(match)}


def _unhealthy_codes(match: 're.Match[str]') -> Told:
    """What the device plugin of MindCluster writes of an NPU."""
    return 'device_unhealthy', {'name': f'NPU {match["device"]}', 'error': match['error']}


def _copy(match: 're.Match[str]') -> Told:
    return 'virtual_memory', {}


_LIB = r'(?P<library>[^\s:\'"]+\.so[\w.-]*)'


PATTERNS: Tuple[Pattern, ...] = (
    # installation and environment
    _p(_LIB + r': cannot open shared object file', _library),
    _p('Failed to load the backend extension: torch_npu', 'backend_not_loaded', 50),
    _p(r'(?P<variable>(?:ASCEND|TOOLCHAIN|TBE)\w*) environment variable is not set', 'environment_half_set'),
    _p(r'\b(?:ASCEND|TOOLCHAIN)_\w+ ?: ?\S+ does not exist(?:.{0,40}whether the (?P<part>\w+) package)?',
       'cann_missing'),
    _p(r"[Ee]nvironment variable '?(?P<variable>(?:ASCEND|TOOLCHAIN|TBE)\w*)'? is not (?:set|configured)",
       'environment_half_set'),
    _p(r"No module named '?(?P<module>[\w.]+)'?", _module),
    _p(_LIB + r': (?:undefined symbol|symbol lookup error): (?P<symbol>\w+)', _symbol),
    _p(r'(?P<library>\S+): cannot allocate memory in static TLS block|cannot load any more object with static TLS',
       'static_tls'),
    _p(r'(?P<reason>jemalloc)\S*: Unsupported system page size|(?P<library>[^\s:]+): ELF load command \S+ not '
       '(?:properly|page)[- ]aligned', 'page_size'),
    _p(_LIB + ': (?:file too short|cannot read file data)', 'library_damaged'),
    _p('(?P<module>ssl) module (?:in Python )?is not available', _module),
    _p(r"cannot import name '?[\w.]+'? from '?(?P<module>[\w.]+)", _import),
    _p(r"module 'torch' has no attribute 'npu'|not linked with support for npu|device type at start of device "
       r"string: npu|Distributed package doesn't have HCCL|Invalid backend: '?hccl|"
       r'Device type NPU is not supported for',
       'torch_npu_not_loaded'),
    _p(r"module '(?P<module>torch_npu(?:\.\w+)*)' has no attribute '(?P<symbol>\w+)'", 'torch_npu_name', 60),
    _p(r'was removed in the NumPy 2\.0 release|compiled using NumPy 1\.x cannot be run in|'
       r'RuntimeError: Numpy is not available', 'numpy_new'),
    _p(r'numpy\.\w+ size changed, may indicate binary|numpy\.core\.multiarray failed to import|'
       r'module compiled against ABI version', 'numpy_abi'),
    _p(r'operator torchvision::\w+ does not exist|PyTorch and torchvision (?:were compiled with different|versions are '
       r'incompatible)|Couldn.t load custom C\+\+ ops', 'torchvision_pair'),
    _p(r"module 'numpy' has no attribute '(?P<symbol>float|int|bool|object|str|complex|long|unicode|typeDict)'",
       'numpy_alias'),
    _p(r'Descriptors cannot (?:not )?be created directly|cannot import name .(?:builder|runtime_version). from '
       r'.google\.protobuf', 'protobuf_new', 101),
    _p(r"version `?'?(?P<symbol>(?:GLIBC|GLIBCXX|CXXABI)_[\d.]+)'? not found", 'system_old'),
    _p(r'Error loading shared library ld-linux|Error relocating \S+: \S+: symbol not found|ld-musl', 'musl', 101),
    _p(r'\[Init\]\[Env\]init env failed|build op model failed', 'compiler_start', 30),
    _p(r"(?i:no space left on device)(?:: '(?P<path>[^']+)')?|Disk quota exceeded|(?P<path_>/\S*) has not enough space "
       r'left|[Nn]ot enough (?:disk |free )?space|[Ii]nsufficient (?:disk )?space', 'disk_full'),
    _p(r'(?P<library>[^\s:]+): (?:cannot execute binary file|wrong ELF class|invalid ELF header|ELF file)|'
       r'[Ee]xec format error|architecture ?\([\w-]+\) is (?:inconsistent|different)|does not match the detected host '
       r'platform|no matching manifest for \S+', _architecture),
    _p(r'(?P<library>\S+\.whl) is not a supported wheel on this platform', 'wrong_wheel'),
    _p(r'[Ff]ailed to find function (?P<symbol>\w+)|\b(?P<symbol_>aclnn\w+) (?:or \w+ )?not in libopapi', _function),
    _p("Duplicated key '?[a-z_]+|Two accelerators cannot be used at the same time", 'cuda_build'),
    _p('Cannot re-initialize NPU in forked subprocess', 'fork'),
    _p(r'(?:No matching distribution found for|satisfies the requirement) (?P<library>[\w.=+\[\]-]+)|'
       r"Distribution `(?P<library_>[\w.=+-]+)[^`]*` can't be installed|"
       r'[Bb]ecause (?:there (?:is|are) no versions? of )?(?P<library__>[\w.=+<>!-]+)(?: was not found in| has no '
       r'wheels with|(?= and you require))', 'wheel_missing', 90),
    _p(r'^(?:te|auto-tune|opc-tool|schedule-search|dataflow|hccl|op-\w+-\w+) [\d.]+ requires (?P<module>[\w-]+), '
       r'which is not installed', 'cann_python', 80),
    _p(r'torch[-_]npu \S+ (?:requires|depends on) torch\W|Cannot install .*\btorch[-_]npu\b.*conflicting dependencies',
       'torch_pair', 90),
    _p(r'(?P<reason>[\w.-]+ \S+ requires \S+, but you have .+? which is incompatible)|because these package versions '
       r'have conflicting dependencies|ResolutionImpossible', 'package_conflict', 80),
    # device
    _p(r'set (?P<variable>ASCEND_\w+) ?[:=] ?(?P<value>\S+) error.{0,40}ascending order', 'visible_order', 101),
    _p(r'set (?P<variable>ASCEND_\w+) ?[:=] ?(?P<value>\S+) error(?:, input data rang?e?:? '
       r'?(?P<range>[\[(][^\])]*[\])]))?', 'visible_devices'),
    _p(r'(?i:dcmi) ?(?:module |model )?(?:init\w* failed|\S*初始化失败)|prepare dcmi failed|'
       r'[Ii]nit devmanager failed', 'driver_start', 55),
    _p(r'\bHDC init failed|driver may not (?:be )?load', 'driver_start', 50),
    _p(r'DrvMngGetConsoleLogLevel failed|drvMngGetConsoleLogLevel failed', 'driver_start', 12),
    _p(r'[Ff]ailed to open device|[Oo]pen device failed', 'device_start', 55),
    _p(r'TsdOpen failed|tsd client wait response fail', 'device_start', 45),
    _p(r'because the device(?: (?P<device>\d+))? is (?:used|occupied|busy)|\bnpu is busy', 'device_taken', 70),
    _p('Failed to recognize Ascend chip|Unsupported soc version|Get Soc Version failed', 'chip_unknown', 40),
    _p("Cannot find option named 'Ascend", 'chip_unknown', 90),
    _p(r'\[(?:Driver|Firmware)\] ?\[[\d :-]+\] ?\[ERROR\]:? ?(?:ERR_NO:\w+; ?)?(?:ERR_DES:)? ?(?P<reason>[^;]+)',
       'driver_install', 58),
    _p(r'\[(?:Toolkit|Nnae|Nnal|Kernels|Ops?|Opp|Compiler|Runtime|Hccl|Cann\w*|Atb)\] ?\[[\d :-]+\] ?\[ERROR\]:? ?'
       r'(?:ERR_NO:\w+; ?)?(?:ERR_DES:)? ?(?P<reason>[^;]+)', 'cann_install', 58),
    _p(r'Error in (?:MD5|SHA\d+) ?checksums?|Error in check ?sums?\b', _checksum),
    _p(r'(?P<reason>Dkms install failed|Driver_ko_install failed|Drv_dkms_env_check failed|'
       r'The list of missing tools: \S+|HwHiAiUser not exists|driver package may not be completely installed|'
       r'(?:user and group are not same|do not support overwriting)[\w ,]*)', 'driver_install', 60),
    _p(r'DCMI\w*Library ?Not ?Found', 'driver_missing', 60),
    _p(r'Failed to initialize DCMI', 'driver_start', 50),
    _p(r'^\s*\|\s*(?P<device>\d+)\s+(?:\|\s*)?(?P<name>[A-Za-z0-9]*[A-Za-z]\S*)\s*\|\s*(?P<health>[A-Za-z]\w*)\s*\|'
       r'\s*[\d.NA-]+\s+[\dNA-]+\s', _health, 1),
    _p(r'^\s*Health(?: Status)?\s*: (?P<health>[A-Za-z]\w*)\s*$', _health, 30),
    _p(r'\bfault_type\W+Card(?P<network>Network)?Unhealthy\W+npu_name\W+(?P<name>[\w-]+)'
       r'(?:.*?\bfault_level\W+(?P<level>\w+))?(?:.*?\bfault_code\W+(?P<error>\w[\w,]*))?', _unhealthy, 60),
    _p(r'\bfault_type\W+NodeUnhealthy', 'node_lost', 60),
    _p(r'logic id:? (?P<device>\d+)\b.*fault codes? ?\[(?P<error>[\w ,]+)\]', _unhealthy_codes, 60),
    _p(r'device=(?P<asked>\d+), valid device range is (?P<range>\[[^\])]*[\])])', 'device_absent', 61),
    _p(r'[Ii]nvalid (?:NPU )?device ID\b|\bNo NPUs? (?:device |card )?(?:is|are|was|were) (?:available|found)|'
       r'[Ss]et device failed, invalid device|[Ii]nvalid devId|devId is invalid|'
       r'\bdevice < device_num\b|INTERNAL ASSERT FAILED.*Invalid device argument', 'device_absent', 60),
    _p(r'(?:aicore|aivec|aivector|vector core) (?:error|exception)|(?:[Aa]icore|[Aa]ivec|AICORE|AIVEC) [Kk]ernel '
       'execute failed', 'ai_core', 90),
    _p(r'task type=(?:aicore|aivec)\b|\b(?:MTE|VEC|CUBE|CCU|UB)\b.{0,40}\b(?:out of range|out of bounds|not aligned|'
       r'misalign\w*|illegal)', 'ai_core', 88),
    _p(r'task type=aicpu\b', 'ai_cpu', 88),
    _p(r'(?:aicore|aivec|vector core) (?:task )?time ?out|(?:[Aa]icore|[Aa]ivec) [Kk]ernel execute time ?out|'
       'errorStr: timeout or trap', 'ai_core_timeout', 91),
    _p(r'aicpu (?:error|exception)|during AICPU execution|[Aa]icpu kernel execute failed|AICPU kernel .*fail', 'ai_cpu',
       90),
    _p(r'\bcopy_d2d\w*\b.*error code is 507001', _copy),
    _p(r'driver and firmware packages do not match|'
       r'driver version is too old|driver.{0,40}does not match CANN', 'driver_old', 30),
    _p(r'(?i)multi[- ]?bit ecc|\bhbm (?:ecc )?(?:error|fault)|there is an? (?:hbm|ddr) .*error|'
       'unsafe data in the input tensor', 'ecc', 85),
    _p(r'\b[Ll]ink (?:is |status(?: is|:) )?(?:down|DOWN)\b', 'link_hardware', 60),
    _p("Torch not compiled with CUDA enabled|Found no NVIDIA driver|No CUDA GPUs are available|Distributed package "
       "doesn't have NCCL", 'cuda_used'),
    # memory
    _p('(?i)(?P<kind>npu|cuda|hip) out of memory', _memory),
    _p('exceed(?:s|ed)? per_process_memory_fraction|Allocation was preemptively rejected', 'memory_fraction'),
    _p(r'Failed to allocate \[size: \[(?P<size>[^\]]+)\]', 'memory_hccl'),
    _p('alloc(?:ate)? device memory failed|device memory allocation error|driver error: ?out of memory',
       'memory_device', 70),
    # operators
    _p(r'(?P<argument>\w+) (?:is )?not implemented for (?P<dtype>\w+), should be in dtype support list '
       r'(?P<dtypes>\[[^\]]*\])', 'dtype'),
    _p(r'Expected dtype of tensor (?P<argument>\w+) to be (?P<dtypes>[\w, ]+?),? but got (?P<dtype>\w+)', 'dtype'),
    _p(r'(?P<argument>\w+)(?:\'s)? dtype (?P<dtype>\w+) (?:is not supported|should be in(?: dtype)?(?: support)? list '
       r'(?P<dtypes>\[[^\]]*\]))', 'dtype'),
    _p(r'(?P<reason>\S.{4,300}?)\[FUNC:\w*(?:Infer|Check|Verify)\w*\] ?'
       r'\[FILE:\w*(?:tiling|infer|shape|check|_ops|aclnn)\w*\.', _refused, 38),
    _p(r"'errCode': 'E(?!80001)[5-8]\d{4}'(?:.*?'op_name': '(?P<operator>\w+)')?.*?\}, ['\"](?P<reason>[^'\"]{5,300})",
       'argument', 59),
    _p(r'Cannot find bin(?:ary)? (?:of|for) op(?:erator)? (?P<operator>\w+)(?:, integral key (?P<key>\S+))?', _kernel),
    _p(r'\bBinaryGetFunction failed(?:.*?opType(?: is|[:=]) ?\[?(?P<operator>\w+))?', 'no_kernel', 60),
    _p(r'[Oo]p ?type \[?(?P<operator>\w+)\]? of [Oo]ps kernel \[?\w+\]? is unsupported|'
       r"[Cc]an'?t find any supported ops kernel and engine of \S+, type is (?P<operator_>\w+)", 'no_kernel', 60),
    _p(r'(?P<operator>\w+): implementation for device (?P<device>(?:npu|xla)\S*) not found', 'extension_build'),
    _p(r'binary_info_config\.json|check if the opp_kernel package', 'kernels_missing'),
    _p(r'MLIRCompilationError|BiShengL?IR (?:for device|pipeline)|\b(?:bisheng|bishengir-compile|ccec|hivmc)\S*: '
       r'(?:fatal )?error:', 'compile', 65),
    _p(r'No parser is registered for Op \[?(?:\S+, optype \[)?(?P<operator>[\w.:/]+)', 'model_operator'),
    _p(r'Failed to compile (?:[Oo]p(?:erator)?|node) \[?(?:name:? ?)?(?P<operator>[\w/.]+)|single op compile failed|'
       r'[Cc]ompile op ?\[(?P<operator_>[\w/.]+)\] failed|Failed to call Python (?:Method|Func)|'
       r"fatal error: '[\w./]+' file not found", 'compile'),
    _p(r'Error: .*?\b(?P<dtype>(?i:bf16|bfloat16))\b.*\bnot? (?:be )?support|Error: .*not support\w* '
       r'(?P<dtype_>(?i:bf16|bfloat16))\b|only supports? fp32/fp16.*?(?P<dtype__>bfloat16)', 'dtype', 40),
    _p(r"operator '(?P<operator>[\w:.]+)' is not currently (?:supported|implemented) (?:on|for) the NPU",
       _operator_missing),
    _p('Expected all tensors to be on the same device', 'cpu_tensor'),
    _p(r"Could not run '(?P<operator>[\w:.]+)' with arguments from the '(?:PrivateUse1|NPU|npu)\w*' backend",
       'no_npu_operator'),
    _p('Tensors must be contiguous', 'not_contiguous'),
    _p('The Inner error is reported as above', 'asynchronous', 28),
    _p(r'current working operator name is (?P<operator>\w+)', 'asynchronous', 29),
    _p(r'(?:capture mode does not support|[Cc]annot run aclop operators during|not (?:permitted|allowed|supported) '
       r'(?:when|while) (?:the )?stream is captur)', 'graph_capture', 101),
    # numbers
    _p(r'SilentCheck\w* ComputeL1Error:val = \[(?P<value>[^\]]*)\]', _silent, 50),
    _p('A grad-norm spike may happen|feature detection detects abnormal results|Matmul checksum is abnormal',
       'corruption', 50),
    # several ranks
    _p(r'socket type\[\d\], listen on ip\[[^\]]*\] and specific port\[\d+\] fail', _port, 97),
    _p('host nic listen start failed', _port, 96),
    _p(r'(?:bind|listen)\w* (?:for )?the (?:IP port|\w+ network adapter socket)|\bport\b.{0,60}\bbound already',
       _port, 95),
    _p('Failed to initialize the HCCP process', 'hccp_busy', 70),
    _p(r'(?<!or the )TLS (?:configuration|status)s?(?: information)? (?:is|are) (?:inconsistent|different)|'
       r'config "?tls"? is invalid', 'tls', 96),
    _p(r'(?:received the Notify record from|Waiting peer|[Rr]emote) rank:? ?\[?(?P<remote>\d+)\b.*Notify|'
       r'Notify (?:register|record).*(?:from remote|peer) rank:? ?\[?(?P<remote_>\d+)', 'exec_timeout', 70),
    _p(r'Cluster Exception Location\[IP/ID\]:\[(?P<remote>[^\]]+)\].*ExceptionType:\[(?P<reason>[^\]]+)\]',
       _cluster_exception, 95),
    _p(r'serverId\[(?P<remote>[^\]]+)\], deviceId\[\d+\], (?P<reason>[\w ]+ Occurred)', _cluster_exception, 95),
    _p(r'(?i)(?<!reason=\[)(?<!reason=)\bsdma (?:copy )?error', 'hccl_link', 62),
    _p(r'error cqe (?:occurred|status)', 'hccl_link', 62),
    _p(r'(?P<reason>net health status: (?!Success|Init)\w[\w ]*)', 'hccl_link', 40),
    _p(r'hccl fftsplus (?:task )?timeout(?:.*timeout: ?(?P<seconds>\w+))?', 'exec_timeout', 90),
    _p(r'reason=\[task timeout\]|wait for compute device to finish failed, runtime result = 107020',
       'sync_timeout', 50),
    _p('get error: ?phyid:\\d+ realDeviceId:\\d+', 'communicator_device_number', 70),
    _p(r'HCCL execution timeout was set to (?P<value>\d+\w*).*bigger than watchdog timeout (?P<limit>\d+) ?ms',
       'timeout_order', 40),
    _p(r'\[(InitGroupStage|InitChannelStage|TaskExecStage)\]\s*\[(\w+)\]', _stage, 50),
    _p(r'Process group work (?P<operator>\w+),? seq_num \d+ dispatch timeout', 'watchdog', 64),
    _p(r'Watchdog caught collective operation timeout(?:.*?OpType=(?P<operator>\w+))?(?:.*ran for (?P<ms>\d+) milli)?',
       _watchdog, 65),
    _p(r'due to ProcessGroup\w+ watchdog hang|watchdog got stuck for \d+|due to a collective timeout from',
       'watchdog', 64),
    _p(r'(?i)\bhccl ?get ?root ?info fail|\bHcclCommInit\w* fail', 'communicator', 25),
    _p('watchdog thread terminated with exception|Find exception when finishedNPUExecution', 'watchdog_messenger', 6),
    *PLOG_PATTERNS,
    *HOST_PATTERNS,
    *RUNTIME_PATTERNS,
)

NPU_WARNING = 'only a warning of torch_npu'
# text that looks like an error and is none: pattern, why
HARMLESS: Tuple[Tuple['re.Pattern[str]', str], ...] = tuple((re.compile(words), why) for words, why in (
    (r'Gradient overflow\. +Skipping step|[Ll]oss scaler(?: \d+)? reducing loss scale',
     'an overflow now and then, and in the first steps, is normal with fp16: the step is skipped and the scale halved'),
    ('PCIe Bus Error: severity=Corrected|AER: Corrected error', 'the PCIe link has corrected an error by itself'),
    (r'EDAC \w+: \d+ CE |[Cc]orrected (?:hardware )?(?:memory )?error', 'the memory has corrected an error by itself'),
    ('are replaced with torch.Tensor.npu', 'transfer_to_npu says what it replaces'),
    (r'Retrying \(Retry\(total=[1-9]', 'a program tries a server again'),
    ('Failed to load image Python extension',
     'torchvision does not belong to this torch, and cannot read images by itself: training does not use that'),
    ('Non finite check and unscale on NPU', 'it only says that a check runs'),
    (r"operator '(?P<name>[\w:.]+)' is not currently supported on the NPU backend and will fall back",
     'operator {name} runs on the CPU: slow, not wrong; report it'),
    ('[Dd]o(?:es)? not support double dtype', 'float64 is computed as float32 on the NPU'),
    (r'NPU warning, error code is (?P<name>\d+)', NPU_WARNING + ' (number {name})'),
    ('ERR99999', 'torch_npu adds this line to every uncaught Python exception: it says nothing of the NPU'),
    ('failed to get total global memory', 'only a warning'),
    (r'Warning ?: ASCEND_HOME_PATH environment variable is not set',
     "only a warning: CANN's set_env.sh was not sourced in this shell"),
    (r'Warning: (?:Failed to find function (?P<name>\w+)|Version: is invalid)',
     'only a warning: torch_npu asks for a function {name} that this CANN does not have, and goes on without it'),
    (r'\bW[0-9A-Z]\d{4}(?::|\[|\))', 'only a warning of CANN'),
    (r'\[W[\d .:]*socket\.cpp.*(?:client socket|errno: 97|cannot be retrieved)|'
     r'TCP client failed to connect.* - retrying',
     'only a warning of torch: it tries another address, or again'),
))


# sentences of torch_npu for numbers of ACL, and of CANN for its codes, which alone are printed when
# TORCH_NPU_COMPACT_ERROR_OUTPUT=1
SENTENCES: List[Tuple['re.Pattern[str]', str]] = [(re.compile(words, re.IGNORECASE), code) for words, code in (
    ('failed to start the device', 'ACL 507033'), ('model execution failed', 'ACL 507011'),
    ('internal ACL of the system', 'ACL 500001'), ('GE error occurs', 'ACL 500002'),
    ('internal RUNTIME of the system', 'ACL 500003'), (r'internal DRV \(Driver\)', 'ACL 500004'),
    ('loses the heartbeat', 'ACL 507010'), ('error occurs in the task scheduler module', 'ACL 507001'),
    (r'Direct Memory Access \(DMA\)', 'ACL 507013'), ('aicore execution times out', 'ACL 507014'),
    ('aicore execution is abnormal', 'ACL 507015'), ('aicore trap is executed', 'ACL 507016'),
    ('aicore trap (?:read|write) out-of-bounds', 'ACL 507042'), ('aicpu execution times out', 'ACL 507017'),
    ('aicpu execution is abnormal', 'ACL 507018'), ('vector core execution timed out', 'ACL 507034'),
    ('vector core execution is abnormal', 'ACL 507035'), ('vector core traps', 'ACL 507036'),
    ('tasks in the specified stream are not completed', 'ACL 507046'),
    ('event is not executed completely', 'ACL 507047'),
    ('execution of the internal task times out', 'ACL 507048'), ('occurs in the Driver module', 'ACL 507899'),
    ('error occurs on the AI CPU module', 'ACL 507900'), ('communication \\(HDC\\) session', 'ACL 507901'),
    ('failed to apply for memory', 'ACL 207001'), ('memory on the device is exhausted', 'ACL 207018'),
    ('the device is unavailable', 'ACL 207004'), ('invalid device ID', 'ACL 107001'),
    ('context is empty', 'ACL 107002'),
    ('stream is not in the current context', 'ACL 107003'), ('task execution timed out', 'ACL 107019'),
    ('aicore operator overflows', 'ACL 207003'), ('failed to obtain the SOC version', 'ACL 507008'),
    ('do not have the operation permission', 'ACL 207006'),
    ('number of tasks on the stream reaches the maximum', 'ACL 507002'),
    ('getting socket times out', 'EI0006'), ('Notify register (?:times out|waits)', 'EI0002'),
    ('wait execution of the Notify register', 'EI0002'), ('failed to allocate memory', 'EL0004'),
    ('failed to allocate resource', 'EI0007'), ('failed to allocate .*bytes of NPU memory', 'EI0011'),
    ('failed to bind the IP port', 'EJ0003'), ('listening for the host network adapter', 'EI0019'),
    ('listening for the NPU network adapter', 'EI0020'), ('failed to verify the OPP', 'E30006'),
    ('failed to initialize the HCCP process', 'EJ0001'), ('failed to parse the ranktable', 'EI0004'),
    ('collective communication are inconsistent|inconsistent between ranks', 'EI0005'),
    ('versions are inconsistent', 'EI0008'), ('transport init error', 'EI0009'), ('P2P communication failed', 'EI0010'),
    ('SDMA memory copy task', 'EI0012'), ('error CQE occurred', 'EI0013'), ('for ranktable variable', 'EI0014'),
    ('failed to collect cluster information', 'EI0015'), ('for environment variable \\S+ is invalid', 'EI0001'))]
