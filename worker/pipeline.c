// SPDX-License-Identifier: Apache-2.0
#include "pipeline.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "prompt_tokens.h"
#include "random.h"
#include "text_cache.h"

enum plan_kind { PLAN_DENOISE, PLAN_DECODE };

/* A plan and the handles into it. The texts' plans are of one size and live as long as the
 * pipeline; these are kept in an LRU. */
struct slot {
    enum plan_kind kind;
    int width, height, batch;
    struct text_chunks texts; /* 0: this text is not read */
    enum guidance_method method;
    enum guidance_variant variant;
    struct plan *plan;
    struct denoiser_graph denoise;
    struct vae_graph decode;
    uint64_t used; /* the batch of its last use */
};

struct pipeline {
    struct model *model;
    struct compute *compute;
    struct pipeline_limits limits;
    struct slot *slots; /* plans_max of them; one without a plan is empty */
    uint64_t turn;      /* counts batches */
    struct plan *encoder_plans[TEXT_ENCODERS_MAX], *text_plan;
    struct encoder_graph encoder_graphs[TEXT_ENCODERS_MAX];
    struct text_graph text_graph;
    size_t bound_bytes[TEXT_BOUND_MAX]; /* of each output of text_graph, which is of one chunk */
    int bound_rows[TEXT_BOUND_MAX];     /* 1: it has rows for tokens, and so grows with chunks */
    int rest_packed;                    /* weights of the denoiser or the decoder may be */
    struct text_cache *texts;
    float *empty_states[TEXT_ENCODERS_MAX]; /* of encoders that weigh about them; NULL: not asked */
};

struct pipeline_limits pipeline_limits_default(void)
{
    return (struct pipeline_limits){.text_bytes_max = (size_t)256 << 20, .plans_max = 16};
}

int pipeline_new(struct pipeline **ret, struct model *m, struct compute *c,
                 struct pipeline_limits limits)
{
    struct pipeline *p = calloc(1, sizeof *p);
    if (!p) return STEER_NO_MEMORY;
    p->model = m;
    p->compute = c;
    p->limits = limits;
    p->slots = calloc((size_t)limits.plans_max, sizeof *p->slots);
    if (!p->slots || text_cache_new(&p->texts, limits.text_bytes_max)) {
        pipeline_free(p);
        return STEER_NO_MEMORY;
    }
    *ret = p;
    return 0;
}

void pipeline_free(struct pipeline *p)
{
    if (!p) return;
    for (int i = 0; p->slots && i < p->limits.plans_max; i++)
        plan_free(p->slots[i].plan);
    free(p->slots);
    for (int i = 0; i < TEXT_ENCODERS_MAX; i++)
        plan_free(p->encoder_plans[i]);
    for (int i = 0; i < TEXT_ENCODERS_MAX; i++)
        free(p->empty_states[i]);
    plan_free(p->text_plan);
    text_cache_free(p->texts);
    free(p);
}

static uint64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* ---- plans ---- */

/* Gives up a plan that has not been used since turn `before`, the oldest first, but for `keep`. */
static int slot_drop(struct pipeline *p, const struct slot *keep, uint64_t before)
{
    struct slot *oldest = NULL;
    for (int i = 0; i < p->limits.plans_max; i++) {
        struct slot *s = p->slots + i;
        if (s->plan && s != keep && s->used < before && (!oldest || s->used < oldest->used))
            oldest = s;
    }
    if (!oldest) return 0;
    plan_free(oldest->plan);
    oldest->plan = NULL;
    return 1;
}

/* What can be made again comes first: idle plans, then other models, and at last what this batch is
 * done with, though the next one will want it again. */
static int make_room(struct pipeline *p, const struct slot *keep)
{
    return slot_drop(p, keep, p->turn) ||
           (p->limits.make_room && p->limits.make_room(p->limits.data)) ||
           slot_drop(p, keep, UINT64_MAX);
}

/* Texts are encoded: the room is the denoiser's and the decoder's. */
static void encoders_leave(struct pipeline *p)
{
    for (int i = 0; i < p->model->encoders_count; i++) {
        plan_free(p->encoder_plans[i]);
        p->encoder_plans[i] = NULL;
        params_unpack(p->model->encoders[i].params);
    }
}

/* The same the other way round, for texts that come when another batch was rendered. make_room has
 * freed all slots before. 0: nothing was left to give up. */
static int rest_leaves(struct pipeline *p)
{
    if (!p->limits.text_leaves || !p->rest_packed) return 0;
    plan_free(p->text_plan);
    p->text_plan = NULL;
    params_unpack(p->model->denoiser_params);
    params_unpack(p->model->vae_params);
    p->rest_packed = 0;
    return 1;
}

/* What a recording left wrong, the params' mistake first: it is the cause. */
static int plan_make(struct pipeline *p, struct plan **ret, struct params *params,
                     const struct graph *g, const struct slot *keep, struct steer_error *err)
{
    struct steer_error why = {0};
    int code = params_error(params, &why);
    int encoder = params != p->model->denoiser_params && params != p->model->vae_params;
    if (!encoder) p->rest_packed = 1;
    while (!code && (code = compute_plan(ret, p->compute, g, &why)) == STEER_NO_MEMORY &&
           (make_room(p, keep) || (encoder && rest_leaves(p)))) {
        why = (struct steer_error){0};
        code = 0;
    }
    if (code && err) *err = why;
    return code;
}

static int encoder_plan(struct pipeline *p, int i, struct steer_error *err)
{
    const struct text_encoder *e = p->model->encoders + i;
    struct net n = {e->params, graph_new()};
    if (!n.graph) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    text_encoder_record(p->encoder_graphs + i, &n, e);
    int code = plan_make(p, p->encoder_plans + i, n.params, n.graph, NULL, err);
    graph_free(n.graph);
    return code;
}

static int text_plan(struct pipeline *p, struct steer_error *err)
{
    struct net n = {p->model->denoiser_params, graph_new()};
    if (!n.graph) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    struct text_graph *g = &p->text_graph;
    model_record_text(p->model, g, &n);
    int code = plan_make(p, &p->text_plan, n.params, n.graph, NULL, err);
    for (int i = 0; i < g->bound_count && !code; i++) {
        struct shape s = graph_shape(n.graph, g->bound[i]);
        p->bound_bytes[i] = (size_t)s.w * (size_t)s.c * (size_t)s.h *
                            compute_type_bytes(plan_type(p->text_plan, g->bound[i]));
        p->bound_rows[i] = s.w == p->model->text.tokens;
    }
    graph_free(n.graph);
    return code;
}

static int text_plans(struct pipeline *p, struct steer_error *err)
{
    int code = 0;
    for (int i = 0; i < p->model->encoders_count && !code; i++)
        if (!p->encoder_plans[i]) code = encoder_plan(p, i, err);
    if (!code && !p->text_plan) code = text_plan(p, err);
    return code ? steer_fail_in(err, code, "the text encoder") : 0;
}

static struct slot *slot_empty(struct pipeline *p, const struct slot *keep)
{
    for (;;) {
        for (int i = 0; i < p->limits.plans_max; i++)
            if (!p->slots[i].plan) return p->slots + i;
        (void)slot_drop(p, keep, UINT64_MAX); /* plans_max is at least 2 */
    }
}

static int slot_fits(const struct slot *s, const struct slot *want)
{
    return s->plan && s->kind == want->kind && s->width == want->width &&
           s->height == want->height && s->batch == want->batch && s->method == want->method &&
           s->variant == want->variant && s->texts.positive == want->texts.positive &&
           s->texts.negative == want->texts.negative;
}

/* want: what its plan is for. keep: a slot that the caller needs beside this one; NULL: none. */
static int slot_get(struct pipeline *p, struct slot **ret, const struct slot *want,
                    const struct slot *keep, struct steer_error *err)
{
    for (int i = 0; i < p->limits.plans_max; i++) {
        struct slot *s = p->slots + i;
        if (!slot_fits(s, want)) continue;
        s->used = p->turn;
        *ret = s;
        return 0;
    }
    struct model *m = p->model;
    struct shape size = {want->batch, want->height / m->factor, want->width / m->factor, 0};
    struct net n = {want->kind == PLAN_DENOISE ? m->denoiser_params : m->vae_params, graph_new()};
    if (!n.graph) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    struct slot *s = slot_empty(p, keep), made = *want;
    made.used = p->turn;
    if (want->kind == PLAN_DENOISE)
        model_record_denoiser(m, &made.denoise, &n, size, want->texts, want->method, want->variant);
    else
        vae_record(&made.decode, &n, &m->vae, size);
    int code = plan_make(p, &made.plan, n.params, n.graph, keep, err);
    graph_free(n.graph);
    if (code)
        return steer_fail_in(err, code, "%s %dx%d, batch of %d",
                             want->kind == PLAN_DENOISE ? "denoising" : "decoding", want->width,
                             want->height, want->batch);
    *s = made;
    *ret = s;
    return 0;
}

static int decode_slot(struct pipeline *p, const struct render_shape *shape, struct slot **ret,
                       const struct slot *keep, struct steer_error *err)
{
    struct slot want = {
        .kind = PLAN_DECODE, .width = shape->width, .height = shape->height, .batch = 1};
    return slot_get(p, ret, &want, keep, err);
}

/* CFG; a model that is told its guidance scale needs no second pass for it. */
static int passes_twice(const struct pipeline *p, const struct render_shape *shape)
{
    return shape->cfg && !p->model->guidance_channels;
}

/* The denoiser's plan, and CFG's under the negative text when it is another (NULL: no CFG). */
static int denoise_slots(struct pipeline *p, const struct render_shape *shape,
                         struct text_chunks texts, int batch, struct slot **ret,
                         struct slot **ret_second, struct steer_error *err)
{
    struct slot want = {.kind = PLAN_DENOISE,
                        .width = shape->width,
                        .height = shape->height,
                        .batch = batch,
                        .method = shape->method,
                        .texts = texts};
    if (shape->method == GUIDANCE_NONE) want.texts.negative = 0;
    if (shape->method == GUIDANCE_NASA) want.variant = shape->variant;
    int code = slot_get(p, ret, &want, NULL, err);
    *ret_second = NULL;
    if (code || !passes_twice(p, shape)) return code;
    want.method = GUIDANCE_NONE;
    want.variant = GUIDANCE_TEXT;
    want.texts = (struct text_chunks){.positive = texts.negative};
    return slot_get(p, ret_second, &want, *ret, err);
}

/* All plans of a batch but the texts', so that the stages find theirs. The decoder's comes first:
 * it needs most memory, and what has no room for it is refused now, not after the denoiser's
 * minutes. Where the others push it out it is made once more. */
static int plans_load(struct pipeline *p, const struct render_shape *shape,
                      struct text_chunks texts, int batch, struct steer_error *err)
{
    struct slot *denoise, *second, *decode;
    int code = decode_slot(p, shape, &decode, NULL, err);
    return code ? code : denoise_slots(p, shape, texts, batch, &denoise, &second, err);
}

/* How many chunks the texts of an image have. */
static int image_chunks(const struct pipeline *p, const struct render_image *image,
                        struct text_chunks *ret, struct steer_error *err)
{
    struct prompt_tokens positive = {0}, negative = {0};
    int code = prompt_tokens_read(&positive, p->model, image->prompt, image->reading, err);
    if (!code) code = prompt_tokens_read(&negative, p->model, image->negative, image->reading, err);
    *ret = (struct text_chunks){positive.chunks, negative.chunks};
    prompt_tokens_free(&positive);
    prompt_tokens_free(&negative);
    return code;
}

int pipeline_plans(struct pipeline *p, const struct render_shape *shape,
                   const struct render_image *image, int batch, struct pipeline_plans *ret,
                   struct steer_error *err)
{
    struct slot *denoise, *second, *decode;
    struct text_chunks texts;
    int code;
    p->turn++;
    if ((code = image_chunks(p, image, &texts, err)) || (code = text_plans(p, err))) return code;
    if (p->limits.text_leaves) encoders_leave(p);
    if ((code = denoise_slots(p, shape, texts, batch, &denoise, &second, err)) ||
        (code = decode_slot(p, shape, &decode, denoise, err)))
        return code;
    if (!denoise->plan || (second && !second->plan))
        return steer_fail(err, STEER_NO_MEMORY,
                          "the plans of %dx%d do not fit into memory together (--memory)",
                          shape->width, shape->height);
    *ret = (struct pipeline_plans){.chunks = texts.positive,
                                   .text = p->text_plan,
                                   .denoise = denoise->plan,
                                   .second = second ? second->plan : NULL,
                                   .decode = decode->plan};
    memcpy(ret->encoders, p->encoder_plans, sizeof p->encoder_plans);
    return 0;
}

int pipeline_calls(const struct render_shape *shape, int *ret, struct steer_error *err)
{
    struct schedule *s;
    int code = schedule_new(&s, &shape->recipe->sampler, shape->steps, err);
    if (code) return code;
    *ret = schedule_calls(s);
    schedule_free(s);
    return 0;
}

/* ---- texts ---- */

static void mask_fill(struct plan *plan, struct tensor mask, int used, int tokens)
{
    if (mask.id < 0) return;
    float *to = plan_data(plan, mask);
    for (int i = 0; i < tokens; i++)
        to[i] = i < used ? 0 : -INFINITY;
}

/* Tables and constants are read from the mapped files while a plan runs: they must still be what
 * was mapped. */
static int params_run(struct plan *plan, struct params *params, const struct plan_watch *watch,
                      struct steer_error *err)
{
    int code = params_error(params, err);
    return code ? code : plan_run(plan, watch, err);
}

static int encoder_run(struct pipeline *p, int i, const int32_t *ids, int used,
                       const struct plan_watch *watch, struct steer_error *err)
{
    const struct encoder_graph *g = p->encoder_graphs + i;
    size_t bytes = (size_t)p->model->encoders[i].tokens * sizeof *ids;
    memcpy(plan_data(p->encoder_plans[i], g->ids), ids, bytes);
    mask_fill(p->encoder_plans[i], g->mask, used, p->model->encoders[i].tokens);
    return params_run(p->encoder_plans[i], p->model->encoders[i].params, watch, err);
}

/* What encoder i makes of the empty text, once for all prompts. */
static int empty_encode(struct pipeline *p, int i, const struct plan_watch *watch,
                        struct steer_error *err)
{
    const struct text_encoder *e = p->model->encoders + i;
    size_t bytes = (size_t)e->tokens * (size_t)e->channels * sizeof(float);
    int32_t ids[TOKENS_MAX];
    struct tokenized how;
    int code = tokenizer_encode(e->tokenizer, "", 0, ids, e->tokens, &how, err);
    if (!code) code = encoder_run(p, i, ids, how.used, watch, err);
    if (code) return code;
    if (!(p->empty_states[i] = malloc(bytes)))
        return steer_fail(err, STEER_NO_MEMORY, "out of memory for %zu bytes of states", bytes);
    memcpy(p->empty_states[i], plan_data(p->encoder_plans[i], p->encoder_graphs[i].states), bytes);
    return 0;
}

static int is_weighed(const float *weights, int count)
{
    for (int i = 0; i < count; i++)
        if (weights[i] != 1) return 1;
    return 0;
}

/* Encoder i's outputs, its states weighed. */
static int weighed_encode(struct pipeline *p, int i, const int32_t *ids, const float *weights,
                          int used, const struct plan_watch *watch, struct steer_error *err)
{
    const struct text_encoder *e = p->model->encoders + i;
    int takes_states = e->states != STATES_NONE, code = 0;
    int about = takes_states && text_encoder_weighs_about(e) && is_weighed(weights, e->tokens);
    if (about && !p->empty_states[i]) code = empty_encode(p, i, watch, err);
    if (code || (code = encoder_run(p, i, ids, used, watch, err)) || !takes_states) return code;
    float *states = plan_data(p->encoder_plans[i], p->encoder_graphs[i].states);
    if (about)
        prompt_weigh_about(states, p->empty_states[i], weights, e->tokens, e->channels);
    else
        prompt_weigh(states, weights, e->tokens, e->channels);
    return 0;
}

/* The weighed states of one chunk, all encoders' side by side, and its pooled state, into the text
 * plan. */
static int chunk_encode(struct pipeline *p, const struct prompt_tokens *prompt, int chunk,
                        const struct plan_watch *watch, struct steer_error *err)
{
    const struct model *m = p->model;
    size_t at = 0; /* among all ids */
    float *states = plan_data(p->text_plan, p->text_graph.states);
    for (int i = 0, first = 0; i < m->encoders_count; i++) {
        const struct text_encoder *e = m->encoders + i;
        const struct encoder_graph *g = p->encoder_graphs + i;
        struct plan *plan = p->encoder_plans[i];
        size_t own = at + (size_t)chunk * (size_t)e->tokens;
        const int32_t *ids = prompt->ids + own;
        int used = prompt->used[i][chunk];
        int code = weighed_encode(p, i, ids, prompt->weights + own, used, watch, err);
        if (code) return code;
        if (e->states != STATES_NONE) {
            const float *from = plan_data(plan, g->states);
            for (int k = 0; k < e->tokens; k++)
                memcpy(states + (size_t)k * (size_t)m->text.channels + first,
                       from + (size_t)k * (size_t)e->channels,
                       (size_t)e->channels * sizeof *states);
            mask_fill(p->text_plan, p->text_graph.mask, used, e->tokens);
            first += e->channels;
        }
        if (e->pooled != POOLED_NONE) {
            const float *from = plan_data(plan, g->pooled);
            size_t row = (size_t)text_encoder_pooled_row(e, ids), n = (size_t)e->pooled_channels;
            memcpy(plan_data(p->text_plan, p->text_graph.pooled), from + row * n, n * sizeof *from);
        }
        at += (size_t)prompt->chunks * (size_t)e->tokens;
    }
    return 0;
}

/* No text at all where zeros stand for it. */
static void encode_zeros(struct pipeline *p)
{
    const struct text_size *t = &p->model->text;
    memset(plan_data(p->text_plan, p->text_graph.states), 0,
           (size_t)t->tokens * (size_t)t->channels * sizeof(float));
    if (t->pooled_channels)
        memset(plan_data(p->text_plan, p->text_graph.pooled), 0,
               (size_t)t->pooled_channels * sizeof(float));
    mask_fill(p->text_plan, p->text_graph.mask, t->tokens, t->tokens);
}

/* Bytes of bound output i in an entry. */
static size_t bound_size(const struct pipeline *p, int i, int chunks)
{
    return p->bound_bytes[i] * (size_t)(p->bound_rows[i] ? chunks : 1);
}

static int entry_new(struct pipeline *p, const struct prompt_tokens *prompt,
                     struct text_entry **ret, struct steer_error *err)
{
    const struct text_size *t = &p->model->text;
    size_t states = (size_t)prompt->chunks * (size_t)t->tokens * (size_t)t->channels, bound = 0;
    for (int i = 0; i < p->text_graph.bound_count; i++)
        bound += bound_size(p, i, prompt->chunks);
    if (text_cache_add(p->texts, prompt->ids, prompt->weights, prompt->count,
                       states + (size_t)t->pooled_channels, bound, ret))
        return steer_fail(err, STEER_NO_MEMORY, "out of memory for what is kept of a prompt");
    (*ret)->chunks = prompt->chunks;
    return 0;
}

/* What the text plan has made of a chunk, behind what it has made of those before; what has no rows
 * for tokens (the pooled state) is the first chunk's. */
static void chunk_keep(struct pipeline *p, struct text_entry *entry, int chunk)
{
    const struct text_size *t = &p->model->text;
    size_t floats = (size_t)t->tokens * (size_t)t->channels;
    memcpy(entry->states + (size_t)chunk * floats, plan_data(p->text_plan, p->text_graph.states),
           floats * sizeof(float));
    if (t->pooled_channels && !chunk)
        memcpy(entry->states + (size_t)entry->chunks * floats,
               plan_data(p->text_plan, p->text_graph.pooled),
               (size_t)t->pooled_channels * sizeof(float));
    char *at = entry->bound;
    for (int i = 0; i < p->text_graph.bound_count; at += bound_size(p, i++, entry->chunks))
        if (!chunk || p->bound_rows[i])
            memcpy(at + (size_t)chunk * p->bound_bytes[i],
                   plan_data(p->text_plan, p->text_graph.bound[i]), p->bound_bytes[i]);
}

static int entry_fill(struct pipeline *p, const struct prompt_tokens *prompt,
                      struct text_entry *entry, const struct plan_watch *watch,
                      struct steer_error *err)
{
    int code = 0;
    for (int chunk = 0; chunk < prompt->chunks && !code; chunk++) {
        if (prompt->count)
            code = chunk_encode(p, prompt, chunk, watch, err);
        else
            encode_zeros(p);
        if (!code) code = params_run(p->text_plan, p->model->denoiser_params, watch, err);
        if (!code) chunk_keep(p, entry, chunk);
    }
    return code;
}

/* The embedding of one text and what the denoiser is bound to, from the cache or made. */
static int text_get(struct pipeline *p, const struct prompt_tokens *prompt,
                    const struct plan_watch *watch, const struct text_entry **ret,
                    struct render_times *times, struct steer_error *err)
{
    struct text_entry *entry = NULL;
    uint64_t start = now_us();
    *ret = text_cache_find(p->texts, prompt->ids, prompt->weights, prompt->count);
    if (*ret) return 0;
    int code = text_plans(p, err);
    if (!code) code = entry_new(p, prompt, &entry, err);
    if (!code && (code = entry_fill(p, prompt, entry, watch, err)))
        text_cache_remove(p->texts, entry);
    times->text_us += now_us() - start;
    if (!code) *ret = entry;
    return code;
}

static void text_bind(struct pipeline *p, struct slot *s, int b, const struct text_entry *entry,
                      int negative)
{
    const char *at = entry->bound;
    for (int i = 0; i < s->denoise.bound_count; at += bound_size(p, i++, entry->chunks)) {
        const struct text_pair *pair = s->denoise.bound + i;
        struct tensor t = negative ? pair->negative : pair->positive;
        if (t.id >= 0) plan_bind(s->plan, t, b, at);
    }
}

/* ---- one batch ---- */

/* An image on its way, with what it owns until it is done. */
struct run_image {
    struct render_image *image;
    struct prompt_tokens text, text_negative;
    const struct text_entry *positive, *negative;
    struct random random;
    struct sampler *sampler;
    float *x, *out; /* [C, h, w] */
};

/* Images that share their forward passes. */
struct run {
    struct pipeline *p;
    const struct render_shape *shape;
    struct text_chunks texts;
    struct run_image *own[STEER_BATCH_MAX];
    int count, channels, h, w, call, calls;
    size_t latents; /* floats of one image */
    struct schedule *schedule;
    const struct render_watch *watch;
};

static int run_tick(void *data, int done, int operations)
{
    struct run *r = data;
    (void)done;
    (void)operations;
    return r->watch && r->watch->tick ? r->watch->tick(r->watch->data, r->call, r->calls) : 0;
}

static void to_channels_last(float *out, const float *in, int c, int pixels, float scale)
{
    for (int i = 0; i < pixels; i++)
        for (int k = 0; k < c; k++)
            out[(size_t)i * c + k] = in[(size_t)k * pixels + i] * scale;
}

static void to_channels_first(float *out, const float *in, int c, int pixels)
{
    for (int k = 0; k < c; k++)
        for (int i = 0; i < pixels; i++)
            out[(size_t)k * pixels + i] = in[(size_t)i * c + k];
}

static void noise_draw(void *data, float *out, size_t count)
{
    random_normal(data, out, count);
}

/* What an informed start begins from; NULL: noise alone. */
static const struct mean_latent *run_mean(const struct run *r)
{
    return r->shape->recipe->from_mean ? r->p->model->mean : NULL;
}

static void latents_begin(const struct run *r, struct run_image *own)
{
    float sample, noise;
    random_normal(&own->random, own->x, r->latents);
    if (!run_mean(r)) return;
    schedule_noising(r->schedule, &sample, &noise);
    mean_latent_noise(run_mean(r), r->h, r->w, sample, noise, own->x);
}

static int run_prepare(struct run *r, struct steer_error *err)
{
    struct pipeline *p = r->p;
    int code = schedule_new(&r->schedule, &r->shape->recipe->sampler, r->shape->steps, err);
    if (code) return code;
    r->calls = schedule_calls(r->schedule);
    for (int i = 0; i < r->count; i++) {
        struct run_image *own = r->own[i];
        struct render_times *times = &own->image->times;
        struct plan_watch watch = {run_tick, r};
        code = text_get(p, &own->text, &watch, &own->positive, times, err);
        if (!code && own->text_negative.chunks)
            code = text_get(p, &own->text_negative, &watch, &own->negative, times, err);
        if (code) return code;
        random_seed(&own->random, own->image->seed);
        own->x = malloc(2 * r->latents * sizeof(float));
        if (!own->x ||
            sampler_new(&own->sampler, r->schedule, r->latents, noise_draw, &own->random))
            return steer_fail(err, STEER_NO_MEMORY, "out of memory for latents of %zu floats",
                              r->latents);
        own->out = own->x + r->latents;
        latents_begin(r, own);
    }
    return 0;
}

/* diffusers' get_guidance_scale_embedding of image i's scale - 1, where the model takes one. */
static void guidance_embed(struct run *r, struct slot *s, int i)
{
    int channels = r->p->model->guidance_channels, half = channels / 2;
    if (!channels) return;
    float *out = (float *)plan_data(s->plan, s->denoise.guidance) + (size_t)i * (size_t)channels;
    float w = ((float)r->own[i]->image->guidance.scale - 1) * 1000;
    float rate = logf(10000) / (float)(half - 1);
    out[channels - 1] = 0; /* of an odd number */
    for (int k = 0; k < half; k++) {
        float angle = w * expf((float)k * -rate);
        out[k] = sinf(angle);
        out[half + k] = cosf(angle);
    }
}

static void sizes_fill(struct run *r, struct slot *s, int i)
{
    const struct model *m = r->p->model;
    if (!m->sizes) return;
    float *out = (float *)plan_data(s->plan, s->denoise.sizes) + (size_t)i * (size_t)m->sizes;
    m->family->sizes(r->shape->width, r->shape->height, out);
}

/* Noise predictions that are not numbers would become a black picture without a word. */
static int latents_check(const struct run *r, struct steer_error *err)
{
    for (int i = 0; i < r->count; i++)
        for (size_t k = 0; k < r->latents; k++)
            if (!isfinite(r->own[i]->x[k]))
                return steer_fail(err, STEER_BAD_MODEL,
                                  "latents are not finite after %d denoiser calls: the checkpoint "
                                  "and its scheduler (or the precision) do not fit",
                                  r->calls);
    return 0;
}

/* One pass of the denoiser over the batch: outputs to own->out, or blended into it as CFG does. */
static int denoise_pass(struct run *r, struct slot *s, int under_negative, struct steer_error *err)
{
    int pixels = r->h * r->w;
    float *in = plan_data(s->plan, s->denoise.latents),
          *t = plan_data(s->plan, s->denoise.timestep);
    float scale = (float)schedule_input_scale(r->schedule, r->call);
    for (int i = 0; i < r->count; i++) {
        struct run_image *own = r->own[i];
        to_channels_last(in + (size_t)i * r->latents, own->x, r->channels, pixels, scale);
        t[i] = (float)schedule_timestep(r->schedule, r->call);
        guidance_embed(r, s, i);
        sizes_fill(r, s, i);
        text_bind(r->p, s, i, under_negative ? own->negative : own->positive, 0);
        if (s->method == GUIDANCE_NONE) continue;
        text_bind(r->p, s, i, own->negative, 1);
        const struct guidance *g = &r->own[i]->image->guidance;
        float *params =
            (float *)plan_data(s->plan, s->denoise.params) + (size_t)i * GUIDANCE_PARAMS;
        params[GUIDANCE_ALPHA] = (float)g->alpha;
        params[GUIDANCE_OFFSET] = (float)g->offset;
        params[GUIDANCE_PHI] = (float)g->phi;
        params[GUIDANCE_TAU] = (float)g->tau;
        params[GUIDANCE_BETA] = (float)g->beta;
    }
    struct plan_watch watch = {run_tick, r};
    int code = params_run(s->plan, r->p->model->denoiser_params, &watch, err);
    if (code) return code;
    const float *out = plan_data(s->plan, s->denoise.out);
    for (int i = 0; i < r->count; i++) {
        struct run_image *own = r->own[i];
        const float *from = out + (size_t)i * r->latents;
        if (!under_negative) {
            to_channels_first(own->out, from, r->channels, pixels);
            continue;
        }
        float k = (float)r->own[i]->image->guidance.scale;
        for (int c = 0; c < r->channels; c++)
            for (int x = 0; x < pixels; x++) {
                float *o = own->out + (size_t)c * pixels + x, n = from[(size_t)x * r->channels + c];
                *o = n + k * (*o - n);
            }
    }
    return 0;
}

/* ---- dump ---- */

/* Copies [pixels, channels] to [channels, ...], or a plain array when channels is 0. */
static int dump_add(struct dump *d, const char *name, enum compute_type type, const void *data,
                    int channels, int rank, const int64_t *shape, struct steer_error *err)
{
    size_t count = 1;
    for (int i = 0; i < rank; i++)
        count *= (size_t)shape[i];
    struct dump_tensor *t = d->tensors + d->count;
    *t = (struct dump_tensor){.type = type, .rank = rank};
    if (!(t->data = malloc(count * compute_type_bytes(type))))
        return steer_fail(err, STEER_NO_MEMORY, "out of memory for a dump");
    snprintf(t->name, sizeof t->name, "%s", name);
    memcpy(t->shape, shape, (size_t)rank * sizeof *shape);
    if (channels)
        to_channels_first(t->data, data, channels, (int)(count / (size_t)channels));
    else
        memcpy(t->data, data, count * compute_type_bytes(type));
    d->count++;
    return 0;
}

void dump_free(struct dump *d)
{
    for (int i = 0; i < d->count; i++)
        free(d->tensors[i].data);
    d->count = 0;
}

/* tokens.pos of the first tokenizer, tokens_2.pos of the second; an absent text has none. */
static int dump_text(struct run *r, struct dump *d, const struct text_entry *entry,
                     const char *which, struct steer_error *err)
{
    const struct model *m = r->p->model;
    const int32_t *ids = entry->ids;
    char name[24];
    int code = 0;
    for (int i = 0; i < m->encoders_count && entry->count && !code; i++) {
        int64_t tokens[] = {(int64_t)entry->chunks * m->encoders[i].tokens};
        snprintf(name, sizeof name, "tokens%s.%s", i ? "_2" : "", which);
        code = dump_add(d, name, TYPE_I32, ids, 0, 1, tokens, err);
        ids += tokens[0];
    }
    int64_t states[] = {(int64_t)entry->chunks * m->text.tokens, m->text.channels};
    int64_t pooled[] = {m->text.pooled_channels};
    snprintf(name, sizeof name, "text.%s", which);
    if (!code) code = dump_add(d, name, TYPE_F32, entry->states, 0, 2, states, err);
    if (code || !m->text.pooled_channels) return code;
    snprintf(name, sizeof name, "pooled.%s", which);
    return dump_add(d, name, TYPE_F32, entry->states + states[0] * states[1], 0, 1, pooled, err);
}

static int run_denoise(struct run *r, struct dump *dump, struct steer_error *err)
{
    struct slot *guided, *plain;
    const struct render_shape *shape = r->shape;
    int64_t latents[] = {r->channels, r->h, r->w};
    int code = denoise_slots(r->p, shape, r->texts, r->count, &guided, &plain, err);
    if (!code && dump)
        code = dump_add(dump, "latents.start", TYPE_F32, r->own[0]->x, 0, 3, latents, err);
    if (code) return code;
    float init = run_mean(r) ? 1 : (float)schedule_init_scale(r->schedule);
    for (int i = 0; i < r->count && init != 1; i++)
        for (size_t k = 0; k < r->latents; k++)
            r->own[i]->x[k] *= init;
    for (r->call = 0; r->call < r->calls; r->call++) {
        if ((code = denoise_pass(r, guided, 0, err))) return code;
        if (plain && (code = denoise_pass(r, plain, 1, err))) return code;
        if (dump && r->call == 0 &&
            (code = dump_add(dump, "denoise.out.0", TYPE_F32, r->own[0]->out, 0, 3, latents, err)))
            return code;
        for (int i = 0; i < r->count; i++)
            if ((code = sampler_step(r->own[i]->sampler, r->call, r->own[i]->out, r->own[i]->x)))
                return steer_fail(err, code, "sampling failed at call %d", r->call);
    }
    if ((code = latents_check(r, err))) return code;
    return dump ? dump_add(dump, "latents.final", TYPE_F32, r->own[0]->x, 0, 3, latents, err) : 0;
}

/* One image at a time on one plan: nothing is shared between images, and a decoder's activations
 * are most of what a job needs (SD1.5, 512x512: 0.75 GB an image). */
static int run_decode(struct run *r, struct dump *dump, struct steer_error *err)
{
    struct slot *s;
    const struct render_shape *shape = r->shape;
    int code = decode_slot(r->p, shape, &s, NULL, err);
    struct plan_watch watch = {run_tick, r};
    size_t bytes = (size_t)shape->width * (size_t)shape->height * 3;
    for (int i = 0; i < r->count && !code; i++) {
        float *z = plan_data(s->plan, s->decode.latents);
        to_channels_last(z, r->own[i]->x, r->channels, r->h * r->w, 1);
        vae_denorm(&r->p->model->vae, z, (size_t)r->h * (size_t)r->w);
        if (!(code = plan_run(s->plan, &watch, err)))
            memcpy(r->own[i]->image->pixels, plan_data(s->plan, s->decode.image), bytes);
    }
    if (code || !dump) return code;
    int64_t image[] = {3, shape->height, shape->width};
    code = dump_add(dump, "vae.out", TYPE_F32, plan_data(s->plan, s->decode.out), 3, 3, image, err);
    int64_t seen[3] = {image[1], image[2], 3};
    return code ? code
                : dump_add(dump, "image", TYPE_U8, r->own[0]->image->pixels, 0, 3, seen, err);
}

static int text_known(const struct pipeline *p, const struct prompt_tokens *t)
{
    return !t->chunks || text_cache_find(p->texts, t->ids, t->weights, t->count);
}

/* 1 when no text of the batch has to be encoded. */
static int run_texts_known(const struct run *r)
{
    int known = 1;
    for (int i = 0; i < r->count; i++)
        known &= text_known(r->p, &r->own[i]->text) && text_known(r->p, &r->own[i]->text_negative);
    return known;
}

static int run_all(struct run *r, struct dump *dump, struct steer_error *err)
{
    struct pipeline *p = r->p;
    int leaves = p->limits.text_leaves;
    p->turn++;
    text_cache_pin(p->texts); /* entries in use by this batch must not be evicted by it */
    uint64_t begun = now_us();
    int code = leaves && run_texts_known(r) ? 0 : text_plans(p, err);
    if (!code && !leaves) code = plans_load(p, r->shape, r->texts, r->count, err);
    uint64_t load_us = now_us() - begun;
    if (!code) code = run_prepare(r, err);
    if (leaves) {
        encoders_leave(p);
        begun = now_us();
        if (!code) code = plans_load(p, r->shape, r->texts, r->count, err);
        load_us += now_us() - begun;
    }
    if (!code && dump) code = dump_text(r, dump, r->own[0]->positive, "pos", err);
    if (!code && dump) code = dump_text(r, dump, r->own[0]->negative, "neg", err);
    uint64_t start = now_us();
    if (!code) code = run_denoise(r, dump, err);
    uint64_t denoised = now_us();
    if (!code) code = run_decode(r, dump, err);
    if (!code) code = model_whole(p->model, err);
    uint64_t decoded = now_us();
    for (int i = 0; i < r->count; i++) {
        struct run_image *own = r->own[i];
        own->image->together = r->count;
        own->image->times.load_us = load_us;
        own->image->times.denoise_us = denoised - start;
        own->image->times.decode_us = decoded - denoised;
        sampler_free(own->sampler);
        free(own->x);
    }
    text_cache_unpin(p->texts);
    schedule_free(r->schedule);
    return code;
}

static int texts_read(const struct pipeline *p, struct run_image *own, int negative,
                      struct steer_error *err)
{
    struct render_image *image = own->image;
    const struct model *m = p->model;
    uint64_t start = now_us();
    int code = prompt_tokens_read(&own->text, m, image->prompt, image->reading, err);
    if (!code && negative)
        code = prompt_tokens_read(&own->text_negative, m, image->negative, image->reading, err);
    image->times = (struct render_times){.tokenize_us = now_us() - start};
    image->cut = own->text.cut;
    image->cut_negative = own->text_negative.cut;
    return code;
}

/* Takes the first image that is left and all that have as many chunks of text as it. */
static void group_take(struct run *r, struct run_image **left, int *left_count)
{
    int kept = 0;
    r->count = 0;
    r->texts = (struct text_chunks){left[0]->text.chunks, left[0]->text_negative.chunks};
    for (int i = 0; i < *left_count; i++) {
        struct run_image *own = left[i];
        if (own->text.chunks == r->texts.positive && own->text_negative.chunks == r->texts.negative)
            r->own[r->count++] = own;
        else
            left[kept++] = own;
    }
    *left_count = kept;
}

int pipeline_render(struct pipeline *p, const struct render_shape *shape,
                    struct render_image *images, int count, struct dump *dump,
                    const struct render_watch *watch, struct steer_error *err)
{
    struct run_image own[STEER_BATCH_MAX] = {0}, *left[STEER_BATCH_MAX];
    int left_count = count, code = model_size_check(p->model, shape->width, shape->height, err);
    if (!code) code = model_start_check(p->model, shape->recipe, shape->width, shape->height, err);
    if (code) return code;
    if (dump) dump->count = 0;
    /* A dump shows what an absent negative would be too. */
    int negative = passes_twice(p, shape) || shape->method != GUIDANCE_NONE || dump;
    for (int i = 0; i < count; i++) {
        left[i] = own + i;
        own[i].image = images + i;
        if (!code) code = texts_read(p, own + i, negative, err);
    }
    while (left_count && !code) {
        struct run r = {.p = p, .shape = shape, .watch = watch};
        r.channels = p->model->latent_channels;
        r.h = shape->height / p->model->factor;
        r.w = shape->width / p->model->factor;
        r.latents = (size_t)r.channels * (size_t)r.h * (size_t)r.w;
        group_take(&r, left, &left_count);
        code = run_all(&r, dump, err);
    }
    for (int i = 0; i < count; i++) {
        prompt_tokens_free(&own[i].text);
        prompt_tokens_free(&own[i].text_negative);
    }
    if (code && dump) dump_free(dump);
    return code;
}
