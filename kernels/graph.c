// SPDX-License-Identifier: Apache-2.0
#include "graph.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "weight.h"

const char *op_name(enum op_kind kind)
{
    static const char *const names[OP_KINDS] = {
        "linear",    "conv",      "group_norm", "layer_norm",       "rms_norm",   "modulate",
        "gated_add", "rope",      "attention",  "guided_attention", "activation", "add",
        "multiply",  "affine",    "geglu",      "concat",           "resize",     "patches",
        "unpatches", "embedding", "sinusoid",   "soft_clamp",       "to_u8"};
    return names[kind];
}

size_t compute_type_bytes(enum compute_type type)
{
    static const size_t bytes[] = {4, 2, 2, 4, 1};
    return bytes[type];
}

const char *compute_type_name(enum compute_type type)
{
    static const char *const names[] = {"f32", "bf16", "f16", "i32", "u8"};
    return names[type];
}

struct graph *graph_new(void)
{
    return calloc(1, sizeof(struct graph));
}

void graph_free(struct graph *g)
{
    if (!g) return;
    for (int i = 0; i < g->tensors_count; i++)
        free(g->tensors[i].data);
    free(g->ops);
    free(g->tensors);
    free(g);
}

/* After the first mistake tensors are shapeless and every further check is skipped. */
static struct tensor wrong(struct graph *g, int code, const char *what)
{
    if (!g->error.code)
        steer_fail(&g->error, code, "recording operation %d: %s", g->ops_count, what);
    return TENSOR_NONE;
}

struct shape graph_shape(const struct graph *g, struct tensor t)
{
    if (t.id < 0 || t.id >= g->tensors_count) return (struct shape){0};
    return g->tensors[t.id].shape;
}

static struct tensor tensor_new(struct graph *g, struct shape s)
{
    if (g->error.code) return TENSOR_NONE;
    int64_t count;
    if (s.b <= 0 || s.h <= 0 || s.w <= 0 || s.c <= 0 ||
        __builtin_mul_overflow((int64_t)s.b * s.h, (int64_t)s.w * s.c, &count) ||
        count > INT64_C(1) << 33)
        return wrong(g, STEER_INTERNAL, "a tensor without a sensible shape");
    if (g->tensors_count == g->tensors_room) {
        int room = g->tensors_room ? 2 * g->tensors_room : 256;
        struct tensor_info *more = realloc(g->tensors, (size_t)room * sizeof *more);
        if (!more) return wrong(g, STEER_NO_MEMORY, "out of memory");
        g->tensors = more;
        g->tensors_room = room;
    }
    g->tensors[g->tensors_count] = (struct tensor_info){.shape = s, .parent = -1};
    return (struct tensor){g->tensors_count++};
}

static struct tensor op_push(struct graph *g, struct op op, struct shape out)
{
    struct tensor t = tensor_new(g, out);
    if (t.id < 0) return t;
    if (g->ops_count == g->ops_room) {
        int room = g->ops_room ? 2 * g->ops_room : 256;
        struct op *more = realloc(g->ops, (size_t)room * sizeof *more);
        if (!more) return wrong(g, STEER_NO_MEMORY, "out of memory");
        g->ops = more;
        g->ops_room = room;
    }
    op.out = t.id;
    g->ops[g->ops_count++] = op;
    return t;
}

static struct op op_of(enum op_kind kind, int a, int b, int c)
{
    struct op op = {.kind = kind};
    for (int i = 0; i < OP_INPUTS_MAX; i++)
        op.in[i] = -1;
    op.in[0] = a;
    op.in[1] = b;
    op.in[2] = c;
    return op;
}

struct tensor graph_input(struct graph *g, const char *name, struct shape shape,
                          enum compute_type type)
{
    struct tensor t = tensor_new(g, shape);
    if (t.id < 0) return t;
    struct tensor_info *info = g->tensors + t.id;
    info->role = ROLE_INPUT;
    info->type = type;
    snprintf(info->name, sizeof info->name, "%s", name);
    return t;
}

struct tensor graph_bound(struct graph *g, const char *name, struct shape shape, int as_computed)
{
    struct tensor t = graph_input(g, name, shape, TYPE_F32);
    if (t.id < 0) return t;
    g->tensors[t.id].role = ROLE_BOUND;
    g->tensors[t.id].output = as_computed ? 2 : 1;
    return t;
}

static struct tensor constant_new(struct graph *g, const char *name, struct shape shape,
                                  enum compute_type type, const void *data)
{
    struct tensor t = graph_input(g, name, shape, type);
    if (t.id < 0) return t;
    size_t bytes = (size_t)shape.b * (size_t)shape.h * (size_t)shape.w * (size_t)shape.c *
                   compute_type_bytes(type);
    /* data NULL: its maker had no memory either */
    void *copy = data ? malloc(bytes) : NULL;
    if (!copy) return wrong(g, STEER_NO_MEMORY, "out of memory");
    memcpy(copy, data, bytes);
    g->tensors[t.id].role = ROLE_CONSTANT;
    g->tensors[t.id].data = copy;
    return t;
}

struct tensor graph_constant(struct graph *g, const char *name, struct shape shape,
                             const float *data)
{
    return constant_new(g, name, shape, TYPE_F32, data);
}

struct tensor graph_constant_ids(struct graph *g, const char *name, struct shape shape,
                                 const int32_t *ids)
{
    return constant_new(g, name, shape, TYPE_I32, ids);
}

void graph_output(struct graph *g, struct tensor t, const char *name, int as_computed)
{
    if (g->error.code) return;
    if (t.id < 0 || g->tensors[t.id].role != ROLE_INNER) {
        wrong(g, STEER_INTERNAL, "an output is neither an operation's result nor dense");
        return;
    }
    g->tensors[t.id].output = as_computed ? 2 : 1;
    snprintf(g->tensors[t.id].name, sizeof g->tensors[t.id].name, "%s", name);
}

static struct tensor view_new(struct graph *g, struct tensor t, struct shape s, int channel)
{
    int parent = t.id;
    if (g->tensors[t.id].role == ROLE_VIEW) {
        parent = g->tensors[t.id].parent;
        channel += g->tensors[t.id].channel;
    }
    struct tensor v = tensor_new(g, s);
    if (v.id < 0) return v;
    g->tensors[v.id].role = ROLE_VIEW;
    g->tensors[v.id].type = g->tensors[parent].type;
    g->tensors[v.id].parent = parent;
    g->tensors[v.id].channel = channel;
    return v;
}

struct tensor op_reshape(struct graph *g, struct tensor t, int h, int w)
{
    struct shape s = graph_shape(g, t);
    if (g->error.code) return TENSOR_NONE;
    if ((int64_t)h * w != (int64_t)s.h * s.w)
        return wrong(g, STEER_INTERNAL, "reshape changes the number of pixels");
    return view_new(g, t, (struct shape){s.b, h, w, s.c}, 0);
}

struct tensor op_channels(struct graph *g, struct tensor t, int first, int count)
{
    struct shape s = graph_shape(g, t);
    if (g->error.code) return TENSOR_NONE;
    if (first < 0 || count <= 0 || first > s.c - count)
        return wrong(g, STEER_INTERNAL, "channels outside the tensor");
    return view_new(g, t, (struct shape){s.b, s.h, s.w, count}, first);
}

struct tensor op_linear(struct graph *g, struct tensor x, struct weight *w, enum activation act)
{
    struct shape s = graph_shape(g, x);
    if (g->error.code) return TENSOR_NONE;
    if (!w || w->kind != WEIGHT_LINEAR || s.c != w->in)
        return wrong(g, STEER_INTERNAL, "linear: the weight does not fit its input");
    struct op op = op_of(OP_LINEAR, x.id, -1, -1);
    op.w = w;
    op.act = act;
    return op_push(g, op, (struct shape){s.b, s.h, s.w, w->out});
}

struct tensor op_conv(struct graph *g, struct tensor x, struct weight *w, int stride, int padding,
                      struct tensor per_image, enum activation act)
{
    struct shape s = graph_shape(g, x);
    if (g->error.code) return TENSOR_NONE;
    if (!w || w->kind != WEIGHT_CONV || s.c != w->in)
        return wrong(g, STEER_INTERNAL, "conv: the weight does not fit its input");
    if (stride < 1 || padding < 0 || s.h + 2 * padding < w->size || s.w + 2 * padding < w->size)
        return wrong(g, STEER_INTERNAL, "conv: the image is smaller than the kernel");
    if (per_image.id >= 0) {
        struct shape p = graph_shape(g, per_image);
        if (p.b != s.b || p.h != 1 || p.w != 1 || p.c != w->out)
            return wrong(g, STEER_INTERNAL, "conv: per_image is not [B, 1, 1, out]");
    }
    struct op op = op_of(OP_CONV, x.id, per_image.id, -1);
    op.w = w;
    op.stride = stride;
    op.padding = padding;
    op.act = act;
    return op_push(g, op,
                   (struct shape){s.b, (s.h + 2 * padding - w->size) / stride + 1,
                                  (s.w + 2 * padding - w->size) / stride + 1, w->out});
}

struct tensor op_group_norm(struct graph *g, struct tensor x, struct weight *w, int groups,
                            double eps, enum activation act)
{
    struct shape s = graph_shape(g, x);
    if (g->error.code) return TENSOR_NONE;
    if (!w || w->kind != WEIGHT_NORM || s.c != w->in || groups < 1 || s.c % groups)
        return wrong(g, STEER_INTERNAL, "group norm: channels do not divide into the groups");
    struct op op = op_of(OP_GROUP_NORM, x.id, -1, -1);
    op.w = w;
    op.groups = groups;
    op.eps = eps;
    op.act = act;
    return op_push(g, op, s);
}

struct tensor op_layer_norm(struct graph *g, struct tensor x, struct weight *w, double eps)
{
    struct shape s = graph_shape(g, x);
    if (g->error.code) return TENSOR_NONE;
    if (w && (w->kind != WEIGHT_NORM || s.c != w->in))
        return wrong(g, STEER_INTERNAL, "layer norm: the weight does not fit");
    struct op op = op_of(OP_LAYER_NORM, x.id, -1, -1);
    op.w = w;
    op.eps = eps;
    return op_push(g, op, s);
}

struct tensor op_rms_norm(struct graph *g, struct tensor x, struct weight *w, int heads, double eps)
{
    struct shape s = graph_shape(g, x);
    if (g->error.code) return TENSOR_NONE;
    if (!w || w->kind != WEIGHT_NORM || weight_has_vector(w) || heads < 1 || s.c % heads ||
        s.c / heads != w->in)
        return wrong(g, STEER_INTERNAL, "rms norm: the weight is not [C / heads] without shift");
    struct op op = op_of(OP_RMS_NORM, x.id, -1, -1);
    op.w = w;
    op.heads = heads;
    op.eps = eps;
    return op_push(g, op, s);
}

/* t has that shape, or is one image for every image of the batch. */
static int shape_is(const struct graph *g, struct tensor t, struct shape s)
{
    struct shape found = graph_shape(g, t);
    return (found.b == s.b || found.b == 1) && found.h == s.h && found.w == s.w && found.c == s.c;
}

struct tensor op_modulate(struct graph *g, struct tensor x, struct tensor shift,
                          struct tensor scale)
{
    struct shape s = graph_shape(g, x), vector = {s.b, 1, 1, s.c};
    if (g->error.code) return TENSOR_NONE;
    if (!shape_is(g, shift, vector) || !shape_is(g, scale, vector))
        return wrong(g, STEER_INTERNAL, "modulate: shift or scale is not [B, 1, 1, C]");
    return op_push(g, op_of(OP_MODULATE, x.id, shift.id, scale.id), s);
}

struct tensor op_gated_add(struct graph *g, struct tensor residual, struct tensor gate,
                           struct tensor x)
{
    struct shape s = graph_shape(g, residual), t = graph_shape(g, x);
    if (g->error.code) return TENSOR_NONE;
    if (memcmp(&s, &t, sizeof s) != 0 || !shape_is(g, gate, (struct shape){s.b, 1, 1, s.c}))
        return wrong(g, STEER_INTERNAL,
                     "gated add: two shapes, or a gate that is not [B, 1, 1, C]");
    return op_push(g, op_of(OP_GATED_ADD, residual.id, gate.id, x.id), s);
}

struct tensor op_rope(struct graph *g, struct tensor x, struct tensor table, int heads)
{
    struct shape s = graph_shape(g, x);
    if (g->error.code) return TENSOR_NONE;
    if (heads < 1 || s.c % (2 * heads) ||
        !shape_is(g, table, (struct shape){s.b, s.h, s.w, s.c / heads}))
        return wrong(g, STEER_INTERNAL, "rope: the table is not [B or 1, H, W, D] with an even D");
    struct op op = op_of(OP_ROPE, x.id, table.id, -1);
    op.heads = heads;
    return op_push(g, op, s);
}

/* Queries [B, 1, L, heads * D]. */
static int queries_fit(struct shape q, int heads)
{
    return q.h == 1 && heads >= 1 && q.c % heads == 0;
}

/* Keys and values beside q; 0 when they do not fit. */
static int keys_fit(const struct graph *g, struct shape q, struct text_keys keys)
{
    struct shape sk = graph_shape(g, keys.k), sv = graph_shape(g, keys.v);
    if (sk.b != q.b || sk.h != 1 || sk.c != q.c || memcmp(&sk, &sv, sizeof sk) != 0) return 0;
    if (keys.mask.id < 0) return 1;
    struct shape m = graph_shape(g, keys.mask);
    return m.b == q.b && m.h == 1 && m.w == 1 && m.c == sk.w;
}

static int keys_empty(struct text_keys keys)
{
    return keys.k.id < 0 && keys.v.id < 0 && keys.mask.id < 0;
}

static void keys_set(struct op *op, int at, struct text_keys keys)
{
    op->in[at] = keys.k.id;
    op->in[at + 1] = keys.v.id;
    op->in[at + 2] = keys.mask.id;
}

struct tensor op_attention(struct graph *g, struct tensor q, struct tensor k, struct tensor v,
                           int heads, double scale, int causal, struct tensor mask,
                           struct tensor bias)
{
    struct shape s = graph_shape(g, q);
    struct text_keys keys = {k, v, mask};
    if (g->error.code) return TENSOR_NONE;
    if (!queries_fit(s, heads) || !keys_fit(g, s, keys))
        return wrong(g, STEER_INTERNAL, "attention: q, k, v and mask do not fit");
    if (bias.id >= 0 && !shape_is(g, bias, (struct shape){s.b, s.w, graph_shape(g, k).w, heads}))
        return wrong(g, STEER_INTERNAL, "attention: the bias is not [B or 1, L, S, heads]");
    struct op op = op_of(OP_ATTENTION, q.id, -1, -1);
    keys_set(&op, IN_POSITIVE, keys);
    op.in[IN_BIAS] = bias.id;
    op.heads = heads;
    op.scale = scale;
    op.causal = causal;
    return op_push(g, op, s);
}

struct tensor op_guided_attention(struct graph *g, struct tensor q, struct text_keys positive,
                                  struct text_keys negative, struct text_keys shared, int heads,
                                  double scale, enum guidance_method method,
                                  enum guidance_variant variant, struct tensor params)
{
    struct shape s = graph_shape(g, q);
    if (g->error.code) return TENSOR_NONE;
    if (!queries_fit(s, heads) || !keys_fit(g, s, positive) ||
        !(keys_empty(negative) || keys_fit(g, s, negative)) ||
        !(keys_empty(shared) || keys_fit(g, s, shared)))
        return wrong(g, STEER_INTERNAL, "guided attention: q, keys, values and masks do not fit");
    if (method == GUIDANCE_NONE && (keys_empty(shared) || !keys_empty(negative) || params.id >= 0))
        return wrong(g, STEER_INTERNAL,
                     "guided attention: no method takes shared keys and no negative");
    if (method != GUIDANCE_NONE && !shape_is(g, params, (struct shape){s.b, 1, 1, GUIDANCE_PARAMS}))
        return wrong(g, STEER_INTERNAL,
                     "guided attention: a method's params are not [B, 1, 1, GUIDANCE_PARAMS]");
    struct op op = op_of(OP_GUIDED_ATTENTION, q.id, -1, -1);
    keys_set(&op, IN_POSITIVE, positive);
    keys_set(&op, IN_NEGATIVE, negative);
    keys_set(&op, IN_SHARED, shared);
    op.in[IN_PARAMS] = params.id;
    op.heads = heads;
    op.scale = scale;
    op.method = method;
    op.variant = variant;
    return op_push(g, op, s);
}

struct tensor op_activation(struct graph *g, struct tensor x, enum activation act)
{
    struct op op = op_of(OP_ACTIVATION, x.id, -1, -1);
    op.act = act;
    return op_push(g, op, graph_shape(g, x));
}

static struct tensor op_pair(struct graph *g, enum op_kind kind, struct tensor a, struct tensor b)
{
    struct shape s = graph_shape(g, a);
    if (g->error.code) return TENSOR_NONE;
    if (!shape_is(g, b, s)) return wrong(g, STEER_INTERNAL, "add or multiply: two shapes");
    return op_push(g, op_of(kind, a.id, b.id, -1), s);
}

struct tensor op_add(struct graph *g, struct tensor a, struct tensor b)
{
    return op_pair(g, OP_ADD, a, b);
}

struct tensor op_multiply(struct graph *g, struct tensor a, struct tensor b)
{
    return op_pair(g, OP_MULTIPLY, a, b);
}

struct tensor op_affine(struct graph *g, struct tensor x, double scale, double shift)
{
    struct op op = op_of(OP_AFFINE, x.id, -1, -1);
    op.scale = scale;
    op.shift = shift;
    return op_push(g, op, graph_shape(g, x));
}

struct tensor op_geglu(struct graph *g, struct tensor x)
{
    struct shape s = graph_shape(g, x);
    if (g->error.code) return TENSOR_NONE;
    if (s.c % 2) return wrong(g, STEER_INTERNAL, "geglu: an odd number of channels");
    s.c /= 2;
    return op_push(g, op_of(OP_GEGLU, x.id, -1, -1), s);
}

struct tensor op_concat(struct graph *g, struct tensor a, struct tensor b)
{
    struct shape s = graph_shape(g, a), t = graph_shape(g, b);
    if (g->error.code) return TENSOR_NONE;
    if (s.b != t.b || s.h != t.h || s.w != t.w)
        return wrong(g, STEER_INTERNAL, "concat: two sizes");
    s.c += t.c;
    return op_push(g, op_of(OP_CONCAT, a.id, b.id, -1), s);
}

struct tensor op_resize(struct graph *g, struct tensor x, int h, int w)
{
    struct shape s = graph_shape(g, x);
    return op_push(g, op_of(OP_RESIZE, x.id, -1, -1), (struct shape){s.b, h, w, s.c});
}

static struct tensor op_patch(struct graph *g, enum op_kind kind, struct tensor x, int p,
                              enum patch_order order, struct shape out)
{
    struct op op = op_of(kind, x.id, -1, -1);
    op.patch = p;
    op.order = order;
    return op_push(g, op, out);
}

struct tensor op_patches(struct graph *g, struct tensor x, int p, enum patch_order order)
{
    struct shape s = graph_shape(g, x);
    if (g->error.code) return TENSOR_NONE;
    if (p < 1 || s.h % p || s.w % p)
        return wrong(g, STEER_INTERNAL, "patches: the sides are no multiples of the patch's");
    return op_patch(g, OP_PATCHES, x, p, order, (struct shape){s.b, s.h / p, s.w / p, s.c * p * p});
}

struct tensor op_unpatches(struct graph *g, struct tensor x, int p, enum patch_order order)
{
    struct shape s = graph_shape(g, x);
    if (g->error.code) return TENSOR_NONE;
    if (p < 1 || s.c % (p * p))
        return wrong(g, STEER_INTERNAL, "unpatches: the channels are no multiple of a patch's");
    return op_patch(g, OP_UNPATCHES, x, p, order,
                    (struct shape){s.b, s.h * p, s.w * p, s.c / (p * p)});
}

struct tensor op_embedding(struct graph *g, struct tensor ids, struct weight *table,
                           struct weight *positions)
{
    struct shape s = graph_shape(g, ids);
    if (g->error.code) return TENSOR_NONE;
    if (!table || table->kind != WEIGHT_TABLE || s.c != 1 || g->tensors[ids.id].type != TYPE_I32)
        return wrong(g, STEER_INTERNAL, "embedding: ids are not [B, H, W, 1] i32");
    if (positions && (positions->kind != WEIGHT_TABLE || positions->in != table->in ||
                      positions->out / s.h < s.w))
        return wrong(g, STEER_INTERNAL, "embedding: fewer positions than tokens");
    struct op op = op_of(OP_EMBEDDING, ids.id, -1, -1);
    op.w = table;
    op.positions = positions;
    return op_push(g, op, (struct shape){s.b, s.h, s.w, table->in});
}

struct tensor op_sinusoid(struct graph *g, struct tensor t, int channels, int flip, double shift)
{
    struct shape s = graph_shape(g, t);
    if (g->error.code) return TENSOR_NONE;
    if (s.h != 1 || s.w != 1 || s.c != 1 || channels < 2)
        return wrong(g, STEER_INTERNAL, "sinusoid: t is not [B, 1, 1, 1]");
    struct op op = op_of(OP_SINUSOID, t.id, -1, -1);
    op.flip = flip;
    op.shift = shift;
    return op_push(g, op, (struct shape){s.b, 1, 1, channels});
}

struct tensor op_soft_clamp(struct graph *g, struct tensor x)
{
    return op_push(g, op_of(OP_SOFT_CLAMP, x.id, -1, -1), graph_shape(g, x));
}

struct tensor op_to_u8(struct graph *g, struct tensor x)
{
    struct tensor t = op_push(g, op_of(OP_TO_U8, x.id, -1, -1), graph_shape(g, x));
    if (t.id >= 0) g->tensors[t.id].type = TYPE_U8;
    return t;
}
