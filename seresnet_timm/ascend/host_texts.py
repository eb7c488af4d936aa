"""Words of torch.distributed, gloo, Python and the host that tell a fault: see `error_texts.py`"""
import re
from typing import Tuple

from seresnet_timm.ascend.error_pattern import Pattern, Told, groups
from seresnet_timm.ascend.error_pattern import pattern as _p

_SIGNALS = {4: 'SIGILL', 7: 'SIGBUS', 8: 'SIGFPE', 9: 'SIGKILL', 11: 'SIGSEGV'}
_ADDRESS = r'\(?(?P<address>[\w.:\[\]-]+(?:, ?|:)\d+)'
_NODE = r'(?P<path>/dev/(?:davinci|devmm_svm|hisi_hdc)\w*)'
_OWN = r'seresnet-timm: error(?: \(rank \d+\))?: (?P<reason>.+)'
_WAIT_WORDS = re.compile(r'lost contact|has not finished a step|have not finished a step|did not come|cannot be '
                         r'reached')


def _signal(match: 're.Match[str]') -> Told:
    number = int(groups(match)['number'])
    if match['shell']:  # a shell or container adds 128
        number -= 128
    if number == 6:  # a watchdog ends its process so
        return 'aborted', {}
    if number == 4:
        return 'illegal_instruction', {}
    name = _SIGNALS.get(number)
    return ('killed', {'signal': name}) if name else None  # 15 and 2: it was told to stop


def _killed(match: 're.Match[str]') -> Told:
    return 'killed', {'signal': 'SIGKILL'}


def _own(match: 're.Match[str]') -> Told:
    """A sentence of this package."""
    return ('peer_lost' if _WAIT_WORDS.search(match['reason']) else 'own'), {'reason': match['reason'].strip()}


def _server_socket(match: 're.Match[str]') -> Told:
    """Why torchrun's port cannot be used."""
    line = match.string
    port = re.search(r'(?:port: ?|\]:|\d:|bind to [^ ]+:)(\d{2,5})\b', line)
    facts = {'port': port[1]} if port else {}
    if re.search('errno: 99|EADDRNOTAVAIL|code: -99|Cannot assign requested address', line):
        address = re.search(r'(?:bind to|address)[: (\[]+([\w.:-]+?)[\])]?:\d{2,5} ', line)
        return 'address_of_another', {'address': address[1]} if address else {}
    if re.search('errno: 13|EACCES|code: -13', line):
        return 'port_low', facts
    return 'port_torch', facts


def _hashes(match: 're.Match[str]') -> Told:
    return 'library_damaged', {'library': 'that pip fetched'}


def _no_package(match: 're.Match[str]') -> Told:
    return 'wheel_missing', {'library': 'such package'}


def _waited(match: 're.Match[str]') -> Told:
    facts = groups(match)
    ms = facts.pop('ms', None)
    return 'peer_timeout', {**facts, **({'seconds': f'{int(ms) / 1000:g} s'} if ms else {})}


HOST_PATTERNS: Tuple[Pattern, ...] = (
    # processes that meet
    _p('server socket has failed to (?:bind|listen)', _server_socket),
    _p(r'EADDRINUSE.*port[: ]+(?P<port>\d+)|[Aa]ddress already in use', 'port_torch', 55),
    _p('Cannot assign requested address', 'address_of_another', 54),
    _p(r'Timed out after (?P<seconds>\d+) seconds waiting for clients\. (?P<joined>\d+/\d+) clients joined',
       'rendezvous', 60),
    _p(rf'(?:client socket has (?:timed out|failed to connect)|TCP client failed to connect(?!.* - retrying)).*? to '
       rf'(?:any network address of |host )?{_ADDRESS}', 'rendezvous',
       60),
    _p(r'\bRendezvous(?:Timeout|Connection)Error\b', 'rendezvous', 42),
    _p(r"Failed to resolve '(?P<address>[^']+)'|(?:gai error: -\d+ - |\[Errno -\d\] )?(?:Name or service not known|"
       r'Temporary failure in name resolution)', 'host_unknown', 38),
    _p(r'environment variable (?P<variable>MASTER_ADDR|MASTER_PORT|RANK|WORLD_SIZE|LOCAL_RANK) expected, but not set',
       'not_launched', 60),
    _p(r'Unable to find (?:interface|address) for: ?\[?(?P<address>[^\]\s]+)', 'host_address', 70),
    _p(r'connectFullMesh failed', 'host_address', 28),
    # networks and package indexes
    _p(r'CERTIFICATE_VERIFY_FAILED|certificate verify failed|SSL certificate problem|x509: certificate', 'certificate',
       70),
    _p(r'(?P<reason>Network is unreachable|Cannot connect to proxy|Tunnel connection failed: \d+ [\w ]+|'
       r'No route to host|Proxy Authentication Required|Client\.Timeout exceeded|TLS handshake timeout|i/o timeout|'
       r'(?:ReadTimeout|ConnectTimeout|NewConnection)Error\b|CONNECTION FAILED for url|'
       r"(?:[Cc]ouldn't|[Cc]annot|could not) connect to '?https?://[^' ]+)", 'network', 39),
    # the last attempt of pip: what it says next, that there is no such package, follows
    _p(r'Retry\(total=0\b.*after connection broken by|Max retries exceeded with url', 'network', 95),
    _p('externally-managed-environment', 'externally_managed', 70),
    _p(r"Package '?(?P<library>[\w.-]+)'? requires a different Python: (?P<found>\S+) not in '?(?P<expected>[^']+)",
       'python_version', 70),
    _p('DO NOT MATCH THE HASHES', _hashes, 70),
    _p(r"(?P<path>Python\.h|\w+\.h): No such file or directory|command '?(?P<path_>\S*(?:cc|\+\+|clang))'? failed: "
       r"No such file|unable to execute '?(?P<path__>\S*(?:cc|\+\+))'?", 'build_tools', 70),
    # the kernel of the host
    _p(r'modprobe: (?:FATAL|ERROR): (?P<reason>(?:Module \S+ not found|could not insert \S+ ?\S*: .+)[^\n]*)|'
       r'insmod: ERROR: (?P<reason_>could not insert module .+)|(?P<reason__>(?:drv|devdrv|davinci)\w*: probe of \S+ '
       r'failed with error -?\d+)', 'driver_module', 70),
    _p(r'AER: Uncorrect\w+ \(?Fatal\)? error|PCIe Bus Error: severity=Uncorrect', 'pcie', 60),
    # processes that wait
    _p(r'(?:Connection (?:closed|reset) by(?: remote)? peer(?: \[?(?P<remote>[\w.:-]+)\]?)?)|Broken pipe|NCCL '
       r'communicator was aborted|remote process exited|\bRendezvousClosedError\b|has failed to \w+ (?:a |the )?'
       r'(?:keep-alive )?(?:heartbeat|rendezvous).{0,60}rendezvous|DistNetworkError|recvValue failed|'
       r'failed to recv, got 0 bytes|'
       r'lost contact with (?:the other ranks|another node)', 'peer_lost', 40),
    _p(r'Timed out waiting (?P<ms>\d+) ?ms|[Ww]ait timeout after (?P<ms_>\d+) ?ms|(?:^|[^t] )[Ss]ocket [Tt]imeout|'
       r'Timed out waiting|store .*timeout', _waited, 41),
    _p(r'[Rr]anks? (?P<remote>[\d, ]*\d) failed to pass monitoredBarrier|Rank \d+ successfully reached '
       'monitoredBarrier', 'barrier', 45),
    _p(r'NCCL WARN (?P<reason>Call to .+ failed.*)', 'nccl', 32),
    _p(r'NCCL error in|DistBackendError.*NCCL|nccl\w*(?:Error|Usage): (?P<reason>[^.]+)', 'nccl', 33),
    _p(r'(?P<reason>Duplicate GPU detected.*)', 'nccl', 34),
    _p(r'op\.preamble\.length <= op\.nbytes', 'different_arguments', 60),
    _p('Detected mismatch between collectives on ranks|appears not to match sizes of the same param in process|'
       r'expects same model across all ranks', 'different_arguments', 60),
    _p('No backend type associated with device type cpu', 'cpu_tensor', 60),
    _p(r'error: unrecognized arguments: (?P<argument>\S.*)', 'arguments', 60),
    _p(r'file write failed\b|inline_container.*unexpected pos \d+ vs', 'disk_full', 50),
    # devices of the host
    _p(r'(?P<path>\S*npu-smi): [Pp]ermission denied', 'permission'),
    _p(rf"(?:[Pp]ermission denied|[Oo]peration not permitted)\W{{1,4}}{_NODE}|"
       rf"{_NODE.replace('path', 'path_')}.{{0,60}}(?:[Pp]ermission denied|"
       r'errno[ (=:]*13\b|[Oo]peration not permitted|EACCES)', 'permission'),
    _p(rf"No such file or directory: '?{_NODE}|{_NODE.replace('path', 'path_')}.{{0,60}}(?:[Nn]o such (?:file|device)|"
       r'errno[ (=:]*2\b)', 'device_nodes'),
    _p(r"npu-smi: (?:command )?not found|No such file or directory: '[\w/]*npu-smi'|npu-smi: No such file|"
       r'command not found: npu-smi', 'npu_smi_missing'),
    # limits of the host
    _p("DefaultCPUAllocator: can't allocate memory|Out of memory: Kill(?:ed)? process (?P<pid>\\d+)|"
       r'oom[-_]kill(?::|\W{0,5}event)|'
       r'\[Errno 12\] Cannot allocate memory|\bOOMKilled\b|Memory cgroup out of memory|by the OOM killer|'
       r"with result 'oom-kill'|[Ee]xceeded (?:job |step )?memory limit|"
       r'^\s*(?:\w+\.)*_?(?:Array)?'
       r'MemoryError(?::|\s*$)', 'memory_host'),
    _p(r'DataLoader worker .*killed by signal: Bus error|insufficient shared memory|unable to write to file </torch_|'
       r'unable to mmap \d+ bytes from file </|'
       r'[Ss]hared memory.{0,20}\bnot enough|'
       r"No space left on device: '/dev/shm|unable to (?:allocate|open|mmap|resize|write).{0,40}shared memory",
       'shared_memory', 101),
    _p(r'DataLoader worker .*killed by signal: Killed', 'memory_host'),
    _p(r'DataLoader worker .*killed by signal: (?P<signal>\w[\w ]*)', 'killed', 44),
    _p(r'DataLoader worker .*exited unexpectedly', 'worker_ended', 20),
    _p('Too many open files|received 0 items of ancdata', 'open_files', 102),
    _p(r"alloc pid failed|fork rejected by pids controller|can't start new thread|"
       r'\[Errno 11\] Resource temporarily unavailable|fork: (?:retry: )?Resource temporarily|'
       r'Thread creation failed|pthread_create failed', 'processes', 60),
    _p(r"\[Errno 5\] Input/output error(?:: '(?P<path>[^']+)')?|\[Errno 116\] Stale file handle(?:: '(?P<path_>[^']+)')"
       r'?', 'disk_error', 60),
    _p(r'(?:EXT4|XFS|BTRFS)\S* (?:error|\(\w+\): .*[Cc]orruption).*?\bdevice (?P<path>\w+)|'
       r'\bI/O error, dev (?P<path_>\w+)', 'disk_error', 60),
    _p(r"\[Errno 13\] Permission denied: '(?P<path>[^']+)'", 'file_permission', 50),
    _p(r"\[Errno 30\] Read-only file system(?:: '(?P<path>[^']+)')?", 'read_only', 60),
    _p(r'\bset_env\.sh: No such file', 'cann_missing', 60),
    _p('PackagesNotFoundError', _no_package, 60),
    _p(r"can't open file '(?P<path>[^']+)': \[Errno 2\]|^(?:-?\w*sh|source): (?:(?:line|行) ?\d+: )?"
       r"(?P<path___>[\w./~-]+): No such file|couldn't chdir to `?(?P<path_>\S+?)'?: No such|"
       r"Failed at step CHDIR spawning (?P<path__>\S+?): No such", 'file_missing', 40),
    _p(r'(?:Failed to execute|Failed at step EXEC spawning) (?P<path___>\S+?): No such file|status=203/EXEC|'
       r'execve\(\): (?P<path>\S+): No such file|\b(?P<path_>torchrun|python\d?|seresnet-timm|accelerate): '
       r'(?:command )?not found', 'program_missing', 40),
    # schedulers and containers
    _p(r'(?:JOB|STEP) (?P<job>[\w.+]+) ON \S+ CANCELLED AT \S+ DUE TO TIME LIMIT|service reached '
       r"runtime time limit|Failed with result 'timeout'", 'time_limit', 90),
    _p(r'CANCELLED AT \S+ DUE TO NODE FAIL|srun: error: Node failure on (?P<node>\S+)', 'node_lost', 90),
    _p(r'(?:JOB|STEP) (?P<job>[\w.+]+) ON \S+ CANCELLED AT \S+ DUE TO (?P<reason>\w[\w ]*)', 'job_ended', 80),
    _p(r'(?:JOB|STEP) (?P<job>[\w.+]+) ON \S+ CANCELLED AT \S+ \*', 'step_ended', 10),
    _p(r'Unable to contact slurm controller|Invalid job credential|(?:[Mm]unge|auth_munge)\S*:? .*(?:failed|error|'
       r'[Ii]nvalid|[Ee]xpired)|Task launch for \S+ failed on node (?P<node>\S+): Communication', 'slurm_service', 75),
    _p(r'(?P<reason>exceeds? the quota[\w ]*|exceeded quota: .+|unable to find (?:job )?queue.*? not found|'
       r'checkNodeNPU\w* ?: ?[^>]+)', 'not_scheduled', 69),
    _p(r'(?:srun|sbatch|salloc): error: (?P<reason>(?:Unable to allocate resources|Unable to create step[^:]*|'
       r'Batch job submission failed|'
       r'Job submit/allocate failed): .+)|'
       r'FailedScheduling\b.*?(?P<reason_>\d+/\d+ nodes are (?:un)?available:.+?)(?:\. |\.?$)|'
       r'FailedScheduling\b.*?\bvolcano +(?P<reason__>.+?)\.?$|(?P<reason___>pod group is not ready.+?)\.?$|'
       r'(?P<reason_____>\bInsufficient [\w-]+\.com/[\w-]+)|'
       r'(?P<reason______>enqueue failed, require npu num.+|Failed to get plugin volcano-npu\S*|'
       r'Failed to create pod (?!sandbox).+ for Job.+)|'
       r'(?P<reason____>(?:Allocate failed due to|Pod Allocate failed due to) .+?)(?:, which is unexpected|$)',
       'not_scheduled', 70),
    _p(r'The node was low on resource: (?P<resource>[\w-]+)', 'evicted', 105),
    _p(r'Failed to pull image "(?P<path>[^"]+)"|pull access denied for (?P<path_>\S+?),|manifest for (?P<path__>\S+) '
       r'not found|toomanyrequests|\b(?:ErrImagePull|ImagePullBackOff)\b', 'image_missing', 70),
    _p(r'failed to mount src: (?P<path>\S+?)\.failed|error mounting "(?P<path_>[^"]+)"|'
       r"creating mount source path '(?P<path__>[^']+)'", 'container_start', 71),
    _p(r'OCI runtime create failed|'
       r'denied while trying to connect to the Docker|(?P<reason>Cannot connect to the Docker daemon|'
       r'could not select device driver.*|container name "\S+" is already in use|Failed to parse oci config file|'
       r'Failed to create pod sandbox.*|failed to (?:generate container|reserve container name).*|'
       r'failed to check files, (?:owner|\w+ permission) not right \S+)|'
       r'unknown or invalid runtime name|Unknown runtime specified|bind source path does not exist: (?P<path__>\S+)|'
       r'error running prestart hook', 'container_start', 70),
    _p(r'(?:MountVolume\.\w+ failed for volume|Unable to attach or mount volumes:.*?\bunmounted volumes=)[ \[]*'
       r'"?(?P<path>[\w.-]+)', 'volume', 70),
    _p(r'MoxFileNotExistsException|OBSException|obsClient\.\w+.*\b40[34]\b|ERROR:root:\s*stat:40[34]|'
       r'^\s*stat:40[34]\b|\bobs://\S+ (?:is |does )?not (?:exist|found)',
       'object_storage', 60),
    # processes that end
    _p(r'srun: error: \S+: tasks? (?P<remote>\d+)\S*: (?P<signal>Killed|Segmentation fault|Bus error|Illegal '
       r'instruction)', 'killed', 61),
    _p(r'srun: error: \S+: tasks? \S+: Out Of Memory', 'memory_host'),
    _p(r'(?:exitcode\s*|non-zero code): (?P<shell>)-(?P<number>\d+)', _signal, 60),
    _p(r'(?P<shell>)(?:Signal (?P<number>\d+) \(SIG\w+\) received by PID|code=(?:killed|dumped), '
       r'status=(?P<number_>\d+)/)', _signal, 60),
    _p(r'(?P<shell>(?:[Ee]xit(?:ed with)?[ -]?(?:[Cc]ode|status)|ExitCode|ExitStatus)[":= ]+)(?P<number>1[34]\d)\b',
       _signal, 44),
    _p(r'[Rr]ank (?P<remote>\d+) was killed by (?P<signal>SIG\w+)', 'killed', 60),
    _p(r'(?:Fatal Python error: |^\s*|\d )(?P<signal>Segmentation fault|Bus error)', 'killed', 50),
    _p(r'(?:Fatal Python error: |^|\d )Illegal instruction', 'illegal_instruction', 50),
    _p(r'^Killed\s*$|(?:(?:line|行) ?\d+|第 ?\d+ ?行): +\d+ Killed\b|^\[\d+\][+-]? +(?:\d+ +)?[Kk]illed\b|'
       r'sh: killed\b', _killed, 45),
    _p(r'^terminate called after throwing|Aborted \(core dumped\)|Fatal Python error: Aborted', 'aborted', 5),
    _p(_OWN, _own, 35),
    _p(r'seresnet_timm\.errors\.(?:RunError|UsageError): (?P<reason>.+)', _own, 35),
)
