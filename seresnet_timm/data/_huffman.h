/* Huffman decoding of baseline JPEGs, in place of libjpeg-turbo's, which takes more than half of the time of a crop
 *
 * The scan is copied without its stuffed bytes, so that 8 bytes can be read at a time. One look into a table gives code,
 * run and value. Blocks outside the region are skipped, several codes a look: only their DC value counts. The result is
 * libjpeg-turbo's, bit for bit. On any fault in the data the caller gets 0, and uses Pillow.
 */
#if JPEG_LIB_VERSION >= 70
#define DCT_SIZE DCT_h_scaled_size
#else
#define DCT_SIZE DCT_scaled_size
#endif

#define LOOK 10       /* bits of a look into a table */
#define AFTER_END 512 /* bytes behind the data: a block has at most 64 codes of 31 bits, and refills read ahead */

/* An entry of a table: bits of code and value 0-4 (0: the code is longer than a look), of the value 5-8, of the code 9-13,
 * run 14-17. */
#define ALL_BITS(e) ((e) & 31)
#define VALUE_BITS(e) ((e) >> 5 & 15)
#define CODE_BITS(e) ((e) >> 9 & 31)
#define RUN(e) ((e) >> 14)

/* Zigzag to natural order. A run may go beyond the block in damaged files: libjpeg stores these at the last place. */
static const uint8_t natural_order[64 + 16] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13,
    6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31,
    39, 46, 53, 60, 61, 54, 47, 55, 62, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63};

typedef struct {
    uint32_t look[1 << LOOK];
    uint16_t skip[1 << LOOK]; /* AC codes: bits of all codes 0-4, coefficients 5-12, 15: the block ends */
    int has_skip;
    uint32_t limit[17];       /* first 16-bit prefix that is longer than codes of this length */
    int offset[17];           /* of the first code's symbol in `symbols`, less that code */
    const uint8_t *symbols;
} Table;

typedef struct {
    Table dc[4], ac[4];
    int made_dc[4], made_ac[4];
    const Table *block_dc[D_MAX_BLOCKS_IN_MCU];
    Table *block_ac[D_MAX_BLOCKS_IN_MCU];
    int component[D_MAX_BLOCKS_IN_MCU];
    int blocks;
    int is_dc_only[D_MAX_BLOCKS_IN_MCU];         /* reduced to a pixel a block */
    uint32_t previous[MAX_COMPS_IN_SCAN];       /* DC values; unsigned, as damaged files overflow them */
    uint64_t buffer;                            /* the next bits, the first one highest */
    int count;                                  /* how many are in it */
    const uint8_t *next, *end;                  /* of the copy */
    uint8_t *copy;
    const uint8_t *in, *in_end;                 /* of the file, after what was copied */
    unsigned int interval, to_go, next_restart; /* restart markers */
    JDIMENSION column, columns, first, last;    /* MCU columns; those first .. last are wanted */
} Scan;

static inline uint32_t entry_of(int symbol, int code_bits)
{
    int value_bits = symbol & 15;
    return (uint32_t)(code_bits + value_bits) | (uint32_t)value_bits << 5 | (uint32_t)code_bits << 9 |
           (uint32_t)(symbol >> 4) << 14;
}

/* The table of a code; symbols of DC codes are sizes, those of AC codes run and size. Returns 0 for an impossible code. */
static int make_table(Table *t, const JHUFF_TBL *huffman, int is_dc)
{
    unsigned int code = 0, n;
    int length, i, place = 0;

    memset(t->look, 0, sizeof t->look);
    t->symbols = huffman->huffval;
    t->has_skip = 0;
    for (length = 1; length <= 16; length++) {
        t->offset[length] = place - (int)code;
        for (i = 0; i < huffman->bits[length]; i++, code++, place++) {
            if (code >> length || place > 255 || (is_dc && huffman->huffval[place] > 15))
                return 0;
            if (length <= LOOK) {
                uint32_t e = entry_of(huffman->huffval[place], length);
                for (n = 0; n < 1u << (LOOK - length); n++)
                    t->look[(code << (LOOK - length)) + n] = e;
            }
        }
        t->limit[length] = code << (16 - length);
        code <<= 1;
    }
    return 1;
}

/* The table that skips several AC codes at a time: those that are whole in the look; of the first one only the code. */
static void make_skip(Table *t)
{
    unsigned int i;
    for (i = 0; i < 1 << LOOK; i++) {
        unsigned int bits = 0, coefficients = 0, ends = 0;
        while (!ends && coefficients < 64) {
            uint32_t e = t->look[(i << bits) & ((1 << LOOK) - 1)];
            if (!e || (bits && bits + ALL_BITS(e) > LOOK))
                break;
            bits += ALL_BITS(e);
            if (VALUE_BITS(e) || RUN(e) == 15)
                coefficients += RUN(e) + 1;
            else
                ends = 1;
            if (bits >= LOOK)
                break;
        }
        t->skip[i] = (uint16_t)(bits | coefficients << 5 | ends << 15);
    }
    t->has_skip = 1;
}

/* Copy the scan up to the next marker without the zeros that follow bytes of 255. */
static void copy_segment(Scan *s)
{
    uint8_t *to = s->copy;
    while (s->in < s->in_end) {
        const uint8_t *found = memchr(s->in, 255, (size_t)(s->in_end - s->in));
        const uint8_t *stop = found ? found : s->in_end;
        memcpy(to, s->in, (size_t)(stop - s->in));
        to += stop - s->in;
        s->in = stop;
        if (!found || stop + 1 >= s->in_end || stop[1] != 0)
            break;
        *to++ = 255;
        s->in += 2;
    }
    memset(to, 0, AFTER_END);
    s->next = s->copy;
    s->end = to;
    s->buffer = 0;
    s->count = 0;
}

/* Bits that are neither consumed nor beyond the end; negative if more were consumed than there are. */
static inline ptrdiff_t bits_left(const Scan *s)
{
    return (s->end - s->next) * 8 + s->count;
}

/* Go on behind a restart marker; 0 if another marker or data comes instead. */
static int restart(Scan *s)
{
    if (bits_left(s) >= 8)
        return 0;
    while (s->in + 1 < s->in_end && s->in[0] == 255 && s->in[1] == 255) /* fill bytes */
        s->in++;
    if (s->in + 1 >= s->in_end || s->in[0] != 255 || s->in[1] != 0xD0 + s->next_restart)
        return 0;
    s->in += 2;
    s->next_restart = (s->next_restart + 1) & 7;
    s->to_go = s->interval;
    memset(s->previous, 0, sizeof s->previous);
    copy_segment(s);
    return 1;
}

/* Begin at the first byte of the scan. `left` and `width` are the columns of pixels that are wanted, in the image's
 * resolution. Returns 0 if memory is short or a table is impossible. */
static int begin_scan(Scan *s, struct jpeg_decompress_struct *info, JDIMENSION left, JDIMENSION width)
{
    JDIMENSION mcu = (JDIMENSION)(info->comps_in_scan == 1 ? 8 : 8 * info->max_h_samp_factor);
    int b;

    s->in = info->src->next_input_byte;
    s->in_end = s->in + info->src->bytes_in_buffer;
    s->copy = malloc(info->src->bytes_in_buffer + AFTER_END);
    if (!s->copy)
        return 0;
    s->blocks = info->blocks_in_MCU;
    for (b = 0; b < s->blocks; b++) {
        const jpeg_component_info *component = info->cur_comp_info[info->MCU_membership[b]];
        int dc = component->dc_tbl_no & 3, ac = component->ac_tbl_no & 3;
        if (!info->dc_huff_tbl_ptrs[dc] || !info->ac_huff_tbl_ptrs[ac])
            return 0;
        if (!s->made_dc[dc] && !make_table(&s->dc[dc], info->dc_huff_tbl_ptrs[dc], 1))
            return 0;
        if (!s->made_ac[ac] && !make_table(&s->ac[ac], info->ac_huff_tbl_ptrs[ac], 0))
            return 0;
        s->made_dc[dc] = s->made_ac[ac] = 1;
        s->block_dc[b] = &s->dc[dc];
        s->block_ac[b] = &s->ac[ac];
        s->component[b] = info->MCU_membership[b];
        s->is_dc_only[b] = component->DCT_SIZE == 1;
    }
    s->interval = s->to_go = info->restart_interval;
    s->next_restart = 0;
    memset(s->previous, 0, sizeof s->previous);
    s->column = 0;
    s->columns = info->MCUs_per_row;
    s->first = left / mcu;
    s->last = (left + width + mcu - 1) / mcu - 1;
    copy_segment(s);
    return 1;
}

typedef struct {
    uint64_t buffer;
    int count;
    const uint8_t *next;
} Bits;

/* At least 56 bits. */
static inline void refill(Bits *b)
{
    uint64_t word;
    memcpy(&word, b->next, sizeof word);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    b->buffer |= word >> b->count;
    b->next += (63 - b->count) >> 3;
    b->count |= 56;
}

static inline void drop(Bits *b, unsigned int n)
{
    b->buffer <<= n;
    b->count -= (int)n;
}

/* The entry of the next code. Codes longer than a look are searched. 0: there is no such code. */
static inline uint32_t long_code(const Bits *b, const Table *t)
{
    uint32_t prefix = (uint32_t)(b->buffer >> 48);
    int length = LOOK + 1;
    while (length <= 16 && prefix >= t->limit[length])
        length++;
    if (length > 16)
        return 0;
    return entry_of(t->symbols[((int)(prefix >> (16 - length)) + t->offset[length]) & 255], length);
}

/* The value behind the code that the buffer begins with: bits that begin with 0 stand for a negative number. */
static inline int value(const Bits *b, uint32_t e)
{
    uint64_t bits = b->buffer << CODE_BITS(e);
    uint64_t negative = (bits >> 63) - 1; /* all ones, or 0 */
    uint64_t size = (bits ^ negative) >> 1 >> (63 - VALUE_BITS(e));
    return (int)((size ^ negative) - negative);
}

/* The AC coefficients of a block, which is zero. Returns 0 if the data are damaged. */
static inline int decode_ac(Bits *bits, const Table *t, JCOEF *block)
{
    Bits b = *bits;
    unsigned int k = 1, n;
    uint32_t e;

    for (;;) {
        refill(&b); /* enough for two entries of the table */
        for (n = 0; n < 2; n++) {
            e = t->look[b.buffer >> (64 - LOOK)];
            if (!VALUE_BITS(e))
                goto other;
            k += RUN(e);
            block[natural_order[k]] = (JCOEF)value(&b, e);
            drop(&b, ALL_BITS(e));
            if (++k >= 64)
                goto done;
        }
        continue;
other:
        if (!e) {
            refill(&b);
            if (!(e = long_code(&b, t)))
                return 0;
        }
        if (VALUE_BITS(e)) {
            k += RUN(e);
            block[natural_order[k]] = (JCOEF)value(&b, e);
            k++;
        } else if (RUN(e) == 15) {
            k += 16;
        } else {
            k = 64;
        }
        drop(&b, ALL_BITS(e));
        if (k >= 64)
            goto done;
    }
done:
    *bits = b;
    return 1;
}

/* Go to the end of a block without its values. Returns 0 if the data are damaged. */
static inline int skip_ac(Bits *bits, const Table *t)
{
    Bits b = *bits;
    unsigned int k = 1, n;
    uint32_t e;

    do {
        refill(&b);
        for (n = 0; n < 2; n++) {
            unsigned int several = t->skip[b.buffer >> (64 - LOOK)], coefficients = several >> 5 & 255;
            if (!several || k + coefficients + (several >> 15) > 64) /* none of the codes may be the next block's */
                goto one;
            drop(&b, several & 31);
            k += coefficients;
            if (several >> 15 || k >= 64)
                goto done;
        }
        continue;
one:
        refill(&b);
        e = t->look[b.buffer >> (64 - LOOK)];
        if (!e && !(e = long_code(&b, t)))
            return 0;
        drop(&b, ALL_BITS(e));
        if (!VALUE_BITS(e) && RUN(e) != 15)
            goto done;
        k += RUN(e) + 1;
    } while (k < 64);
done:
    *bits = b;
    return 1;
}

/* Decode an MCU into `blocks`, which are zero; NULL only skips it. Returns 0 if the data are damaged or end. */
static int decode_mcu(Scan *s, JBLOCKROW *blocks)
{
    Bits b;
    int i;

    if (s->interval && s->to_go == 0 && !restart(s))
        return 0;
    s->to_go--;
    if (s->column < s->first || s->column > s->last)
        blocks = NULL;
    if (++s->column == s->columns)
        s->column = 0;
    b.buffer = s->buffer;
    b.count = s->count;
    b.next = s->next;
    for (i = 0; i < s->blocks; i++) {
        uint32_t *previous = s->previous + s->component[i], e;

        refill(&b);
        e = s->block_dc[i]->look[b.buffer >> (64 - LOOK)];
        if (!e && !(e = long_code(&b, s->block_dc[i])))
            return 0;
        *previous += (uint32_t)value(&b, e);
        drop(&b, ALL_BITS(e));
        if (blocks)
            blocks[i][0][0] = (JCOEF)*previous;
        if (blocks && !s->is_dc_only[i]) {
            if (!decode_ac(&b, s->block_ac[i], blocks[i][0]))
                return 0;
        } else {
            if (!s->block_ac[i]->has_skip)
                make_skip(s->block_ac[i]);
            if (!skip_ac(&b, s->block_ac[i]))
                return 0;
        }
        if ((s->end - b.next) * 8 + b.count < 0)
            return 0;
    }
    s->buffer = b.buffer;
    s->count = b.count;
    s->next = b.next;
    return 1;
}
