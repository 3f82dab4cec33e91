// SPDX-License-Identifier: Apache-2.0
/* The parameters that a Steerfarm image carries in its XMP, read back. The file is a stranger's. */
#include <png.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <webp/mux.h>

#include "cli.h"
#include "pb_json.h"

enum { FILE_BYTES_MAX = 256 << 20, XMP_BYTES_MAX = 1 << 20 };

static int file_read(uint8_t **ret, size_t *ret_size, const char *path, struct steer_error *err)
{
    FILE *f = fopen(path, "rbe");
    if (!f) return steer_fail(err, STEER_NOT_FOUND, "%s: no such file", path);
    long size = fseek(f, 0, SEEK_END) ? -1 : ftell(f);
    uint8_t *data = size > 0 && size <= FILE_BYTES_MAX ? malloc((size_t)size) : NULL;
    int bad = !data || fseek(f, 0, SEEK_SET) || fread(data, 1, (size_t)size, f) != (size_t)size;
    fclose(f);
    if (bad) {
        free(data);
        return steer_fail(err, STEER_IO, "%s: cannot be read", path);
    }
    *ret = data;
    *ret_size = (size_t)size;
    return 0;
}

static char *text_copy(const void *data, size_t size)
{
    char *text = size <= XMP_BYTES_MAX ? malloc(size + 1) : NULL;
    if (!text) return NULL;
    memcpy(text, data, size);
    text[size] = 0;
    return text;
}

static char *webp_xmp(const uint8_t *data, size_t size)
{
    WebPData file = {data, size}, chunk = {0};
    WebPMux *mux = WebPMuxCreate(&file, 0);
    char *text = NULL;
    if (mux && WebPMuxGetChunk(mux, "XMP ", &chunk) == WEBP_MUX_OK)
        text = text_copy(chunk.bytes, chunk.size);
    if (mux) WebPMuxDelete(mux);
    return text;
}

struct reading {
    const uint8_t *data;
    size_t size, at;
};

static void png_take(png_structp png, png_bytep to, size_t size)
{
    struct reading *r = png_get_io_ptr(png);
    if (r->size - r->at < size) png_error(png, "truncated");
    memcpy(to, r->data + r->at, size);
    r->at += size;
}

static char *png_xmp(const uint8_t *data, size_t size)
{
    struct reading r = {data, size, 0};
    png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
    png_infop info = png ? png_create_info_struct(png) : NULL;
    char *volatile text = NULL;
    if (info && !setjmp(png_jmpbuf(png))) {
        png_textp list;
        int count = 0;
        png_set_read_fn(png, &r, png_take);
        png_set_user_limits(png, 16384, 16384);
        png_read_info(png, info);
        png_get_text(png, info, &list, &count);
        for (int i = 0; i < count; i++)
            if (!text && strcmp(list[i].key, "XML:com.adobe.xmp") == 0)
                text = text_copy(list[i].text, strlen(list[i].text));
    }
    png_destroy_read_struct(&png, info ? &info : NULL, NULL);
    return text;
}

/* Undoes XML's five escapes in place. */
static void xml_unescape(char *text)
{
    static const struct {
        const char *name;
        char value;
    } list[] = {{"&amp;", '&'}, {"&lt;", '<'}, {"&gt;", '>'}, {"&quot;", '"'}, {"&apos;", '\''}};
    char *to = text;
    for (const char *p = text; *p;) {
        size_t i = 0;
        while (i < 5 && strncmp(p, list[i].name, strlen(list[i].name)) != 0)
            i++;
        *to++ = i < 5 ? list[i].value : *p;
        p += i < 5 ? strlen(list[i].name) : 1;
    }
    *to = 0;
}

int job_of_image(json_t **ret, const char *path, struct steer_error *err)
{
    uint8_t *data = NULL;
    size_t size = 0;
    int code = file_read(&data, &size, path, err);
    if (code) return code;
    int is_png = size > 8 && memcmp(data, "\x89PNG\r\n\x1a\n", 8) == 0;
    char *xmp = is_png ? png_xmp(data, size) : webp_xmp(data, size);
    char *begin = xmp ? strstr(xmp, "<steerfarm:job>") : NULL;
    char *end = begin ? strstr(begin, "</steerfarm:job>") : NULL;
    json_t *json = NULL;
    if (end) {
        *end = 0;
        begin += strlen("<steerfarm:job>");
        xml_unescape(begin);
        json = pb_json_read(begin, NULL);
    }
    free(xmp);
    free(data);
    if (!json_is_object(json)) {
        json_decref(json);
        return steer_fail(err, STEER_BAD_VALUE, "%s does not say how it was made by Steerfarm",
                          path);
    }
    /* The picture may be made again by another build or machine. */
    json_object_del(json, "numerics");
    json_object_del(json, "weights");
    json_object_del(json, "model_hash");
    *ret = json;
    return 0;
}
