/* Steps of auto-augment and colour jitter on uint8 images (H, W, 3), with Pillow's arithmetic, so that results are Pillow's
 *
 * What Pillow does in C is stated again here for three bytes a pixel: affine maps (Geometry.c), blends (Blend.c), its grey
 * (Convert.c), the 3x3 filter (Filter.c). No GIL, no copy between an array and an image.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <emmintrin.h>
#elif defined(__aarch64__) && defined(__ARM_NEON) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#include <arm_neon.h>
#endif

/* a second copy for AVX2, chosen at load time; the same results, as operations are not fused (setup.py) */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__AVX2__) && \
    (!defined(__clang__) || __clang_major__ >= 14)
#define VECTOR_CODE __attribute__((target_clones("avx2", "default")))
#else
#define VECTOR_CODE
#endif


/* --- affine maps --------------------------------------------------------------------------------------------------- */

typedef float Four __attribute__((vector_size(16))); /* RGBX; GCC and Clang have such types on every machine */

/* A picture with its edge repeated BORDER times on each side, as that is what Pillow finds beyond the edge. */
typedef struct {
    Four *pixels;
    int width, height, line;
} Picture;

#define BORDER 2

static int open_picture(Picture *p, const uint8_t *in, int width, int height)
{
    int x, y, i;
    p->width = width;
    p->height = height;
    p->line = width + 2 * BORDER;
    p->pixels = malloc(sizeof(Four) * (size_t)p->line * (size_t)(height + 2 * BORDER));
    if (!p->pixels)
        return 0;
    for (y = 0; y < height; y++, in += 3 * (size_t)width) {
        Four *row = p->pixels + (size_t)(y + BORDER) * (size_t)p->line;
        for (x = 0; x < width; x++) {
            const uint8_t *from = in + 3 * (size_t)x;
            const Four pixel = {from[0], from[1], from[2], 0.0f};
            row[x + BORDER] = pixel;
        }
        for (i = 0; i < BORDER; i++) {
            row[i] = row[BORDER];
            row[width + BORDER + i] = row[width + BORDER - 1];
        }
    }
    for (i = 0; i < BORDER; i++) {
        size_t line = sizeof(Four) * (size_t)p->line;
        char *first = (char *)p->pixels, *top = first + BORDER * line, *bottom = top + (size_t)(height - 1) * line;
        memcpy(first + (size_t)i * line, top, line);
        memcpy(bottom + (size_t)(i + 1) * line, bottom, line);
    }
    return 1;
}

static inline Four bilinear(const Four *p, int line, float dx, float dy)
{
    Four above = p[0] + (p[1] - p[0]) * dx, below = p[line] + (p[line + 1] - p[line]) * dx;
    return above + (below - above) * dy;
}

/* Weights of three of four pixels in a row; the second one has the rest. */
static inline void cubic_weights(float d, float *w)
{
    w[0] = d * (-1.0f + d * (2.0f - d));
    w[1] = d * (1.0f + d * (1.0f - d));
    w[2] = d * d * (d - 1.0f);
}

static inline Four cubic(Four a, Four b, Four c, Four d, const float *w)
{
    return b + (a - b) * w[0] + (c - b) * w[1] + (d - b) * w[2]; /* exact where all are equal */
}

static inline Four bicubic(const Four *p, int line, float dx, float dy)
{
    float across[3], down[3];
    Four v[4];
    int r;
    cubic_weights(dx, across);
    cubic_weights(dy, down);
    p -= line + 1;
    for (r = 0; r < 4; r++, p += line)
        v[r] = cubic(p[0], p[1], p[2], p[3], across);
    return cubic(v[0], v[1], v[2], v[3], down);
}

/* Three bytes, rounded down. */
static inline void store_pixel(Four v, uint8_t *out)
{
    uint8_t bytes[4];
#if defined(__x86_64__)
    __m128i i = _mm_cvttps_epi32((__m128)v);
    int packed;
    i = _mm_packs_epi32(i, i);
    packed = _mm_cvtsi128_si32(_mm_packus_epi16(i, i));
    memcpy(bytes, &packed, 4);
#elif defined(__aarch64__) && defined(__ARM_NEON) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    uint16x4_t words = vqmovun_s32(vcvtq_s32_f32((float32x4_t)v));
    uint32_t packed = vget_lane_u32(vreinterpret_u32_u8(vqmovn_u16(vcombine_u16(words, words))), 0);
    memcpy(bytes, &packed, 4);
#else
    int i;
    for (i = 0; i < 4; i++)
        bytes[i] = v[i] <= 0.0f ? 0 : v[i] >= 255.0f ? 255 : (uint8_t)v[i];
#endif
    memcpy(out, bytes, 3);
}

/* Positions in double precision and pixels in single: of Pillow's results, which are rounded down, few differ by one. */
VECTOR_CODE
static void affine(const Picture *p, const double *a, const uint8_t *fill, int is_cubic, uint8_t *out)
{
    int x, y;
    for (y = 0; y < p->height; y++) {
        for (x = 0; x < p->width; x++, out += 3) {
            double x_in = a[0] * (x + 0.5) + a[1] * (y + 0.5) + a[2], y_in = a[3] * (x + 0.5) + a[4] * (y + 0.5) + a[5];
            const Four *pixel;
            int left, top;
            if (!(x_in >= 0.0 && x_in < p->width && y_in >= 0.0 && y_in < p->height)) {
                memcpy(out, fill, 3);
                continue;
            }
            x_in += BORDER - 0.5; /* not negative: conversion rounds down */
            y_in += BORDER - 0.5;
            left = (int)x_in;
            top = (int)y_in;
            pixel = p->pixels + (size_t)top * (size_t)p->line + left;
            store_pixel(is_cubic ? bicubic(pixel, p->line, (float)(x_in - left), (float)(y_in - top)) :
                        bilinear(pixel, p->line, (float)(x_in - left), (float)(y_in - top)), out);
        }
    }
}


/* --- colours ------------------------------------------------------------------------------------------------------- */

static inline int grey(const uint8_t *p)
{
    return (p[0] * 19595 + p[1] * 38470 + p[2] * 7471 + 0x8000) >> 16;
}

/* Between a (factor 0) and b (factor 1), or beyond. On aarch64 compilers fuse the two operations in Pillow's code. */
static inline uint8_t blend(int a, int b, float factor)
{
#if defined(__aarch64__)
    float v = __builtin_fmaf(factor, (float)(b - a), (float)a);
#else
    float v = (float)a + factor * (float)(b - a);
#endif
    return v >= 255.0f ? 255 : v > 0.0f ? (uint8_t)v : 0; /* also what is no number */
}

VECTOR_CODE
static void saturate(const uint8_t *in, size_t count, float factor, uint8_t *out)
{
    size_t i;
    for (i = 0; i < count; i++, in += 3, out += 3) {
        int g = grey(in);
        out[0] = blend(g, in[0], factor);
        out[1] = blend(g, in[1], factor);
        out[2] = blend(g, in[2], factor);
    }
}

/* Blend with the mean of 3 x 3 pixels, of which the middle one counts five times; pixels at the edge stay. Pillow sums in
 * floating point; no sum is near a half, so that integers give the same. */
VECTOR_CODE
static void sharpen(const uint8_t *in, int width, int height, float factor, uint8_t *out)
{
    int line = 3 * width, x, y;
    for (y = 0; y < height; y++, in += line, out += line) {
        const uint8_t *above = in - line, *below = in + line;
        memcpy(out, in, (size_t)line);
        if (y == 0 || y == height - 1)
            continue;
        for (x = 3; x < line - 3; x++) {
            int sum = above[x - 3] + above[x] + above[x + 3] + in[x - 3] + 5 * in[x] + in[x + 3] + below[x - 3] + below[x] +
                      below[x + 3];
            out[x] = blend((2 * sum + 13) / 26, in[x], factor);
        }
    }
}

VECTOR_CODE
static void mix(const uint8_t *one, const uint8_t *two, size_t count, float of_one, float of_two, uint8_t *out)
{
    size_t i;
    for (i = 0; i < count; i++) {
        float v = (float)one[i] * of_one + (float)two[i] * of_two;
        v = v + 8388608.0f - 8388608.0f; /* the nearest integer, the even one of two */
        out[i] = (uint8_t)(int)v;
    }
}


/* --- Python -------------------------------------------------------------------------------------------------------- */

typedef struct {
    Py_buffer in, out;
} Buffers;

static void release(Buffers *b)
{
    PyBuffer_Release(&b->in);
    PyBuffer_Release(&b->out);
}

/* Whether both are contiguous pixels of three bytes, width * height of them; else an exception, and nothing is held. */
static int fit(Buffers *b, Py_ssize_t width, Py_ssize_t height)
{
    if (width > 0 && height > 0 && width <= INT32_MAX / 3 / height && b->in.len == 3 * width * height &&
        b->out.len == b->in.len)
        return 1;
    release(b);
    PyErr_SetString(PyExc_ValueError, "arrays have not 3 * width * height bytes");
    return 0;
}

static PyObject *py_affine(PyObject *self, PyObject *args)
{
    Buffers b;
    Picture picture;
    double a[6];
    unsigned char fill[3];
    int width, height, is_cubic, is_open, i;
    (void)self;

    if (!PyArg_ParseTuple(args, "y*w*(ii)(dddddd)(bbb)p", &b.in, &b.out, &width, &height, a, a + 1, a + 2, a + 3, a + 4,
                          a + 5, fill, fill + 1, fill + 2, &is_cubic))
        return NULL;
    if (!fit(&b, width, height))
        return NULL;
    for (i = 0; i < 6; i++)
        if (!isfinite(a[i]))
            a[i] = -1e9; /* all is outside */
    Py_BEGIN_ALLOW_THREADS
    is_open = open_picture(&picture, b.in.buf, width, height);
    if (is_open)
        affine(&picture, a, fill, is_cubic, b.out.buf);
    free(picture.pixels);
    Py_END_ALLOW_THREADS
    release(&b);
    if (!is_open)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_saturate(PyObject *self, PyObject *args)
{
    Buffers b;
    float factor;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*w*f", &b.in, &b.out, &factor))
        return NULL;
    if (!fit(&b, b.in.len / 3, 1))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    saturate(b.in.buf, (size_t)b.in.len / 3, factor, b.out.buf);
    Py_END_ALLOW_THREADS
    release(&b);
    Py_RETURN_NONE;
}

static PyObject *py_sharpen(PyObject *self, PyObject *args)
{
    Buffers b;
    int width, height;
    float factor;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*w*(ii)f", &b.in, &b.out, &width, &height, &factor))
        return NULL;
    if (!fit(&b, width, height))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    sharpen(b.in.buf, width, height, factor, b.out.buf);
    Py_END_ALLOW_THREADS
    release(&b);
    Py_RETURN_NONE;
}

static PyObject *py_look_up(PyObject *self, PyObject *args)
{
    Buffers b;
    Py_buffer table;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*w*y*", &b.in, &b.out, &table))
        return NULL;
    if (table.len != 768) {
        release(&b);
        PyErr_SetString(PyExc_ValueError, "the table has not 3 * 256 bytes");
    } else if (fit(&b, b.in.len / 3, 1)) {
        const uint8_t *in = b.in.buf, *t = table.buf;
        uint8_t *out = b.out.buf;
        Py_ssize_t i;
        Py_BEGIN_ALLOW_THREADS
        for (i = 0; i < b.in.len; i += 3) {
            out[i] = t[in[i]];
            out[i + 1] = t[256 + in[i + 1]];
            out[i + 2] = t[512 + in[i + 2]];
        }
        Py_END_ALLOW_THREADS
        release(&b);
    }
    PyBuffer_Release(&table);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *py_histogram(PyObject *self, PyObject *args)
{
    Py_buffer in;
    uint32_t counts[4 * 256];
    (void)self;
    if (!PyArg_ParseTuple(args, "y*", &in))
        return NULL;
    memset(counts, 0, sizeof counts);
    Py_BEGIN_ALLOW_THREADS
    const uint8_t *p = in.buf, *end = p + in.len / 3 * 3;
    for (; p < end; p += 3) {
        counts[p[0]]++;
        counts[256 + p[1]]++;
        counts[512 + p[2]]++;
        counts[768 + grey(p)]++;
    }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&in);
    return PyBytes_FromStringAndSize((const char *)counts, sizeof counts);
}

static PyObject *py_planes(PyObject *self, PyObject *args)
{
    Buffers b;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*w*", &b.in, &b.out))
        return NULL;
    if (!fit(&b, b.in.len / 3, 1))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    const uint8_t *in = b.in.buf;
    uint8_t *out = b.out.buf;
    size_t count = (size_t)b.in.len / 3, i;
    for (i = 0; i < count; i++) {
        out[i] = in[3 * i];
        out[count + i] = in[3 * i + 1];
        out[2 * count + i] = in[3 * i + 2];
    }
    Py_END_ALLOW_THREADS
    release(&b);
    Py_RETURN_NONE;
}

static PyObject *py_mix(PyObject *self, PyObject *args)
{
    Py_buffer one, two, out;
    double share;
    int ok;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*w*d", &one, &two, &out, &share))
        return NULL;
    ok = one.len == two.len && one.len == out.len && share >= 0.0 && share <= 1.0;
    if (ok) {
        Py_BEGIN_ALLOW_THREADS
        mix(one.buf, two.buf, (size_t)out.len, (float)share, (float)(1.0 - share), out.buf);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&one);
    PyBuffer_Release(&two);
    PyBuffer_Release(&out);
    if (!ok) {
        PyErr_SetString(PyExc_ValueError, "arrays of different sizes, or a share that is not in 0 .. 1");
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"affine", py_affine, METH_VARARGS,
     "affine(image, out, (width, height), matrix, fill, bicubic)\n--\n\nPillow's Image.transform with Transform.AFFINE."},
    {"saturate", py_saturate, METH_VARARGS, "saturate(image, out, factor)\n--\n\nPillow's ImageEnhance.Color."},
    {"sharpen", py_sharpen, METH_VARARGS,
     "sharpen(image, out, (width, height), factor)\n--\n\nPillow's ImageEnhance.Sharpness."},
    {"look_up", py_look_up, METH_VARARGS, "look_up(image, out, table)\n--\n\nA table of 256 bytes for each channel."},
    {"histogram", py_histogram, METH_VARARGS,
     "histogram(image)\n--\n\n4 x 256 counts (uint32): red, green, blue, Pillow's grey."},
    {"planes", py_planes, METH_VARARGS, "planes(image, out)\n--\n\n(H, W, 3) to (3, H, W)."},
    {"mix", py_mix, METH_VARARGS, "mix(one, two, out, share)\n--\n\nrint(one * share + two * (1 - share)) in float32."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_augment", "Pillow's steps of augmentation on uint8 arrays.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__augment(void)
{
    return PyModule_Create(&module);
}
