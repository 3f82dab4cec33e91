// SPDX-License-Identifier: Apache-2.0
#include "engine.h"

#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "encode.h"
#include "job_plan.h"
#include "log.h"
#include "pipeline.h"

#define RESIDENT_MAX 16

/* Invariants:
 * 1. A batch is in exactly one place: waiting list, running, or freed.
 * 2. Every image of a batch ends in exactly one done, unless its lease was revoked: the batch owns
 *    it until then, and who ends the image takes it out.
 * 3. Only the engine thread touches computes, models and pipelines. */

struct batch {
    struct batch *next;
    struct wire_message message;
    const Steerfarm__Assign *assign; /* in message */
    uint64_t received_us;
    int revoked[STEER_BATCH_MAX];
    struct done *dones[STEER_BATCH_MAX]; /* NULL: ended */
};

/* Pixels on their way to the encoder. */
struct picture {
    struct picture *next;
    struct done *done; /* filled but for the image */
    uint8_t *pixels;
    struct image_meta *meta;
    uint64_t received_us;
};

/* A model held open, in one precision. */
struct resident {
    char name[STEER_NAME_BYTES_MAX + 1];
    int precision;
    struct model *model;
    struct pipeline *pipeline;
    uint64_t used;
    int rendered; /* batches */
};

struct engine {
    struct engine_options options;
    pthread_t engine_thread, encoder_thread;
    pthread_mutex_t lock; /* guards everything down to `residents` */
    pthread_cond_t work, pictures_work;
    struct batch *waiting, *waiting_last, *running;
    struct picture *pictures, *pictures_last;
    struct done *done, *done_last;
    int stopping, draining, encoder_stopping, threads_started;
    int opened; /* 1: the device is there; negative: why not, in open_error */
    struct steer_error open_error;
    uint64_t ticked_ms, beats_seen;
    int step, steps;
    char resident_names[RESIDENT_MAX][STEER_NAME_BYTES_MAX + 1];
    /* The engine thread's own. */
    struct compute *compute[2]; /* by enum compute_precision */
    char numerics[128];
    struct compute_host host;                             /* beats: read by all */
    struct resident *residents[RESIDENT_MAX], *rendering; /* the latter: of the running batch */
    int residents_count;
    uint64_t turn;
};

static uint64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

void done_keep(struct done *d)
{
    atomic_fetch_add(&d->users, 1);
}

void done_free(struct done *d)
{
    if (!d || atomic_fetch_sub(&d->users, 1) > 1) return;
    free(d->image);
    free(d);
}

static void wake(struct engine *e)
{
    uint64_t one = 1;
    ssize_t wrote = write(e->options.wake, &one, sizeof one);
    (void)wrote; /* a full counter is awake already */
}

/* ---- done list ---- */

static struct done *done_new(const Steerfarm__Assignment *a)
{
    struct done *d = calloc(1, sizeof *d);
    if (!d) return NULL;
    d->users = 1;
    d->epoch = a->lease->epoch;
    d->lease = a->lease->lease;
    d->index = a->lease->index;
    snprintf(d->job, sizeof d->job, "%s", a->lease->job);
    return d;
}

static void done_push(struct engine *e, struct done *d)
{
    pthread_mutex_lock(&e->lock);
    *(e->done_last ? &e->done_last->next : &e->done) = d;
    e->done_last = d;
    pthread_mutex_unlock(&e->lock);
    wake(e);
}

/* Takes image i's done out of its batch: it ends now. NULL: it has ended. */
static struct done *image_end(struct batch *b, size_t i)
{
    struct done *d = b->dones[i];
    b->dones[i] = NULL;
    return d;
}

static void fail_image(struct engine *e, struct batch *b, size_t i, int code, int retryable,
                       const struct steer_error *err)
{
    struct done *d = image_end(b, i);
    if (!d) return;
    d->code = code;
    d->retryable = retryable;
    d->error = *err;
    done_push(e, d);
}

/* ---- the encoder ---- */

static void *encoder_main(void *data)
{
    struct engine *e = data;
    (void)setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 5); /* behind the device's threads */
    for (;;) {
        pthread_mutex_lock(&e->lock);
        while (!e->pictures && !e->encoder_stopping)
            pthread_cond_wait(&e->pictures_work, &e->lock);
        struct picture *p = e->pictures;
        if (p) {
            e->pictures = p->next;
            if (!e->pictures) e->pictures_last = NULL;
        }
        pthread_mutex_unlock(&e->lock);
        if (!p) return NULL;

        struct done *d = p->done;
        uint64_t start = now_us();
        d->code = image_encode(&d->image, &d->image_bytes, p->pixels, p->meta, &d->error);
        uint64_t end = now_us();
        d->retryable = 1;
        Steerfarm__Timing *t = &d->timing;
        t->has_encode_us = t->has_total_us = t->has_other_us = 1;
        t->encode_us = end - start;
        t->total_us = end - p->received_us;
        uint64_t named = t->dispatch_us + t->load_us + t->tokenize_us + t->text_us + t->denoise_us +
                         t->decode_us + t->encode_us;
        t->other_us = t->total_us > named ? t->total_us - named : 0;
        d->header.bytes = d->image_bytes;
        d->header.crc32 = d->code ? 0 : wire_crc32(d->image, d->image_bytes);
        free(p->pixels);
        job_meta_free(p->meta);
        free(p);
        done_push(e, d);
    }
}

/* ---- models in memory ---- */

static void residents_publish(struct engine *e)
{
    pthread_mutex_lock(&e->lock);
    for (int i = 0; i < RESIDENT_MAX; i++)
        snprintf(e->resident_names[i], sizeof e->resident_names[i], "%s",
                 i < e->residents_count ? e->residents[i]->name : "");
    pthread_mutex_unlock(&e->lock);
}

static void resident_free(struct resident *r)
{
    if (!r) return;
    pipeline_free(r->pipeline);
    model_close(r->model);
    free(r);
}

static void resident_close(struct engine *e, struct resident *r)
{
    int i = 0;
    while (e->residents[i] != r)
        i++;
    e->residents[i] = e->residents[--e->residents_count];
    if (e->rendering == r) e->rendering = NULL;
    residents_publish(e);
    log_event(LOG_INFO, "model.unload", "model=%s", log_quote(r->name));
    resident_free(r);
}

static struct resident *oldest(const struct engine *e, const struct resident *keep)
{
    struct resident *found = NULL;
    for (int i = 0; i < e->residents_count; i++)
        if (e->residents[i] != keep && (!found || e->residents[i]->used < found->used))
            found = e->residents[i];
    return found;
}

/* A plan does not fit: the model that was used longest ago leaves, if there is another. */
static int make_room(void *data)
{
    struct engine *e = data;
    struct resident *r = oldest(e, e->rendering);
    if (!r) return 0;
    resident_close(e, r);
    return 1;
}

static int compute_get(struct engine *e, int precision, struct compute **ret,
                       struct steer_error *err)
{
    if (!e->compute[precision]) {
        struct compute_options options = e->options.compute;
        options.precision = (enum compute_precision)precision;
        options.host = &e->host;
        int code = compute_open(&e->compute[precision], &options, err);
        if (code) return code;
    }
    *ret = e->compute[precision];
    return 0;
}

static int resident_open(struct engine *e, const char *name, int precision, struct resident **ret,
                         struct steer_error *err)
{
    const char *dir = e->options.model_path(e->options.data, name);
    if (!dir)
        return steer_fail(err, STEER_UNKNOWN_MODEL, "model \"%s\" is not on this worker", name);
    struct compute *c;
    int code = compute_get(e, precision, &c, err);
    if (code) return code;
    struct resident *r = calloc(1, sizeof *r);
    if (!r) return steer_fail(err, STEER_NO_MEMORY, "out of memory for model \"%s\"", name);
    r->precision = precision;
    snprintf(r->name, sizeof r->name, "%s", name);
    uint64_t start = now_us();
    struct pipeline_limits limits = pipeline_limits_default();
    if (limits.text_bytes_max > e->host.bytes_max / 16)
        limits.text_bytes_max = e->host.bytes_max / 16;
    limits.text_leaves = e->options.text_leaves;
    limits.make_room = make_room;
    limits.data = e;
    code = model_open(&r->model, dir, c, err);
    if (!code && (code = pipeline_new(&r->pipeline, r->model, c, limits)))
        steer_fail(err, code, "out of memory for model \"%s\"", name);
    if (code) {
        resident_free(r);
        return code;
    }
    if (e->residents_count == RESIDENT_MAX) resident_close(e, oldest(e, NULL));
    e->residents[e->residents_count++] = r;
    residents_publish(e);
    log_event(LOG_INFO, "model.load", "model=%s hash=%s ms=%" PRIu64, log_quote(name),
              r->model->hash, (now_us() - start) / 1000);
    *ret = r;
    return 0;
}

static int resident_get(struct engine *e, const char *name, int precision, struct resident **ret,
                        struct steer_error *err)
{
    struct resident *r = NULL;
    for (int i = 0; i < e->residents_count; i++)
        if (e->residents[i]->precision == precision && strcmp(e->residents[i]->name, name) == 0)
            r = e->residents[i];
    int code = r ? 0 : resident_open(e, name, precision, &r, err);
    if (code) return code;
    r->used = ++e->turn;
    e->rendering = r;
    *ret = r;
    return 0;
}

/* ---- one batch ---- */

struct ticking {
    struct engine *e;
    struct batch *batch;
};

/* Progress for RENEW, and where a batch learns that all its images were revoked. */
static int engine_tick(void *data, int step, int steps)
{
    struct ticking *t = data;
    struct engine *e = t->e;
    int open = 0;
    pthread_mutex_lock(&e->lock);
    e->step = step;
    e->steps = steps;
    for (size_t i = 0; i < t->batch->assign->n_images; i++)
        open |= !t->batch->revoked[i];
    pthread_mutex_unlock(&e->lock);
    return !open;
}

static int is_revoked(struct engine *e, const struct batch *b, int i)
{
    pthread_mutex_lock(&e->lock);
    int revoked = b->revoked[i];
    pthread_mutex_unlock(&e->lock);
    return revoked;
}

static void picture_push(struct engine *e, struct picture *p)
{
    pthread_mutex_lock(&e->lock);
    *(e->pictures_last ? &e->pictures_last->next : &e->pictures) = p;
    e->pictures_last = p;
    pthread_cond_signal(&e->pictures_work);
    pthread_mutex_unlock(&e->lock);
}

/* Hands one rendered image on. Takes its pixels, unless it fails. */
static int hand_on(struct engine *e, struct batch *b, int i, const struct job_plan *plan,
                   struct render_image *image, const struct resident *r, const char *numerics,
                   uint64_t start, uint64_t load_us)
{
    const Steerfarm__Assignment *a = b->assign->images[i];
    struct picture *p = calloc(1, sizeof *p);
    struct image_meta *meta = job_meta(a->job, plan, r->model->hash, numerics);
    if (!p || !meta) {
        free(p);
        job_meta_free(meta);
        return STEER_NO_MEMORY;
    }
    struct done *d = image_end(b, (size_t)i);
    snprintf(d->model_hash, sizeof d->model_hash, "%s", r->model->hash);
    snprintf(d->numerics, sizeof d->numerics, "%s", numerics);
    job_cut_text(d->warning, sizeof d->warning, image, r->model->text.tokens);
    steerfarm__timing__init(&d->timing);
    d->timing.has_dispatch_us = d->timing.has_load_us = d->timing.has_tokenize_us =
        d->timing.has_text_us = d->timing.has_denoise_us = d->timing.has_decode_us = 1;
    d->timing.dispatch_us = start - b->received_us;
    d->timing.load_us = load_us + image->times.load_us;
    d->timing.tokenize_us = image->times.tokenize_us;
    d->timing.text_us = image->times.text_us;
    d->timing.denoise_us = image->times.denoise_us;
    d->timing.decode_us = image->times.decode_us;
    steerfarm__result__init(&d->header);
    d->header.job = d->job;
    d->header.index = d->index;
    d->header.has_seed = d->header.has_width = d->header.has_height = d->header.has_format =
        d->header.has_batch = 1;
    d->header.seed = image->seed;
    d->header.width = (uint32_t)plan->shape.width;
    d->header.height = (uint32_t)plan->shape.height;
    d->header.format = a->job->output && a->job->output->has_format ? a->job->output->format
                                                                    : STEERFARM__FORMAT__WEBP_LOSSY;
    d->header.batch = (uint32_t)image->together;
    d->header.model_hash = d->model_hash;
    d->header.numerics = d->numerics;
    d->header.warning = d->warning[0] ? d->warning : NULL;
    d->header.timing = &d->timing;
    *p = (struct picture){
        .done = d, .pixels = image->pixels, .meta = meta, .received_us = b->received_us};
    image->pixels = NULL;
    picture_push(e, p);
    return 0;
}

/* A failure that another worker, or this one later, may not have. */
static int code_retryable(int code)
{
    switch (code) {
    case STEER_BAD_VALUE:
    case STEER_BAD_TEXT:
    case STEER_BAD_SIZE:
    case STEER_UNKNOWN_RECIPE: return 0;
    default: return 1;
    }
}

static int job_precision(const struct engine *e, const Steerfarm__Job *job)
{
    if (job->has_precision && job->precision == STEERFARM__PRECISION__F32) return PRECISION_F32;
    if (job->has_precision && job->precision == STEERFARM__PRECISION__BF16) return PRECISION_BF16;
    return (int)e->options.compute.precision;
}

/* An image of a batch that is rendered by r. first: the plan whose forward pass it is to share;
 * NULL: it is the first. */
static int image_plan(const struct engine *e, const struct resident *r,
                      const Steerfarm__Assignment *a, const struct job_plan *first,
                      struct job_plan *ret, struct steer_error *err)
{
    const Steerfarm__Job *job = a->job;
    const char *numerics = compute_numerics(e->compute[r->precision]);
    if (job->model_hash && *job->model_hash && strcmp(job->model_hash, r->model->hash) != 0)
        return steer_fail(err, STEER_UNKNOWN_MODEL,
                          "model \"%s\" has hash %s here, but the job was accepted for %s",
                          job->model, r->model->hash, job->model_hash);
    if (job->numerics && *job->numerics && strcmp(job->numerics, numerics) != 0)
        return steer_fail(err, STEER_UNSUPPORTED, "the job pins numerics %s; this worker has %s",
                          job->numerics, numerics);
    int code = job_plan_make(ret, r->model, NULL, job, a->lease->index, err);
    if (code) return code;
    if (strcmp(job->model, r->name) != 0 || job_precision(e, job) != r->precision ||
        (first && !job_plans_share(first, ret)))
        return steer_fail(err, STEER_INTERNAL, "images of one batch do not share a forward pass");
    return 0;
}

/* Together, or one after another where there is only memory for that: the bytes are the same. */
static int render_images(struct resident *r, const struct render_shape *shape,
                         struct render_image *images, int count, const struct render_watch *watch,
                         struct steer_error *err)
{
    int code = pipeline_render(r->pipeline, shape, images, count, NULL, watch, err);
    if (code != STEER_NO_MEMORY || count == 1) return code;
    code = 0;
    for (int i = 0; i < count && !code; i++)
        code = pipeline_render(r->pipeline, shape, images + i, 1, NULL, watch, err);
    return code;
}

static int render_batch(struct engine *e, struct batch *b, struct steer_error *err)
{
    const Steerfarm__Assign *assign = b->assign;
    const Steerfarm__Job *first = assign->images[0]->job;
    struct render_image images[STEER_BATCH_MAX] = {0};
    struct job_plan plans[STEER_BATCH_MAX];
    int places[STEER_BATCH_MAX], count = 0;
    uint64_t start = now_us();
    struct resident *r = NULL;
    int code = resident_get(e, first->model, job_precision(e, first), &r, err);
    if (code) return code;
    const char *numerics = compute_numerics(e->compute[r->precision]);
    uint64_t loaded = now_us();

    struct ticking ticking = {e, b};
    struct render_watch watch = {engine_tick, &ticking};
    for (size_t i = 0; i < assign->n_images; i++) {
        const Steerfarm__Assignment *a = assign->images[i];
        struct job_plan *plan = plans + count;
        struct steer_error bad = {0};
        uint8_t *pixels = NULL;
        if (is_revoked(e, b, (int)i)) continue;
        int wrong = image_plan(e, r, a, count ? plans : NULL, plan, &bad);
        if (!wrong &&
            !(pixels = malloc((size_t)plan->shape.width * (size_t)plan->shape.height * 3)))
            wrong = steer_fail(&bad, STEER_NO_MEMORY, "out of memory for an image");
        if (wrong) { /* its company is none the worse for it */
            fail_image(e, b, i, wrong, code_retryable(wrong), &bad);
            continue;
        }
        plan->shape.recipe = &plan->recipe;
        images[count] = plan->image;
        images[count].pixels = pixels;
        places[count++] = (int)i;
    }
    if (count) code = render_images(r, &plans[0].shape, images, count, &watch, err);
    if (code == STEER_NO_MEMORY && r->rendered) {
        /* What it packed for other sizes is in the way. */
        resident_close(e, r);
        code = resident_get(e, first->model, job_precision(e, first), &r, err);
        if (!code) code = render_images(r, &plans[0].shape, images, count, &watch, err);
    }
    for (int i = 0; i < count; i++) {
        struct steer_error bad = {0};
        if (!code && !is_revoked(e, b, places[i]) &&
            hand_on(e, b, places[i], plans + i, images + i, r, numerics, start, loaded - start)) {
            steer_fail(&bad, STEER_NO_MEMORY, "out of memory for an image");
            fail_image(e, b, (size_t)places[i], STEER_NO_MEMORY, 1, &bad);
        }
        free(images[i].pixels);
    }
    if (!code) r->rendered++;
    /* Its files changed under it: opened anew it is what they are now. */
    if (code == STEER_BAD_MODEL) resident_close(e, r);
    return code;
}

static void batch_free(struct batch *b)
{
    if (!b) return;
    for (int i = 0; i < STEER_BATCH_MAX; i++)
        done_free(b->dones[i]); /* revoked */
    wire_free(&b->message);
    free(b);
}

/* The device is opened on the thread that uses it: its OpenMP team belongs to that thread. */
static int engine_open(struct engine *e)
{
    struct compute *c;
    struct steer_error err = {0};
    int code = compute_get(e, (int)e->options.compute.precision, &c, &err);
    pthread_mutex_lock(&e->lock);
    if (!code) snprintf(e->numerics, sizeof e->numerics, "%s", compute_numerics(c));
    e->open_error = err;
    e->opened = code ? code : 1;
    pthread_cond_broadcast(&e->work);
    pthread_mutex_unlock(&e->lock);
    return code;
}

static void *engine_main(void *data)
{
    struct engine *e = data;
    if (engine_open(e)) return NULL;
    for (;;) {
        pthread_mutex_lock(&e->lock);
        while (!e->waiting && !e->stopping)
            pthread_cond_wait(&e->work, &e->lock);
        struct batch *b = e->stopping ? NULL : e->waiting;
        if (b) {
            e->waiting = b->next;
            if (!e->waiting) e->waiting_last = NULL;
            e->running = b;
            e->ticked_ms = now_us() / 1000;
            e->step = e->steps = 0;
        }
        pthread_mutex_unlock(&e->lock);
        if (!b) break;

        struct steer_error err = {0};
        int code = render_batch(e, b, &err);
        if (code && code != STEER_CANCELLED)
            for (size_t i = 0; i < b->assign->n_images; i++)
                if (!is_revoked(e, b, (int)i))
                    fail_image(e, b, i, code, code_retryable(code), &err);
        pthread_mutex_lock(&e->lock);
        e->running = NULL;
        pthread_mutex_unlock(&e->lock);
        batch_free(b);
        wake(e);
    }
    while (e->residents_count)
        resident_close(e, e->residents[0]);
    for (int i = 0; i < 2; i++)
        compute_close(e->compute[i]);
    return NULL;
}

/* ---- the outside ---- */

int engine_start(struct engine **ret, const struct engine_options *options, struct steer_error *err)
{
    struct engine *e = calloc(1, sizeof *e);
    if (!e) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    e->options = *options;
    e->host.bytes_max =
        options->memory_bytes ? options->memory_bytes : compute_memory_allowed() / 4 * 3;
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->work, NULL);
    pthread_cond_init(&e->pictures_work, NULL);

    int code = 0;
    if (pthread_create(&e->engine_thread, NULL, engine_main, e)) {
        code = steer_fail(err, STEER_NO_MEMORY, "the engine thread cannot be started");
        goto fail;
    }
    e->threads_started = 1;
    /* What the device lacks is said at start. */
    pthread_mutex_lock(&e->lock);
    while (!e->opened)
        pthread_cond_wait(&e->work, &e->lock);
    pthread_mutex_unlock(&e->lock);
    if (e->opened < 0) {
        if (err) *err = e->open_error;
        code = e->opened;
        goto fail;
    }
    if (pthread_create(&e->encoder_thread, NULL, encoder_main, e)) {
        code = steer_fail(err, STEER_NO_MEMORY, "the encoder thread cannot be started");
        goto fail;
    }
    e->threads_started = 2;
    *ret = e;
    return 0;
fail:
    engine_stop(e);
    return code;
}

void engine_stop(struct engine *e)
{
    if (!e) return;
    pthread_mutex_lock(&e->lock);
    e->stopping = 1;
    pthread_cond_broadcast(&e->work);
    pthread_mutex_unlock(&e->lock);
    if (e->threads_started > 0) pthread_join(e->engine_thread, NULL);
    pthread_mutex_lock(&e->lock);
    e->encoder_stopping = 1;
    pthread_cond_broadcast(&e->pictures_work);
    pthread_mutex_unlock(&e->lock);
    if (e->threads_started > 1) pthread_join(e->encoder_thread, NULL);
    for (struct batch *b = e->waiting, *next; b; b = next) {
        next = b->next;
        batch_free(b);
    }
    for (struct done *d = e->done, *next; d; d = next) {
        next = d->next;
        done_free(d);
    }
    pthread_mutex_destroy(&e->lock);
    pthread_cond_destroy(&e->work);
    pthread_cond_destroy(&e->pictures_work);
    free(e);
}

static void batch_give_back(struct engine *e, struct batch *b)
{
    static const struct steer_error why = {STEER_CANCELLED, "the worker is draining"};
    for (size_t i = 0; i < b->assign->n_images; i++)
        if (!b->revoked[i]) fail_image(e, b, i, STEER_CANCELLED, 1, &why);
    batch_free(b);
}

int engine_submit(struct engine *e, struct wire_message *m)
{
    Steerfarm__Assign *assign = (Steerfarm__Assign *)m->body;
    if (!assign->n_images || assign->n_images > STEER_BATCH_MAX) return STEER_BAD_FRAME;
    struct batch *b = calloc(1, sizeof *b);
    if (!b) return STEER_NO_MEMORY;
    for (size_t i = 0; i < assign->n_images; i++)
        if (!(b->dones[i] = done_new(assign->images[i]))) {
            batch_free(b);
            return STEER_NO_MEMORY;
        }
    b->message = *m;
    b->assign = assign;
    b->received_us = now_us();
    m->body = NULL;
    pthread_mutex_lock(&e->lock);
    int draining = e->draining;
    if (!draining) {
        /* Idle until now: its silence counts from here. */
        if (!e->running && !e->waiting) e->ticked_ms = b->received_us / 1000;
        *(e->waiting_last ? &e->waiting_last->next : &e->waiting) = b;
        e->waiting_last = b;
        pthread_cond_signal(&e->work);
    }
    pthread_mutex_unlock(&e->lock);
    if (draining) batch_give_back(e, b);
    return 0;
}

static void batch_revoke(struct batch *b, uint64_t epoch, uint64_t lease)
{
    for (size_t i = 0; i < b->assign->n_images; i++)
        if (b->assign->images[i]->lease->lease == lease &&
            b->assign->images[i]->lease->epoch == epoch)
            b->revoked[i] = 1;
}

void engine_revoke(struct engine *e, uint64_t epoch, uint64_t lease)
{
    pthread_mutex_lock(&e->lock);
    for (struct batch *b = e->waiting; b; b = b->next)
        batch_revoke(b, epoch, lease);
    if (e->running) batch_revoke(e->running, epoch, lease);
    pthread_mutex_unlock(&e->lock);
}

void engine_drain(struct engine *e)
{
    pthread_mutex_lock(&e->lock);
    struct batch *waiting = e->waiting;
    e->waiting = e->waiting_last = NULL;
    e->draining = 1;
    pthread_mutex_unlock(&e->lock);
    for (struct batch *b = waiting, *next; b; b = next) {
        next = b->next;
        batch_give_back(e, b);
    }
}

struct done *engine_take(struct engine *e)
{
    pthread_mutex_lock(&e->lock);
    struct done *d = e->done;
    if (d) {
        e->done = d->next;
        if (!e->done) e->done_last = NULL;
        d->next = NULL;
    }
    pthread_mutex_unlock(&e->lock);
    return d;
}

struct engine_status engine_status(struct engine *e)
{
    pthread_mutex_lock(&e->lock);
    uint64_t beats = atomic_load(&e->host.beats);
    if (beats != e->beats_seen) e->ticked_ms = now_us() / 1000;
    e->beats_seen = beats;
    struct engine_status s = {.ticked_ms = e->ticked_ms, .step = e->step, .steps = e->steps};
    if (!e->running && !e->waiting) s.ticked_ms = now_us() / 1000;
    if (e->running) s.running = (int)e->running->assign->n_images;
    for (struct batch *b = e->waiting; b; b = b->next) {
        s.waiting += (int)b->assign->n_images;
        s.batches_waiting++;
    }
    pthread_mutex_unlock(&e->lock);
    return s;
}

int engine_has(struct engine *e, const char *model)
{
    int has = 0;
    pthread_mutex_lock(&e->lock);
    for (int i = 0; i < RESIDENT_MAX; i++)
        has |= strcmp(e->resident_names[i], model) == 0;
    pthread_mutex_unlock(&e->lock);
    return has;
}

const char *engine_numerics(const struct engine *e)
{
    return e->numerics;
}
