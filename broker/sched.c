// SPDX-License-Identifier: Apache-2.0
#include "sched.h"

#include <stdlib.h>
#include <string.h>

#include "text.h"

enum { BUCKETS = 16384, AFFINITY_MS = 2000, FORGIVEN_AFTER = 100 };

struct sched {
    uint64_t epoch, last_lease, uses;
    struct worker *workers;
    struct lease *tokens[BUCKETS]; /* leases by (epoch, number) */
    struct lease *images[BUCKETS]; /* and by (job, index) */
};

struct sched *sched_new(uint64_t epoch)
{
    struct sched *s = calloc(1, sizeof *s);
    if (s) s->epoch = epoch;
    return s;
}

void sched_free(struct sched *s)
{
    if (!s) return;
    while (s->workers) {
        struct worker *w = s->workers;
        while (w->leases)
            sched_release(s, w->leases);
        sched_remove(s, w);
    }
    for (int i = 0; i < BUCKETS; i++) /* tokens of what was being stored */
        while (s->tokens[i])
            sched_release(s, s->tokens[i]);
    free(s);
}

/* ---- workers ---- */

struct worker *sched_worker(const struct sched *s, const uint8_t *identity, size_t size)
{
    struct worker *w = s->workers;
    while (w && (w->identity_size != size || memcmp(w->identity, identity, size) != 0))
        w = w->next;
    return w;
}

struct worker *sched_worker_id(const struct sched *s, const char *id)
{
    struct worker *w = s->workers;
    while (w && strcmp(w->id, id) != 0)
        w = w->next;
    return w;
}

struct worker *sched_first(const struct sched *s)
{
    return s->workers;
}

static int models_take(struct worker *w, const Steerfarm__Hello *h)
{
    struct worker_model *models = calloc(h->n_models + 1, sizeof *models);
    if (!models) return STEER_NO_MEMORY;
    for (size_t i = 0; i < h->n_models; i++) {
        text_copy(models[i].name, sizeof models[i].name, h->models[i]->name);
        text_copy(models[i].hash, sizeof models[i].hash, h->models[i]->hash);
        models[i].loaded = h->models[i]->has_loaded && h->models[i]->loaded;
        models[i].memory_bytes = h->models[i]->memory_bytes;
    }
    free(w->models);
    w->models = models;
    w->models_count = h->n_models;
    return 0;
}

struct worker *sched_hello(struct sched *s, const uint8_t *identity, size_t size,
                           const Steerfarm__Hello *h, uint64_t now_ms)
{
    struct worker *w = sched_worker(s, identity, size);
    int fresh = !w;
    if (size > sizeof w->identity) return NULL;
    if (fresh && !(w = calloc(1, sizeof *w))) return NULL;
    if (models_take(w, h)) {
        if (fresh) free(w);
        return NULL;
    }
    if (fresh) {
        w->next = s->workers;
        s->workers = w;
    }
    memcpy(w->identity, identity, size);
    w->identity_size = size;
    text_copy(w->id, sizeof w->id, h->worker ? h->worker : "");
    w->incarnation = h->incarnation;
    if (h->device) {
        const Steerfarm__Device *d = h->device;
        text_copy(w->numerics, sizeof w->numerics, d->numerics ? d->numerics : "");
        text_copy(w->device_kind, sizeof w->device_kind, d->kind ? d->kind : "");
        text_copy(w->device_name, sizeof w->device_name, d->name ? d->name : "");
        w->device_memory = d->memory_bytes;
    }
    w->heard_ms = w->pinged_ms = now_ms;
    w->credit_images = 0; /* HELLO resets it */
    w->credit_bytes = 0;
    w->stalled = 0;
    if (w->state == WORKER_DRAINING) w->state = WORKER_READY;
    return w;
}

void sched_remove(struct sched *s, struct worker *w)
{
    for (struct worker **at = &s->workers; *at; at = &(*at)->next)
        if (*at == w) {
            *at = w->next;
            break;
        }
    free(w->models);
    free(w);
}

int sched_blame(struct worker *w, uint64_t job)
{
    w->praised = 0;
    for (uint32_t i = 0; i < w->blamed_count; i++)
        if (w->blamed[i] == job) return 0; /* a job that suits it badly is one job */
    if (w->blamed_count < SCHED_BLAMED_MAX) w->blamed[w->blamed_count++] = job;
    if (w->blamed_count < SCHED_BLAMED_MAX || w->state == WORKER_QUARANTINED) return 0;
    w->state = WORKER_QUARANTINED;
    return 1;
}

void sched_praise(struct worker *w)
{
    if (!w->blamed_count || ++w->praised < FORGIVEN_AFTER) return;
    w->blamed_count = w->praised = 0;
}

/* ---- leases ---- */

static struct lease **token_bucket(const struct sched *s, uint64_t epoch, uint64_t number)
{
    return (struct lease **)(uintptr_t)s->tokens + ((number * 31 + epoch) & (BUCKETS - 1));
}

static struct lease **image_bucket(const struct sched *s, uint64_t job, uint32_t index)
{
    uint64_t mixed = (job * UINT64_C(0x9e3779b97f4a7c15) + index) * UINT64_C(0x9e3779b97f4a7c15);
    return (struct lease **)(uintptr_t)s->images + (mixed >> 40 & (BUCKETS - 1));
}

/* It will have the model from now on, and may have thrown others out for it: the ones used longest
 * ago, as far as the memory it told us of says. */
static void model_used(struct worker *w, const struct job *j, uint64_t now)
{
    uint64_t bytes = 0;
    struct worker_model *oldest;
    for (size_t i = 0; i < w->models_count; i++)
        if (strcmp(w->models[i].name, j->model) == 0) {
            w->models[i].loaded = 1;
            w->models[i].used = now;
        }
    do {
        bytes = 0;
        oldest = NULL;
        for (size_t i = 0; i < w->models_count; i++) {
            struct worker_model *m = w->models + i;
            if (!m->loaded) continue;
            bytes += m->memory_bytes;
            if (m->used != now && (!oldest || m->used < oldest->used)) oldest = m;
        }
        if (oldest && w->device_memory && bytes > w->device_memory) oldest->loaded = 0;
    } while (oldest && !oldest->loaded);
}

static void token_link(struct sched *s, struct lease *l)
{
    struct lease **at = token_bucket(s, l->epoch, l->number);
    l->next_token = *at;
    *at = l;
}

struct lease *sched_lease(struct sched *s, struct worker *w, uint64_t epoch, uint64_t number,
                          const struct job *j, uint32_t index, uint64_t expires_ms, int company)
{
    struct lease *l = calloc(1, sizeof *l), **at = image_bucket(s, j->id, index);
    if (!l) return NULL;
    l->epoch = epoch ? epoch : s->epoch;
    l->number = epoch ? number : ++s->last_lease;
    l->job = j->id;
    l->index = index;
    l->bytes = j->image_bytes;
    l->expires_ms = expires_ms;
    l->company = company;
    l->worker = w;
    l->at = &w->leases;
    l->next = w->leases;
    if (l->next) l->next->at = &l->next;
    w->leases = l;
    w->leased++;
    w->leased_bytes += l->bytes;
    l->next_image = *at;
    *at = l;
    token_link(s, l);
    model_used(w, j, ++s->uses);
    return l;
}

int sched_storing(struct sched *s, uint64_t epoch, uint64_t number)
{
    struct lease *l = calloc(1, sizeof *l);
    if (!l) return STEER_NO_MEMORY;
    l->epoch = epoch;
    l->number = number;
    token_link(s, l);
    return 0;
}

struct lease *sched_lease_find(const struct sched *s, uint64_t epoch, uint64_t number)
{
    struct lease *l = *token_bucket(s, epoch, number);
    while (l && (l->epoch != epoch || l->number != number))
        l = l->next_token;
    return l;
}

struct lease *sched_lease_of(const struct sched *s, uint64_t job, uint32_t index)
{
    struct lease *l = *image_bucket(s, job, index);
    while (l && (l->job != job || l->index != index))
        l = l->next_image;
    return l;
}

void sched_release(struct sched *s, struct lease *l)
{
    struct worker *w = l->worker;
    struct lease **at = token_bucket(s, l->epoch, l->number);
    while (*at != l)
        at = &(*at)->next_token;
    *at = l->next_token;
    if (w) {
        at = image_bucket(s, l->job, l->index);
        while (*at != l)
            at = &(*at)->next_image;
        *at = l->next_image;
        *l->at = l->next;
        if (l->next) l->next->at = l->at;
        w->leased--;
        w->leased_bytes -= l->bytes;
    }
    free(l);
}

/* ---- who takes what ---- */

/* The worker's model of that name and bytes, if its arithmetic is the pinned one too. */
static const struct worker_model *worker_offers(const struct worker *w, const char *model,
                                                const char *hash, const char *numerics)
{
    if (*numerics && strcmp(numerics, w->numerics) != 0) return NULL;
    for (size_t i = 0; i < w->models_count; i++)
        if (strcmp(w->models[i].name, model) == 0 &&
            (!*hash || strcmp(w->models[i].hash, hash) == 0))
            return w->models + i;
    return NULL;
}

static int has_room(const struct worker *w)
{
    return w->state == WORKER_READY && !w->stalled && w->leased < w->credit_images;
}

struct asking {
    struct sched *s;
    struct worker *w;
    uint64_t now_ms;
};

static int takes(void *data, struct lane *l)
{
    struct asking *a = data;
    const struct worker_model *m = worker_offers(a->w, l->model, l->model_hash, l->numerics);
    if (!m) return 0;
    if (m->loaded) return 1;
    for (const struct worker *other = a->s->workers; other; other = other->next) {
        const struct worker_model *theirs =
            other == a->w ? NULL : worker_offers(other, l->model, l->model_hash, l->numerics);
        if (!theirs || !theirs->loaded || !has_room(other)) continue;
        /* What that one could take and does not, as it failed it, would wait for ever otherwise. */
        if (!l->cold_since_ms) l->cold_since_ms = a->now_ms;
        return a->now_ms >= l->cold_since_ms + AFFINITY_MS;
    }
    return 1;
}

/* Somebody else could take an image of that model now. */
static int others(void *data, const char *model, const char *hash, const char *numerics)
{
    const struct asking *a = data;
    for (const struct worker *w = a->s->workers; w; w = w->next)
        if (w != a->w && has_room(w) && worker_offers(w, model, hash, numerics)) return 1;
    return 0;
}

int sched_take(struct sched *s, struct queue *q, struct worker *w, uint64_t now_ms,
               struct taken *ret, int room)
{
    if (!has_room(w)) return 0;
    struct asking a = {s, w, now_ms};
    struct taker t = {.takes = takes,
                      .others = others,
                      .data = &a,
                      .worker = w->id,
                      .images_max = w->credit_images - w->leased};
    t.bytes_max = w->credit_bytes > w->leased_bytes ? w->credit_bytes - w->leased_bytes : 0;
    t.empty = !w->leased && w->credit_bytes; /* or what is larger than its credit never went */
    int count = queue_take(q, &t, now_ms, ret, room);
    if (!count) return 0;
    const struct job *j = ret[0].job;
    const struct worker_model *m = worker_offers(w, j->model, j->model_hash, j->numerics);
    if (j->lane && m && !m->loaded) j->lane->cold_since_ms = 0; /* the next cold one waits anew */
    return count;
}
