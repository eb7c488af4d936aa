"""Faults of the installation: of packages, Python, CANN, the driver's libraries. See `faults.py`"""
from typing import Dict

from seresnet_timm.ascend.fault import CAUSE, DOCTOR, DRIVER, MESSENGER, PYTHON_PACKAGES, SET_ENV, THIS, Fault

INSTALL_FAULTS: Dict[str, Fault] = {
    'cann_missing': Fault(
        CAUSE, '[the library {library} of ]CANN is not found[ (part of CANN: its {part} package)]',
        ("CANN's set_env.sh was not sourced in this shell", 'CANN, or a part of it, is not installed',
         'this is not an Ascend machine'),
        f'{SET_ENV}; {DOCTOR}', THIS),
    'driver_missing': Fault(
        CAUSE, "[the library {library} of ]the NPU's driver is not found",
        ('a container without /usr/local/Ascend/driver', 'the driver is not installed',
         'LD_LIBRARY_PATH does not name /usr/local/Ascend/driver/lib64'),
        'install the driver, or mount /usr/local/Ascend/driver into the container; add '
        '/usr/local/Ascend/driver/lib64 (and its folders common and driver) to LD_LIBRARY_PATH', THIS),
    'library_missing': Fault(
        CAUSE, 'the library {library} is not found',
        ('its package is not installed', 'LD_LIBRARY_PATH does not name its folder'),
        'install the package that has it, or add its folder to LD_LIBRARY_PATH', THIS),
    'cuda_library': Fault(
        CAUSE, 'a package built for CUDA was installed: it needs {library}',
        ('torch or torchvision is a CUDA build on a machine without CUDA',),
        'install the CPU builds of torch and torchvision that belong to torch_npu; `seresnet-timm doctor` prints the '
        'command', THIS),
    'backend_not_loaded': Fault(
        MESSENGER, '`import torch` loads torch_npu, which failed to load; the cause is the error above this line',
        ("CANN's set_env.sh was not sourced", 'torch and torch_npu do not match'),
        f'{SET_ENV}; {DOCTOR}; TORCH_DEVICE_BACKEND_AUTOLOAD=0 lets torch work without the NPU', THIS),
    'torch_npu_missing': Fault(
        CAUSE, 'torch_npu is not installed for this Python', ('another Python or environment was started',),
        'install the torch_npu that belongs to this torch; `seresnet-timm doctor` prints the command', THIS),
    'torch_npu_not_loaded': Fault(
        CAUSE, 'torch does not know the device npu: torch_npu was not loaded',
        ('torch_npu is not installed for this Python',
         'TORCH_DEVICE_BACKEND_AUTOLOAD=0 is set, and nothing imports it'),
        f'install torch_npu, or `import torch_npu` after torch; {DOCTOR}', THIS),
    'torch_npu_name': Fault(
        CAUSE, 'the installed {module} has no {symbol}',
        ('another version of torch_npu than the code needs',
         'a file or folder named torch_npu beside the script, or an incomplete installation'),
        'install the torch_npu that the code names; `python -c "import torch_npu; print(torch_npu.__file__)"` shows '
        'which one is imported', 'the Python traceback'),
    'extension_build': Fault(
        CAUSE, 'a package with compiled operators (such as mmcv) was built without {operator} for {device}',
        ('a wheel for CPU or CUDA was installed', 'the package has no such operator for the NPU'),
        'build the package on this machine with its switch for the NPU (mmcv: MMCV_WITH_OPS=1 FORCE_NPU=1), or run '
        'this operator on the CPU', 'the Python traceback'),
    'numpy_alias': Fault(
        CAUSE, 'a package uses numpy.{symbol}, which numpy 1.24 removed',
        ('a Python package, or a CANN, that is older than numpy 1.24',),
        "install a newer version of the package that the traceback names; else `pip install 'numpy<1.24'`",
        'the Python traceback'),
    'protobuf_new': Fault(
        CAUSE, 'the installed protobuf cannot load code that another version of it has generated',
        ('a package, or a part of CANN, that is older than protobuf 4',),
        "`pip install 'protobuf==3.20.*'`; else install a newer version of the package that the traceback names",
        'the Python traceback'),
    'numpy_new': Fault(
        CAUSE, "the installed numpy is too new for CANN's Python packages, or for torch",
        ('numpy 2 was installed, CANN needs numpy 1', 'numpy is not installed'), "`pip install 'numpy<2'`", THIS),
    'environment_half_set': Fault(
        CAUSE, 'the environment variable {variable} of CANN is not set',
        ('set_env.sh was sourced for another package, or in another shell',), SET_ENV, THIS),
    'source_folder': Fault(
        CAUSE, "Python was started in torch_npu's source folder, and imports the sources instead of the package", (),
        'start Python in another folder', THIS),
    'torch_pair': Fault(
        CAUSE, 'torch and torch_npu do not match[: {library} looks for {symbol}, which this torch does not '
        'have]', ('torch and torch_npu have different versions', 'another package installed a newer torch'),
        'install the same version of both; `seresnet-timm doctor` prints the command', THIS),
    'cann_old': Fault(
        CAUSE, 'CANN and torch_npu do not match[: {library} looks for {symbol}, which this CANN does not '
        'have]', ('CANN is older than torch_npu needs', 'set_env.sh of an older CANN was sourced'),
        'install the CANN that belongs to this torch_npu, and source its set_env.sh', THIS),
    'symbol': Fault(
        CAUSE, 'libraries of different versions are mixed: {library} looks for {symbol}, which none of them has', (),
        'install versions that match', THIS),
    'static_tls': Fault(
        CAUSE, 'a library[ ({library})] was loaded too late: no thread-local memory was left for it (aarch64)',
        ('another package was imported before torch',),
        '[set LD_PRELOAD={library} with its full path as in the text, or ]import torch before all other packages',
        THIS),
    'system_old': Fault(
        CAUSE, 'the operating system is older than this package needs: {symbol} is missing', (),
        'use a newer system or container, or an older version of the package', THIS),
    'musl': Fault(
        CAUSE, 'this system has musl as its C library (such as Alpine Linux); torch and CANN need glibc', (),
        'use an image with glibc (openEuler, Ubuntu, Debian)', THIS),
    'python_version': Fault(
        CAUSE, 'a package[, {library},] is not for this Python[: it is {found}, needed is {expected}]',
        ('another version of Python, or a free-threaded one (3.13t, 3.14t)',),
        'make an environment with a Python that torch_npu has wheels for (`seresnet-timm doctor` prints which)', THIS),
    'externally_managed': Fault(
        CAUSE, 'this Python belongs to the system: pip may not install into it', (),
        'make an environment: `python3 -m venv .venv && . .venv/bin/activate`, then install again', THIS),
    'build_tools': Fault(
        CAUSE, 'pip builds a package from source, and a compiler or header for that is missing[: {path}]',
        ('there is no wheel of it for this Python and machine', 'no C compiler, or no headers of Python'),
        'install gcc, g++ and the headers (python3-devel, or python3-dev), or a version that has a wheel', THIS),
    'cann_python': Fault(
        CAUSE, "CANN's operator compiler cannot start[: Python has no module {module}]",
        ("set_env.sh was not sourced, so that CANN's Python packages are not on PYTHONPATH",
         'a Python package that CANN needs is missing'),
        f'{SET_ENV}; {PYTHON_PACKAGES}'),
    'python_built_without': Fault(
        CAUSE, 'this Python was built without its module {module}', (
            'the headers of a library were missing when Python was compiled',),
        'install the headers[ ({package})] and build Python again, or use the Python of the system, conda or uv', THIS),
    'torchvision_pair': Fault(
        CAUSE, 'torchvision does not belong to this torch', (
            'its version is another one, or one of both is a CUDA build and the other a CPU build',),
        'install the torchvision of this torch, from the same index; `seresnet-timm doctor` prints the command', THIS),
    'numpy_abi': Fault(
        CAUSE, 'a package was compiled for another numpy than the installed one', (
            'the version of numpy was changed after the package was installed',),
        "`pip install 'numpy<2'`, or install the package that the traceback names again (--force-reinstall --no-deps)",
        'the Python traceback'),
    'cann_install': Fault(
        CAUSE, 'a package of CANN was not installed[: {reason}]', (
            'another user, folder or version than that of the packages before it', 'no space, or no rights'),
        'correct what the line names; install the toolkit first, then the kernels (ops) package of the same version',
        '/var/log/ascend_seclog, or ~/var/log/ascend_seclog of a user'),
    'python_module': Fault(
        CAUSE, 'Python has no module {module}', ('another Python or environment was started', 'it is not installed'),
        'install the package[ {package}] in the environment of this run', THIS),
    'compiler_start': Fault(
        CAUSE, "CANN's operator compiler could not start",
        ('set_env.sh was not sourced, or Python packages that CANN needs are missing',
         'the kernels (ops) package of this chip is missing'),
        f'{SET_ENV}; {PYTHON_PACKAGES}; install the kernels package of the same CANN version for this chip'),
    'opp_mismatch': Fault(
        CAUSE, 'the operator packages (OPP) do not belong to this driver or chip',
        ('the kernels package is for another CANN version or another chip', 'the driver is older than CANN'),
        f'install the kernels package of the same CANN version for this chip; {DRIVER}'),
    'wrong_architecture': Fault(
        CAUSE, 'a package or library[, {library},] is for another processor architecture than this machine',
        ('a package of x86_64 on aarch64, or the other way round', 'an image of the other architecture'),
        'install the packages and images for this machine (`uname -m`)', THIS),
    'page_size': Fault(
        CAUSE, 'a library[, {library},] was not built for the page size of this kernel[ ({reason})]',
        ('kernels of openEuler and CentOS on aarch64 may have pages of 64 KiB (`getconf PAGESIZE`)',),
        'install a build of it for such pages (wheels with manylinux in their name are), unset an LD_PRELOAD that '
        'names it, or use a kernel with pages of 4 KiB', THIS),
    'library_damaged': Fault(
        CAUSE, 'the file {library} is incomplete', ('an installation or copy that was interrupted, or a full disk',),
        'free space, and install its package again (pip: --force-reinstall --no-deps)', THIS),
    'wrong_wheel': Fault(
        CAUSE, 'the wheel {library} is not for this Python, architecture or system',
        ('its name says another version of Python (cp310) or another architecture',
         'pip is too old for its manylinux tag'),
        'take the wheel of this Python and machine (`python -V`, `uname -m`); `python -m pip install -U pip`', THIS),
    'wheel_missing': Fault(
        CAUSE, 'pip finds no {library} for this Python and machine',
        ('there is none for this version of Python or architecture',
         'no network, or an index that does not have it'),
        'compare with `python -V` and `uname -m`; `seresnet-timm doctor` prints the command for torch and torch_npu; '
        'without network, collect the wheels on another machine with recipes/wheelhouse.sh', THIS),
    'package_conflict': Fault(
        CAUSE, 'versions of packages conflict[: {reason}]',
        ('a package was installed without the constraints of torch_npu',),
        'install all in one command, with the constraints file of this torch_npu '
        '(-c seresnet_timm/ascend/constraints/torch_npu-X.txt)', THIS),
    'npu_smi_missing': Fault(
        CAUSE, 'the program npu-smi is not found',
        ('the driver is not installed', 'a container without /usr/local/bin/npu-smi and /usr/local/dcmi',
         '/usr/local/bin or /usr/local/sbin is not on PATH'),
        'install the driver, or mount npu-smi, /usr/local/dcmi and /usr/local/Ascend/driver into the container', THIS),
    'disk_full': Fault(
        CAUSE, 'the disk is full[: {path}]', ('/tmp, the home folder or /dev/shm is full',),
        'free space; ASCEND_WORK_PATH and ASCEND_CACHE_PATH move what CANN writes', '`df -h /tmp ~ /dev/shm`'),
    'cuda_build': Fault(
        CAUSE, 'torch is a CUDA build, which cannot be used beside torch_npu',
        ("PyPI's torch is a CUDA build on x86_64, and from 2.11 on also on aarch64",),
        'install the CPU build of the same version; `seresnet-timm doctor` prints the command', THIS),
    'cuda_used': Fault(
        CAUSE, 'code asks for CUDA or NCCL, which this torch or machine does not have',
        ('a script with a fixed device cuda or backend nccl', '--device cuda on an Ascend machine'),
"use --device npu; in other scripts `from torch_npu.contrib import transfer_to_npu`, or backend='hccl'",
        'the Python traceback'),
    'fork': Fault(
        CAUSE, 'the NPU was used before a fork, and again in the forked process',
        ('a process or loader worker was started by fork after the first use of the device',),
        "start processes by spawn (multiprocessing.set_start_method('spawn')), or use the device after the fork only",
        THIS),
}
