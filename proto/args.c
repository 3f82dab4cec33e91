// SPDX-License-Identifier: Apache-2.0
#include "args.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { OPTIONS_MAX = 256 }; /* of one command */

static int option_set(const struct args_group *g, const struct args_option *o, const char *given,
                      const char *value, struct steer_error *err)
{
    struct steer_error why = {0};
    int code = o->set(g->target, value, &why);
    return code ? steer_fail(err, code, "%s: %s", given, why.text) : 0;
}

/* The variable of an option that was not given; one that repeats has a single value there. */
static int environment_read(const struct args_group *g, const struct args_option *o,
                            struct steer_error *err)
{
    char name[64] = "STEER_";
    size_t n = strlen(name);
    for (const char *p = o->name; *p && n + 1 < sizeof name; p++)
        name[n++] = *p == '-' ? '_' : (char)toupper((unsigned char)*p);
    name[n] = 0;
    const char *value = getenv(name);
    if (!value || !*value) return 0;
    if (!o->value) {
        if (strcmp(value, "0") == 0) return 0;
        if (strcmp(value, "1") != 0)
            return steer_fail(err, STEER_USAGE, "%s=%s: expected 1 or 0", name, value);
        value = NULL;
    }
    return option_set(g, o, name, value, err);
}

static const struct args_option *option_find(const struct args_group *groups, const char *name,
                                             size_t length, const struct args_group **ret_group,
                                             size_t *ret_place)
{
    size_t place = 0;
    for (const struct args_group *g = groups; g->options; g++)
        for (const struct args_option *o = g->options; o->name; o++, place++)
            if (strlen(o->name) == length && memcmp(o->name, name, length) == 0) {
                *ret_group = g;
                *ret_place = place;
                return o;
            }
    return NULL;
}

int args_parse(const struct args_group *groups, int argc, char **argv, int *ret_words,
               int *ret_help, struct steer_error *err)
{
    char given_by_flag[OPTIONS_MAX] = {0};
    size_t place = 0;
    int words = 0, code;
    *ret_help = 0;
    for (int i = 0; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) *ret_help = 1;
    for (int i = 0; i < argc && !*ret_help; i++) {
        char *arg = argv[i];
        if (strcmp(arg, "--") == 0) {
            while (++i < argc)
                argv[words++] = argv[i];
            break;
        }
        if (arg[0] != '-' || !arg[1]) {
            argv[words++] = arg;
            continue;
        }
        const char *equals = strchr(arg, '=');
        size_t length = equals ? (size_t)(equals - arg) : strlen(arg);
        const struct args_group *g = NULL;
        const struct args_option *o = length > 2 && arg[1] == '-'
                                          ? option_find(groups, arg + 2, length - 2, &g, &place)
                                          : NULL;
        if (!o || place >= OPTIONS_MAX)
            return steer_fail(err, STEER_USAGE, "unknown option %.*s (see --help)", (int)length,
                              arg);
        char given[64];
        snprintf(given, sizeof given, "--%s", o->name);
        const char *value = equals ? equals + 1 : NULL;
        if (!o->value && value) return steer_fail(err, STEER_USAGE, "%s takes no value", given);
        if (o->value && !value) {
            if (i + 1 >= argc)
                return steer_fail(err, STEER_USAGE, "%s needs a value: %s", given, o->value);
            value = argv[++i];
        }
        if ((code = option_set(g, o, given, value, err))) return code;
        given_by_flag[place] = 1;
    }
    place = 0;
    for (const struct args_group *g = groups; g->options && !*ret_help; g++)
        for (const struct args_option *o = g->options; o->name; o++, place++)
            if (place < OPTIONS_MAX && !given_by_flag[place] &&
                (code = environment_read(g, o, err)))
                return code;
    *ret_words = words;
    return 0;
}

void args_help(FILE *to, const struct args_group *groups)
{
    for (const struct args_group *g = groups; g->options; g++) {
        fprintf(to, "\n%s\n", g->title);
        for (const struct args_option *o = g->options; o->name; o++) {
            char left[64];
            snprintf(left, sizeof left, "--%s%s%s", o->name, o->value ? " " : "",
                     o->value ? o->value : "");
            fprintf(to, "  %-30s %s\n", left, o->help);
        }
    }
    fprintf(to, "\nEvery option has a variable too: --guidance-scale is STEER_GUIDANCE_SCALE; the "
                "option wins.\n");
}

void args_help_exits(FILE *to)
{
    fprintf(to, "\nExit codes: 0 done");
#define X(name, exit_code, text) {exit_code, text},
    static const struct {
        int exit;
        const char *text;
    } list[] = {STEER_ERROR_LIST(X)};
#undef X
    for (int code = 1; code < 256; code++) {
        int found = 0;
        for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
            if (list[i].exit != code) continue;
            if (!found++)
                fprintf(to, "\n  %3d  %s", code, list[i].text);
            else
                fprintf(to, "; %s", list[i].text);
        }
    }
    fprintf(to, "\n");
}

int args_u64(uint64_t *ret, const char *text, uint64_t least, uint64_t most,
             struct steer_error *err)
{
    char *end = NULL;
    errno = 0;
    unsigned long long value = isdigit((unsigned char)*text) ? strtoull(text, &end, 10) : 0;
    if (!end || *end || errno || value < least || value > most)
        return steer_fail(err, STEER_BAD_VALUE, "\"%s\": expected a whole number from %llu to %llu",
                          text, (unsigned long long)least, (unsigned long long)most);
    *ret = value;
    return 0;
}

int args_double(double *ret, const char *text, struct steer_error *err)
{
    char *end = NULL;
    double value = strtod(text, &end);
    if (end == text || *end || !isfinite(value))
        return steer_fail(err, STEER_BAD_VALUE, "\"%s\": expected a number", text);
    *ret = value;
    return 0;
}

int args_bytes(uint64_t *ret, const char *text, struct steer_error *err)
{
    static const char units[] = "KMGT";
    char *end = NULL;
    errno = 0;
    unsigned long long value = isdigit((unsigned char)*text) ? strtoull(text, &end, 10) : 0;
    const char *unit = end && *end ? strchr(units, toupper((unsigned char)*end)) : NULL;
    int shift = unit ? 10 * (int)(unit - units + 1) : 0;
    if (!end || errno || (*end && (!unit || end[1])) || value > UINT64_MAX >> shift)
        return steer_fail(err, STEER_BAD_VALUE,
                          "\"%s\": expected a number of bytes, like 512M or 2G", text);
    *ret = (uint64_t)value << shift;
    return 0;
}
