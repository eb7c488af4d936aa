"""Runs commands in real processes that need not import torch and timm first: each is forked from this one.

huggingface_hub reads its environment when it is imported, so that this process gets HF_ENDPOINT, HF_HOME and the like;
the caller empties HF_HOME between two commands. One JSON request a line on stdin:

    {"argv": ["pull", "me/x"]} or {"code": "..."}; "env", "cwd", "stdout", "stderr", "max_file_size"

and two lines on stdout for each: `pid N` when it starts, `exit N` when it ends (negative: the signal that ended it).
"""
import atexit
import contextlib
import gc
import importlib
import json
import os
import resource
import sys
import tempfile
import traceback
import weakref
from pathlib import Path

# --help and the like stay quick because of the name of the program; here everything is imported once, for all
sys.argv = ['hub_client']
tempfile.tempdir = str(Path(os.environ['TMPDIR']).parent)  # torch 2.6 makes a folder when it is imported
gc.disable()  # the collections during these imports would take a third of their time
import encodings.idna  # noqa: E402, F401

import jinja2  # noqa: E402, F401
import matplotlib.pyplot  # noqa: E402, F401
import numpy.ctypeslib  # noqa: E402, F401
import timm  # noqa: E402, F401
import torch  # noqa: E402

from seresnet_timm import cli  # noqa: E402
from seresnet_timm.engine import train, validate  # noqa: E402, F401

with contextlib.suppress(ModuleNotFoundError):  # torch before 2.7 has none
    importlib.import_module('torch.utils.serialization.config')
for verb in ('convert', 'predict', 'pull', 'push', 'train', 'validate', 'weights'):
    importlib.import_module(f'seresnet_timm.cli.{verb}')
for module in ('launch.checks', 'launch.rank', 'launch.run', 'inference.predict', 'hub.weights'):
    importlib.import_module(f'seresnet_timm.{module}')
tempfile.tempdir = None


def child(request: dict) -> int:
    os.environ.update(request.get('env', {}))
    os.chdir(request['cwd'])
    for fd, name in ((1, 'stdout'), (2, 'stderr')):
        file = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, fd)
    if 'max_file_size' in request:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request['max_file_size'],) * 2)
    try:
        if 'code' in request:
            exec(compile(request['code'], 'code', 'exec'), {'__name__': '__main__'})
        else:
            sys.argv = ['seresnet-timm', *request['argv']]
            cli.main(request['argv'])
        return 0
    except SystemExit as e:
        return e.code or 0
    except BaseException:
        traceback.print_exc()
        return 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def main() -> None:
    torch.set_num_threads(1)
    for cleaning in list(weakref.finalize._registry):
        cleaning.atexit = False  # see preloaded/server.py
    gc.collect()
    gc.enable()
    gc.freeze()  # a collection in a child would copy every page
    commands = sys.stdin
    print('ready', flush=True)
    for line in commands:
        pid = os.fork()
        if pid == 0:
            code = child(json.loads(line))
            atexit._run_exitfuncs()  # as in a process that was not forked
            os._exit(code)
        print('pid', pid, flush=True)
        print('exit', os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == '__main__':
    main()
