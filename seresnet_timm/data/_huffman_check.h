/* The file that _jpeg.c decodes at the import in two ways; included there, behind its handling of errors */

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
