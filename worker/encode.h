/* encode.h - pixels to a file's bytes: WebP or PNG that says how it was made.
 *
 * The parameters travel in XMP, as JSON that renders the image again (steerfarm:job) and as the
 * text that image tools show (dc:description; in PNG also the `parameters` chunk that A1111's web
 * UI introduced). */
#ifndef WORKER_ENCODE_H
#define WORKER_ENCODE_H
#include <stddef.h>
#include <stdint.h>

#include "error.h"

enum image_format { IMAGE_WEBP_LOSSY, IMAGE_WEBP_LOSSLESS, IMAGE_PNG };

struct image_meta {
    int width, height;
    enum image_format format;
    int quality;            /* 0..100, lossy WebP */
    const char *json;       /* the job, UTF-8; NULL: nothing is told */
    const char *parameters; /* UTF-8 */
};

/* pixels [height][width][3]. The caller frees *ret. */
int image_encode(uint8_t **ret, size_t *ret_bytes, const uint8_t *pixels,
                 const struct image_meta *meta, struct steer_error *err) STEER_MUSTCHECK;

#endif
