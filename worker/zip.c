// SPDX-License-Identifier: Apache-2.0
/* From the end: [local header, bytes]* [central directory entry]* [zip64 end, its locator] [end].
 * The end may be followed by a comment; sizes of all ones are in zip64's records instead
 * (APPNOTE.TXT 4.3). */
#include "zip.h"

#include <stdlib.h>
#include <string.h>

#include "file.h"

#define LOCAL_SIGNATURE   UINT32_C(0x04034b50)
#define CENTRAL_SIGNATURE UINT32_C(0x02014b50)
#define END_SIGNATURE     UINT32_C(0x06054b50)
#define END64_SIGNATURE   UINT32_C(0x06064b50)
#define LOCATOR_SIGNATURE UINT32_C(0x07064b50)
enum { LOCAL = 30, CENTRAL = 46, END = 22, END64 = 56, LOCATOR = 20, COMMENT_MAX = 65535 };

static unsigned u16(const uint8_t *p)
{
    return (unsigned)little_endian(p, 2);
}

static uint32_t u32(const uint8_t *p)
{
    return (uint32_t)little_endian(p, 4);
}

static uint64_t u64(const uint8_t *p)
{
    return little_endian(p, 8);
}

static int bad(const struct zip *z, struct steer_error *err, const char *what)
{
    return steer_fail(err, STEER_BAD_MODEL, "%s: %s", z->path, what);
}

/* The place of the end record: the last one whose comment reaches to the end. */
static int end_find(const struct zip *z, size_t *ret, struct steer_error *err)
{
    if (z->size < END) return bad(z, err, "too short for a zip archive (truncated?)");
    for (size_t at = z->size - END;; at--) {
        const uint8_t *p = z->data + at;
        if (u32(p) == END_SIGNATURE && u16(p + 20) == z->size - at - END) {
            *ret = at;
            return 0;
        }
        if (!at || z->size - at - END == COMMENT_MAX) break;
    }
    return bad(z, err, "it begins as a zip archive, but its end has no directory (truncated?)");
}

/* Where the central directory is and how many entries it has. */
static int directory_find(const struct zip *z, uint64_t *first, uint64_t *bytes, uint64_t *count,
                          struct steer_error *err)
{
    size_t end = 0;
    int code = end_find(z, &end, err);
    if (code) return code;
    const uint8_t *p = z->data + end;
    *count = u16(p + 10);
    *bytes = u32(p + 12);
    *first = u32(p + 16);
    if (end >= LOCATOR && u32(p - LOCATOR) == LOCATOR_SIGNATURE) {
        uint64_t at = u64(p - LOCATOR + 8);
        if (end < LOCATOR + END64 || at > end - LOCATOR - END64 ||
            u32(z->data + at) != END64_SIGNATURE)
            return bad(z, err, "its zip64 end is not where its locator says");
        end = (size_t)at;
        *count = u64(z->data + at + 32);
        *bytes = u64(z->data + at + 40);
        *first = u64(z->data + at + 48);
    }
    if (*first > end || *bytes > end - *first || *count > *bytes / CENTRAL)
        return bad(z, err, "its zip directory is not inside of it");
    return 0;
}

/* Takes from the zip64 extra field what the entry's own fields have no room for. */
static int extra_read(const struct zip *z, struct zip_entry *e, const uint8_t *extra, size_t bytes,
                      uint32_t packed, struct steer_error *err)
{
    while (bytes >= 4) {
        unsigned id = u16(extra), n = u16(extra + 2);
        if (n > bytes - 4) break;
        if (id == 1) {
            const uint8_t *at = extra + 4, *end = at + n;
            uint64_t skipped;
            uint64_t *fields[] = {&e->size, &skipped, &e->offset};
            int there[] = {e->size == UINT32_MAX, packed == UINT32_MAX, e->offset == UINT32_MAX};
            for (int i = 0; i < 3; i++) {
                if (!there[i]) continue;
                if (end - at < 8) return bad(z, err, "a zip64 field is too short");
                *fields[i] = u64(at);
                at += 8;
            }
            return 0;
        }
        extra += 4 + n;
        bytes -= 4 + n;
    }
    return 0;
}

static int by_name(const void *a, const void *b)
{
    const struct zip_entry *x = a, *y = b;
    size_t n = x->name_bytes < y->name_bytes ? x->name_bytes : y->name_bytes;
    int order = n ? memcmp(x->name, y->name, n) : 0;
    return order ? order : (x->name_bytes > y->name_bytes) - (x->name_bytes < y->name_bytes);
}

static int entries_read(struct zip *z, const uint8_t *p, uint64_t left, struct steer_error *err)
{
    for (size_t i = 0; i < z->count; i++) {
        struct zip_entry *e = z->entries + i;
        if (left < CENTRAL || u32(p) != CENTRAL_SIGNATURE)
            return bad(z, err, "its zip directory is broken");
        size_t name = u16(p + 28), extra = u16(p + 30), comment = u16(p + 32);
        if (name + extra + comment > left - CENTRAL)
            return bad(z, err, "its zip directory is broken");
        *e = (struct zip_entry){.name = (const char *)p + CENTRAL,
                                .name_bytes = name,
                                .flags = u16(p + 8),
                                .method = u16(p + 10),
                                .offset = u32(p + 42),
                                .size = u32(p + 24)};
        int code = extra_read(z, e, p + CENTRAL + name, extra, u32(p + 20), err);
        if (code) return code;
        p += CENTRAL + name + extra + comment;
        left -= CENTRAL + name + extra + comment;
    }
    return 0;
}

int zip_open(struct zip *z, const uint8_t *data, size_t size, const char *path,
             struct steer_error *err)
{
    uint64_t first = 0, bytes = 0, count = 0;
    *z = (struct zip){.data = data, .size = size, .path = path};
    int code = directory_find(z, &first, &bytes, &count, err);
    if (code) return code;
    if (!count) return bad(z, err, "an empty zip archive");
    if (!(z->entries = calloc(count, sizeof *z->entries)))
        return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    z->count = (size_t)count;
    if ((code = entries_read(z, data + first, bytes, err))) return code;
    qsort(z->entries, z->count, sizeof *z->entries, by_name);
    for (size_t i = 1; i < z->count; i++)
        if (by_name(z->entries + i - 1, z->entries + i) == 0)
            return bad(z, err, "its zip directory has an entry twice");
    return 0;
}

void zip_close(struct zip *z)
{
    free(z->entries);
    z->entries = NULL;
    z->count = 0;
}

const struct zip_entry *zip_find(const struct zip *z, const char *name)
{
    struct zip_entry key = {.name = name, .name_bytes = strlen(name)};
    return z->count ? bsearch(&key, z->entries, z->count, sizeof key, by_name) : NULL;
}

int zip_stored(const struct zip *z, const struct zip_entry *e, const uint8_t **ret,
               struct steer_error *err)
{
    int shown = e->name_bytes < 200 ? (int)e->name_bytes : 200;
    const char *what = NULL;
    uint64_t at = 0;
    if (e->flags & 1)
        what = "it is encrypted";
    else if (e->method)
        what = "it is compressed: expected an archive as torch.save writes it";
    else if (z->size < LOCAL || e->offset > z->size - LOCAL ||
             u32(z->data + e->offset) != LOCAL_SIGNATURE)
        what = "it is not where the directory says";
    if (!what) {
        /* The local header's own lengths: its extra field pads the bytes to a multiple of 64. */
        const uint8_t *p = z->data + e->offset;
        at = e->offset + LOCAL + u16(p + 26) + u16(p + 28);
        if (at > z->size || e->size > z->size - at) what = "it ends after the archive (truncated?)";
    }
    if (what)
        return steer_fail(err, STEER_BAD_MODEL, "%s: entry \"%.*s\": %s", z->path, shown, e->name,
                          what);
    *ret = z->data + at;
    return 0;
}
