"""A command line in a real pseudo-terminal of 40 lines and 120 columns."""
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios


def run_in_terminal(*argv: object, **env: str) -> str:
    """What a command that succeeds writes to its terminal, with these environment variables too."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack('HHHH', 40, 120, 0, 0))
    process = subprocess.Popen([sys.executable, '-m', 'seresnet_timm', *map(str, argv)],
                               env={**os.environ, 'TIMM_SCRIPTS': '', **env}, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    output = b''
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # the terminal's end, on Linux
            break
        if not chunk:
            break
        output += chunk
    assert process.wait() == 0, output.decode()
    return output.decode()
