// SPDX-License-Identifier: Apache-2.0
#include "pipeline.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "random.h"
#include "text_cache.h"

enum plan_kind { PLAN_DENOISE, PLAN_DECODE };

/* A plan and the handles into it. The text encoder's and the projections' plans are of one size and
 * live as long as the pipeline; these are kept in an LRU. */
struct slot {
    enum plan_kind kind;
    int width, height, batch;
    int chunks, chunks_negative; /* of each text; 0: there is none */
    enum guidance_method method;
    struct plan *plan;
    struct unet_graph denoise;
    struct vae_graph decode;
    uint64_t used; /* the batch of its last use */
};

struct pipeline {
    struct model *model;
    struct compute *compute;
    struct pipeline_limits limits;
    struct slot *slots; /* plans_max of them; one without a plan is empty */
    uint64_t turn;      /* counts batches */
    struct plan *text_plan, *keys_plan;
    struct clip_graph text_graph;
    struct unet_text_graph keys_graph;
    struct text_cache *texts;
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
    plan_free(p->text_plan);
    plan_free(p->keys_plan);
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

static int text_read(const struct pipeline *p, const char *text, struct prompt_reading reading,
                     struct prompt_chunks *ret, struct steer_error *err)
{
    return prompt_chunks_make(ret, p->model->tokenizer, p->model->tokens, text, reading, err);
}

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

/* What a recording left wrong, the params' mistake first: it is the cause. */
static int plan_make(struct pipeline *p, struct plan **ret, struct params *params,
                     const struct graph *g, const struct slot *keep, struct steer_error *err)
{
    struct steer_error why = {0};
    int code = params_error(params, &why);
    while (!code && (code = compute_plan(ret, p->compute, g, &why)) == STEER_NO_MEMORY &&
           make_room(p, keep)) {
        why = (struct steer_error){0};
        code = 0;
    }
    if (code && err) *err = why;
    return code;
}

static int text_plans(struct pipeline *p, struct steer_error *err)
{
    struct model *m = p->model;
    int code = 0;
    if (!p->text_plan) {
        struct net n = {m->clip_params, graph_new()};
        if (!n.graph) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
        clip_record(&p->text_graph, &n, &m->clip, 1, m->tokens);
        code = plan_make(p, &p->text_plan, n.params, n.graph, NULL, err);
        graph_free(n.graph);
    }
    if (!code && !p->keys_plan) {
        struct net n = {m->unet_params, graph_new()};
        if (!n.graph) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
        unet_record_text(&p->keys_graph, &n, &m->layers, m->tokens);
        code = plan_make(p, &p->keys_plan, n.params, n.graph, NULL, err);
        graph_free(n.graph);
    }
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
           s->chunks == want->chunks && s->chunks_negative == want->chunks_negative;
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
    struct net n = {want->kind == PLAN_DENOISE ? m->unet_params : m->vae_params, graph_new()};
    if (!n.graph) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    struct slot *s = slot_empty(p, keep), made = *want;
    made.used = p->turn;
    if (want->kind == PLAN_DENOISE)
        unet_record(&made.denoise, &n, &m->unet, size, want->chunks * m->tokens,
                    want->chunks_negative * m->tokens, want->method);
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
    return shape->cfg && !p->model->unet.guidance_channels;
}

/* How many chunks the texts of a batch have. */
struct text_sizes {
    int positive, negative;
};

/* The denoiser's plan, and CFG's under the negative text when it is another (NULL: no CFG). */
static int denoise_slots(struct pipeline *p, const struct render_shape *shape,
                         struct text_sizes texts, int batch, struct slot **ret,
                         struct slot **ret_second, struct steer_error *err)
{
    struct slot want = {.kind = PLAN_DENOISE,
                        .width = shape->width,
                        .height = shape->height,
                        .batch = batch,
                        .method = shape->method,
                        .chunks = texts.positive};
    if (shape->method != GUIDANCE_NONE) want.chunks_negative = texts.negative;
    int code = slot_get(p, ret, &want, NULL, err);
    *ret_second = NULL;
    if (code || !passes_twice(p, shape)) return code;
    want.method = GUIDANCE_NONE;
    want.chunks = texts.negative;
    want.chunks_negative = 0;
    return slot_get(p, ret_second, &want, *ret, err);
}

/* All plans of a batch, so that the stages find theirs. The decoder's comes first: it needs most
 * memory, and what has no room for it is refused now, not after the denoiser's minutes. Where the
 * others push it out it is made once more. */
static int plans_load(struct pipeline *p, const struct render_shape *shape, struct text_sizes texts,
                      int batch, struct steer_error *err)
{
    struct slot *denoise, *second, *decode;
    int code = text_plans(p, err);
    if (!code) code = decode_slot(p, shape, &decode, NULL, err);
    return code ? code : denoise_slots(p, shape, texts, batch, &denoise, &second, err);
}

int pipeline_plans(struct pipeline *p, const struct render_shape *shape,
                   const struct render_image *image, int batch, struct pipeline_plans *ret,
                   struct steer_error *err)
{
    struct slot *denoise, *second, *decode;
    struct prompt_chunks positive = {0}, negative = {0};
    int code = text_read(p, image->prompt, image->reading, &positive, err);
    if (!code) code = text_read(p, image->negative, image->reading, &negative, err);
    struct text_sizes texts = {positive.count, negative.count};
    prompt_chunks_free(&positive);
    prompt_chunks_free(&negative);
    if (code) return code;
    p->turn++;
    if ((code = text_plans(p, err)) ||
        (code = denoise_slots(p, shape, texts, batch, &denoise, &second, err)) ||
        (code = decode_slot(p, shape, &decode, denoise, err)))
        return code;
    if (!denoise->plan || (second && !second->plan))
        return steer_fail(err, STEER_NO_MEMORY,
                          "the plans of %dx%d do not fit into memory together (--memory)",
                          shape->width, shape->height);
    *ret = (struct pipeline_plans){
        texts.positive, p->text_plan, p->keys_plan, denoise->plan, second ? second->plan : NULL,
        decode->plan};
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

static int ids_check(const struct model *m, const struct prompt_chunks *c, struct steer_error *err)
{
    for (int i = 0; i < c->count * c->length; i++)
        if (c->ids[i] >= m->clip.vocab)
            return steer_fail(err, STEER_BAD_MODEL,
                              "token %d of a prompt: the text encoder's table has only %d rows",
                              c->ids[i], m->clip.vocab);
    return 0;
}

/* Encodes chunk i and projects it, into its rows of the entry. */
static int chunk_encode(struct pipeline *p, const struct prompt_chunks *c, int i,
                        struct text_entry *entry, const struct plan_watch *watch,
                        struct steer_error *err)
{
    const struct model *m = p->model;
    size_t tokens = (size_t)c->length, first = (size_t)i * tokens;
    size_t floats = tokens * (size_t)m->clip.channels;
    float *states = entry->states + (size_t)i * floats;
    memcpy(plan_data(p->text_plan, p->text_graph.ids), c->ids + first, tokens * sizeof *c->ids);
    int code = plan_run(p->text_plan, watch, err);
    if (code) return code;
    memcpy(states, plan_data(p->text_plan, p->text_graph.text), floats * sizeof *states);
    prompt_weigh(states, c->weights + first, c->length, m->clip.channels);

    memcpy(plan_data(p->keys_plan, p->keys_graph.text), states, floats * sizeof *states);
    if ((code = plan_run(p->keys_plan, watch, err))) return code;
    size_t element = compute_type_bytes(compute_bound_type(p->compute));
    char *at = entry->keys;
    for (int k = 0; k < m->layers.cross_count; k++) {
        size_t bytes = tokens * (size_t)m->layers.cross[k].channels * element;
        const struct tensor made[] = {p->keys_graph.k[k], p->keys_graph.v[k]};
        for (int which = 0; which < 2; which++) {
            memcpy(at + (size_t)i * bytes, plan_data(p->keys_plan, made[which]), bytes);
            at += (size_t)c->count * bytes;
        }
    }
    return 0;
}

/* The embedding of one text and its keys and values in every layer, from the cache or made. */
static int text_get(struct pipeline *p, const struct prompt_chunks *c,
                    const struct plan_watch *watch, const struct text_entry **ret,
                    struct render_times *times, struct steer_error *err)
{
    struct model *m = p->model;
    int count = c->count * c->length, code;
    if ((*ret = text_cache_find(p->texts, c->ids, c->weights, count))) return 0;
    uint64_t start = now_us();
    if ((code = ids_check(m, c, err)) || (code = text_plans(p, err))) return code;

    size_t channels = 0, element = compute_type_bytes(compute_bound_type(p->compute));
    for (int i = 0; i < m->layers.cross_count; i++)
        channels += 2 * (size_t)m->layers.cross[i].channels;
    struct text_entry *entry;
    if (text_cache_add(p->texts, c->ids, c->weights, count,
                       (size_t)count * (size_t)m->clip.channels, (size_t)count * channels * element,
                       &entry))
        return steer_fail(err, STEER_NO_MEMORY, "out of memory for a prompt's keys and values");
    for (int i = 0; i < c->count && !code; i++)
        code = chunk_encode(p, c, i, entry, watch, err);
    if (code) {
        text_cache_remove(p->texts, entry);
        return code;
    }
    times->text_us += now_us() - start;
    *ret = entry;
    return 0;
}

static void keys_bind(struct pipeline *p, struct slot *s, int b, const struct text_entry *entry,
                      int negative)
{
    size_t element = compute_type_bytes(compute_bound_type(p->compute));
    const char *at = entry->keys;
    for (int i = 0; i < s->denoise.cross_count; i++) {
        struct unet_cross *cross = s->denoise.cross + i;
        struct text_keys keys = negative ? cross->negative : cross->positive;
        size_t bytes = (size_t)entry->count * (size_t)cross->channels * element;
        plan_bind(s->plan, keys.k, b, at);
        plan_bind(s->plan, keys.v, b, at + bytes);
        at += 2 * bytes;
    }
}

/* ---- one batch ---- */

/* An image on its way, with what it owns until it is done. */
struct run_image {
    struct render_image *image;
    struct prompt_chunks texts, texts_negative;
    const struct text_entry *positive, *negative;
    struct random random;
    struct sampler *sampler;
    float *x, *out; /* [C, h, w] */
};

/* Images that share their forward passes. */
struct run {
    struct pipeline *p;
    const struct render_shape *shape;
    struct text_sizes texts;
    struct run_image *own[STEER_BATCH_MAX];
    int count, channels, h, w, call, calls;
    int cfg;        /* a second pass */
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

static int run_prepare(struct run *r, struct steer_error *err)
{
    struct pipeline *p = r->p;
    int code = schedule_new(&r->schedule, &r->shape->recipe->sampler, r->shape->steps, err);
    if (code) return code;
    r->calls = schedule_calls(r->schedule);
    /* Entries in use by this batch must not be evicted by it. */
    text_cache_pin(p->texts);
    for (int i = 0; i < r->count; i++) {
        struct run_image *own = r->own[i];
        struct render_times *times = &own->image->times;
        struct plan_watch watch = {run_tick, r};
        code = text_get(p, &own->texts, &watch, &own->positive, times, err);
        if (!code && own->texts_negative.count)
            code = text_get(p, &own->texts_negative, &watch, &own->negative, times, err);
        if (code) return code;
        random_seed(&own->random, own->image->seed);
        own->x = malloc(2 * r->latents * sizeof(float));
        if (!own->x ||
            sampler_new(&own->sampler, r->schedule, r->latents, noise_draw, &own->random))
            return steer_fail(err, STEER_NO_MEMORY, "out of memory for latents of %zu floats",
                              r->latents);
        own->out = own->x + r->latents;
        random_normal(&own->random, own->x, r->latents);
    }
    return 0;
}

/* diffusers' get_guidance_scale_embedding of image i's scale - 1, where the model takes one. */
static void guidance_embed(struct run *r, struct slot *s, int i)
{
    int channels = r->p->model->unet.guidance_channels, half = channels / 2;
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
        keys_bind(r->p, s, i, under_negative ? own->negative : own->positive, 0);
        if (s->method == GUIDANCE_NONE) continue;
        keys_bind(r->p, s, i, own->negative, 1);
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
    int code = plan_run(s->plan, &watch, err);
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

static int dump_text(struct run *r, struct dump *d, const struct text_entry *entry,
                     const char *which, struct steer_error *err)
{
    const struct model *m = r->p->model;
    char name[24];
    int64_t tokens[] = {entry->count}, states[] = {entry->count, m->clip.channels};
    snprintf(name, sizeof name, "tokens.%s", which);
    int code = dump_add(d, name, TYPE_I32, entry->ids, 0, 1, tokens, err);
    snprintf(name, sizeof name, "text.%s", which);
    return code ? code : dump_add(d, name, TYPE_F32, entry->states, 0, 2, states, err);
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
    float init = (float)schedule_init_scale(r->schedule);
    for (int i = 0; i < r->count && init != 1; i++)
        for (size_t k = 0; k < r->latents; k++)
            r->own[i]->x[k] *= init;
    for (r->call = 0; r->call < r->calls; r->call++) {
        if ((code = denoise_pass(r, guided, 0, err))) return code;
        if (r->cfg && (code = denoise_pass(r, plain, 1, err))) return code;
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
        to_channels_last(plan_data(s->plan, s->decode.latents), r->own[i]->x, r->channels,
                         r->h * r->w, 1);
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

static int run_all(struct run *r, struct dump *dump, struct steer_error *err)
{
    struct pipeline *p = r->p;
    uint64_t begun = now_us();
    p->turn++;
    int code = plans_load(p, r->shape, r->texts, r->count, err);
    uint64_t loaded = now_us();
    if (!code) code = run_prepare(r, err);
    if (!code && dump) code = dump_text(r, dump, r->own[0]->positive, "pos", err);
    if (!code && dump) code = dump_text(r, dump, r->own[0]->negative, "neg", err);
    uint64_t start = now_us();
    if (!code) code = run_denoise(r, dump, err);
    uint64_t denoised = now_us();
    if (!code) code = run_decode(r, dump, err);
    uint64_t decoded = now_us();
    for (int i = 0; i < r->count; i++) {
        struct run_image *own = r->own[i];
        own->image->together = r->count;
        own->image->times.load_us = loaded - begun;
        own->image->times.denoise_us = denoised - start;
        own->image->times.decode_us = decoded - denoised;
        sampler_free(own->sampler);
        free(own->x);
    }
    text_cache_unpin(p->texts);
    schedule_free(r->schedule);
    return code;
}

static int texts_read(struct pipeline *p, struct run_image *own, int negative,
                      struct steer_error *err)
{
    struct render_image *image = own->image;
    uint64_t start = now_us();
    int code = text_read(p, image->prompt, image->reading, &own->texts, err);
    if (!code && negative)
        code = text_read(p, image->negative, image->reading, &own->texts_negative, err);
    image->times = (struct render_times){.tokenize_us = now_us() - start};
    image->cut = own->texts.cut;
    image->cut_negative = own->texts_negative.cut;
    return code;
}

/* Takes the first image that is left and all that have as many chunks of text as it. */
static void group_take(struct run *r, struct run_image **left, int *left_count)
{
    int kept = 0;
    r->count = 0;
    r->texts = (struct text_sizes){left[0]->texts.count, left[0]->texts_negative.count};
    for (int i = 0; i < *left_count; i++) {
        struct run_image *own = left[i];
        if (own->texts.count == r->texts.positive && own->texts_negative.count == r->texts.negative)
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
        r.cfg = passes_twice(p, shape);
        r.channels = p->model->unet.in_channels;
        r.h = shape->height / p->model->factor;
        r.w = shape->width / p->model->factor;
        r.latents = (size_t)r.channels * (size_t)r.h * (size_t)r.w;
        group_take(&r, left, &left_count);
        code = run_all(&r, dump, err);
    }
    for (int i = 0; i < count; i++) {
        prompt_chunks_free(&own[i].texts);
        prompt_chunks_free(&own[i].texts_negative);
    }
    if (code && dump) dump_free(dump);
    return code;
}
