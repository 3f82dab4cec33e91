// SPDX-License-Identifier: Apache-2.0
#include "numerics.h"

#include <png.h>
#include <stdio.h>
#include <string.h>
#include <webp/encode.h>
#include <xxhash.h>
#include <zlib.h>

#include "recipe.h"

/* Each recipe is hashed by itself and the hashes are added: the order of folders does not matter,
 * and where a file lies does not either. */
static void recipe_add(void *data, const char *name)
{
    char path[4096], bytes[4096];
    uint64_t *sum = data;
    if (recipe_path(path, sizeof path, name, NULL)) return;
    FILE *f = fopen(path, "re");
    XXH3_state_t *state = XXH3_createState();
    if (f && state) {
        XXH3_64bits_reset(state);
        const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
        XXH3_64bits_update(state, base, strlen(base));
        for (size_t n; (n = fread(bytes, 1, sizeof bytes, f));)
            XXH3_64bits_update(state, bytes, n);
        *sum += XXH3_64bits_digest(state);
    }
    XXH3_freeState(state);
    if (f) fclose(f);
}

uint32_t numerics_salt(const char *file)
{
    char libraries[128];
    int n = snprintf(libraries, sizeof libraries, "webp %x png %u zlib %s",
                     (unsigned)WebPGetEncoderVersion(), (unsigned)png_access_version_number(),
                     zlibVersion());
    uint64_t sum = XXH3_64bits(libraries, (size_t)n);
    recipe_list(recipe_add, &sum);
    if (file) recipe_add(&sum, file);
    return (uint32_t)(sum ^ sum >> 32);
}
