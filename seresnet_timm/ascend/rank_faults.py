"""Faults that concern several ranks, the host and Python: see `faults.py`"""
from typing import Dict

from seresnet_timm.ascend.fault import (
    ADVICE,
    BLOCKING,
    CAUSE,
    DMESG,
    DRIVER,
    LINK,
    LOST,
    MESSENGER,
    OTHERS,
    RUN_PLOG,
    THIS,
    WAIT,
    Fault,
)

RANK_FAULTS: Dict[str, Fault] = {
    # --- several ranks ------------------------------------------------------------------------------------------------
    'port_host': Fault(
        CAUSE, "HCCL's port [{port} ]of this host is taken[ ({ip})]",
        ('another job on this host uses the same ports', 'a process of an earlier run still runs'),
        'give each job its own ports: export HCCL_IF_BASE_PORT=N (first port of a free range){newer_host}; or end the '
        'other job; `sysctl -w net.ipv4.ip_local_reserved_ports=60000-60031` keeps the kernel off them',
        '`ss -ltnp | grep {port}` shows who listens'),
    'port_device': Fault(
        CAUSE, "HCCL's port [{port} ]of the device is taken[ ({ip})]",
        ('two processes share this NPU', 'a process of an earlier run still runs'),
        'start one process per device; end the other process{newer_device}; '
        '`npu-smi info` lists the processes of each NPU'),
    'port_torch': Fault(
        CAUSE, "torchrun's port [{port} ]is taken (not a port of HCCL)", ('another job on this host uses it',),
'choose a free port with --master-port N, the same on all nodes', '`ss -ltnp | grep {port}` shows who listens'),
    'port_low': Fault(
        CAUSE, "this user may not use torchrun's port[ {port}]", ('ports below 1024 are for root only',),
'choose a free port above 1024 with --master-port N, the same on all nodes', THIS),
    'hccp_busy': Fault(
        CAUSE, 'a process of an earlier run still holds the device, or has just ended',
        ('the earlier run is still ending', 'one of its processes has not ended'),
        'wait ten seconds and start again; else end the process (`npu-smi info` names it)'),
    'connect_timeout': Fault(
        WAIT, LOST + '[rank {remote} or ]another rank did not come in time for a connection '
        'of HCCL', ('another rank failed, or ended earlier', 'another rank was still loading, evaluating or saving',
                    'the devices do not reach each other: interface, network, TLS'),
        'read the logs of the other ranks first; raise HCCL_CONNECT_TIMEOUT (seconds, 120 unless set); if no rank has '
        'failed, check HCCL_SOCKET_IFNAME, and that `hccn_tool -i ID -tls -g` is the same on all', OTHERS),
    'tls': Fault(
        LINK, 'the devices do not connect: TLS is on at one side only[ (rank {remote})]', (
            'TLS is on for some NPUs and off for others',),
        'set the same on all: `hccn_tool -i ID -tls -g` shows it, `hccn_tool -i ID -tls -s enable 0` switches it off',
        OTHERS),
    'root_detect': Fault(
        WAIT, LOST + 'not all ranks reported to rank 0 when HCCL started[: no report of rank {missing}][ ({reason})]',
        ('the interface is wrong or does not reach rank 0', 'a rank failed earlier, or came too late'),
        'set HCCL_SOCKET_IFNAME (or HCCL_IF_IP) to the interface that reaches the other machines; read the logs of '
        'the other ranks; raise HCCL_CONNECT_TIMEOUT', OTHERS),
    'hccl_interface': Fault(
        CAUSE, 'HCCL does not find the interface or address[ {value}] on this host[, which {variable} names]',
        ('the variable names an interface or address of another machine', 'the interface is down or has no address'),
        'set HCCL_SOCKET_IFNAME to an interface of this host that reaches the others (`ip -br addr` lists them), or '
        'unset it and HCCL_IF_IP'),
    'exec_timeout': Fault(
        WAIT, LOST + '{remote_or_another} did not take part in a '
        'collective in time[ ({seconds})]',
        ('{remote_or_another} failed or ended earlier', 'it hangs, or has fewer steps', 'the network'),
        'read the log of {remote_or_another} first, and all others: the earliest error is the cause; HCCL waits '
        '{limit} s (HCCL_EXEC_TIMEOUT)', OTHERS),
    'heartbeat': Fault(
        WAIT, LOST + 'the other end[, device {remote},] no longer answers[ ({reason})]',
        ('its process has ended', 'the network'), 'read the log of the rank on that device first', OTHERS),
    'sync_timeout': Fault(
        WAIT, LOST + 'a wait for the device [{device} ]did not end in time',
        ('another rank failed, hangs, or does work that the others do not do (data, evaluation, saving)',
         'an operator hangs'),
        'read the logs of the other ranks first; ACL_DEVICE_SYNC_TIMEOUT and HCCL_EXEC_TIMEOUT say how long a wait '
        'lasts',
        OTHERS),
    'watchdog': Fault(
        WAIT, LOST + 'the watchdog ended a collective[ {operator}][ after {seconds}]',
        ('another rank failed, hangs, or has fewer steps',), 'read the logs of the other ranks first', OTHERS),
    'peer_lost': Fault(
        WAIT, LOST + '{closer} closed the connection', (
            'that process has failed or ended',), 'read the logs of the other ranks first', OTHERS),
    'peer_timeout': Fault(
        WAIT, LOST + 'another process did not answer in time[ ({seconds})]',
        ('that process has failed or ended', 'it hangs, or does work that the others do not do', 'the network'),
        'read the logs of the other ranks first', OTHERS),
    'barrier': Fault(
        WAIT, LOST + '[rank {remote} or ]another rank did not come to a barrier',
        ('that rank has failed or ended', 'it hangs, or does work that the others do not do'),
        'read the logs of the other ranks first', OTHERS),
    'rendezvous': Fault(
        WAIT, LOST + 'not all processes met at the start[: {joined} came][ within {seconds} s][; nobody answers at '
        '{address}]', ('another process failed before, or was not started',
        'wrong address, port or number of processes',
                       'a firewall'),
        'read the logs of the processes that did not come; the same --nnodes, --master-addr and --master-port on all '
        'nodes; wait longer with --rdzv-timeout', OTHERS),
    'address_of_another': Fault(
        CAUSE, 'this machine does not have the address on which rank 0 should listen[ ({address})]',
        ('--master-addr, or MASTER_ADDR, names another machine than that of rank 0', 'the address has changed'),
        'name an address of the machine that runs rank 0 (`ip -br addr` there lists them), the same on all nodes',
        THIS),
    'network': Fault(
        CAUSE, 'a server outside of this machine cannot be reached[: {reason}]', (
            'no internet, or a firewall', 'a proxy is not set, or refuses (https_proxy, no_proxy)'),
        'set https_proxy, or a mirror (pip: -i URL; models: HF_ENDPOINT); without network, collect wheels on another '
        'machine with recipes/wheelhouse.sh', THIS),
    'certificate': Fault(
        CAUSE, 'the certificate of a server is not trusted', (
            "a company's proxy with its own certificate", 'a wrong clock (`date`)'),
        'name its certificate: `pip --cert FILE`, REQUESTS_CA_BUNDLE=FILE, SSL_CERT_FILE=FILE', THIS),
    'host_unknown': Fault(
        CAUSE, 'the name of a machine[ {address}] is not known here',
        ('--master-addr, or MASTER_ADDR, is a name that this machine does not know',
         'no network or no DNS, as in a container'),
        'give an IP address, or add the name to /etc/hosts', THIS),
    'host_address': Fault(
        CAUSE, 'gloo finds no usable address of this machine[ ({address})]',
        ("this machine's own name has no address, or one that the others do not reach (127.0.1.1 in /etc/hosts)",
         'GLOO_SOCKET_IFNAME names an interface that is not here or has no address'),
        'set GLOO_SOCKET_IFNAME to an interface that reaches the other machines (`ip -br addr` lists them)', THIS),
    'not_launched': Fault(
        CAUSE, 'a distributed run was started without {variable}', ('the script was not started by torchrun',),
        'start it with torchrun, or with seresnet-timm train --nproc N', THIS),
    'nccl': Fault(
        LINK, 'NCCL failed[: {reason}]', ('an earlier fault of another rank', 'the network, or the driver of the GPU'),
        'run with NCCL_DEBUG=WARN; read the logs of the other ranks; check NCCL_SOCKET_IFNAME', OTHERS),
    'watchdog_messenger': Fault(
        MESSENGER, 'the watchdog reports an error of another operation', ('the text after it is the fault',),
        'read what follows, and the logs of the other ranks', OTHERS),
    'hccl_link': Fault(
        LINK, 'a link between devices was not made or broke[ (remote rank {remote})][: {reason}][; the other end: '
        '{peer}]',
        ('the process at the other end failed first', 'a cable, module or port is down',
        'address or network of the NPU'),
        'read the log of the rank at the other end; `hccn_tool -i ID -link -g`, `-ip -g` and `-net_health -g`', OTHERS),
    'communicator': Fault(
        LINK, 'the communicator of HCCL could not be made[ ({operator})]',
        ('the code below the number names the cause', 'versions of driver, CANN and torch_npu do not match'),
        'compare the versions of driver and CANN on all machines; read plog', RUN_PLOG),
    'communicator_driver': Fault(
        CAUSE, 'the communicator of HCCL could not be made: HCCL refused a parameter[ ({operator})]',
        ('the driver is older than CANN', 'ranks were started with different world sizes'),
        DRIVER, RUN_PLOG),
    'communicator_device_number': Fault(
        CAUSE, 'the communicator of HCCL could not be made: HCCL did not find the device by its number',
        ('an error of CANN before 8.1, in containers that have only some of the devices',), 'install CANN 8.1 or newer',
        RUN_PLOG),
    'hccl_general': Fault(
        LINK, 'HCCL failed[ in {operator}]', ('an earlier fault of this or another rank',),
'the code of CANN below the number names the cause; read the logs of the other ranks', RUN_PLOG),
    'timeout_order': Fault(
        ADVICE, 'HCCL_EXEC_TIMEOUT [({value}) ]is above the time-out of the process group[ ({limit} ms)]: the watchdog '
        'ends a run first, and nothing is in plog', (), "set HCCL_EXEC_TIMEOUT below torch's time-out", THIS),
    'rank_table': Fault(
        CAUSE, 'the rank table [{path} ]cannot be used[: {reason}]',
        ('RANK_TABLE_FILE is set, and its file does not fit this machine',),
        'unset RANK_TABLE_FILE (torchrun does not need it), or correct the file: addresses from `hccn_tool -i ID -ip '
        '-g`'),
    'hccl_variable': Fault(
        CAUSE, 'a variable of HCCL has a value that it does not take[: {setting}][; it takes {expected}]', (),
        'correct or unset the variable[ {variable}]', THIS),
    'hccl_argument': Fault(
        CAUSE, 'a collective[ {operator}] was called with a wrong argument[ ({argument})]', (
            'a dtype or size that HCCL does not take',),
        'read the sentence that follows the code', 'the Python traceback'),
    'different_arguments': Fault(
        CAUSE, 'ranks called collectives with different arguments[: {argument} is {value} here and {range} there]',
        ('ranks run different code, data or versions', 'one rank skipped a collective'),
        'start all ranks with the same command and versions', OTHERS),
    'versions_differ': Fault(
        CAUSE, 'the machines have different versions of CANN[: {value} here, {range} there]', (),
        'install the same CANN on all machines', '`seresnet-timm doctor` on every machine'),
    # --- scheduler and container --------------------------------------------------------------------------------------
    'time_limit': Fault(
        CAUSE, 'the job[ {job}] has reached the time limit of the scheduler', (
            'the limit is shorter than the run', 'the run made no more steps'),
        'start it again with --resume auto and a longer limit (Slurm: --time, systemd: RuntimeMaxSec); check in the '
        'log whether it made steps until then',
        'the log of rank 0'),
    'job_ended': Fault(
        CAUSE, 'the scheduler ended the job[ {job}][: {reason}]', ('a job of higher priority needed the machine',),
        'start it again with --resume auto (Slurm: --requeue does)', 'the log of the scheduler'),
    'step_ended': Fault(
        MESSENGER, 'Slurm ended the job[ {job}]: a task of it failed, or somebody cancelled it', (),
        'read what the tasks print before it; `sacct -j JOB` tells how each ended', 'the logs of all tasks'),
    'slurm_service': Fault(
        CAUSE, 'the services of Slurm do not reach each other[: {node}]', (
            'slurmctld or slurmd does not run, or is not reachable', 'the keys of munge, or the clocks of the '
            'machines, differ'),
        '`scontrol ping`; on each machine `systemctl status slurmd munge` and `date`', 'the logs of slurmctld and '
        'slurmd'),
    'node_lost': Fault(
        CAUSE, 'a machine[ ({node})] failed, or no longer answers the scheduler',
        ('it has crashed or was restarted', 'its network'),
        'start again without it (Slurm: --exclude NODE) and with --resume auto', 'the log of the scheduler; `dmesg` '
        'of that machine'),
    'not_scheduled': Fault(
        CAUSE, 'the scheduler finds no NPUs or machine for the job[: {reason}]',
        ('other jobs use the NPUs', 'fewer NPUs are healthy than the job asks for',
         'the scheduler has no plug-in for NPUs, or has no right to create pods',
         'the resource has another name in this cluster (huawei.com/Ascend910, huawei.com/npu; Slurm: --gres)'),
        'ask for what is there: `kubectl describe node NODE`, or `sinfo -N -o "%N %G %t"`', 'the log of the scheduler '
        'and of the device plugin'),
    'evicted': Fault(
        CAUSE, 'Kubernetes evicted the pod[: its machine ran low on {resource}]', (
            'this pod, or another, used more than it had asked for',),
        'ask for what it uses (resources.requests); write to a volume; start again with --resume auto',
        '`kubectl describe pod POD`'),
    'image_missing': Fault(
        CAUSE, 'the image[ {path}] cannot be pulled', (
            'wrong name or tag', 'no network, or no rights at the registry'),
        'correct the name; without network, load it on each machine (`docker load`, `nerdctl load`)',
        '`kubectl describe pod POD`'),
    'container_start': Fault(
        CAUSE, 'the container does not start[: {path} cannot be mounted into it][: {reason}]', (
            'a path does not exist on this machine', 'the driver, or Ascend Docker Runtime, is not installed',
            'an argument of docker run', 'no rights to use Docker, or its service does not run'),
        'check that the driver is there (`npu-smi info` on the host) and that each path of -v and --device exists; '
        'install Ascend Docker Runtime, or start without --runtime ascend; `systemctl status docker`; remove an '
        'earlier container of that name', 'the text itself; `journalctl -u docker`'),
    'volume': Fault(
        CAUSE, 'a volume[ {path}] could not be mounted', (
            'the server of the volume does not answer', 'wrong path, or no rights'),
        'check the address, path and rights of the volume from that machine', '`kubectl describe pod POD`'),
    'object_storage': Fault(
        CAUSE, 'object storage (OBS) has no such path, or refuses it', (
            'a wrong path of the job', 'the job has no rights to the bucket'),
        'correct the path; give the job the right to the bucket', THIS),
    # --- host and Python ----------------------------------------------------------------------------------------------
    'killed': Fault(
        CAUSE, 'the process[ of rank {remote}] was ended by {signal}', (
            "SIGKILL: the host's memory is used up, or somebody killed it", 'SIGSEGV, SIGABRT: an error in native code',
            'SIGTERM, SIGINT: it was asked to stop'),
        '`dmesg` shows whether memory was used up; use fewer loader workers (-j)', DMESG),
    'illegal_instruction': Fault(
        CAUSE, 'a library uses an instruction that this processor does not have (SIGILL)', (
            'a package built for a newer processor', 'a damaged library'),
        'install the wheel from PyPI instead of your own build; `lscpu` shows what the processor has', DMESG),
    'host_fault': Fault(
        CAUSE, 'the kernel of the host reports a fault of the machine[: {reason}]',
        ('memory, processor or board of the host (hardware)', 'a kernel module'),
        'resume on another machine; have the machine checked (its BMC log, `dmesg`)', DMESG),
    'host_hang': Fault(
        CAUSE, 'a process or core of the host hung[: {reason}]',
        ('a disk or network drive that does not answer', 'too much work or too many interrupts on a core'),
        'look at the storage that the run uses (`dmesg`, `iostat -x 5`); copy the data to a local disk', DMESG),
    'open_files': Fault(
        CAUSE, 'too many files are open', ('many loader workers, each with open files and sockets',),
        '`ulimit -n 65536` before the run; use fewer loader workers (-j)', '`ulimit -n`'),
    'processes': Fault(
        CAUSE, 'no further process or thread can be started', (
            'the limit of processes of the user or of the container', 'many loader workers, each with threads'),
        'raise `ulimit -u`, or --pids-limit of the container; use fewer loader workers (-j); set OMP_NUM_THREADS=1',
        DMESG),
    'worker_ended': Fault(
        MESSENGER, 'a loader worker ended unexpectedly',
        ("the host's memory or /dev/shm is used up", 'an error in native code'),
        'read the lines before it; run with -j 0, which shows the error', DMESG),
    'file_permission': Fault(
        CAUSE, 'this user may not read or write the file or folder[ {path}]', (
            'it belongs to another user, as after a run as root or in a container',),
        'name another folder, or give it to this user (`chown`, `chmod`); for packages of Python use a virtual '
        'environment', '`ls -ld`'),
    'arguments': Fault(
        CAUSE, 'a script does not take an argument[: {argument}]', (
            'a flag of another script or version',
            '--local-rank: python -m torch.distributed.launch adds it to the command line'),
        'correct or leave out the argument (`--help` lists them); start with torchrun instead of '
        'torch.distributed.launch, which sets LOCAL_RANK', THIS),
    'program_missing': Fault(
        CAUSE, 'the program {path} is not found', ('the environment (venv, conda) is not active in this shell or job',),
        'activate the environment in the script of the job; `python -m seresnet_timm` works without the program', THIS),
    'file_missing': Fault(
        CAUSE, 'the file {path} does not exist here', ('a wrong path', 'a drive that is not mounted on this machine or '
        'in this container'), 'correct the path; mount the drive on all machines', THIS),
    'read_only': Fault(
        CAUSE, 'a file system is read-only[: {path}]',
        ('a volume was mounted read-only (`:ro`)', 'the kernel made it read-only after a disk error'),
        'write to another folder, or mount it writable', DMESG),
    'disk_error': Fault(
        CAUSE, 'a disk or network drive could not be read or written (input/output error)[: {path}]',
        ('a damaged disk', 'a network drive that is gone'), 'read the log of the kernel; copy the data elsewhere',
        DMESG),
    'plog': Fault(
        LINK, '{reporter} of CANN wrote an error that is not known here[: {reason}]', ('an earlier fault',),
f'read the lines before it, and the error of torch_npu in the log of this rank; {BLOCKING}'),
    'aborted': Fault(
        MESSENGER, 'the process ended itself (SIGABRT) after an error that is printed before', (),
        'read the lines before it', 'the log of this rank'),
    'inner': Fault(
        CAUSE, 'an internal error, reported by {reporter}[: {reason}]', (), f'read the lines below it; {BLOCKING}'),
    'reported': Fault(
        LINK, '{reason}; the text does not say which', (), f'{BLOCKING}; TORCH_NPU_COMPACT_ERROR_OUTPUT=0 prints all'),
    'own': Fault(CAUSE, '{reason}', (), '', THIS),
    'python': Fault(CAUSE, 'Python error {reason}', (), 'read its traceback', 'the Python traceback'),
    'unknown': Fault(
        CAUSE, '{reason}', (), f'search for the code in the documents of CANN; {BLOCKING}'),
}
