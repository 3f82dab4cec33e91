// SPDX-License-Identifier: Apache-2.0
#include "encode.h"

#include <png.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <webp/encode.h>
#include <webp/mux.h>

/* m2 is within 1 % of m4's size at two thirds of its time (docs/speed.md). */
#define WEBP_METHOD 2

/* ---- XMP ---- */

/* XML text; characters that XML 1.0 cannot hold become U+FFFD. */
static void xml_escape(FILE *to, const char *text)
{
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        if (*p == '&')
            fputs("&amp;", to);
        else if (*p == '<')
            fputs("&lt;", to);
        else if (*p == '>')
            fputs("&gt;", to);
        else if (*p < 0x20 && *p != '\n' && *p != '\t')
            fputs("\xEF\xBF\xBD", to);
        else
            fputc(*p, to);
    }
}

static int xmp_make(char **ret, size_t *ret_size, const struct image_meta *m)
{
    FILE *f = open_memstream(ret, ret_size);
    if (!f) return STEER_NO_MEMORY;
    fputs("<?xpacket begin=\"\xEF\xBB\xBF\" id=\"W5M0MpCehiHzreSzNTczkc9d\"?>\n"
          "<x:xmpmeta xmlns:x=\"adobe:ns:meta/\">"
          "<rdf:RDF xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\">"
          "<rdf:Description rdf:about=\"\" xmlns:dc=\"http://purl.org/dc/elements/1.1/\" "
          "xmlns:steerfarm=\"urn:steerfarm:1\">"
          "<dc:description><rdf:Alt><rdf:li xml:lang=\"x-default\">",
          f);
    xml_escape(f, m->parameters);
    fputs("</rdf:li></rdf:Alt></dc:description><steerfarm:job>", f);
    xml_escape(f, m->json);
    fputs("</steerfarm:job></rdf:Description></rdf:RDF></x:xmpmeta>\n<?xpacket end=\"r\"?>", f);
    return fclose(f) ? STEER_NO_MEMORY : 0;
}

/* ---- WebP ---- */

static int webp_pixels(WebPMemoryWriter *writer, const uint8_t *pixels, const struct image_meta *m,
                       struct steer_error *err)
{
    WebPConfig config;
    WebPPicture picture;
    int lossless = m->format == IMAGE_WEBP_LOSSLESS;
    if (!WebPConfigPreset(&config, WEBP_PRESET_DEFAULT, (float)m->quality) ||
        !WebPPictureInit(&picture))
        return steer_fail(err, STEER_INTERNAL, "libwebp has another version than its header");
    config.method = WEBP_METHOD;
    config.lossless = lossless;
    config.exact = lossless;
    if (lossless) config.quality = 75; /* effort, not loss */
    picture.width = m->width;
    picture.height = m->height;
    picture.use_argb = lossless;
    picture.writer = WebPMemoryWrite;
    picture.custom_ptr = writer;
    int done =
        WebPPictureImportRGB(&picture, pixels, m->width * 3) && WebPEncode(&config, &picture);
    WebPEncodingError why = picture.error_code;
    WebPPictureFree(&picture);
    if (done) return 0;
    int memory = why == VP8_ENC_ERROR_OUT_OF_MEMORY || why == VP8_ENC_ERROR_BITSTREAM_OUT_OF_MEMORY;
    return steer_fail(err, memory ? STEER_NO_MEMORY : STEER_INTERNAL,
                      "libwebp could not encode the image (error %d)", (int)why);
}

static int webp_encode(uint8_t **ret, size_t *ret_bytes, const uint8_t *pixels,
                       const struct image_meta *m, struct steer_error *err)
{
    WebPMemoryWriter writer;
    WebPMemoryWriterInit(&writer);
    WebPMux *mux = NULL;
    WebPData out = {0};
    char *xmp = NULL;
    size_t xmp_size = 0;
    int code = webp_pixels(&writer, pixels, m, err);
    if (!code && !m->json) {
        *ret = writer.mem;
        *ret_bytes = writer.size;
        return 0;
    }
    if (!code) code = xmp_make(&xmp, &xmp_size, m);
    if (!code) {
        WebPData image = {writer.mem, writer.size}, chunk = {(const uint8_t *)xmp, xmp_size};
        code = STEER_NO_MEMORY;
        if ((mux = WebPMuxCreate(&image, 0)) &&
            WebPMuxSetChunk(mux, "XMP ", &chunk, 0) == WEBP_MUX_OK &&
            WebPMuxAssemble(mux, &out) == WEBP_MUX_OK)
            code = 0;
    }
    if (mux) WebPMuxDelete(mux);
    WebPMemoryWriterClear(&writer);
    free(xmp);
    if (code) {
        if (err && !err->code) steer_fail(err, code, "out of memory for an image file");
        return code;
    }
    *ret = (uint8_t *)(uintptr_t)out.bytes; /* malloc'ed by libwebp */
    *ret_bytes = out.size;
    return 0;
}

/* ---- PNG ---- */

struct bytes {
    uint8_t *data;
    size_t size, room;
};

static void png_append(png_structp png, png_bytep data, size_t size)
{
    struct bytes *b = png_get_io_ptr(png);
    if (b->size + size > b->room) {
        size_t room = 2 * b->room + size + 4096;
        uint8_t *more = realloc(b->data, room);
        if (!more) png_error(png, "out of memory");
        b->data = more;
        b->room = room;
    }
    memcpy(b->data + b->size, data, size);
    b->size += size;
}

static void png_nothing(png_structp png)
{
    (void)png;
}

static void png_texts(png_structp png, png_infop info, const struct image_meta *m, char *xmp,
                      size_t xmp_size)
{
    static char names[2][24] = {"parameters", "XML:com.adobe.xmp"};
    png_text texts[2];
    memset(texts, 0, sizeof texts);
    texts[0].text = (char *)(uintptr_t)m->parameters;
    texts[0].itxt_length = strlen(m->parameters);
    texts[1].text = xmp;
    texts[1].itxt_length = xmp_size;
    for (int i = 0; i < 2; i++) {
        texts[i].compression = PNG_ITXT_COMPRESSION_NONE;
        texts[i].key = names[i];
    }
    png_set_text(png, info, texts, 2);
}

static int png_encode(uint8_t **ret, size_t *ret_bytes, const uint8_t *pixels,
                      const struct image_meta *m, struct steer_error *err)
{
    struct bytes out = {0};
    char *xmp = NULL;
    size_t xmp_size = 0;
    if (m->json && xmp_make(&xmp, &xmp_size, m))
        return steer_fail(err, STEER_NO_MEMORY, "out of memory for an image file");
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
    png_infop info = png ? png_create_info_struct(png) : NULL;
    if (!info || setjmp(png_jmpbuf(png))) {
        png_destroy_write_struct(&png, &info);
        free(out.data);
        free(xmp);
        return steer_fail(err, STEER_NO_MEMORY, "libpng could not encode the image");
    }
    png_set_write_fn(png, &out, png_append, png_nothing);
    png_set_IHDR(png, info, (png_uint_32)m->width, (png_uint_32)m->height, 8, PNG_COLOR_TYPE_RGB,
                 PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    if (m->json) png_texts(png, info, m, xmp, xmp_size);
    png_write_info(png, info);
    for (int y = 0; y < m->height; y++)
        png_write_row(png, pixels + (size_t)y * (size_t)m->width * 3);
    png_write_end(png, info);
    png_destroy_write_struct(&png, &info);
    free(xmp);
    *ret = out.data;
    *ret_bytes = out.size;
    return 0;
}

int image_encode(uint8_t **ret, size_t *ret_bytes, const uint8_t *pixels,
                 const struct image_meta *meta, struct steer_error *err)
{
    if (meta->format == IMAGE_PNG) return png_encode(ret, ret_bytes, pixels, meta, err);
    if (meta->width > WEBP_MAX_DIMENSION || meta->height > WEBP_MAX_DIMENSION)
        return steer_fail(err, STEER_BAD_SIZE, "%dx%d: WebP holds at most %d pixels a side",
                          meta->width, meta->height, WEBP_MAX_DIMENSION);
    return webp_encode(ret, ret_bytes, pixels, meta, err);
}
