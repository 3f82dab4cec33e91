// SPDX-License-Identifier: Apache-2.0
/* Algorithm tables: lines "conv3 IN OUT HxW wino|direct", made by `steer-worker tune`. */
#include <stdio.h>
#include <string.h>

#include "cpu.h"

int tuning_winograd(const struct compute *c, int in, int out, int h, int w, int otherwise)
{
    if (!c->tuning) return otherwise;
    char line[96];
    snprintf(line, sizeof line, "conv3 %d %d %dx%d ", in, out, h, w);
    const char *at = strstr(c->tuning, line);
    if (!at || (at != c->tuning && at[-1] != '\n')) return otherwise;
    return strncmp(at + strlen(line), "wino", 4) == 0;
}
