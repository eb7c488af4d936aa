"""The installed versions of CANN and of the NPU's driver, read from the files that their installers write.

Paths below `root` stand for paths below /.
"""
import contextlib
import re
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Tuple

# without these nodes in /dev a container sees no NPU
MANAGER_NODES = ('davinci_manager', 'devmm_svm', 'hisi_hdc')


def cann_home(root: Path, environ: Mapping[str, str]) -> Tuple[Optional[Path], str]:
    """Folder of the CANN in use, else of an installed one, and how it was found, or which places were searched."""
    for name in ('ASCEND_HOME_PATH', 'ASCEND_TOOLKIT_HOME'):
        if environ.get(name):
            home = Path(environ[name])
            return (home, name) if home.is_dir() else (None, f'{name}={home} does not exist')
    info = root / 'etc/Ascend/ascend_cann_install.info'
    bases = [(root / value.lstrip('/'), str(info)) for key, value in read_pairs(info).items()
             if 'path' in key.lower() and value.startswith('/')]
    for base, how in [*bases, (root / 'usr/local/Ascend', 'the usual place')]:
        for sub in ('cann', 'ascend-toolkit/latest', 'latest', 'nnae/latest', '.'):
            if (base / sub).is_dir() and cann_version(base / sub):
                return base / sub, how
    return None, 'neither ASCEND_HOME_PATH, nor /etc/Ascend/ascend_cann_install.info, nor /usr/local/Ascend'


def other_cann(home: Path, environ: Mapping[str, str]) -> Optional[str]:
    """The variable that names the operators of another version than the CANN in a folder; None if it does not."""
    value, own = environ.get('ASCEND_OPP_PATH'), home / 'opp'
    if not value or not Path(value).is_dir() or own.is_dir() and Path(value).resolve() == own.resolve():
        return None
    version = cann_version(Path(value).resolve().parent)
    return f'ASCEND_OPP_PATH={value} is of {version}' if version and version != cann_version(home) else None


def set_env_script(home: Path) -> Optional[Path]:
    """The script that sets CANN's environment variables."""
    return next((p for p in (home / 'set_env.sh', home.parent / 'set_env.sh') if p.exists()), None)


def cann_version(home: Path) -> Optional[str]:
    """Version of the CANN in a folder."""
    for pattern in ('ascend_*_install.info', '*-linux/ascend_*_install.info'):
        for path in sorted(home.glob(pattern)):
            version = read_pairs(path).get('version')
            if version:
                return version
    for path in (home / 'version.cfg', *sorted(home.glob('*/version.cfg'))):
        with contextlib.suppress(OSError):
            match = re.search(r'_running_version=\[[^:\]]*:([^\]]+)\]', path.read_text(errors='replace'))
            if match:
                return match.group(1)
    for part in ('toolkit', 'runtime', 'compiler', 'opp'):
        version = read_pairs(home / part / 'version.info').get('version')
        if version:
            return version
    return None


def driver_version(root: Path, part: str) -> Optional[str]:
    """Version of the 'driver' or the 'firmware'."""
    params = read_pairs(root / 'etc/ascend_install.info')
    base = params.get(f'{part.capitalize()}_Install_Path_Param', '/usr/local/Ascend')
    return read_pairs(root / base.lstrip('/') / part / 'version.info').get('version')


def device_nodes(root: Path) -> Tuple[List[Path], List[Path]]:
    """Device nodes of the NPUs in /dev, and the missing ones of the driver."""
    nodes = sorted((root / 'dev').glob('davinci[0-9]*'), key=lambda p: int(re.findall(r'\d+', p.name)[0]))
    return nodes, [root / 'dev' / name for name in MANAGER_NODES if not (root / 'dev' / name).exists()]


def read_pairs(path: Path) -> Dict[str, str]:
    """`key=value` lines of a file; {} if it cannot be read. `Version` is stored as `version` too."""
    try:
        text = path.read_text(errors='replace')
    except OSError:
        return {}
    pairs = dict(line.strip().split('=', 1) for line in text.splitlines() if '=' in line and line[:1] != '#')
    if 'Version' in pairs:
        pairs.setdefault('version', pairs['Version'])
    return pairs
