// SPDX-License-Identifier: Apache-2.0
#include "net.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../lora.h"
#include "../tensors.h"

/* Weights by name in an open-addressing table that at most half fills. */
struct entry {
    char *name; /* NULL: free */
    struct weight *weight;
};

struct params {
    struct compute *compute;
    struct tensors *files;
    const struct loras *loras; /* NULL: none */
    enum lora_target target;
    int int8;
    struct entry *entries;
    size_t room, used; /* room is a power of two */
    struct steer_error error;
};

int params_new(struct params **ret, struct compute *c, struct tensors **files)
{
    struct params *p = calloc(1, sizeof *p);
    if (!p) return STEER_NO_MEMORY;
    p->room = 1024;
    p->entries = calloc(p->room, sizeof *p->entries);
    if (!p->entries) {
        free(p);
        return STEER_NO_MEMORY;
    }
    p->compute = c;
    p->files = *files;
    *files = NULL;
    *ret = p;
    return 0;
}

void params_free(struct params *p)
{
    if (!p) return;
    for (size_t i = 0; i < p->room; i++) {
        weight_free(p->entries[i].weight);
        free(p->entries[i].name);
    }
    free(p->entries);
    tensors_close(p->files);
    free(p);
}

int params_error(struct params *p, struct steer_error *err)
{
    int code = p->error.code;
    if (!code) {
        code = tensors_check(p->files, err);
        return code || !p->loras ? code : loras_current(p->loras, err);
    }
    if (err) *err = p->error;
    if (code == STEER_NO_MEMORY) p->error = (struct steer_error){0};
    return code;
}

void params_loras(struct params *p, const struct loras *loras, int target)
{
    p->loras = loras;
    p->target = (enum lora_target)target;
}

void params_hold_int8(struct params *p)
{
    p->int8 = 1;
}

void params_unpack(struct params *p)
{
    for (size_t i = 0; i < p->room; i++)
        if (p->entries[i].weight) weight_unpack(p->entries[i].weight);
}

const struct tensors *params_files(const struct params *p)
{
    return p->files;
}

int params_has(const struct params *p, const char *format, ...)
{
    char name[160];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    return tensors_find(p->files, name) != NULL;
}

static size_t slot_of(const struct entry *entries, size_t room, const char *name)
{
    uint64_t hash = UINT64_C(14695981039346656037);
    for (const char *c = name; *c; c++)
        hash = (hash ^ (unsigned char)*c) * UINT64_C(1099511628211);
    size_t i = hash & (room - 1);
    while (entries[i].name && strcmp(entries[i].name, name) != 0)
        i = (i + 1) & (room - 1);
    return i;
}

static struct weight *find(const struct params *p, const char *name)
{
    return p->entries[slot_of(p->entries, p->room, name)].weight;
}

/* Takes w; NULL when there is no memory for it. */
static struct weight *keep(struct params *p, const char *name, struct weight *w)
{
    if (2 * p->used >= p->room) {
        struct entry *more = calloc(2 * p->room, sizeof *more);
        if (!more) goto fail;
        for (size_t i = 0; i < p->room; i++)
            if (p->entries[i].name)
                more[slot_of(more, 2 * p->room, p->entries[i].name)] = p->entries[i];
        free(p->entries);
        p->entries = more;
        p->room *= 2;
    }
    struct entry *e = p->entries + slot_of(p->entries, p->room, name);
    if (!(e->name = strdup(name))) goto fail;
    e->weight = w;
    p->used++;
    return w;
fail:
    weight_free(w);
    if (!p->error.code) steer_fail(&p->error, STEER_NO_MEMORY, "out of memory");
    return NULL;
}

/* Looks the tensor up with exactly that shape; data NULL after a mistake, which is remembered. */
static struct stored stored_get(struct params *p, const char *name, int rank, const int64_t *shape)
{
    struct tensor_view view;
    struct stored s = {0};
    if (p->error.code) return s;
    if (tensors_get(p->files, name, rank, shape, &view, &p->error)) return s;
    s = tensor_stored(&view);
    if (!s.data) {
        steer_fail(&p->error, STEER_UNSUPPORTED,
                   "tensor \"%s\" has dtype %s: expected F32, F16 or BF16", name,
                   tensor_dtype_name(view.dtype));
        return s;
    }
    if (p->loras) s.added = loras_find(p->loras, p->target, name);
    return s;
}

static struct stored stored_part(struct params *p, const char *path, const char *part, int rank,
                                 const int64_t *shape)
{
    char name[200];
    snprintf(name, sizeof name, "%s.%s", path, part);
    return stored_get(p, name, rank, shape);
}

/* *w, which the call that gave code has filled, under its path. */
static struct weight *made(struct params *p, int code, const char *path, struct weight **w)
{
    if (code) {
        if (!p->error.code) steer_fail(&p->error, code, "%s: cannot be made a weight", path);
        return NULL;
    }
    if (p->int8) weight_hold_int8(*w);
    return keep(p, path, *w);
}

#define PATH_OF(buffer, last)                                                                      \
    do {                                                                                           \
        va_list args;                                                                              \
        va_start(args, last);                                                                      \
        vsnprintf(buffer, sizeof buffer, last, args);                                              \
        va_end(args);                                                                              \
    } while (0)

struct tensor net_linear(struct net *n, struct tensor x, int out, int bias, enum activation act,
                         const char *path, ...)
{
    char name[160];
    PATH_OF(name, path);
    struct params *p = n->params;
    struct weight *w = find(p, name);
    int in = graph_shape(n->graph, x).c;
    if (!w) {
        struct stored matrix = stored_part(p, name, "weight", 2, (int64_t[]){out, in}), b = {0};
        if (bias) b = stored_part(p, name, "bias", 1, (int64_t[]){out});
        if (p->error.code) return TENSOR_NONE;
        w = made(p, weight_linear(&w, p->compute, 1, &matrix, &b, &out, in), name, &w);
    }
    return w ? op_linear(n->graph, x, w, act) : TENSOR_NONE;
}

struct tensor net_linear_stack(struct net *n, struct tensor x, int out, int bias, int count,
                               const char *const *names, const char *path, ...)
{
    char root[160], name[192];
    PATH_OF(root, path);
    struct params *p = n->params;
    int in = graph_shape(n->graph, x).c;
    struct stored matrices[3], biases[3];
    int outs[3] = {out, out, out};
    snprintf(name, sizeof name, "%s.%s+", root, names[0]); /* the stack's own name */
    struct weight *w = find(p, name);
    if (!w) {
        for (int i = 0; i < count; i++) {
            char part[192];
            snprintf(part, sizeof part, "%s.%s", root, names[i]);
            matrices[i] = stored_part(p, part, "weight", 2, (int64_t[]){out, in});
            biases[i] = (struct stored){0};
            if (bias) biases[i] = stored_part(p, part, "bias", 1, (int64_t[]){out});
        }
        if (p->error.code) return TENSOR_NONE;
        w = made(p, weight_linear(&w, p->compute, count, matrices, biases, outs, in), name, &w);
    }
    return w ? op_linear(n->graph, x, w, ACT_NONE) : TENSOR_NONE;
}

struct tensor net_conv(struct net *n, struct tensor x, int out, int size, int stride, int bias,
                       struct tensor per_image, enum activation act, const char *path, ...)
{
    char name[160];
    PATH_OF(name, path);
    struct params *p = n->params;
    struct weight *w = find(p, name);
    int in = graph_shape(n->graph, x).c;
    if (!w) {
        struct stored kernel = stored_part(p, name, "weight", 4, (int64_t[]){out, in, size, size}),
                      b = {0};
        if (bias) b = stored_part(p, name, "bias", 1, (int64_t[]){out});
        if (p->error.code) return TENSOR_NONE;
        w = made(p, weight_conv(&w, p->compute, kernel, b, out, in, size), name, &w);
    }
    return w ? op_conv(n->graph, x, w, stride, size / 2, per_image, act) : TENSOR_NONE;
}

struct tensor net_patches(struct net *n, struct tensor x, int out, int size, const char *path, ...)
{
    char name[160];
    PATH_OF(name, path);
    struct params *p = n->params;
    struct weight *w = find(p, name);
    int in = graph_shape(n->graph, x).c;
    if (!w) {
        struct stored kernel = stored_part(p, name, "weight", 4, (int64_t[]){out, in, size, size}),
                      b = stored_part(p, name, "bias", 1, (int64_t[]){out});
        if (p->error.code) return TENSOR_NONE;
        w = made(p, weight_linear(&w, p->compute, 1, &kernel, &b, &out, in * size * size), name,
                 &w);
    }
    if (!w) return TENSOR_NONE;
    return op_linear(n->graph, op_patches(n->graph, x, size, PATCH_CHANNEL_FIRST), w, ACT_NONE);
}

struct tensor net_constant(struct net *n, int rows, int channels, const char *path, ...)
{
    char name[160];
    PATH_OF(name, path);
    struct params *p = n->params;
    struct weight *w = find(p, name);
    if (!w) {
        struct stored table = stored_get(p, name, 2, (int64_t[]){rows, channels});
        if (p->error.code) return TENSOR_NONE;
        w = made(p, weight_table(&w, p->compute, table, 1, rows * channels), name, &w);
    }
    struct tensor first =
        graph_constant_ids(n->graph, "first", (struct shape){1, 1, 1, 1}, (int32_t[]){0});
    return w ? op_embedding(n->graph, first, w, NULL) : TENSOR_NONE;
}

static struct weight *norm_weight(struct params *p, const char *name, int channels, int bias)
{
    struct weight *w = find(p, name);
    if (w) return w;
    struct stored scale = stored_part(p, name, "weight", 1, (int64_t[]){channels}), shift = {0};
    if (bias) shift = stored_part(p, name, "bias", 1, (int64_t[]){channels});
    if (p->error.code) return NULL;
    return made(p, weight_norm(&w, p->compute, scale, shift, channels), name, &w);
}

struct tensor net_group_norm(struct net *n, struct tensor x, int groups, double eps,
                             enum activation act, const char *path, ...)
{
    char name[160];
    PATH_OF(name, path);
    struct weight *w = norm_weight(n->params, name, graph_shape(n->graph, x).c, 1);
    return w ? op_group_norm(n->graph, x, w, groups, eps, act) : TENSOR_NONE;
}

struct tensor net_layer_norm(struct net *n, struct tensor x, double eps, const char *path, ...)
{
    char name[160];
    PATH_OF(name, path);
    struct weight *w = norm_weight(n->params, name, graph_shape(n->graph, x).c, 1);
    return w ? op_layer_norm(n->graph, x, w, eps) : TENSOR_NONE;
}

struct tensor net_rms_norm(struct net *n, struct tensor x, int heads, double eps, const char *path,
                           ...)
{
    char name[160];
    PATH_OF(name, path);
    struct weight *w = norm_weight(n->params, name, graph_shape(n->graph, x).c / heads, 0);
    return w ? op_rms_norm(n->graph, x, w, heads, eps) : TENSOR_NONE;
}

static struct weight *table_weight(struct params *p, const char *path, int rows, int channels)
{
    struct weight *w = find(p, path);
    if (w) return w;
    struct stored table = stored_part(p, path, "weight", 2, (int64_t[]){rows, channels});
    if (table.added && !p->error.code)
        steer_fail(&p->error, STEER_UNSUPPORTED,
                   "tensor \"%s.weight\" is a table: a LoRA cannot change it", path);
    if (p->error.code) return NULL;
    return made(p, weight_table(&w, p->compute, table, rows, channels), path, &w);
}

struct tensor net_embedding(struct net *n, struct tensor ids, int rows, int positions, int channels,
                            const char *tokens_path, const char *positions_path)
{
    struct weight *table = table_weight(n->params, tokens_path, rows, channels);
    struct weight *place = NULL;
    if (positions_path) place = table_weight(n->params, positions_path, positions, channels);
    if (!table || (positions_path && !place)) return TENSOR_NONE;
    return op_embedding(n->graph, ids, table, place);
}
