// SPDX-License-Identifier: Apache-2.0
#include "family.h"

#include <stdio.h>
#include <string.h>

#include "../model.h"

/* Who reads a denoiser of that class. */
static const struct {
    const char *part, *class_name;
    int (*open)(struct model *m, struct steer_error *err);
} openers[] = {{"unet", "UNet2DConditionModel", family_sd_open},
               {"transformer", "PixArtTransformer2DModel", family_pixart_open},
               {"transformer", "Transformer2DModel", family_pixart_open}, /* its name before 0.27 */
               {"transformer", "FluxTransformer2DModel", family_flux_open}};

int family_open(struct model *m, struct steer_error *err)
{
    enum { COUNT = sizeof openers / sizeof *openers };
    char expected[400] = "";
    const char *found = NULL;
    for (int i = 0; i < COUNT; i++) {
        const char *class_name = folder_class(&m->folder, openers[i].part);
        if (class_name && strcmp(class_name, openers[i].class_name) == 0) {
            m->denoiser_part = openers[i].part;
            return openers[i].open(m, err);
        }
        if (class_name) found = openers[i].part;
        size_t n = strlen(expected);
        snprintf(expected + n, sizeof expected - n, "%s\"%s\": %s", n ? ", or " : "",
                 openers[i].part, openers[i].class_name);
    }
    if (!found)
        return steer_fail(err, STEER_BAD_MODEL, "%s: the denoiser is missing: expected %s",
                          m->folder.index_file, expected);
    return steer_fail(err, STEER_UNSUPPORTED, "%s: \"%s\" is a %s: expected %s",
                      m->folder.index_file, found, folder_class(&m->folder, found), expected);
}
