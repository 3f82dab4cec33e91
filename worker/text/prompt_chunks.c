// SPDX-License-Identifier: Apache-2.0
#include "prompt_chunks.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "clip_bpe.h"
#include "lower.h"
#include "unigram.h"

#define COMMA_BACKTRACK 20 /* the web UI's default */

/* The chunk that is being filled is the last one of `out`. */
struct filling {
    const struct clip_bpe *tokenizer;
    struct prompt_chunks *out;
    int used;   /* tokens of the text in it */
    int behind; /* how many of them there are up to and with the last comma; 0: no comma */
    int closed; /* by BREAK */
};

static int too_long(const struct filling *f, struct steer_error *err)
{
    int each = f->out->length - 2;
    return steer_fail(err, STEER_BAD_TEXT,
                      "it needs more than %d chunks of %d tokens: expected at most %d tokens",
                      STEER_PROMPT_CHUNKS_MAX, each, STEER_PROMPT_CHUNKS_MAX * each);
}

static int chunk_begin(struct filling *f, struct steer_error *err)
{
    struct prompt_chunks *out = f->out;
    if (out->count == STEER_PROMPT_CHUNKS_MAX) return too_long(f, err);
    size_t first = (size_t)out->count++ * (size_t)out->length;
    for (int i = 0; i < out->length; i++)
        out->weights[first + (size_t)i] = 1;
    f->used = f->behind = f->closed = 0;
    return 0;
}

static void chunk_end(const struct filling *f, int chunk, int used)
{
    struct prompt_chunks *out = f->out;
    clip_bpe_frame(f->tokenizer, out->ids + (size_t)chunk * (size_t)out->length, used, out->length);
    out->used[chunk] = used + 2;
}

/* moved: so many of its last tokens begin the next chunk. */
static int chunk_next(struct filling *f, int moved, struct steer_error *err)
{
    struct prompt_chunks *out = f->out;
    int last = out->count - 1, kept = f->used - moved, code = chunk_begin(f, err);
    if (code) return code;
    size_t from = (size_t)last * (size_t)out->length + (size_t)kept + 1;
    size_t to = (size_t)(last + 1) * (size_t)out->length + 1;
    for (size_t i = 0; i < (size_t)moved; i++) {
        out->ids[to + i] = out->ids[from + i];
        out->weights[to + i] = out->weights[from + i];
        out->weights[from + i] = 1;
    }
    chunk_end(f, last, kept);
    f->used = moved;
    return 0;
}

static int token_add(struct filling *f, int32_t id, double weight, struct steer_error *err)
{
    int is_comma = id == clip_bpe_comma(f->tokenizer), code;
    if (f->closed && (code = chunk_next(f, 0, err))) return code;
    if (f->used == f->out->length - 2) {
        int moved = f->used - f->behind;
        if (is_comma || !f->behind || moved >= COMMA_BACKTRACK) moved = 0;
        if ((code = chunk_next(f, moved, err))) return code;
    } else if (is_comma) {
        f->behind = f->used + 1;
    }
    size_t at = (size_t)(f->out->count - 1) * (size_t)f->out->length + (size_t)++f->used;
    f->out->ids[at] = id;
    f->out->weights[at] = (float)weight;
    return 0;
}

/* What follows a BREAK needs a chunk of its own; at the end of a prompt it parts nothing. */
static int break_add(struct filling *f, int chunked, struct steer_error *err)
{
    int code = f->closed && chunked ? chunk_next(f, 0, err) : 0;
    f->closed = 1;
    return code;
}

/* The tokens of one piece, into as many chunks as they need, or into the first alone. ids: room for
 * those of STEER_PROMPT_CHUNKS_MAX chunks. */
static int piece_add(struct filling *f, const struct prompt *p, const struct prompt_piece *piece,
                     int chunked, int32_t *ids, struct steer_error *err)
{
    int room = f->out->length - 2, most = chunked     ? STEER_PROMPT_CHUNKS_MAX * room
                                          : f->closed ? 0
                                                      : room - f->used;
    int count = 0;
    size_t cut = 0;
    int code = clip_bpe_tokens(f->tokenizer, p->text + piece->begin, piece->end - piece->begin, ids,
                               most, &count, &cut, err);
    if (!code && count > most) {
        if (chunked) return too_long(f, err);
        f->out->cut = p->source[piece->begin + cut];
        f->out->cut += !f->out->cut; /* 0 says that nothing was */
        count = most;
    }
    for (int i = 0; i < count && !code; i++)
        code = token_add(f, ids[i], piece->weight, err);
    return code;
}

static int prompt_fill(struct filling *f, const struct prompt *p, int chunked,
                       struct steer_error *err)
{
    struct prompt_chunks *out = f->out;
    if (chunked && out->length < 3) return too_long(f, err);
    int32_t *ids = malloc((size_t)STEER_PROMPT_CHUNKS_MAX * (size_t)out->length * sizeof *ids);
    if (!ids) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    int code = chunk_begin(f, err);
    for (size_t i = 0; i < p->count && !code && !out->cut; i++)
        code = p->pieces[i].is_break ? break_add(f, chunked, err)
                                     : piece_add(f, p, p->pieces + i, chunked, ids, err);
    free(ids);
    chunk_end(f, out->count - 1, f->used);
    return code;
}

/* ---- T5, which reads a text in one ---- */

/* Of the piece in lower case, while *ret_cut is a byte of the piece as it is. */
static int piece_tokens(const struct unigram *t, int lower, const char *text, size_t size,
                        int32_t *ids, int most, int *ret_count, size_t *ret_cut,
                        struct steer_error *err)
{
    char *lowered;
    size_t lowered_size;
    if (!lower) return unigram_tokens(t, text, size, ids, most, ret_count, ret_cut, err);
    if (text_lower(&lowered, &lowered_size, text, size))
        return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    int code = unigram_tokens(t, lowered, lowered_size, ids, most, ret_count, ret_cut, err);
    *ret_cut = text_lower_source(text, size, *ret_cut);
    free(lowered);
    return code;
}

/* Each piece by itself, one behind the other, as far as they fit. */
static int prompt_line(struct prompt_chunks *out, const struct unigram *t, int lower,
                       const struct prompt *p, struct steer_error *err)
{
    int used = 0, room = out->length - 1;
    for (int i = 0; i < out->length; i++)
        out->weights[i] = 1;
    for (size_t i = 0; i < p->count && !out->cut; i++) {
        const struct prompt_piece *piece = p->pieces + i;
        int count = 0;
        size_t cut = 0;
        if (piece->is_break)
            return steer_fail(err, STEER_BAD_TEXT,
                              "BREAK begins a chunk, and T5 reads a text in one: expected none");
        int code = piece_tokens(t, lower, p->text + piece->begin, piece->end - piece->begin,
                                out->ids + used, room - used, &count, &cut, err);
        if (code) return code;
        if (count > room - used) {
            out->cut = p->source[piece->begin + cut];
            out->cut += !out->cut; /* 0 says that nothing was */
            count = room - used;
        }
        for (int k = 0; k < count; k++)
            out->weights[used++] = (float)piece->weight;
    }
    unigram_frame(t, out->ids, used, out->length);
    out->count = 1;
    out->used[0] = used + 1;
    return 0;
}

/* ---- the whole ---- */

/* The tokenizer's own one chunk. */
static int text_encode(struct prompt_chunks *out, const struct tokenizer *t, int lower,
                       const char *text, struct steer_error *err)
{
    struct tokenized how;
    char *lowered = NULL;
    size_t size = strlen(text);
    if (lower && text_lower(&lowered, &size, text, size))
        return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    int code = tokenizer_encode(t, lower ? lowered : text, size, out->ids, out->length, &how, err);
    free(lowered);
    if (code) return code;
    for (int i = 0; i < out->length; i++)
        out->weights[i] = 1;
    out->count = 1;
    out->used[0] = how.used;
    out->cut = lower && how.cut ? text_lower_source(text, strlen(text), how.cut) : how.cut;
    return 0;
}

static int pieces_encode(struct prompt_chunks *out, const struct tokenizer *t, int lower,
                         const char *text, struct prompt_reading reading, struct steer_error *err)
{
    struct filling f = {.tokenizer = tokenizer_clip(t), .out = out};
    struct prompt p = {0};
    if (!f.tokenizer && reading.chunked)
        return steer_fail(
            err, STEER_BAD_VALUE,
            "chunks are for models whose text encoders are all CLIP's, and this one's "
            "T5 reads %d tokens in one: expected long_prompt cut",
            out->length);
    int code = prompt_parse(&p, text, reading.syntax, err);
    if (!code)
        code = f.tokenizer ? prompt_fill(&f, &p, reading.chunked, err)
                           : prompt_line(out, tokenizer_unigram(t), lower, &p, err);
    prompt_free(&p);
    return code;
}

int prompt_chunks_make(struct prompt_chunks *ret, const struct tokenizer *t, int length, int lower,
                       const char *text, struct prompt_reading reading, struct steer_error *err)
{
    if (length < 2 || length > TOKENS_MAX)
        return steer_fail(err, STEER_INTERNAL, "%d tokens wanted", length);
    size_t most = (reading.chunked ? STEER_PROMPT_CHUNKS_MAX : 1) * (size_t)length;
    struct prompt_chunks out = {.length = length,
                                .ids = malloc(most * sizeof *out.ids),
                                .weights = malloc(most * sizeof *out.weights)};
    int code;
    if (!out.ids || !out.weights)
        code = steer_fail(err, STEER_NO_MEMORY, "out of memory");
    else if (reading.chunked || reading.syntax != PROMPT_PLAIN)
        code = pieces_encode(&out, t, lower, text, reading, err);
    else
        code = text_encode(&out, t, lower, text, err);
    if (code)
        prompt_chunks_free(&out);
    else
        *ret = out;
    return code;
}

void prompt_chunks_extend(struct prompt_chunks *c, const struct tokenizer *t, int count)
{
    struct filling f = {.tokenizer = tokenizer_clip(t), .out = c};
    while (c->count < count && !chunk_begin(&f, NULL))
        chunk_end(&f, c->count - 1, 0);
}

void prompt_chunks_free(struct prompt_chunks *c)
{
    free(c->ids);
    free(c->weights);
    *c = (struct prompt_chunks){0};
}

void prompt_weigh(float *z, const float *weights, int length, int channels)
{
    double before = 0, after = 0;
    int weighed = 0;
    for (int t = 0; t < length; t++) {
        float *row = z + (size_t)t * (size_t)channels;
        weighed |= weights[t] != 1;
        for (int i = 0; i < channels; i++) {
            before += row[i];
            row[i] *= weights[t];
            after += row[i];
        }
    }
    float ratio = (float)(before / after);
    if (!weighed || !isfinite(ratio)) return;
    for (size_t i = 0; i < (size_t)length * (size_t)channels; i++)
        z[i] *= ratio;
}

void prompt_weigh_about(float *z, const float *empty, const float *weights, int length,
                        int channels)
{
    for (int t = 0; t < length; t++) {
        float *row = z + (size_t)t * (size_t)channels;
        const float *from = empty + (size_t)t * (size_t)channels;
        for (int i = 0; i < channels && weights[t] != 1; i++)
            row[i] = from[i] + weights[t] * (row[i] - from[i]);
    }
}
