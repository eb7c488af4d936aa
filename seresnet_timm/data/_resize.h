/* Resize rows of pixels as Pillow does: the filter widens with the reduction, and its window ends at the region
 *
 * Loops are plain C; compilers turn them into vector code, for AVX2 in a second copy that is chosen at load time.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__AVX2__) && \
    (!defined(__clang__) || __clang_major__ >= 14)
#define VECTOR_CODE __attribute__((target_clones("avx2", "default")))
#else
#define VECTOR_CODE
#endif

typedef struct {
    int count;       /* output pixels */
    int taps;        /* weights of each; the last ones may be zero */
    int first, last; /* inputs that are used: first <= i < last */
    int *start;      /* first input of each output pixel */
    int *length;     /* number of its inputs, those of weight zero at the end left out */
    float *weight;   /* count x taps */
} Filter;

static double triangle(double x)
{
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

static double cubic(double x) /* Keys with a = -0.5 */
{
    x = fabs(x);
    if (x < 1.0)
        return (1.5 * x - 2.5) * x * x + 1.0;
    if (x < 2.0)
        return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0;
    return 0.0;
}

static void free_filter(Filter *f)
{
    free(f->start);
    free(f->length);
    free(f->weight);
}

/* Weights for output pixels offset .. offset + count - 1 of `full`, which stretch over the inputs low .. high.
 * `reverse` mirrors the output. Returns 0 if memory is short. */
static int make_filter(Filter *f, double low, double high, int full, int offset, int count, int bicubic, int reverse)
{
    double scale = (high - low) / full, stretch = scale < 1.0 ? 1.0 : scale;
    double support = (bicubic ? 2.0 : 1.0) * stretch;
    int begin = (int)floor(low), end = (int)ceil(high), capacity, most = 0, o, i;

    f->count = count;
    f->taps = capacity = (int)ceil(support) * 2 + 1;
    f->start = malloc(sizeof(int) * (size_t)count);
    f->length = malloc(sizeof(int) * (size_t)count);
    f->weight = calloc((size_t)count * (size_t)f->taps, sizeof(float));
    if (!f->start || !f->length || !f->weight)
        return 0;
    f->first = end;
    f->last = begin;
    for (o = 0; o < count; o++) {
        double center = low + (offset + o + 0.5) * scale, sum = 0.0;
        int from = (int)(center - support + 0.5), to = (int)(center + support + 0.5);
        int slot = reverse ? count - 1 - o : o;
        float *weight = f->weight + (size_t)slot * f->taps;
        if (from < begin)
            from = begin;
        if (to > end)
            to = end;
        if (to <= from) { /* impossible after the arithmetic above; a guard against reads out of bounds */
            from = from < end ? from : end - 1;
            to = from + 1;
        }
        for (i = from; i < to; i++) {
            double x = (i - center + 0.5) / stretch, w = bicubic ? cubic(x) : triangle(x);
            weight[i - from] = (float)w;
            sum += w;
        }
        for (i = 0; i < to - from; i++)
            weight[i] = sum != 0.0 ? (float)(weight[i] / sum) : 1.0f / (to - from);
        f->start[slot] = from;
        f->length[slot] = to - from;
        if (to - from > most)
            most = to - from;
        if (from < f->first)
            f->first = from;
        if (to > f->last)
            f->last = to;
    }
    f->taps = most; /* as many for every pixel, so that the inner loop is the same for all */
    for (o = 1; o < count; o++)
        memmove(f->weight + (size_t)o * most, f->weight + (size_t)o * capacity, sizeof(float) * (size_t)most);
    return 1;
}

/* out[t] = sum over rows r of weight[r] * in[r * stride + t] */
VECTOR_CODE
static void blend_rows(const uint8_t *restrict in, size_t stride, const float *restrict weight, int rows, int n,
                       float *restrict out)
{
    int t, r = 0;
    if (rows >= 4) {
        const uint8_t *restrict a = in, *restrict b = in + stride, *restrict c = b + stride, *restrict d = c + stride;
        float ka = weight[0], kb = weight[1], kc = weight[2], kd = weight[3];
        for (t = 0; t < n; t++)
            out[t] = ka * a[t] + kb * b[t] + kc * c[t] + kd * d[t];
        r = 4;
    } else if (rows == 3) {
        const uint8_t *restrict a = in, *restrict b = in + stride, *restrict c = b + stride;
        float ka = weight[0], kb = weight[1], kc = weight[2];
        for (t = 0; t < n; t++)
            out[t] = ka * a[t] + kb * b[t] + kc * c[t];
        r = 3;
    } else if (rows == 2) {
        const uint8_t *restrict a = in, *restrict b = in + stride;
        float ka = weight[0], kb = weight[1];
        for (t = 0; t < n; t++)
            out[t] = ka * a[t] + kb * b[t];
        r = 2;
    } else {
        float ka = weight[0];
        for (t = 0; t < n; t++)
            out[t] = ka * in[t];
        r = 1;
    }
    for (; r + 1 < rows; r += 2) {
        const uint8_t *restrict a = in + r * stride, *restrict b = a + stride;
        float ka = weight[r], kb = weight[r + 1];
        for (t = 0; t < n; t++)
            out[t] += ka * a[t] + kb * b[t];
    }
    if (r < rows) {
        const uint8_t *restrict a = in + r * stride;
        float ka = weight[r];
        for (t = 0; t < n; t++)
            out[t] += ka * a[t];
    }
}

typedef float Pixel __attribute__((vector_size(16)));   /* RGBX; GCC and Clang have such types on every machine */
typedef int32_t Integers __attribute__((vector_size(16)));

static inline Pixel load_pixel(const float *p)
{
    Pixel v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* A pixel as bytes: the red one lowest. */
static inline uint32_t pack_pixel(Pixel p)
{
    Integers v = __builtin_convertvector(p, Integers);
    v &= ~(v >> 31);                  /* 0 where negative */
    v = (v | (255 - v) >> 31) & 255;  /* 255 where larger */
    return (uint32_t)v[0] | (uint32_t)v[1] << 8 | (uint32_t)v[2] << 16;
}

/* One output row of packed RGB pixels from a blended row that begins at input column `first`; for a number of taps. */
#define BLEND_COLUMNS(TAPS)                                                                  \
    for (x = 0; x < f->count; x++) {                                                         \
        const float *weight = f->weight + (size_t)x * f->taps;                               \
        const float *in = row + 4 * (size_t)(f->start[x] - f->first);                        \
        Pixel sum = {0.5f, 0.5f, 0.5f, 0.5f}; /* rounds when it becomes an integer */        \
        for (i = 0; i < (TAPS); i++)                                                         \
            sum += weight[i] * load_pixel(in + 4 * i);                                       \
        out[x] = pack_pixel(sum);                                                            \
    }

VECTOR_CODE
static void blend_columns(const float *restrict row, const Filter *f, uint32_t *restrict out)
{
    int x, i;
    switch (f->taps) {
    case 2: BLEND_COLUMNS(2) break;
    case 3: BLEND_COLUMNS(3) break;
    case 4: BLEND_COLUMNS(4) break;
    case 5: BLEND_COLUMNS(5) break;
    default: BLEND_COLUMNS(f->taps)
    }
}

/* Packed pixels into three rows of bytes, or one of three bytes per pixel. */
VECTOR_CODE
static void store_planes(const uint32_t *restrict row, int n, uint8_t *restrict red, uint8_t *restrict green,
                         uint8_t *restrict blue)
{
    int x;
    for (x = 0; x < n; x++)
        red[x] = (uint8_t)row[x];
    for (x = 0; x < n; x++)
        green[x] = (uint8_t)(row[x] >> 8);
    for (x = 0; x < n; x++)
        blue[x] = (uint8_t)(row[x] >> 16);
}

static void store_pixels(const uint32_t *restrict row, int n, uint8_t *restrict out)
{
    int x;
    for (x = 0; x < n; x++) {
        out[3 * x] = (uint8_t)row[x];
        out[3 * x + 1] = (uint8_t)(row[x] >> 8);
        out[3 * x + 2] = (uint8_t)(row[x] >> 16);
    }
}
