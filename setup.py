"""Adds to setup.cfg the optional C extension, built where libjpeg-turbo's header is, and a short description."""
import os
import sys
import tempfile

from setuptools import Extension, setup
from setuptools.errors import CCompilerError, ExecError

try:
    from distutils.ccompiler import new_compiler  # setuptools' own copy
    from distutils.sysconfig import customize_compiler
except ImportError:
    new_compiler = None

LIBRARY = 'jpeg'
PROBE = '''
#include <stdio.h>
#include <jpeglib.h>
#if LIBJPEG_TURBO_VERSION_NUMBER < 2000000
#error
#endif
void *volatile used[] = {(void *)jpeg_skip_scanlines, (void *)jpeg_crop_scanline};
int main(void) { return !used[0] || !used[1]; }
'''


def can_build() -> bool:
    """A C compiler, and libjpeg-turbo 2.0 or newer with its header: a tiny program compiles and links."""
    if new_compiler is None or sys.platform == 'win32':
        return False
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, 'probe.c')
        with open(source, 'w') as f:
            f.write(PROBE)
        try:
            compiler = new_compiler()
            customize_compiler(compiler)
            objects = compiler.compile([source], output_dir=folder)
            compiler.link_executable(objects, os.path.join(folder, 'probe'), libraries=[LIBRARY])
        except (CCompilerError, ExecError, OSError):
            return False
    return True


# no debug information: a third of the size; no fused operations but where Pillow has them (blend, _augment.c): the same
# results on every machine; all names are looked up at the import (now): if another libjpeg lacks one, the import fails,
# and not the process later
FLAGS = dict(
    extra_compile_args=['-O3', '-g0', '-ffp-contract=off'],
    extra_link_args=['-Wl,--strip-all', '-Wl,-z,now'] if sys.platform == 'linux' else [],
    optional=True)
extensions = []
if can_build():
    extensions.append(Extension(
        'seresnet_timm.data._jpeg', ['seresnet_timm/data/_jpeg.c'],
        depends=[f'seresnet_timm/data/{name}.h' for name in ('_resize', '_huffman', '_huffman_check')],
        libraries=[LIBRARY],
        **FLAGS))
    extensions.append(Extension('seresnet_timm.data._augment', ['seresnet_timm/data/_augment.c'], **FLAGS))
else:
    print('seresnet_timm: no C compiler or no libjpeg-turbo header (Debian: libjpeg-dev): built without the C decoder, '
          'simplejpeg decodes instead')

# what an index shows, and every installation holds: README up to its second chapter
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'README.md'), encoding='utf-8') as f:
    description = '\n## '.join(f.read().split('\n## ')[:2]) + '\nAll else: README.md of the source code.\n'

setup(ext_modules=extensions, long_description=description, long_description_content_type='text/markdown')
