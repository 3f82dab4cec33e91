// SPDX-License-Identifier: Apache-2.0
#include "prompt_tokens.h"

#include <stdlib.h>
#include <string.h>

#include "text.h"

static int ids_check(const struct text_encoder *e, const struct prompt_chunks *c, const char *text,
                     struct steer_error *err)
{
    for (int i = 0; i < c->count * c->length; i++)
        if (c->ids[i] >= e->vocab)
            return steer_fail(err, STEER_BAD_MODEL,
                              "token %d of \"%.*s\": the table of %s has only %d rows", c->ids[i],
                              (int)text_cut(text, 80), text, e->part, e->vocab);
    return 0;
}

/* Encoders' chunks stand side by side: where tokenizers differ, empty ones make up the number. */
static int parts_join(struct prompt_tokens *t, const struct model *m, struct prompt_chunks *parts,
                      struct steer_error *err)
{
    for (int i = 0; i < m->encoders_count; i++)
        t->count += t->chunks * m->encoders[i].tokens;
    t->ids = malloc((size_t)t->count * sizeof *t->ids);
    t->weights = malloc((size_t)t->count * sizeof *t->weights);
    if (!t->ids || !t->weights) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    size_t at = 0;
    for (int i = 0; i < m->encoders_count; i++) {
        size_t n = (size_t)t->chunks * (size_t)m->encoders[i].tokens;
        prompt_chunks_extend(parts + i, m->encoders[i].tokenizer, t->chunks);
        memcpy(t->ids + at, parts[i].ids, n * sizeof *t->ids);
        memcpy(t->weights + at, parts[i].weights, n * sizeof *t->weights);
        memcpy(t->used[i], parts[i].used, sizeof t->used[i]);
        at += n;
    }
    return 0;
}

int prompt_tokens_read(struct prompt_tokens *ret, const struct model *m, const char *text,
                       struct prompt_reading reading, struct steer_error *err)
{
    struct prompt_tokens t = {.chunks = 1};
    struct prompt_chunks parts[TEXT_ENCODERS_MAX] = {0};
    int code = 0, absent = !text && m->zero_when_absent;
    if (!text) text = "";
    for (int i = 0; i < m->encoders_count && !absent && !code; i++) {
        const struct text_encoder *e = m->encoders + i;
        code = prompt_chunks_make(parts + i, e->tokenizer, e->tokens, e->lower, text, reading, err);
        if (!code) code = ids_check(e, parts + i, text, err);
        if (parts[i].count > t.chunks) t.chunks = parts[i].count;
        /* An encoder of a pooled state alone may read less. */
        size_t cut = e->states == STATES_NONE ? 0 : parts[i].cut;
        if (cut && (!t.cut || cut < t.cut)) t.cut = cut;
    }
    if (!code && !absent) code = parts_join(&t, m, parts, err);
    for (int i = 0; i < TEXT_ENCODERS_MAX; i++)
        prompt_chunks_free(parts + i);
    if (code)
        prompt_tokens_free(&t);
    else
        *ret = t;
    return code;
}

void prompt_tokens_free(struct prompt_tokens *t)
{
    free(t->ids);
    free(t->weights);
    *t = (struct prompt_tokens){0};
}
