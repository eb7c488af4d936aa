/* Resize rows of pixels as Pillow does: the filter widens with the reduction, and its window ends at the region
 *
 * The arithmetic is in integers, so that results are the same bits on every machine: with AVX2, with NEON and in plain C.
 * Weights have 14 bits behind the point, rows between the two passes 6.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__ARM_NEON) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#include <arm_neon.h>
#endif

#define WEIGHT_BITS 14
#define ROW_BITS 6
#define MOST_TAPS 512
#define AFTER_ROW 64 /* bytes behind rows of pixels, and values behind blended rows, that may be read or written */

typedef struct {
    int count;       /* output pixels */
    int taps;        /* weights of each, an even number; the last ones may be zero */
    int first, last; /* inputs that are used: first <= i < last */
    int *start;      /* first input of each output pixel */
    int *length;     /* number of its inputs, those of weight zero at the end left out */
    int16_t *weight; /* count x taps */
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

/* The weights of an output pixel as integers whose sum is 1; `real` has any sum. */
static void store_weights(const double *real, int length, int16_t *weight)
{
    double sum = 0.0;
    int i, largest = 0, left = 1 << WEIGHT_BITS;

    for (i = 0; i < length; i++)
        sum += real[i];
    for (i = 0; i < length; i++) {
        double w = (sum != 0.0 ? real[i] / sum : 1.0 / length) * (1 << WEIGHT_BITS);
        weight[i] = (int16_t)(w > INT16_MAX ? INT16_MAX : w < INT16_MIN ? INT16_MIN : floor(w + 0.5));
        left -= weight[i];
        if (weight[i] > weight[largest])
            largest = i;
    }
    left += weight[largest];
    weight[largest] = (int16_t)(left > INT16_MAX ? INT16_MAX : left < INT16_MIN ? INT16_MIN : left);
}

/* Weights for output pixels offset .. offset + count - 1 of `full`, which stretch over the inputs low .. high.
 * `reverse` mirrors the output. Returns 0 if memory is short or the weights are too small for integers. */
static int make_filter(Filter *f, double low, double high, int full, int offset, int count, int bicubic, int reverse)
{
    double scale = (high - low) / full, stretch = scale < 1.0 ? 1.0 : scale;
    double support = (bicubic ? 2.0 : 1.0) * stretch, *real;
    int begin = (int)floor(low), end = (int)ceil(high), capacity, most = 0, o, i;

    if (support > MOST_TAPS / 2)
        return 0;
    f->count = count;
    f->taps = capacity = ((int)ceil(support) * 2 + 2) & ~1;
    f->start = malloc(sizeof(int) * (size_t)count);
    f->length = malloc(sizeof(int) * (size_t)count);
    f->weight = calloc((size_t)count * (size_t)f->taps, sizeof(int16_t));
    real = malloc(sizeof(double) * (size_t)f->taps);
    if (!f->start || !f->length || !f->weight || !real) {
        free(real);
        return 0;
    }
    f->first = end;
    f->last = begin;
    for (o = 0; o < count; o++) {
        double center = low + (offset + o + 0.5) * scale;
        int from = (int)(center - support + 0.5), to = (int)(center + support + 0.5);
        int slot = reverse ? count - 1 - o : o;
        if (from < begin)
            from = begin;
        if (to > end)
            to = end;
        if (to <= from) { /* impossible after the arithmetic above; a guard against reads out of bounds */
            from = from < end ? from : end - 1;
            to = from + 1;
        }
        for (i = from; i < to; i++) {
            double x = (i - center + 0.5) / stretch;
            real[i - from] = bicubic ? cubic(x) : triangle(x);
        }
        store_weights(real, to - from, f->weight + (size_t)slot * capacity);
        f->start[slot] = from;
        f->length[slot] = to - from;
        if (to - from > most)
            most = to - from;
        if (from < f->first)
            f->first = from;
        if (to > f->last)
            f->last = to;
    }
    free(real);
    f->taps = most = (most + 1) & ~1; /* as many for every pixel, so that the inner loop is the same for all */
    for (o = 1; o < count; o++)
        memmove(f->weight + (size_t)o * most, f->weight + (size_t)o * capacity, sizeof(int16_t) * (size_t)most);
    return 1;
}


/* --- plain C ------------------------------------------------------------------------------------------------------- */

/* out[t] = sum over rows r of weight[r] * in[r * stride + t]; in blocks of 16, so that up to 15 more are written */
static void blend_rows_scalar(const uint8_t *in, size_t stride, const int16_t *weight, int rows, int n, int16_t *out)
{
    int32_t sum[16];
    int t, r, i;
    for (t = 0; t < n; t += 16) {
        for (i = 0; i < 16; i++)
            sum[i] = 1 << (WEIGHT_BITS - ROW_BITS - 1);
        for (r = 0; r < rows; r++)
            for (i = 0; i < 16; i++)
                sum[i] += weight[r] * in[(size_t)r * stride + (size_t)(t + i)];
        for (i = 0; i < 16; i++)
            out[t + i] = (int16_t)(sum[i] >> (WEIGHT_BITS - ROW_BITS));
    }
}

/* A value with WEIGHT_BITS + ROW_BITS behind the point as a byte; the half that rounds it is in it. */
static inline uint32_t to_byte(int32_t value)
{
    value >>= WEIGHT_BITS + ROW_BITS;
    return value < 0 ? 0 : value > 255 ? 255 : (uint32_t)value;
}

/* One output row of packed pixels, red lowest, from a blended row of RGBX that begins at input column f->first. */
static void blend_columns_scalar(const int16_t *row, const Filter *f, uint32_t *out)
{
    int x, i;
    for (x = 0; x < f->count; x++) {
        const int16_t *weight = f->weight + (size_t)x * f->taps, *in = row + 4 * (size_t)(f->start[x] - f->first);
        int32_t red = 1 << (WEIGHT_BITS + ROW_BITS - 1), green = red, blue = red;
        for (i = 0; i < f->taps; i++, in += 4) {
            red += weight[i] * in[0];
            green += weight[i] * in[1];
            blue += weight[i] * in[2];
        }
        out[x] = to_byte(red) | to_byte(green) << 8 | to_byte(blue) << 16;
    }
}


/* --- AVX2 ---------------------------------------------------------------------------------------------------------- */

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_AVX2 1

__attribute__((target("avx2")))
static void blend_rows_avx2(const uint8_t *in, size_t stride, const int16_t *weight, int rows, int n, int16_t *out)
{
    const __m256i half = _mm256_set1_epi32(1 << (WEIGHT_BITS - ROW_BITS - 1));
    int t, r;
    for (t = 0; t < n; t += 16) {
        const uint8_t *a = in + t;
        __m256i low = half, high = half;
        for (r = 0; r < rows; r += 2, a += 2 * stride) { /* two rows at a time; the weight behind the last one is zero */
            __m256i one = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)a));
            __m256i two = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(r + 1 < rows ? a + stride : a)));
            int32_t pair;
            memcpy(&pair, weight + r, sizeof pair);
            low = _mm256_add_epi32(
                low, _mm256_madd_epi16(_mm256_unpacklo_epi16(one, two), _mm256_set1_epi32(pair)));
            high = _mm256_add_epi32(
                high, _mm256_madd_epi16(_mm256_unpackhi_epi16(one, two), _mm256_set1_epi32(pair)));
        }
        _mm256_storeu_si256((__m256i *)(out + t), _mm256_packs_epi32(
            _mm256_srai_epi32(low, WEIGHT_BITS - ROW_BITS), _mm256_srai_epi32(high, WEIGHT_BITS - ROW_BITS)));
    }
}

#define COLUMNS_AVX2(TAPS)                                                                                         \
    for (x = 0; x < f->count; x++) {                                                                               \
        const int16_t *weight = f->weight + (size_t)x * f->taps, *in = row + 4 * (size_t)(f->start[x] - f->first); \
        __m128i sum = half;                                                                                        \
        for (i = 0; i < (TAPS); i += 2) { /* two pixels at a time */                                               \
            __m128i two = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(in + 4 * i)), pairs);                 \
            int32_t pair;                                                                                          \
            memcpy(&pair, weight + i, sizeof pair);                                                                \
            sum = _mm_add_epi32(sum, _mm_madd_epi16(two, _mm_set1_epi32(pair)));                                   \
        }                                                                                                          \
        sum = _mm_srai_epi32(sum, WEIGHT_BITS + ROW_BITS);                                                         \
        sum = _mm_packs_epi32(sum, sum);                                                                           \
        out[x] = (uint32_t)_mm_cvtsi128_si32(_mm_packus_epi16(sum, sum));                                          \
    }

__attribute__((target("avx2")))
static void blend_columns_avx2(const int16_t *row, const Filter *f, uint32_t *out)
{
    const __m128i half = _mm_set1_epi32(1 << (WEIGHT_BITS + ROW_BITS - 1));
    const __m128i pairs = _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
    int x, i;
    switch (f->taps) {
    case 2: COLUMNS_AVX2(2) break;
    case 4: COLUMNS_AVX2(4) break;
    case 6: COLUMNS_AVX2(6) break;
    default: COLUMNS_AVX2(f->taps)
    }
}
#endif


/* --- NEON ---------------------------------------------------------------------------------------------------------- */

#if defined(__aarch64__) && defined(__ARM_NEON) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define HAS_NEON 1

static void blend_rows_neon(const uint8_t *in, size_t stride, const int16_t *weight, int rows, int n, int16_t *out)
{
    int t, r;
    for (t = 0; t < n; t += 16) {
        const uint8_t *a = in + t;
        int32x4_t sum0 = vdupq_n_s32(1 << (WEIGHT_BITS - ROW_BITS - 1)), sum1 = sum0, sum2 = sum0, sum3 = sum0;
        for (r = 0; r < rows; r++, a += stride) {
            uint8x16_t bytes = vld1q_u8(a);
            int16x8_t low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(bytes)));
            int16x8_t high = vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(bytes)));
            sum0 = vmlal_n_s16(sum0, vget_low_s16(low), weight[r]);
            sum1 = vmlal_n_s16(sum1, vget_high_s16(low), weight[r]);
            sum2 = vmlal_n_s16(sum2, vget_low_s16(high), weight[r]);
            sum3 = vmlal_n_s16(sum3, vget_high_s16(high), weight[r]);
        }
        vst1q_s16(out + t, vcombine_s16(vshrn_n_s32(sum0, WEIGHT_BITS - ROW_BITS),
                                        vshrn_n_s32(sum1, WEIGHT_BITS - ROW_BITS)));
        vst1q_s16(out + t + 8, vcombine_s16(vshrn_n_s32(sum2, WEIGHT_BITS - ROW_BITS),
                                            vshrn_n_s32(sum3, WEIGHT_BITS - ROW_BITS)));
    }
}

static void blend_columns_neon(const int16_t *row, const Filter *f, uint32_t *out)
{
    int x, i;
    for (x = 0; x < f->count; x++) {
        const int16_t *weight = f->weight + (size_t)x * f->taps, *in = row + 4 * (size_t)(f->start[x] - f->first);
        int32x4_t sum = vdupq_n_s32(1 << (WEIGHT_BITS + ROW_BITS - 1));
        uint16x4_t words;
        for (i = 0; i < f->taps; i++)
            sum = vmlal_n_s16(sum, vld1_s16(in + 4 * i), weight[i]);
        words = vqmovun_s32(vshrq_n_s32(sum, WEIGHT_BITS + ROW_BITS)); /* 0 where negative */
        out[x] = vget_lane_u32(vreinterpret_u32_u8(vqmovn_u16(vcombine_u16(words, words))), 0);
    }
}
#endif


/* --- choice -------------------------------------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    void (*blend_rows)(const uint8_t *in, size_t stride, const int16_t *weight, int rows, int n, int16_t *out);
    void (*blend_columns)(const int16_t *row, const Filter *f, uint32_t *out);
} Path;

/* The ways to compute on this machine, best first; the results are the same. */
static int find_paths(Path *paths)
{
    int n = 0;
#if defined(HAS_AVX2)
    if (__builtin_cpu_supports("avx2"))
        paths[n++] = (Path){"avx2", blend_rows_avx2, blend_columns_avx2};
#elif defined(HAS_NEON)
    paths[n++] = (Path){"neon", blend_rows_neon, blend_columns_neon};
#endif
    paths[n++] = (Path){"scalar", blend_rows_scalar, blend_columns_scalar};
    return n;
}

/* Packed pixels into three rows of bytes, or one of three bytes per pixel. */
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
