"""The C code with another libjpeg, and with damaged input: refused or slower, never a crash."""
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from PIL import Image
from test_jpeg import encode, needs_c

from seresnet_timm.data import augment, jpeg

pytestmark = [needs_c, pytest.mark.skipif(not shutil.which('gcc'), reason='needs gcc')]
SOURCES = Path(jpeg.__file__).parent

# what takes the place of libjpeg-turbo's functions in front of it
SHIM = r'''
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <jpeglib.h>
typedef struct {
    void (*start_pass)(j_decompress_ptr info);
    boolean (*decode_mcu)(j_decompress_ptr info, JBLOCKROW *blocks);
} EntropyDecoder;
#ifdef TEXT
struct jpeg_error_mgr *jpeg_std_error(struct jpeg_error_mgr *errors)
{
    struct jpeg_error_mgr *(*real)(struct jpeg_error_mgr *) = dlsym(RTLD_NEXT, "jpeg_std_error");
    static const char *table[1000];
    int i;
    real(errors);
    for (i = 0; i <= errors->last_jpeg_message; i++) {
        table[i] = errors->jpeg_message_table[i];
        if (table[i] && strncmp(table[i], "Copyright", 9) == 0)
            table[i] = TEXT;
    }
    errors->jpeg_message_table = table;
    return errors;
}
#else
static boolean (*libjpegs)(j_decompress_ptr info, JBLOCKROW *blocks);
static boolean another(j_decompress_ptr info, JBLOCKROW *blocks)
{
    return libjpegs(info, blocks);
}
boolean jpeg_start_decompress(j_decompress_ptr info)
{
    boolean (*real)(j_decompress_ptr) = dlsym(RTLD_NEXT, "jpeg_start_decompress");
    boolean done = real(info);
    EntropyDecoder *entropy = (EntropyDecoder *)info->entropy;
    libjpegs = entropy->decode_mcu;
    entropy->decode_mcu = another;
    return done;
}
#endif
'''
DECODE = '''
import importlib.machinery, importlib.util, sys
loader = importlib.machinery.ExtensionFileLoader('_jpeg', sys.argv[1])
try:
    m = importlib.util.module_from_spec(importlib.util.spec_from_loader('_jpeg', loader))
except ImportError as e:
    sys.exit(f'refused: {e}')
out = bytearray(3 * 32 * 32)
assert m.decode(open(sys.argv[2], 'rb').read(), out, (0, 0, 32, 32), (32, 32), (0, 0, 32, 32))
print(m.huffman, hash(bytes(out)))
'''


def build(folder: Path, source: str, *options: str) -> str:
    """A shared library of this C code."""
    (folder / 'shim.c').write_text(source)
    target = str(folder / 'shim.so')
    subprocess.run(['gcc', '-shared', '-fPIC', '-w', str(folder / 'shim.c'), '-o', target, *options], check=True)
    return target


@pytest.fixture(scope='module')
def decode(tmp_path_factory):
    """Decode a file in a process with these environment variables."""
    file = tmp_path_factory.mktemp('jpeg') / 'photo.jpg'
    file.write_bytes(encode(Image.effect_noise((32, 32), 60).convert('RGB')))

    def run(**env: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, '-S', '-c', DECODE, jpeg._jpeg.__file__, str(file)], capture_output=True, text=True,
            env={**os.environ, 'PYTHONHASHSEED': '0', **env})
    return run


@pytest.mark.parametrize('how', (
    '-DTEXT="Copyright (C) 1991-2031 The libjpeg-turbo Project and many others"',
    '-DTEXT="Copyright (C) 2016, Thomas G. Lane, Guido Vollbeding"', '-DFUNCTION'))
def test_nothing_is_written_into_an_unknown_libjpeg(tmp_path, decode, how):
    """A later release, another project, a field that holds no function of libjpeg: libjpeg's own Huffman decoder."""
    shim = build(tmp_path, SHIM, how, '-Wl,--no-as-needed', '-ljpeg', '-ldl')
    known, unknown = decode(), decode(LD_PRELOAD=shim)
    assert known.stdout.startswith('1 ') and unknown.stdout == '0 ' + known.stdout[2:], unknown.stderr


def test_a_libjpeg_that_lacks_functions_fails_the_import(tmp_path, decode):
    """IJG's own: seen at the import, where simplejpeg takes over; not as the end of the process at the first image."""
    build(tmp_path, 'int jpeg_read_header(void) { return 0; }', '-Wl,-soname,libjpeg.so.62')
    (tmp_path / 'shim.so').rename(tmp_path / 'libjpeg.so.62')
    result = decode(LD_LIBRARY_PATH=str(tmp_path))
    if 'libjpeg.so.62' in result.stderr or 'jpeg_' in result.stderr:
        assert result.stderr.splitlines()[-1].startswith('refused: ') and result.returncode == 1
    else:
        pytest.skip('the extension is linked with another name')


def sanitized(folder: Path) -> dict:
    """Build the extensions with AddressSanitizer and UBSan; returns the environment that they need."""
    flags = ['-shared', '-fPIC', '-O1', '-g', '-ffp-contract=off', '-fsanitize=address,undefined',
             '-fno-sanitize-recover=undefined', f'-I{sysconfig.get_paths()["include"]}']
    for name, libraries in (('_jpeg', ['-ljpeg']), ('_augment', ['-lm'])):
        result = subprocess.run(
            ['gcc', *flags, str(SOURCES / f'{name}.c'), '-o', str(folder / f'{name}.so'), *libraries],
            capture_output=True)
        if result.returncode:
            pytest.skip('this gcc has no sanitizers')
    files = [subprocess.run(['gcc', f'-print-file-name=lib{name}.so'], capture_output=True, text=True).stdout.strip()
             for name in ('asan', 'ubsan')]
    return {**os.environ, 'LD_PRELOAD': ' '.join(files), 'OPENBLAS_NUM_THREADS': '1',
            'ASAN_OPTIONS': 'detect_leaks=0:allocator_may_return_null=1'}


@pytest.mark.slow
@pytest.mark.skipif(augment._augment is None, reason='the C extension is not built')
def test_damaged_files_and_strange_sizes(tmp_path):
    """1,000 changed JPEGs and 100 pictures under the sanitizers; with a larger number on demand: see fuzz_c_code.py."""
    count = os.environ.get('FUZZ_COUNT', '1000')
    result = subprocess.run(
        [sys.executable, str(Path(__file__).with_name('fuzz_c_code.py')), str(tmp_path), '7', count],
        env=sanitized(tmp_path), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    counts = json.loads(result.stdout)
    assert counts['other pixels'] == 0 and counts['decoded'] > int(count) / 2, counts
    assert counts['not by Pillow'] + counts['other smoothing'] < counts['decoded'] / 50, counts
