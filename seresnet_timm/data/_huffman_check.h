/* May our Huffman decoder take the place of libjpeg's? Decided at the import; included in _jpeg.c, behind its decoding
 *
 * It is set into a structure that libjpeg's header does not show. Nothing is written there before three things are known:
 * the library is a release whose structure was looked at, the two fields hold functions of that library, and later, for
 * each file, they hold the same two. Then both decoders must give the same pixels. Else libjpeg's own decodes.
 */
#if defined(__linux__)
#include <link.h>
#endif

/* Of the releases that were looked at, 2.0.0 to 3.2.0: the years of the library's own message, and the newest header. */
#define FIRST_YEAR 2018
#define LAST_YEAR 2026
#define NEWEST_HEADER 3002999

/* Compress a picture of 40 x 24 pixels with every kind of detail. Returns its size, 0 on failure; `*data` is the caller's
 * to free. */
static unsigned long make_test_file(unsigned char **data)
{
    struct jpeg_compress_struct info;
    Errors errors;
    unsigned long size = 0;
    JSAMPLE line[40 * 3];
    JSAMPROW row = line;
    int x, y;

    info.err = jpeg_std_error(&errors.base);
    errors.base.error_exit = fail;
    errors.base.output_message = say_nothing;
    jpeg_create_compress(&info);
    if (setjmp(errors.escape)) {
        jpeg_destroy_compress(&info);
        return 0;
    }
    jpeg_mem_dest(&info, data, &size);
    info.image_width = 40;
    info.image_height = 24;
    info.input_components = 3;
    info.in_color_space = JCS_RGB;
    jpeg_set_defaults(&info);
    jpeg_set_quality(&info, 95, TRUE);
    info.restart_interval = 2;
    jpeg_start_compress(&info, TRUE);
    for (y = 0; y < 24; y++) {
        for (x = 0; x < 40 * 3; x++)
            line[x] = (JSAMPLE)(x < 60 ? (unsigned)(2 * x + 3 * y) : (unsigned)(x * 40 + y) * 2654435761u >> 24);
        jpeg_write_scanlines(&info, &row, 1);
    }
    jpeg_finish_compress(&info);
    jpeg_destroy_compress(&info);
    return size;
}

/* Whether the library that is loaded is one of these releases; its header may be of another one. */
static int is_known_release(void)
{
    struct jpeg_error_mgr errors;
    int i, year;

    if (LIBJPEG_TURBO_VERSION_NUMBER > NEWEST_HEADER)
        return 0;
    jpeg_std_error(&errors);
    for (i = 0; i <= errors.last_jpeg_message; i++) {
        const char *text = errors.jpeg_message_table[i];
        if (text && strstr(text, "The libjpeg-turbo Project") && sscanf(text, "Copyright (C) 1991-%d", &year) == 1)
            return year >= FIRST_YEAR && year <= LAST_YEAR;
    }
    return 0;
}

#if defined(__linux__)
typedef struct {
    uintptr_t address;
    uintptr_t base;
    int found;
} Place;

static int find_place(struct dl_phdr_info *object, size_t size, void *wanted)
{
    Place *place = wanted;
    int i;
    (void)size;
    for (i = 0; i < object->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &object->dlpi_phdr[i];
        uintptr_t offset = place->address - (uintptr_t)object->dlpi_addr - (uintptr_t)part->p_vaddr;
        if (part->p_type == PT_LOAD && (part->p_flags & PF_X) && offset < part->p_memsz) {
            place->base = (uintptr_t)object->dlpi_addr;
            return place->found = 1;
        }
    }
    return 0;
}
#endif

/* Whether the code at this address belongs to the library that has libjpeg's handler of errors. */
static int is_libjpegs(uintptr_t address)
{
#if defined(__linux__)
    struct jpeg_error_mgr errors;
    Place of_address = {address, 0, 0}, of_library = {0, 0, 0};
    of_library.address = (uintptr_t)jpeg_std_error(&errors)->error_exit;
    return dl_iterate_phdr(find_place, &of_address) && dl_iterate_phdr(find_place, &of_library) &&
           of_address.base == of_library.base;
#else
    (void)address;
    return 0;
#endif
}

/* The two fields of libjpeg's entropy decoder for a baseline file. Returns 0 if they are not functions of libjpeg. */
static int find_baseline(Work *w, const uint8_t *data, size_t size)
{
    prepare_errors(w);
    if (setjmp(w->errors.escape))
        return 0;
    if (!open_file(w, data, size))
        return 0;
    jpeg_start_decompress(&w->info);
    if (!w->info.entropy)
        return 0;
    memcpy(&choice.baseline, w->info.entropy, sizeof choice.baseline);
    return choice.baseline.start_pass != (void (*)(j_decompress_ptr))choice.baseline.decode_mcu &&
           is_libjpegs((uintptr_t)choice.baseline.start_pass) && is_libjpegs((uintptr_t)choice.baseline.decode_mcu);
}

/* Whether our Huffman decoder works inside the libjpeg that is loaded. */
static int check_huffman(void)
{
    Request r = {.left = 9, .top = 4, .width = 29, .height = 20, .full_width = 29, .full_height = 20, .out_width = 29,
                 .out_height = 20, .max_reduction = 1};
    static uint8_t out[2][3 * 29 * 20];
    unsigned char *data = NULL;
    unsigned long size = make_test_file(&data);
    int ok = size > 0 && is_known_release(), i;
    Work w;

    if (ok) {
        ok = find_baseline(&w, data, size);
        close_work(&w);
    }
    for (i = 0; i < 2 && ok; i++) {
        choice.huffman = i;
        ok = decode_and_resize(&w, data, size, &r, out[i]);
        close_work(&w);
    }
    free(data);
    return ok && memcmp(out[0], out[1], sizeof out[0]) == 0;
}
