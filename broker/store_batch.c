// SPDX-License-Identifier: Apache-2.0
/* Batches: records in the order they were added, all in one arena.
 *
 * Invariants:
 *  1. A record is linked only when all its parts have been copied, so a call that fails leaves the
 *     batch as it was.
 *  2. A payload given is released exactly once: by the failing call, by the store, or with the
 * batch. */
#include <stdlib.h>
#include <string.h>

#include "limits.h"
#include "store_db.h"
#include "text.h"

/* ---- arena */

struct arena_block {
    struct arena_block *next;
    size_t used, room;
    _Alignas(max_align_t) uint8_t bytes[];
};

#define BLOCK_BYTES     4000
#define BLOCK_BYTES_MAX (256u << 10)

void *arena_get(struct arena *a, size_t bytes)
{
    if (bytes > SIZE_MAX / 2) return NULL;
    size_t want = (bytes + 15) & ~(size_t)15;
    struct arena_block *b = a->blocks;
    if (!b || b->room - b->used < want) {
        /* Blocks double, so that a batch of thousands of records is a handful of them. */
        size_t room = b ? b->room * 2 : BLOCK_BYTES;
        if (room > BLOCK_BYTES_MAX) room = BLOCK_BYTES_MAX;
        if (room < want) room = want;
        b = malloc(sizeof *b + room);
        if (!b) return NULL;
        *b = (struct arena_block){.next = a->blocks, .room = room};
        a->blocks = b;
    }
    void *p = b->bytes + b->used;
    b->used += want;
    return p;
}

void *arena_copy(struct arena *a, const void *data, size_t bytes)
{
    uint8_t *p = bytes < SIZE_MAX ? arena_get(a, bytes + 1) : NULL;
    if (!p) return NULL;
    if (bytes > 0) memcpy(p, data, bytes);
    p[bytes] = 0;
    return p;
}

void arena_free(struct arena *a)
{
    while (a->blocks) {
        struct arena_block *b = a->blocks;
        a->blocks = b->next;
        free(b);
    }
}

/* ---- batches */

struct store_batch *store_batch_new(void)
{
    struct store_batch *b = calloc(1, sizeof *b);
    if (b) b->last = &b->first;
    return b;
}

void payload_release(struct store_payload *p)
{
    if (p->release) p->release(p->owner);
    *p = (struct store_payload){0};
}

void store_batch_free(struct store_batch *b)
{
    if (!b) return;
    for (struct record *r = b->first; r; r = r->next)
        if (r->type == RECORD_IMAGE_SPOOL) payload_release(&r->u.image.payload);
    free(b->known);
    arena_free(&b->arena);
    free(b);
}

size_t store_batch_records(const struct store_batch *b)
{
    return b->records;
}

void store_batch_grows(struct store_batch *b)
{
    b->grows = true;
}

static struct record *record_new(struct store_batch *b, enum record_type type)
{
    struct record *r = arena_get(&b->arena, sizeof *r);
    if (r) {
        memset(r, 0, sizeof *r);
        r->type = type;
    }
    return r;
}

static void record_link(struct store_batch *b, struct record *r)
{
    *b->last = r;
    b->last = &r->next;
    b->records++;
}

static bool id_valid(uint64_t job)
{
    return job > 0 && job <= INT64_MAX;
}

static bool name_valid(const char *name, size_t bytes_max)
{
    return name && name[0] && strlen(name) <= bytes_max;
}

/* Copies a text, or fails the caller through *failed. */
static const char *text_keep(struct store_batch *b, const char *text, bool *failed)
{
    const char *p = arena_copy(&b->arena, text, strlen(text));
    if (!p) *failed = true;
    return p;
}

static const void *bytes_keep(struct store_batch *b, const void *data, size_t bytes, bool *failed)
{
    const void *p = arena_copy(&b->arena, data, bytes);
    if (!p) *failed = true;
    return p;
}

int store_batch_job_put(struct store_batch *b, const struct store_job *j)
{
    if (!id_valid(j->id) || !name_valid(j->tenant, STEER_NAME_BYTES_MAX) ||
        !name_valid(j->key, STEER_KEY_BYTES_MAX) || j->spec_bytes > STEER_BODY_BYTES_MAX ||
        j->accepted_ms > INT64_MAX || j->label_count > STEER_LABELS_MAX)
        return STEER_BAD_VALUE;
    struct record *r = record_new(b, RECORD_JOB_PUT);
    if (!r) return STEER_NO_MEMORY;
    bool failed = false;
    struct store_label *labels = arena_get(&b->arena, (j->label_count + 1) * sizeof *labels);
    if (!labels) return STEER_NO_MEMORY;
    for (size_t i = 0; i < j->label_count; i++) {
        labels[i].key = text_keep(b, j->labels[i].key, &failed);
        labels[i].value = text_keep(b, j->labels[i].value, &failed);
    }
    r->u.job = *j;
    r->u.job.labels = labels;
    r->u.job.tenant = text_keep(b, j->tenant, &failed);
    r->u.job.key = text_keep(b, j->key, &failed);
    r->u.job.spec = bytes_keep(b, j->spec, j->spec_bytes, &failed);
    if (failed) return STEER_NO_MEMORY;
    b->grows = true;
    record_link(b, r);
    return 0;
}

int store_batch_job_end(struct store_batch *b, uint64_t job, enum store_state state,
                        uint64_t ended_ms, const void *summary, size_t summary_bytes)
{
    if (!id_valid(job) || state <= STORE_OPEN || state > STORE_EXPIRED || ended_ms == 0 ||
        ended_ms > INT64_MAX || summary_bytes > STEER_BODY_BYTES_MAX)
        return STEER_BAD_VALUE;
    struct record *r = record_new(b, RECORD_JOB_END);
    if (!r) return STEER_NO_MEMORY;
    bool failed = false;
    r->u.job.id = job;
    r->u.job.state = state;
    r->u.job.ended_ms = ended_ms;
    r->u.job.summary = bytes_keep(b, summary, summary_bytes, &failed);
    r->u.job.summary_bytes = summary_bytes;
    if (failed) return STEER_NO_MEMORY;
    record_link(b, r);
    return 0;
}

int store_batch_job_reopen(struct store_batch *b, uint64_t job)
{
    if (!id_valid(job)) return STEER_BAD_VALUE;
    struct record *r = record_new(b, RECORD_JOB_REOPEN);
    if (!r) return STEER_NO_MEMORY;
    r->u.job.id = job;
    record_link(b, r);
    return 0;
}

int store_batch_chunk_put(struct store_batch *b, const struct store_chunk *c)
{
    if (!id_valid(c->job) || c->bytes > STEER_BODY_BYTES_MAX) return STEER_BAD_VALUE;
    struct record *r = record_new(b, RECORD_CHUNK_PUT);
    if (!r) return STEER_NO_MEMORY;
    bool failed = false;
    r->u.chunk = *c;
    r->u.chunk.data = bytes_keep(b, c->data, c->bytes, &failed);
    if (failed) return STEER_NO_MEMORY;
    record_link(b, r);
    return 0;
}

int store_batch_failure_put(struct store_batch *b, const struct store_failure *f)
{
    if (!id_valid(f->job)) return STEER_BAD_VALUE;
    struct record *r = record_new(b, RECORD_FAILURE_PUT);
    if (!r) return STEER_NO_MEMORY;
    bool failed = false;
    r->u.failure = *f;
    const char *text = f->text ? f->text : "";
    r->u.failure.text = bytes_keep(b, text, text_cut(text, STEER_TEXT_BYTES_MAX), &failed);
    if (failed) return STEER_NO_MEMORY;
    record_link(b, r);
    return 0;
}

static int tombstone_record(struct store_batch *b, enum record_type type, const char *tenant,
                            const char *key, uint64_t made_ms)
{
    if (!name_valid(tenant, STEER_NAME_BYTES_MAX) || !name_valid(key, STEER_KEY_BYTES_MAX) ||
        made_ms > INT64_MAX)
        return STEER_BAD_VALUE;
    struct record *r = record_new(b, type);
    if (!r) return STEER_NO_MEMORY;
    bool failed = false;
    r->u.tombstone.tenant = text_keep(b, tenant, &failed);
    r->u.tombstone.key = text_keep(b, key, &failed);
    r->u.tombstone.made_ms = made_ms;
    if (failed) return STEER_NO_MEMORY;
    record_link(b, r);
    return 0;
}

int store_batch_tombstone_put(struct store_batch *b, const struct store_tombstone *t)
{
    return tombstone_record(b, RECORD_TOMBSTONE_PUT, t->tenant, t->key, t->made_ms);
}

int store_batch_tombstone_drop(struct store_batch *b, const char *tenant, const char *key)
{
    return tombstone_record(b, RECORD_TOMBSTONE_DROP, tenant, key, 0);
}

static int named_record(struct store_batch *b, enum record_type type, const char *name,
                        const void *data, size_t bytes, uint64_t value)
{
    if (!name_valid(name, STEER_NAME_BYTES_MAX) || bytes > STEER_BODY_BYTES_MAX ||
        value > INT64_MAX)
        return STEER_BAD_VALUE;
    struct record *r = record_new(b, type);
    if (!r) return STEER_NO_MEMORY;
    bool failed = false;
    r->u.named.name = text_keep(b, name, &failed);
    r->u.named.data = bytes_keep(b, data, bytes, &failed);
    r->u.named.bytes = bytes;
    r->u.named.value = value;
    if (failed) return STEER_NO_MEMORY;
    record_link(b, r);
    return 0;
}

int store_batch_model_put(struct store_batch *b, const char *name, const void *data, size_t bytes)
{
    return named_record(b, RECORD_MODEL_PUT, name, data, bytes, 0);
}

int store_batch_counter_put(struct store_batch *b, const char *name, uint64_t value)
{
    return named_record(b, RECORD_COUNTER_PUT, name, NULL, 0, value);
}

int store_batch_image_spool(struct store_batch *b, const struct store_image *i,
                            const struct store_payload *payload)
{
    struct store_payload p = *payload;
    int code = STEER_BAD_VALUE;
    if (!id_valid(i->job) || i->bytes != p.bytes || i->bytes > STEER_IMAGE_BYTES_MAX ||
        i->header_bytes > STEER_BODY_BYTES_MAX)
        goto fail;
    code = STEER_NO_MEMORY;
    struct record *r = record_new(b, RECORD_IMAGE_SPOOL);
    if (!r) goto fail;
    bool failed = false;
    r->u.image.record = *i;
    r->u.image.record.header = bytes_keep(b, i->header, i->header_bytes, &failed);
    if (failed) goto fail;
    r->u.image.payload = p;
    b->payload_bytes += p.bytes;
    b->grows = true;
    record_link(b, r);
    return 0;

fail:
    payload_release(&p);
    return code;
}

int store_batch_image_drop(struct store_batch *b, uint64_t job, uint32_t index)
{
    if (!id_valid(job)) return STEER_BAD_VALUE;
    struct record *r = record_new(b, RECORD_IMAGE_DROP);
    if (!r) return STEER_NO_MEMORY;
    r->u.image.record.job = job;
    r->u.image.record.index = index;
    record_link(b, r);
    return 0;
}

int store_batch_images_drop(struct store_batch *b, uint64_t job)
{
    if (!id_valid(job)) return STEER_BAD_VALUE;
    struct record *r = record_new(b, RECORD_IMAGES_DROP);
    if (!r) return STEER_NO_MEMORY;
    r->u.image.record.job = job;
    record_link(b, r);
    return 0;
}

int store_batch_expire(struct store_batch *b, uint64_t before_ms, uint32_t limit)
{
    if (before_ms > INT64_MAX) return STEER_BAD_VALUE;
    struct record *r = record_new(b, RECORD_EXPIRE);
    if (!r) return STEER_NO_MEMORY;
    r->u.expire.before_ms = before_ms;
    r->u.expire.limit = limit;
    record_link(b, r);
    return 0;
}
