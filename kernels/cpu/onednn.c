// SPDX-License-Identifier: Apache-2.0
#include "onednn.h"

#include <dnnl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../weight.h"

struct engine {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
};

static int failed(struct steer_error *err, const char *what, dnnl_status_t status)
{
    int code = status == dnnl_out_of_memory ? STEER_NO_MEMORY : STEER_UNSUPPORTED;
    return steer_fail(err, code, "oneDNN: %s failed with status %d", what, (int)status);
}

int onednn_open(struct compute *c, struct steer_error *err)
{
    struct engine *e = calloc(1, sizeof *e);
    if (!e) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    c->engine = e;
    dnnl_status_t status = dnnl_engine_create(&e->engine, dnnl_cpu, 0);
    if (!status) status = dnnl_stream_create(&e->stream, e->engine, dnnl_stream_default_flags);
    return status ? failed(err, "opening the CPU", status) : 0;
}

void onednn_close(struct compute *c)
{
    struct engine *e = c->engine;
    if (!e) return;
    if (e->stream) dnnl_stream_destroy(e->stream);
    if (e->engine) dnnl_engine_destroy(e->engine);
    free(e);
    c->engine = NULL;
}

const char *onednn_isa(void)
{
    switch ((int)dnnl_get_effective_cpu_isa()) {
    case dnnl_cpu_isa_sse41: return "sse41";
    case dnnl_cpu_isa_avx: return "avx";
    case dnnl_cpu_isa_avx2: return "avx2";
    case dnnl_cpu_isa_avx512_core: return "avx512_core";
    case dnnl_cpu_isa_avx512_core_vnni: return "avx512_core_vnni";
    case dnnl_cpu_isa_avx512_core_bf16: return "avx512_core_bf16";
    case dnnl_cpu_isa_avx512_core_amx: return "avx512_core_amx";
    default: return "other";
    }
}

const char *onednn_version(void)
{
    static char text[32];
    const dnnl_version_t *v = dnnl_version();
    snprintf(text, sizeof text, "onednn%d.%d.%d", v->major, v->minor, v->patch);
    return text;
}

/* avx512_core emulates bf16 in oneDNN, slower than f32: only a processor that has it counts. */
int onednn_bf16_native(void)
{
    int isa = (int)dnnl_get_effective_cpu_isa();
    return isa == dnnl_cpu_isa_avx512_core_bf16 || isa == dnnl_cpu_isa_avx512_core_amx;
}

#define WINOGRAD_SCRATCH ((size_t)200 << 20)

/* ---- a step's primitive ---- */

struct state {
    dnnl_primitive_t primitive;
    dnnl_memory_t src, weights, bias, dst, scratch;
    const float *bias_data;
    float *bias_sum; /* conv with a vector per image: bias + vector */
    int bias_count;
    size_t wide_at, wide_count; /* f32 in, bf16 out: computed in scratch, then narrowed */
    int bands, rows;            /* a convolution in bands of rows, copied to and from scratch */
    size_t band_in, band_out;   /* where in scratch */
};

static void state_free(void *data)
{
    struct state *st = data;
    if (st->primitive) dnnl_primitive_destroy(st->primitive);
    dnnl_memory_t all[] = {st->src, st->weights, st->bias, st->dst, st->scratch};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i]) dnnl_memory_destroy(all[i]);
    free(st->bias_sum);
    free(st);
}

static dnnl_data_type_t type_of(enum compute_type type)
{
    return type == TYPE_BF16 ? dnnl_bf16 : dnnl_f32;
}

/* To bf16, nearest even. oneDNN multiplies f32 by f32 into f32 only. */
static void narrow(uint16_t *to, const float *from, size_t count)
{
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, from + i, sizeof bits);
        int nan = from[i] != from[i];
        to[i] = nan ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
}

static int execute(const struct state *st, const struct engine *e, void *src, void *dst)
{
    if (dnnl_memory_set_data_handle(st->src, src) || dnnl_memory_set_data_handle(st->dst, dst))
        return STEER_INTERNAL;
    dnnl_exec_arg_t args[5] = {{DNNL_ARG_SRC, st->src},
                               {DNNL_ARG_WEIGHTS, st->weights},
                               {DNNL_ARG_DST, st->dst},
                               {DNNL_ARG_SCRATCHPAD, st->scratch},
                               {DNNL_ARG_BIAS, st->bias}};
    return dnnl_primitive_execute(st->primitive, e->stream, st->bias ? 5 : 4, args) ||
                   dnnl_stream_wait(e->stream)
               ? STEER_INTERNAL
               : 0;
}

/* Band by band, blocked f32 on both sides: the rows with one more above and below (zeros beyond the
 * image) to scratch, and the result back. */
static int bands_execute(struct plan *p, struct step *s, int image)
{
    const struct state *st = s->state;
    const struct place *in = p->places + s->op.in[0], *out = p->places + s->op.out;
    size_t row = (size_t)in->shape.w * 16;
    int h = in->shape.h, rows = st->rows, code = 0;
    const float *x = place_image(p, s->op.in[0], image);
    float *y = place_image(p, s->op.out, image);
    float *src = (float *)(void *)(p->scratch + st->band_in);
    float *dst = (float *)(void *)(p->scratch + st->band_out);
    for (int first = 0; first < h && !code; first += rows) {
#pragma omp parallel for schedule(static)
        for (int block = 0; block < in->shape.c / 16; block++)
            for (int i = 0; i < rows + 2; i++) {
                float *to = src + ((size_t)block * (size_t)(rows + 2) + (size_t)i) * row;
                int from = first + i - 1;
                if (from < 0 || from >= h)
                    memset(to, 0, row * sizeof *to);
                else
                    memcpy(to, x + ((size_t)block * (size_t)h + (size_t)from) * row,
                           row * sizeof *to);
            }
        code = execute(st, p->compute->engine, src, dst);
        compute_beat(p->compute);
#pragma omp parallel for schedule(static)
        for (int block = 0; block < out->shape.c / 16; block++)
            memcpy(y + ((size_t)block * (size_t)h + (size_t)first) * row,
                   dst + (size_t)block * (size_t)rows * row, (size_t)rows * row * sizeof *dst);
    }
    return code;
}

static int run(struct plan *p, struct step *s)
{
    struct state *st = s->state;
    const struct engine *e = p->compute->engine;
    const struct op *op = &s->op;
    int images = p->places[op->out].shape.b, code = 0;
    if (st->scratch && dnnl_memory_set_data_handle(st->scratch, p->scratch)) return STEER_INTERNAL;
    for (int b = 0; b < images && !code; b++) {
        if (st->bias_sum) {
            const float *more = place_image(p, op->in[1], b);
            for (int i = 0; i < st->bias_count; i++)
                st->bias_sum[i] = st->bias_data[i] + more[i];
        }
        void *out = place_image(p, op->out, b);
        if (st->bands)
            code = bands_execute(p, s, b);
        else
            code = execute(st, e, place_image(p, op->in[0], b),
                           st->wide_count ? p->scratch + st->wide_at : out);
        if (st->wide_count && !code)
            narrow(out, (const float *)(p->scratch + st->wide_at), st->wide_count);
        compute_beat(p->compute);
    }
    return code;
}

/* An activation after the sum, and scratch memory from outside. */
static dnnl_status_t attributes(dnnl_primitive_attr_t *ret, enum activation act)
{
    static const struct {
        dnnl_alg_kind_t kind;
        float alpha;
    } kinds[] = {[ACT_SILU] = {dnnl_eltwise_swish, 1},
                 [ACT_GELU] = {dnnl_eltwise_gelu_erf, 0},
                 [ACT_GELU_TANH] = {dnnl_eltwise_gelu_tanh, 0},
                 [ACT_QUICK_GELU] = {dnnl_eltwise_swish, 1.702f},
                 [ACT_RELU] = {dnnl_eltwise_relu, 0},
                 [ACT_TANH] = {dnnl_eltwise_tanh, 0}};
    dnnl_post_ops_t ops = NULL;
    dnnl_status_t status = dnnl_primitive_attr_create(ret);
    if (!status) status = dnnl_primitive_attr_set_scratchpad_mode(*ret, dnnl_scratchpad_mode_user);
    if (status || act == ACT_NONE) return status;
    if ((status = dnnl_post_ops_create(&ops))) return status;
    status = dnnl_post_ops_append_eltwise(ops, 1, kinds[act].kind, kinds[act].alpha, 0);
    if (!status) status = dnnl_primitive_attr_set_post_ops(*ret, ops);
    dnnl_post_ops_destroy(ops);
    return status;
}

static uint64_t bytes_hash(const void *data, size_t size) /* FNV-1a */
{
    const unsigned char *bytes = data;
    uint64_t hash = UINT64_C(14695981039346656037);
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ bytes[i]) * UINT64_C(1099511628211);
    return hash | (UINT64_C(1) << 63); /* far from the dense forms' keys */
}

/* Reorders the dense weights into what the primitive wants; once per layout. */
static int weights_pack(struct state *st, struct plan *p, struct weight *w,
                        const dnnl_memory_desc_t *dense, const dnnl_memory_desc_t *wanted,
                        struct steer_error *err)
{
    const struct engine *e = p->compute->engine;
    uint64_t key = bytes_hash(wanted, sizeof *wanted);
    void *data = weight_packed(w, key);
    dnnl_memory_t from = NULL;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_t reorder = NULL;
    dnnl_status_t status = 0;
    if (!data) {
        /* Narrowed before it is reordered: half the bytes to move. */
        enum compute_type type = wanted->data_type == dnnl_bf16 ? TYPE_BF16 : TYPE_F32;
        dnnl_memory_desc_t as_is = *dense;
        as_is.data_type = type_of(type);
        const void *matrix = weight_matrix_staged(w, type);
        if (!matrix || !(data = weight_pack(w, key, dnnl_memory_desc_get_size(wanted))))
            return steer_fail(err, STEER_NO_MEMORY, "no memory for packed weights");
        if (!(status = dnnl_memory_create(&st->weights, wanted, e->engine, data)) &&
            !p->compute->host->counting &&
            !(status = dnnl_memory_create(&from, &as_is, e->engine, (void *)(uintptr_t)matrix)) &&
            !(status = dnnl_reorder_primitive_desc_create(&pd, &as_is, e->engine, wanted, e->engine,
                                                          NULL)) &&
            !(status = dnnl_primitive_create(&reorder, pd))) {
            dnnl_exec_arg_t args[2] = {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, st->weights}};
            if (!(status = dnnl_primitive_execute(reorder, e->stream, 2, args)))
                status = dnnl_stream_wait(e->stream);
        }
        if (status) weight_forget(w, key);
    } else {
        status = dnnl_memory_create(&st->weights, wanted, e->engine, data);
    }
    if (reorder) dnnl_primitive_destroy(reorder);
    if (pd) dnnl_primitive_desc_destroy(pd);
    if (from) dnnl_memory_destroy(from);
    return status ? failed(err, "packing weights", status) : 0;
}

static int widens(const struct plan *p, const struct op *op)
{
    return p->places[op->in[0]].type == TYPE_F32 && p->places[op->out].type == TYPE_BF16;
}

/* Everything but the primitive descriptor, which linear and conv make each in their way. Takes pd.
 */
static int step_make(struct plan *p, struct step *s, dnnl_primitive_desc_t pd,
                     const dnnl_memory_desc_t *dense, struct steer_error *err)
{
    const struct engine *e = p->compute->engine;
    struct weight *w = s->op.w;
    struct state *st = calloc(1, sizeof *st);
    int code = STEER_NO_MEMORY;
    if (!st) goto done;
    s->state = st;
    s->state_free = state_free;
    s->run = run;
    const char *name = "";
    (void)dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, &name);
    s->primitive = name; /* a constant of the library */
    const dnnl_memory_desc_t *src = dnnl_primitive_desc_query_md(pd, dnnl_query_src_md, 0);
    const dnnl_memory_desc_t *dst = dnnl_primitive_desc_query_md(pd, dnnl_query_dst_md, 0);
    const dnnl_memory_desc_t *weights = dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
    const dnnl_memory_desc_t *scratch =
        dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    s->scratch_bytes = scratch ? dnnl_memory_desc_get_size(scratch) : 0;
    if (widens(p, &s->op)) {
        st->wide_at = (s->scratch_bytes + 63) & ~(size_t)63;
        st->wide_count = dnnl_memory_desc_get_size(dst) / sizeof(float);
        s->scratch_bytes = st->wide_at + st->wide_count * sizeof(float);
    }

    int per_image = s->op.kind == OP_CONV && s->op.in[1] >= 0;
    if (per_image || weight_has_vector(w)) {
        const dnnl_memory_desc_t *bias = dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 1);
        if (!(st->bias_data = weight_vector_f32(w))) goto done;
        st->bias_count = w->out;
        if (per_image && !(st->bias_sum = malloc((size_t)w->out * sizeof *st->bias_sum))) goto done;
        void *data = per_image ? st->bias_sum : (void *)(uintptr_t)st->bias_data;
        if (dnnl_memory_create(&st->bias, bias, e->engine, data)) goto done;
    }
    if (dnnl_memory_create(&st->src, src, e->engine, DNNL_MEMORY_NONE) ||
        dnnl_memory_create(&st->dst, dst, e->engine, DNNL_MEMORY_NONE) ||
        dnnl_memory_create(&st->scratch, scratch, e->engine, DNNL_MEMORY_NONE))
        goto done;
    if ((code = weights_pack(st, p, w, dense, weights, err))) goto done;
    code = STEER_NO_MEMORY;
    dnnl_status_t status = dnnl_primitive_create(&st->primitive, pd);
    code = status ? failed(err, "making a primitive", status) : 0;
done:
    dnnl_primitive_desc_destroy(pd);
    if (code && err && !err->code) steer_fail(err, code, "no memory for a primitive");
    return code;
}

int onednn_linear(struct plan *p, struct step *s, struct steer_error *err)
{
    const struct engine *e = p->compute->engine;
    const struct op *op = &s->op;
    struct shape in = p->places[op->in[0]].shape, out = p->places[op->out].shape;
    dnnl_data_type_t type = type_of(p->places[op->in[0]].type);
    dnnl_memory_desc_t src, weights, dense, bias, dst;
    dnnl_dims_t src_dims = {in.h * in.w, in.c}, weight_dims = {out.c, in.c};
    dnnl_dims_t dst_dims = {out.h * out.w, out.c}, bias_dims = {out.c};
    dnnl_inner_product_desc_t d;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_status_t status;
    int has_bias = weight_has_vector(op->w);
    if (p->places[op->in[0]].pitch != in.c)
        return steer_fail(err, STEER_INTERNAL, "a linear's input is not dense");
    if (!(status = dnnl_memory_desc_init_by_tag(&src, 2, src_dims, type, dnnl_ab)) &&
        !(status =
              dnnl_memory_desc_init_by_tag(&weights, 2, weight_dims, type, dnnl_format_tag_any)) &&
        !(status = dnnl_memory_desc_init_by_tag(&dense, 2, weight_dims, dnnl_f32, dnnl_ab)) &&
        !(status = dnnl_memory_desc_init_by_tag(&bias, 1, bias_dims, dnnl_f32, dnnl_a)) &&
        !(status = dnnl_memory_desc_init_by_tag(
              &dst, 2, dst_dims, widens(p, op) ? dnnl_f32 : type_of(p->places[op->out].type),
              dnnl_ab)) &&
        !(status = dnnl_inner_product_forward_desc_init(&d, dnnl_forward_inference, &src, &weights,
                                                        has_bias ? &bias : NULL, &dst)) &&
        !(status = attributes(&attr, op->act)))
        status = dnnl_primitive_desc_create(&pd, &d, attr, e->engine, NULL);
    if (attr) dnnl_primitive_attr_destroy(attr);
    if (status) return failed(err, "planning a linear layer", status);
    return step_make(p, s, pd, &dense, err);
}

static dnnl_format_tag_t tag_of(enum layout layout)
{
    return layout == LAYOUT_BLOCKED ? dnnl_aBcd16b : dnnl_acdb;
}

/* The descriptor of the whole image's convolution, or (rows > 0) of a band of it with a row more
 * above and below. *ret stays NULL where there is no such algorithm. */
static dnnl_status_t conv_plan(dnnl_primitive_desc_t *ret, struct plan *p, const struct op *op,
                               dnnl_alg_kind_t algorithm, int rows, dnnl_memory_desc_t *dense)
{
    const struct engine *e = p->compute->engine;
    const struct place *in = p->places + op->in[0], *out = p->places + op->out;
    const struct weight *w = op->w;
    dnnl_data_type_t type = type_of(in->type);
    dnnl_data_type_t to = widens(p, op) ? dnnl_f32 : type_of(out->type);
    dnnl_memory_desc_t src, weights, bias, dst;
    dnnl_dims_t src_dims = {1, in->shape.c, rows ? rows + 2 : in->shape.h, in->shape.w};
    dnnl_dims_t weight_dims = {w->out, w->in, w->size, w->size};
    dnnl_dims_t dst_dims = {1, out->shape.c, rows ? rows : out->shape.h, out->shape.w};
    dnnl_dims_t bias_dims = {w->out};
    dnnl_dims_t strides = {op->stride, op->stride};
    dnnl_dims_t before = {rows ? 0 : op->padding, op->padding}, after;
    dnnl_convolution_desc_t d;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_status_t status;
    int has_bias = op->in[1] >= 0 || weight_has_vector(w);
    /* What the last window needs on the far side, which a stride may leave out. */
    for (int i = 0; i < 2; i++)
        after[i] = (dst_dims[2 + i] - 1) * op->stride + w->size - src_dims[2 + i] - before[i];
    if (!(status = dnnl_memory_desc_init_by_tag(&src, 4, src_dims, type, tag_of(in->layout))) &&
        !(status =
              dnnl_memory_desc_init_by_tag(&weights, 4, weight_dims, type, dnnl_format_tag_any)) &&
        !(status = dnnl_memory_desc_init_by_tag(dense, 4, weight_dims, dnnl_f32, dnnl_abcd)) &&
        !(status = dnnl_memory_desc_init_by_tag(&bias, 1, bias_dims, dnnl_f32, dnnl_a)) &&
        !(status = dnnl_memory_desc_init_by_tag(&dst, 4, dst_dims, to, tag_of(out->layout))) &&
        !(status = dnnl_convolution_forward_desc_init(&d, dnnl_forward_inference, algorithm, &src,
                                                      &weights, has_bias ? &bias : NULL, &dst,
                                                      strides, before, after)) &&
        !(status = attributes(&attr, op->act)))
        status = dnnl_primitive_desc_create(ret, &d, attr, e->engine, NULL);
    if (attr) dnnl_primitive_attr_destroy(attr);
    return status;
}

static size_t scratch_of(dnnl_primitive_desc_t pd)
{
    const dnnl_memory_desc_t *md = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    return md ? dnnl_memory_desc_get_size(md) : 0;
}

/* Winograd transforms a whole image before it multiplies: 1.2 GB of scratch for 256 channels of
 * 512x512. In bands it is a fraction of that, at the price of a copy. */
static int winograd_plan(dnnl_primitive_desc_t *ret, struct plan *p, const struct op *op,
                         dnnl_memory_desc_t *dense)
{
    const struct place *in = p->places + op->in[0], *out = p->places + op->out;
    int h = in->shape.h, rows = 0;
    if (conv_plan(ret, p, op, dnnl_convolution_winograd, 0, dense)) return 0;
    if (in->layout != LAYOUT_BLOCKED || out->layout != LAYOUT_BLOCKED || out->type != TYPE_F32)
        return 0;
    for (int bands = 2; bands <= 8 && scratch_of(*ret) > WINOGRAD_SCRATCH; bands *= 2) {
        dnnl_primitive_desc_t smaller = NULL;
        if (h % (4 * bands) ||
            conv_plan(&smaller, p, op, dnnl_convolution_winograd, h / bands, dense))
            break;
        dnnl_primitive_desc_destroy(*ret);
        *ret = smaller;
        rows = h / bands;
    }
    return rows;
}

int onednn_conv(struct plan *p, struct step *s, int winograd, struct steer_error *err)
{
    const struct op *op = &s->op;
    const struct place *in = p->places + op->in[0], *out = p->places + op->out;
    dnnl_memory_desc_t dense;
    dnnl_primitive_desc_t pd = NULL;
    int rows = 0;
    if (in->pitch != in->shape.c)
        return steer_fail(err, STEER_INTERNAL, "a convolution's input is not dense");
    if (winograd) rows = winograd_plan(&pd, p, op, &dense); /* not every shape has such a form */
    dnnl_status_t status =
        pd ? dnnl_success : conv_plan(&pd, p, op, dnnl_convolution_direct, 0, &dense);
    if (status) return failed(err, "planning a convolution", status);
    int code = step_make(p, s, pd, &dense, err);
    if (code || !rows) return code;
    struct state *st = s->state;
    size_t row = (size_t)in->shape.w * sizeof(float);
    st->rows = rows;
    st->bands = in->shape.h / rows;
    st->band_in = (s->scratch_bytes + 63) & ~(size_t)63;
    st->band_out = st->band_in + (size_t)in->shape.c * (size_t)(rows + 2) * row;
    s->scratch_bytes = st->band_out + (size_t)out->shape.c * (size_t)rows * row;
    return 0;
}

double onednn_peak(struct compute *c, enum compute_type type, int runs)
{
    enum { N = 2048 };
    const struct engine *e = c->engine;
    dnnl_dims_t dims = {N, N};
    dnnl_memory_desc_t md[3], any;
    dnnl_matmul_desc_t d;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_t primitive = NULL;
    dnnl_memory_t memory[3] = {NULL};
    double best = 0;
    void *data[3] = {NULL};
    if (!e || dnnl_memory_desc_init_by_tag(md, 2, dims, type_of(type), dnnl_ab) ||
        dnnl_memory_desc_init_by_tag(&any, 2, dims, type_of(type), dnnl_format_tag_any) ||
        dnnl_memory_desc_init_by_tag(md + 2, 2, dims, type_of(type), dnnl_ab) ||
        dnnl_matmul_desc_init(&d, md, &any, NULL, md + 2) ||
        dnnl_primitive_desc_create(&pd, &d, NULL, e->engine, NULL))
        return 0;
    md[1] = *dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
    int ready = !dnnl_primitive_create(&primitive, pd);
    for (int i = 0; i < 3 && ready; i++) {
        size_t size = dnnl_memory_desc_get_size(md + i);
        if (!(data[i] = aligned_alloc(64, (size + 63) & ~(size_t)63)))
            ready = 0;
        else
            memset(data[i], 0x3c, size); /* small numbers in both types */
        if (ready && dnnl_memory_create(memory + i, md + i, e->engine, data[i])) ready = 0;
    }
    for (int i = 0; i <= runs && ready; i++) {
        dnnl_exec_arg_t args[3] = {
            {DNNL_ARG_SRC, memory[0]}, {DNNL_ARG_WEIGHTS, memory[1]}, {DNNL_ARG_DST, memory[2]}};
        struct timespec t0, t1;
        clock_gettime(CLOCK_MONOTONIC, &t0);
        if (dnnl_primitive_execute(primitive, e->stream, 3, args) || dnnl_stream_wait(e->stream))
            break;
        clock_gettime(CLOCK_MONOTONIC, &t1);
        double seconds = (double)(t1.tv_sec - t0.tv_sec) + 1e-9 * (double)(t1.tv_nsec - t0.tv_nsec);
        double gflops = 2e-9 * (double)N * (double)N * (double)N / seconds;
        if (i && gflops > best) best = gflops; /* the first is a warm-up */
    }
    for (int i = 0; i < 3; i++) {
        if (memory[i]) dnnl_memory_destroy(memory[i]);
        free(data[i]);
    }
    if (primitive) dnnl_primitive_destroy(primitive);
    dnnl_primitive_desc_destroy(pd);
    return best;
}
