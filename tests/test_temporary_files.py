"""What the tests and the processes they start leave in the folder for temporary files goes with pytest's own folder."""
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import preloaded
from conftest import ROOT

from seresnet_timm.timm_scripts.known import cache_dir


def test_temporary_files_lie_in_the_folder_of_pytest(tmp_path_factory):
    """Of this process, a started Python, a forked one, and what the package takes for its cache."""
    code = 'import tempfile; print(tempfile.gettempdir())'
    folders = {subprocess.run([python, '-c', code], capture_output=True, text=True, check=True).stdout.strip()
               for python in (sys.executable, preloaded.python())}
    assert folders == {tempfile.gettempdir()}
    assert Path(tempfile.gettempdir()).parent == cache_dir().parents[3] == tmp_path_factory.getbasetemp()


def test_a_session_without_failures_leaves_nothing(tmp_path):
    """A test that leaves a temporary folder and a large file in its own."""
    (tmp_path / 'conftest.py').write_text(f'exec(open({str(ROOT / "tests/conftest.py")!r}).read())')
    (tmp_path / 'test_it.py').write_text(
        'import tempfile\ndef test_it(tmp_path):\n    tempfile.mkdtemp()\n    (tmp_path / "large").touch()\n')
    (tmp_path / 'files').mkdir()
    subprocess.run(
        [sys.executable, '-m', 'pytest', '-c', ROOT / 'setup.cfg', '--rootdir', tmp_path, tmp_path], check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, 'TMPDIR': str(tmp_path / 'files'), 'PYTHONPATH': str(ROOT / 'tests')})
    assert [p for p in (tmp_path / 'files').glob('*/*') if p.is_dir()] == []
