/* Decode the region of a JPEG that a crop needs, and resize it: libjpeg-turbo, no GIL, no other dependency
 *
 * Only what the crop needs is decoded: columns by jpeg_crop_scanline, rows by jpeg_skip_scanlines, resolution by the
 * inverse DCT at 1/2, 1/4 or 1/8. The resize works as in Pillow: the filter widens with the reduction (antialias), and
 * its window ends at the region, so that results equal Pillow's up to rounding and, if the DCT reduces, up to the
 * difference of two low-pass filters.
 *
 * Files may be hostile. If libjpeg warns or fails, or the file is not an 8-bit grey, RGB or YCbCr image of ordinary
 * size, it is not decoded here: the caller uses Pillow, whose result is timm's.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include "_huffman.h"
#include "_resize.h"

#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER < 2000000
#error "libjpeg-turbo 2.0 or newer is needed: jpeg_crop_scanline and jpeg_skip_scanlines"
#endif

#define MAX_PIXELS 89478485.0                 /* from here on Pillow warns of a decompression bomb */
#define MAX_MEMORY (512L * 1024 * 1024)       /* of libjpeg, for progressive files */
#define MAX_SCANS 100                         /* of a progressive file; more take minutes and are an attack */
#define TAIL 64                               /* the last bytes of a whole file contain the end-of-image marker */
#define MARGIN 2                              /* columns beside the region, which smooth chroma upsampling looks at */


/* --- decoding ------------------------------------------------------------------------------------------------------ */

typedef struct {
    struct jpeg_error_mgr base; /* first: libjpeg knows only this part */
    jmp_buf escape;
} Errors;

static void fail(j_common_ptr info)
{
    longjmp(((Errors *)info->err)->escape, 1);
}

static void note_warning(j_common_ptr info, int level)
{
    if (level < 0)
        fail(info); /* Pillow handles damaged files */
}

static void say_nothing(j_common_ptr info)
{
    (void)info;
}

static void limit_scans(j_common_ptr info)
{
    if (((j_decompress_ptr)info)->input_scan_number > MAX_SCANS)
        fail(info);
}

typedef struct {
    /* region of the image, in pixels */
    double left, top, width, height;
    /* it becomes full_width x full_height, of which this window is wanted */
    int full_width, full_height, x, y, out_width, out_height;
    int bicubic, hflip, vflip, planar;
    int max_reduction; /* of the DCT: 1, 2, 4 or 8 */
} Request;

typedef struct {
    struct jpeg_decompress_struct info;
    struct jpeg_progress_mgr progress;
    Errors errors;
    int is_open;
    int reduction;   /* of the DCT */
    Filter columns, rows;
    uint8_t *pixels; /* decoded rows, RGBX */
    size_t stride;
    int left;        /* image column of pixels[0] */
    int16_t *blended; /* a row of output height and input width */
    uint32_t *line;  /* a row of the output */
    Scan *scan;
} Work;

static void close_work(Work *w)
{
    if (w->is_open)
        jpeg_destroy_decompress(&w->info);
    free_filter(&w->columns);
    free_filter(&w->rows);
    free(w->pixels);
    free(w->blended);
    free(w->line);
    if (w->scan)
        free(w->scan->copy);
    free(w->scan);
}

/* The beginning of libjpeg-turbo's entropy decoder, which its header does not show; _huffman_check.h: is it there? */
typedef struct {
    void (*start_pass)(j_decompress_ptr info);
    boolean (*decode_mcu)(j_decompress_ptr info, JBLOCKROW *blocks);
} EntropyDecoder;

static struct {
    Path paths[2]; /* that this machine has, best first */
    int count;
    Path path;     /* that is used */
    int huffman;   /* whether _huffman.h decodes the files that it can */
    EntropyDecoder baseline; /* libjpeg's, for these files */
} choice;

static boolean decode_mcu_of_scan(j_decompress_ptr info, JBLOCKROW *blocks)
{
    if (!decode_mcu(((Work *)info->client_data)->scan, blocks))
        fail((j_common_ptr)info);
    return TRUE;
}

/* Use our Huffman decoder from here on. `left` and `width` are the columns that libjpeg decodes. */
static int replace_huffman(Work *w, JDIMENSION left, JDIMENSION width)
{
    struct jpeg_decompress_struct *info = &w->info;
    EntropyDecoder *entropy = (EntropyDecoder *)info->entropy;
    if (entropy->start_pass != choice.baseline.start_pass || entropy->decode_mcu != choice.baseline.decode_mcu)
        return 1; /* another kind of file: libjpeg decodes it */
    w->scan = calloc(1, sizeof *w->scan);
    if (!w->scan || !begin_scan(w->scan, info, left * (JDIMENSION)w->reduction, width * (JDIMENSION)w->reduction))
        return 0;
    info->client_data = w;
    entropy->decode_mcu = decode_mcu_of_scan;
    return 1;
}

/* Start reading; the caller has set w->errors.escape. Returns 0 for a file that Pillow must read. */
static int open_file(Work *w, const uint8_t *data, size_t size)
{
    jpeg_create_decompress(&w->info);
    w->is_open = 1;
    w->info.mem->max_memory_to_use = MAX_MEMORY;
    w->progress.progress_monitor = limit_scans;
    w->info.progress = &w->progress;
    jpeg_mem_src(&w->info, (unsigned char *)data, (unsigned long)size);
    if (jpeg_read_header(&w->info, TRUE) != JPEG_HEADER_OK || w->info.data_precision != 8)
        return 0;
    if (w->info.jpeg_color_space != JCS_YCbCr && w->info.jpeg_color_space != JCS_GRAYSCALE &&
        w->info.jpeg_color_space != JCS_RGB)
        return 0;
    return (double)w->info.image_width * w->info.image_height <= MAX_PIXELS;
}

static void prepare_errors(Work *w)
{
    memset(w, 0, sizeof *w);
    w->info.err = jpeg_std_error(&w->errors.base);
    w->errors.base.error_exit = fail;
    w->errors.base.emit_message = note_warning;
    w->errors.base.output_message = say_nothing;
}

static int is_whole(const uint8_t *data, size_t size)
{
    size_t i, first = size > TAIL ? size - TAIL : 0;
    for (i = size; i-- > first + 1;)
        if (data[i] == 0xD9 && data[i - 1] == 0xFF)
            return 1;
    return 0;
}

/* Width and height, or 0 for a file that Pillow must read. `w` is the caller's to close. */
static int read_size(Work *w, const uint8_t *data, size_t size, int *width, int *height)
{
    prepare_errors(w);
    if (setjmp(w->errors.escape))
        return 0;
    if (!is_whole(data, size) || !open_file(w, data, size))
        return 0;
    *width = (int)w->info.image_width;
    *height = (int)w->info.image_height;
    return 1;
}

/* Whether libjpeg would crop a component wrongly: jpeg_crop_scanline takes each to be reduced as much as the first, and
 * one that is reduced less and still smaller than the image (4x2 or 2x4 samples of brightness to one of colour) ends
 * in the middle. */
static int is_cropped_wrongly(const struct jpeg_decompress_struct *info, int reduction)
{
    int i, least = DCTSIZE / reduction;
    for (i = 0; i < info->num_components; i++) {
        const jpeg_component_info *c = &info->comp_info[i];
        if (c->DCT_SIZE > least && (c->h_samp_factor * c->DCT_SIZE < info->max_h_samp_factor * least ||
                                    c->v_samp_factor * c->DCT_SIZE < info->max_v_samp_factor * least))
            return 1;
    }
    return 0;
}

/* Decode the rows and columns that the filters of `w` ask for. What changes here lives in *w, not in locals that
 * longjmp would leave undefined. Returns 0 for a file that Pillow must read. */
static int decode_region(Work *w, const uint8_t *data, size_t size, const Request *r)
{
    struct jpeg_decompress_struct *info = &w->info;
    JDIMENSION left, width;
    int right;

    prepare_errors(w);
    if (setjmp(w->errors.escape))
        return 0;
    if (!is_whole(data, size) || !open_file(w, data, size))
        return 0;
    if (r->left + r->width > info->image_width || r->top + r->height > info->image_height)
        return 0;
    for (w->reduction = 1; w->reduction < r->max_reduction; w->reduction *= 2)
        if (r->width / (2 * w->reduction) < r->full_width || r->height / (2 * w->reduction) < r->full_height)
            break;
    info->scale_num = 1;
    info->scale_denom = (unsigned int)w->reduction;
    info->out_color_space = JCS_EXT_RGBX;
    info->dct_method = JDCT_ISLOW;
    info->do_fancy_upsampling = TRUE;
    if (!make_filter(&w->columns, r->left / w->reduction, (r->left + r->width) / w->reduction, r->full_width, r->x,
                     r->out_width, r->bicubic, r->hflip) ||
        !make_filter(&w->rows, r->top / w->reduction, (r->top + r->height) / w->reduction, r->full_height, r->y,
                     r->out_height, r->bicubic, r->vflip))
        return 0;
    jpeg_start_decompress(info);
    if (w->columns.last > (int)info->output_width || w->rows.last > (int)info->output_height)
        return 0;

    left = w->columns.first > MARGIN ? (JDIMENSION)(w->columns.first - MARGIN) : 0;
    right = w->columns.last + MARGIN;
    if (right > (int)info->output_width)
        right = (int)info->output_width;
    width = (JDIMENSION)right - left;
    if (width < info->output_width) {
        if (is_cropped_wrongly(info, w->reduction))
            return 0;
        jpeg_crop_scanline(info, &left, &width); /* moves left to the start of a block */
    }
    if (choice.huffman && !info->progressive_mode && !info->arith_code && !jpeg_has_multiple_scans(info) &&
        !replace_huffman(w, left, width))
        return 0;
    w->left = (int)left;
    w->stride = (size_t)info->output_width * 4;
    w->pixels = malloc(w->stride * (size_t)(w->rows.last - w->rows.first) + AFTER_ROW);
    if (!w->pixels)
        return 0;
    if (w->rows.first > 0)
        jpeg_skip_scanlines(info, (JDIMENSION)w->rows.first);
    while (info->output_scanline < (JDIMENSION)w->rows.last) {
        JSAMPROW row = w->pixels + w->stride * (info->output_scanline - (JDIMENSION)w->rows.first);
        jpeg_read_scanlines(info, &row, 1);
    }
    jpeg_abort_decompress(info); /* rows below the region are not decoded */
    return 1;
}

static int decode_and_resize(Work *w, const uint8_t *data, size_t size, const Request *r, uint8_t *out)
{
    size_t plane = (size_t)r->out_width * r->out_height;
    int n, o;

    if (!decode_region(w, data, size, r))
        return 0;
    if (!out)
        return 1;
    n = 4 * (w->columns.last - w->columns.first);
    w->blended = calloc((size_t)n + 4 * (size_t)w->columns.taps + AFTER_ROW, sizeof(int16_t));
    w->line = malloc(sizeof(uint32_t) * (size_t)r->out_width);
    if (!w->blended || !w->line)
        return 0;
    for (o = 0; o < r->out_height; o++) {
        const uint8_t *in = w->pixels + (size_t)(w->rows.start[o] - w->rows.first) * w->stride +
                            4 * (size_t)(w->columns.first - w->left);
        choice.path.blend_rows(in, w->stride, w->rows.weight + (size_t)o * w->rows.taps, w->rows.length[o], n,
                               w->blended);
        choice.path.blend_columns(w->blended, &w->columns, w->line);
        if (r->planar) {
            uint8_t *to = out + (size_t)o * r->out_width;
            store_planes(w->line, r->out_width, to, to + plane, to + 2 * plane);
        } else {
            store_pixels(w->line, r->out_width, out + 3 * (size_t)o * r->out_width);
        }
    }
    return 1;
}

#include "_huffman_check.h"


/* --- Python -------------------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(size_doc,
"size(data)\n--\n\n"
"Width and height of a JPEG, from its header; None for what `decode` would not take.");

static PyObject *py_size(PyObject *self, PyObject *args)
{
    Py_buffer data;
    Work work;
    int width = 0, height = 0, ok;
    (void)self;

    if (!PyArg_ParseTuple(args, "y*", &data))
        return NULL;
    ok = read_size(&work, data.buf, (size_t)data.len, &width, &height);
    close_work(&work);
    PyBuffer_Release(&data);
    if (!ok)
        Py_RETURN_NONE;
    return Py_BuildValue("ii", width, height);
}

PyDoc_STRVAR(decode_doc,
"decode(data, out, box, size, window, bicubic=False, hflip=False, vflip=False, planar=True, max_reduction=8)\n--\n\n"
"Decode a region of a JPEG, resize it with antialias, and write a window of the result into `out`, without the GIL.\n\n"
"Args:\n"
"    data: The file's bytes.\n"
"    out: Writable buffer of 3 * window width * window height bytes: uint8, CHW if planar, else HWC, RGB. None: decode\n"
"        only, to see whether the file is sound, or how long that takes.\n"
"    box: Region as (left, top, width, height) in pixels of the image.\n"
"    size: (width, height) that the region is resized to.\n"
"    window: Part of that as (x, y, width, height).\n"
"    bicubic: Bicubic instead of bilinear.\n"
"    hflip, vflip: Mirror the result.\n"
"    max_reduction: The DCT may halve the resolution up to this factor (1, 2, 4 or 8), never below `size`.\n\n"
"Returns:\n"
"    True; or False, with `out` undefined, for a file that Pillow should decide on: damaged, CMYK, 12 bits, huge.\n\n"
"Raises:\n"
"    ValueError: The arguments do not fit each other.");

static PyObject *py_decode(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"data", "out", "box", "size", "window", "bicubic", "hflip", "vflip", "planar",
                            "max_reduction", NULL};
    PyObject *target;
    Py_buffer data, out;
    Request r;
    Work work;
    int left, top, width, height, ok;
    (void)self;

    memset(&r, 0, sizeof r);
    r.planar = 1;
    r.max_reduction = 8;
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "y*O(iiii)(ii)(iiii)|ppppi", names, &data, &target, &left, &top, &width, &height, &r.full_width,
            &r.full_height, &r.x, &r.y, &r.out_width, &r.out_height, &r.bicubic, &r.hflip, &r.vflip, &r.planar,
            &r.max_reduction))
        return NULL;
    if (left < 0 || top < 0 || width < 1 || height < 1 || r.full_width < 1 || r.full_height < 1 || r.x < 0 || r.y < 0 ||
        r.out_width < 1 || r.out_height < 1 || r.out_width > r.full_width - r.x || r.out_height > r.full_height - r.y ||
        r.full_width > JPEG_MAX_DIMENSION || r.full_height > JPEG_MAX_DIMENSION || r.max_reduction < 1 ||
        r.max_reduction > 8 || (r.max_reduction & (r.max_reduction - 1))) {
        PyErr_SetString(PyExc_ValueError, "box, size, window and max_reduction do not fit each other");
        PyBuffer_Release(&data);
        return NULL;
    }
    memset(&out, 0, sizeof out);
    if (target != Py_None) {
        if (PyObject_GetBuffer(target, &out, PyBUF_WRITABLE) < 0) {
            PyBuffer_Release(&data);
            return NULL;
        }
        if (out.len != (Py_ssize_t)3 * r.out_width * r.out_height) {
            PyErr_SetString(PyExc_ValueError, "out has not 3 * width * height bytes");
            PyBuffer_Release(&data);
            PyBuffer_Release(&out);
            return NULL;
        }
    }
    r.left = left;
    r.top = top;
    r.width = width;
    r.height = height;
    Py_BEGIN_ALLOW_THREADS
    ok = decode_and_resize(&work, data.buf, (size_t)data.len, &r, out.buf);
    close_work(&work);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    if (target != Py_None)
        PyBuffer_Release(&out);
    return PyBool_FromLong(ok);
}

PyDoc_STRVAR(use_doc,
"use(path, huffman)\n--\n\n"
"For tests: compute with one of `paths`, and decode with this module's Huffman decoder or with libjpeg's.");

static PyObject *py_use(PyObject *self, PyObject *args)
{
    const char *name;
    int huffman, i;
    (void)self;

    if (!PyArg_ParseTuple(args, "sp", &name, &huffman))
        return NULL;
    for (i = 0; i < choice.count; i++) {
        if (strcmp(choice.paths[i].name, name) == 0) {
            choice.path = choice.paths[i];
            choice.huffman = huffman;
            Py_RETURN_NONE;
        }
    }
    PyErr_Format(PyExc_ValueError, "this machine has no %s", name);
    return NULL;
}

static PyMethodDef methods[] = {
    {"use", py_use, METH_VARARGS, use_doc},
    {"size", py_size, METH_VARARGS, size_doc},
    {"decode", (PyCFunction)(void (*)(void))py_decode, METH_VARARGS | METH_KEYWORDS, decode_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_jpeg", "Region decoding of JPEGs with libjpeg-turbo.", -1, methods, NULL, NULL, NULL, NULL,
};

/* Add the constants; returns -1 on failure. */
static int add_constants(PyObject *m)
{
    char version[32];
    PyObject *names = PyTuple_New(choice.count);
    int i;

    if (!names)
        return -1;
    for (i = 0; i < choice.count; i++) {
        PyObject *name = PyUnicode_FromString(choice.paths[i].name);
        if (!name) {
            Py_DECREF(names);
            return -1;
        }
        PyTuple_SET_ITEM(names, i, name);
    }
    if (PyModule_AddObject(m, "paths", names) < 0) {
        Py_DECREF(names);
        return -1;
    }
    snprintf(version, sizeof version, "%d.%d.%d", LIBJPEG_TURBO_VERSION_NUMBER / 1000000,
             LIBJPEG_TURBO_VERSION_NUMBER / 1000 % 1000, LIBJPEG_TURBO_VERSION_NUMBER % 1000);
    if (PyModule_AddStringConstant(m, "libjpeg_turbo", version) < 0)
        return -1;
    return PyModule_AddIntConstant(m, "huffman", choice.huffman);
}

PyMODINIT_FUNC PyInit__jpeg(void)
{
    PyObject *m = PyModule_Create(&module);
    if (!m)
        return NULL;
    choice.count = find_paths(choice.paths);
    choice.path = choice.paths[0];
    choice.huffman = check_huffman();
    if (add_constants(m) < 0) {
        Py_DECREF(m);
        return NULL;
    }
    return m;
}
