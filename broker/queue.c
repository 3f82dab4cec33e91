// SPDX-License-Identifier: Apache-2.0
#include "queue.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "limits.h"
#include "wire.h"

/* Invariants:
 * 1. A job is in its lane's ring exactly while it is committed and has queued images.
 * 2. No image before job.cursor is queued.
 * 3. Lanes are ordered by priority, highest first, and among equals by who was served longest ago;
 *    an empty lane is removed. */

enum { LANES_MAX = 1024 };

struct queue {
    struct job **by_id, **by_key;
    uint32_t buckets, jobs, lanes_count;
    uint64_t salt, bytes;
    uint64_t images[IMAGE_STATES];
    struct lane *lanes;
};

struct queue *queue_new(uint64_t salt)
{
    struct queue *q = calloc(1, sizeof *q);
    if (!q) return NULL;
    q->salt = salt;
    q->buckets = 1024;
    q->by_id = calloc(q->buckets, sizeof *q->by_id);
    q->by_key = calloc(q->buckets, sizeof *q->by_key);
    if (q->by_id && q->by_key) return q;
    queue_free(q);
    return NULL;
}

static void job_free(struct job *j)
{
    troubles_free(&j->troubles);
    states_free(&j->states);
    free(j);
}

void queue_free(struct queue *q)
{
    if (!q) return;
    for (uint32_t i = 0; q->by_id && i < q->buckets; i++)
        while (q->by_id[i]) {
            struct job *j = q->by_id[i];
            q->by_id[i] = j->next_id;
            job_free(j);
        }
    while (q->lanes) {
        struct lane *l = q->lanes;
        q->lanes = l->next;
        free(l);
    }
    free(q->by_id);
    free(q->by_key);
    free(q);
}

/* ---- finding ---- */

static struct job **bucket_id(const struct queue *q, uint64_t id)
{
    return q->by_id + (XXH64(&id, sizeof id, q->salt) & (q->buckets - 1));
}

static struct job **bucket_key(const struct queue *q, const char *key)
{
    return q->by_key + (XXH64(key, strlen(key), q->salt) & (q->buckets - 1));
}

static void link_in(struct queue *q, struct job *j)
{
    struct job **id = bucket_id(q, j->id), **key = bucket_key(q, j->key);
    j->next_id = *id;
    *id = j;
    j->next_key = *key;
    *key = j;
}

/* Twice the buckets when chains grow; staying small is no error. */
static void grow(struct queue *q)
{
    uint32_t old = q->buckets;
    struct job **before = q->by_id, **ids = calloc(2 * (size_t)old, sizeof *ids);
    struct job **keys = calloc(2 * (size_t)old, sizeof *keys);
    if (!ids || !keys) {
        free(ids);
        free(keys);
        return;
    }
    free(q->by_key);
    q->by_id = ids;
    q->by_key = keys;
    q->buckets = 2 * old;
    for (uint32_t i = 0; i < old; i++)
        while (before[i]) {
            struct job *j = before[i];
            before[i] = j->next_id;
            link_in(q, j);
        }
    free(before);
}

struct job *queue_find(const struct queue *q, uint64_t id)
{
    struct job *j = *bucket_id(q, id);
    while (j && j->id != id)
        j = j->next_id;
    return j;
}

struct job *queue_find_key(const struct queue *q, const char *key)
{
    struct job *j = *bucket_key(q, key);
    while (j && strcmp(j->key, key) != 0)
        j = j->next_key;
    return j;
}

uint32_t queue_jobs(const struct queue *q)
{
    return q->jobs;
}

uint64_t queue_bytes(const struct queue *q)
{
    return q->bytes;
}

const uint64_t *queue_images(const struct queue *q)
{
    return q->images;
}

static void images_count(struct queue *q, const struct job *j, int sign)
{
    for (int i = 0; i < IMAGE_STATES; i++)
        q->images[i] += (uint64_t)((int64_t)sign * j->states.counts[i]);
}

int queue_chunk_load(struct queue *q, struct job *j, uint32_t chunk, const uint8_t *data,
                     size_t bytes)
{
    images_count(q, j, -1);
    int code = states_unpack(&j->states, chunk, data, bytes);
    images_count(q, j, 1);
    return code;
}

/* The texts before the spec are few. */
static uint64_t job_bytes(const struct job *j)
{
    return sizeof *j + j->spec_bytes + j->states.images / 2;
}

void queue_each(struct queue *q, void (*each)(void *data, struct job *j), void *data)
{
    for (uint32_t i = 0; i < q->buckets; i++)
        for (struct job *j = q->by_id[i], *next; j; j = next) {
            next = j->next_id;
            each(data, j);
        }
}

/* ---- lanes ---- */

/* Where it is not, *ret_at is where it goes: behind its equals, whose turn comes first. */
static struct lane *lane_find(struct queue *q, int32_t priority, const char *model,
                              const char *hash, const char *numerics, struct lane ***ret_at)
{
    struct lane **at = &q->lanes;
    while (*at && (*at)->priority > priority)
        at = &(*at)->next;
    for (; *at && (*at)->priority == priority; at = &(*at)->next)
        if (strcmp((*at)->model, model) == 0 && strcmp((*at)->model_hash, hash) == 0 &&
            strcmp((*at)->numerics, numerics) == 0)
            return *at;
    *ret_at = at;
    return NULL;
}

int queue_lanes_full(const struct queue *q, const Steerfarm__Job *s)
{
    struct lane **at;
    return q->lanes_count >= LANES_MAX &&
           !lane_find((struct queue *)(uintptr_t)q, s->priority, s->model,
                      s->model_hash ? s->model_hash : "", s->numerics ? s->numerics : "", &at);
}

static struct lane *lane_of(struct queue *q, const struct job *j)
{
    struct lane **at, *l = lane_find(q, j->priority, j->model, j->model_hash, j->numerics, &at);
    if (l || !(l = calloc(1, sizeof *l))) return l;
    q->lanes_count++;
    l->priority = j->priority;
    strncpy(l->model, j->model, sizeof l->model - 1);
    strncpy(l->model_hash, j->model_hash, sizeof l->model_hash - 1);
    strncpy(l->numerics, j->numerics, sizeof l->numerics - 1);
    l->next = *at;
    *at = l;
    return l;
}

static void ring_leave(struct queue *q, struct job *j)
{
    struct lane *l = j->lane;
    if (!l) return;
    j->before->after = j->after;
    j->after->before = j->before;
    if (l->head == j) l->head = j->after == j ? NULL : j->after;
    j->lane = NULL;
    if (l->head) return;
    struct lane **at = &q->lanes;
    while (*at != l)
        at = &(*at)->next;
    *at = l->next;
    q->lanes_count--;
    free(l);
}

/* Restores invariant 1. Out of memory leaves the job out until it is moved again. */
static void ring_settle(struct queue *q, struct job *j)
{
    int wanted = j->committed && !j->ending && j->states.counts[IMAGE_QUEUED] > 0;
    if (!wanted) {
        ring_leave(q, j);
        return;
    }
    if (j->lane) return;
    struct lane *l = lane_of(q, j);
    if (!l) return;
    j->lane = l;
    if (!l->head) {
        l->head = j->before = j->after = j;
        return;
    }
    j->after = l->head; /* last in turn */
    j->before = l->head->before;
    j->before->after = j;
    l->head->before = j;
}

/* A lane that was served goes behind its equals: models take turns as jobs do. */
static void lane_served(struct queue *q, struct lane *l)
{
    if (!l->next || l->next->priority != l->priority) return;
    struct lane **at = &q->lanes;
    while (*at != l)
        at = &(*at)->next;
    *at = l->next;
    while (*at && (*at)->priority == l->priority)
        at = &(*at)->next;
    l->next = *at;
    *at = l;
}

/* ---- jobs ---- */

/* What images that share a forward pass have in common. */
static uint64_t batch_of(const Steerfarm__Job *s)
{
    char text[4 * STEER_NAME_BYTES_MAX];
    int cfg = s->guidance && s->guidance->guidance_scale != 1;
    int method = s->guidance ? (int)s->guidance->method : 0;
    int variant = s->guidance ? (int)s->guidance->nasa_variant : 0;
    int length = snprintf(text, sizeof text, "%s|%s|%s|%d|%u|%u|%u|%d|%d|%d", s->model,
                          s->recipe ? s->recipe : "", s->model_hash ? s->model_hash : "",
                          (int)s->precision, s->width, s->height, s->steps, method, cfg, variant);
    return XXH64(text, (size_t)length < sizeof text ? (size_t)length : sizeof text, 0);
}

uint64_t queue_image_bytes(const Steerfarm__Job *job)
{
    /* Lossless WebP of noise is the worst case; the XMP comes on top. */
    return (uint64_t)job->width * job->height * 3 + 65536;
}

struct job *queue_add(struct queue *q, uint64_t id, const char *key,
                      const uint8_t hash[QUEUE_HASH_BYTES], const uint8_t *spec, size_t spec_bytes,
                      uint64_t accepted_ms)
{
    Steerfarm__Job *s = steerfarm__job__unpack(NULL, spec_bytes, spec);
    if (!s) return NULL;
    const char *numerics = s->numerics ? s->numerics : "";
    const char *model_hash = s->model_hash ? s->model_hash : "";
    size_t key_size = strlen(key) + 1, model_size = strlen(s->model) + 1;
    size_t hash_size = strlen(model_hash) + 1;
    size_t texts = key_size + model_size + hash_size + strlen(numerics) + 1;
    struct job *j = calloc(1, sizeof *j + texts + spec_bytes);
    if (!j || states_init(&j->states, s->images ? s->images : 1)) goto fail;
    j->id = id;
    memcpy(j->hash, hash, sizeof j->hash);
    j->accepted_ms = j->touched_ms = j->touched_put_ms = accepted_ms;
    j->deadline_ms = s->has_deadline_ms ? s->deadline_ms : 0;
    j->priority = s->priority;
    j->batch = batch_of(s);
    j->image_bytes = queue_image_bytes(s);
    j->key = memcpy(j->texts, key, key_size);
    j->model = strcpy(j->texts + key_size, s->model);
    j->model_hash = strcpy(j->texts + key_size + model_size, model_hash);
    j->numerics = strcpy(j->texts + key_size + model_size + hash_size, numerics);
    j->spec = (uint8_t *)j->texts + texts;
    j->spec_bytes = (uint32_t)spec_bytes;
    memcpy(j->spec, spec, spec_bytes);
    steerfarm__job__free_unpacked(s, NULL);
    q->bytes += job_bytes(j);
    images_count(q, j, 1);
    if (++q->jobs > 2 * q->buckets) grow(q);
    link_in(q, j);
    return j;
fail:
    free(j);
    steerfarm__job__free_unpacked(s, NULL);
    return NULL;
}

void queue_remove(struct queue *q, struct job *j)
{
    ring_leave(q, j);
    struct job **at = bucket_id(q, j->id);
    while (*at != j)
        at = &(*at)->next_id;
    *at = j->next_id;
    at = bucket_key(q, j->key);
    while (*at != j)
        at = &(*at)->next_key;
    *at = j->next_key;
    q->jobs--;
    q->bytes -= job_bytes(j);
    images_count(q, j, -1);
    job_free(j);
}

Steerfarm__Job *job_spec(const struct job *j)
{
    return steerfarm__job__unpack(NULL, j->spec_bytes, j->spec);
}

int job_over(const struct job *j)
{
    const uint32_t *c = j->states.counts;
    return !c[IMAGE_QUEUED] && !c[IMAGE_LEASED] && !c[IMAGE_SPOOLED];
}

void queue_move(struct queue *q, struct job *j, uint32_t index, enum image_state to)
{
    q->images[states_get(&j->states, index)]--;
    q->images[to]++;
    states_set(&j->states, index, to);
    if (to == IMAGE_QUEUED && index < j->cursor) j->cursor = index;
    ring_settle(q, j);
}

/* ---- taking ---- */

enum { ELSEWHERE_MS = 5000 }; /* after its back-off, an image waits so long for another worker */

static int may_go(const struct job *j, const struct trouble *t, const struct taker *by,
                  uint64_t now_ms, int in_company)
{
    if (t->not_before_ms > now_ms || (in_company && t->single)) return 0;
    return !by->others || !*t->worker || strcmp(t->worker, by->worker) != 0 ||
           now_ms >= t->not_before_ms + ELSEWHERE_MS ||
           !by->others(by->data, j->model, j->model_hash, j->numerics);
}

/* The first queued image of j that may go now; images in back-off are passed over. */
static uint32_t job_next(struct job *j, const struct taker *by, uint64_t now_ms, int in_company)
{
    uint32_t i = states_find(&j->states, j->cursor, IMAGE_QUEUED);
    j->cursor = i < j->states.images ? i : j->cursor;
    while (i < j->states.images && j->troubles.count) {
        const struct trouble *t = trouble_find(&j->troubles, i);
        if (!t || may_go(j, t, by, now_ms, in_company)) break;
        i = states_find(&j->states, i + 1, IMAGE_QUEUED);
    }
    return i;
}

static int take_one(struct queue *q, struct job *j, const struct taker *by, uint64_t now_ms,
                    int in_company, struct taken *ret)
{
    uint32_t i = job_next(j, by, now_ms, in_company);
    if (i >= j->states.images) return 0;
    const struct trouble *t = trouble_find(&j->troubles, i);
    *ret = (struct taken){j, i, t && t->single};
    queue_move(q, j, i, IMAGE_LEASED);
    return 1;
}

enum { COMPANY_SEARCH = 256 }; /* jobs looked at for company */

/* Fills the batch from the same lane, a job an image in turn. The lane may vanish when its last
 * image is taken, so the ring is walked only while it has jobs. */
static int take_company(struct queue *q, struct job *j, uint64_t batch, const struct taker *t,
                        uint64_t now_ms, struct taken *ret, int count, int room)
{
    uint64_t bytes = ret[0].job->image_bytes;
    for (int seen = 0, idle = 0; j && seen < COMPANY_SEARCH && count < room; seen++) {
        struct job *next = j->after;
        int alone = next == j, took = 0;
        if (j->batch == batch && bytes + j->image_bytes <= t->bytes_max)
            took = take_one(q, j, t, now_ms, 1, ret + count);
        if (took) {
            bytes += j->image_bytes;
            count++;
            idle = 0;
        } else if (alone || ++idle >= COMPANY_SEARCH) {
            break;
        }
        if (alone && !j->lane) break;
        j = alone ? j : next;
    }
    return count;
}

int queue_take(struct queue *q, const struct taker *t, uint64_t now_ms, struct taken *ret, int room)
{
    if (room > (int)t->images_max) room = (int)t->images_max;
    if (room < 1) return 0;
    for (struct lane *l = q->lanes, *next; l; l = next) {
        next = l->next;
        if (!t->takes(t->data, l)) continue;
        struct job *first = l->head, *j = first;
        do {
            struct job *after = j->after;
            uint64_t batch = j->batch;
            if ((t->empty || j->image_bytes <= t->bytes_max) && take_one(q, j, t, now_ms, 0, ret)) {
                int lane_left = j->lane != NULL || after != j;
                if (lane_left && (after->lane || j->lane)) {
                    struct job *turn = after->lane ? after : j;
                    turn->lane->head = turn; /* the next image is the next job's */
                    lane_served(q, turn->lane);
                    if (!ret[0].single)
                        return take_company(q, turn, batch, t, now_ms, ret, 1, room);
                }
                return 1;
            }
            j = after;
        } while (j != first);
    }
    return 0;
}

/* ---- ids and hashes ---- */

static const char base32[] = "0123456789abcdefghjkmnpqrstvwxyz"; /* Crockford's */

void job_id_write(char to[QUEUE_ID_BYTES], uint64_t id)
{
    char digits[16];
    int n = 0;
    do {
        digits[n++] = base32[id & 31];
        id >>= 5;
    } while (id);
    to[0] = '0'; /* the shard */
    to[1] = '-';
    for (int i = 0; i < n; i++)
        to[2 + i] = digits[n - 1 - i];
    to[2 + n] = 0;
}

uint64_t job_id_read(const char *text)
{
    uint64_t id = 0;
    size_t length = strlen(text);
    if (length < 3 || length > 15 || text[0] != '0' || text[1] != '-') return 0;
    for (const char *p = text + 2; *p; p++) {
        const char *digit = strchr(base32, *p);
        if (!digit || id >> 58) return 0;
        id = id << 5 | (uint64_t)(digit - base32);
    }
    return id;
}

void job_hash(uint8_t ret[QUEUE_HASH_BYTES], const Steerfarm__Job *job)
{
    Steerfarm__Job plain = *job;
    uint8_t *data = NULL;
    size_t size = 0;
    plain.has_deadline_ms = 0;
    plain.traceparent = NULL;
    memset(ret, 0, QUEUE_HASH_BYTES);
    if (wire_pack(&plain.base, &data, &size)) return;
    XXH128_hash_t a = XXH3_128bits(data, size), b = XXH3_128bits_withSeed(data, size, 1);
    memcpy(ret, &a, sizeof a);
    memcpy(ret + sizeof a, &b, sizeof b);
    free(data);
}
