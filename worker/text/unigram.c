// SPDX-License-Identifier: Apache-2.0
#include "unigram.h"

#include <stdlib.h>
#include <string.h>

#include "chars.h"
#include "unigram_tables.h"

/* Begins every word. */
#define MARK       "\xe2\x96\x81"
#define MARK_CHAR  0x2581
#define MARK_BYTES 3

struct output {
    int32_t *ids;
    int count, most;
    size_t cut; /* where in the source the first token that did not fit begins */
};

static void output_add(struct output *o, int32_t id, size_t from)
{
    if (o->count < o->most) o->ids[o->count] = id;
    if (o->count == o->most) o->cut = from;
    if (o->count <= o->most) o->count++; /* most + 1: it did not fit */
}

static int output_full(const struct output *o)
{
    return o->count > o->most;
}

/* ---- the best pieces of one word ---- */

/* How the best path to a place of the word ends. */
struct step {
    double score; /* of the whole path */
    size_t start; /* of its last piece; SIZE_MAX: no path yet */
    int32_t id;
};

static void step_offer(struct step *s, double score, size_t start, int32_t id)
{
    if (s->start == SIZE_MAX || score > s->score) *s = (struct step){score, start, id};
}

/* Viterbi's algorithm. Between equals the path found first stays, as in the tokenizers library. */
static void word_walk(const struct unigram *t, const char *word, size_t size, struct step *steps)
{
    steps[0] = (struct step){0};
    for (size_t i = 1; i <= size; i++)
        steps[i].start = SIZE_MAX;
    for (size_t i = 0; i < size;) {
        int32_t c;
        size_t first = char_at((const uint8_t *)word + i, size - i, &c);
        int known = 0; /* as a piece of its own */
        struct piece_range r = piece_range_all(t);
        for (size_t n = 0; i + n < size; n++) {
            r = piece_range_narrow(t, r, n, (uint8_t)word[i + n]);
            if (r.first == r.end) break;
            const struct piece *p = t->pieces + r.first;
            if (p->bytes != n + 1) continue;
            step_offer(steps + i + n + 1, p->score + steps[i].score, i, p->id);
            known |= n + 1 == first;
        }
        if (!known) step_offer(steps + i + first, t->unk_score + steps[i].score, i, SPIECE_UNK);
        i += first;
    }
}

/* The tokens of one word, which came from there in the source. */
static int word_encode(const struct unigram *t, const char *word, size_t size, size_t from,
                       struct output *out)
{
    struct step *steps = malloc((size + 1) * sizeof *steps);
    if (!steps) return STEER_NO_MEMORY;
    word_walk(t, word, size, steps);
    /* The path is known from its end; turned, `start` becomes where the next piece begins. */
    size_t next = size;
    for (size_t at = size; at > 0;) {
        size_t start = steps[at].start;
        steps[at].start = next;
        next = at;
        at = start;
    }
    for (size_t at = 0, end = next; at < size;) {
        /* Pieces nobody knows are one, which by chance may be a piece after all. */
        int32_t id = steps[end].id;
        while (id == SPIECE_UNK && end < size && steps[steps[end].start].id == SPIECE_UNK)
            end = steps[end].start;
        const struct piece *p = id == SPIECE_UNK ? piece_find(t, word + at, end - at) : NULL;
        output_add(out, p ? p->id : id, from);
        at = end;
        end = steps[end].start;
    }
    free(steps);
    return 0;
}

/* ---- splitting ---- */

/* A text on its way: `from` tells for each byte where it came from, NULL: from itself. */
struct source {
    const char *text;
    size_t size;
    const uint32_t *from;
    size_t base; /* where the text itself came from */
};

static size_t source_from(const struct source *s, size_t i)
{
    return s->base + (s->from ? s->from[i] : i);
}

static struct source source_part(const struct source *s, size_t start, size_t end)
{
    return (struct source){s->text + start, end - start, s->from ? s->from + start : NULL,
                           s->from ? s->base : s->base + start};
}

/* White space parts words and vanishes; a mark in the text begins one, too. */
static int words_encode(const struct unigram *t, struct source s, struct output *out)
{
    char *word = malloc(s.size + MARK_BYTES);
    int code = word ? 0 : STEER_NO_MEMORY;
    for (size_t i = 0; i < s.size && !code && !output_full(out);) {
        int32_t c;
        size_t start = i, n = char_at((const uint8_t *)s.text + i, s.size - i, &c);
        if (is_space(c)) {
            i += n;
            continue;
        }
        if (c == MARK_CHAR) i += n;
        size_t run = i;
        while (i < s.size) {
            n = char_at((const uint8_t *)s.text + i, s.size - i, &c);
            if (is_space(c) || c == MARK_CHAR) break;
            i += n;
        }
        memcpy(word, MARK, MARK_BYTES);
        memcpy(word + MARK_BYTES, s.text + run, i - run);
        code = word_encode(t, word, MARK_BYTES + i - run, source_from(&s, start), out);
    }
    free(word);
    return code;
}

/* The longest added token of that sort that begins at text. */
static const struct added_token *added_at(const struct unigram *t, const char *text, size_t size,
                                          int normalized)
{
    const struct added_token *best = NULL;
    for (int i = 0; i < t->added_count; i++) {
        const struct added_token *a = t->added + i;
        if (a->normalized == normalized && a->bytes <= size &&
            memcmp(a->text, text, a->bytes) == 0 && (!best || a->bytes > best->bytes))
            best = a;
    }
    return best;
}

static size_t spaces_before(const char *text, size_t end, size_t least)
{
    size_t kept = least;
    for (size_t i = least; i < end;) {
        int32_t c;
        i += char_at((const uint8_t *)text + i, end - i, &c);
        if (!is_space(c)) kept = i;
    }
    return kept;
}

static size_t spaces_behind(const char *text, size_t size, size_t i)
{
    while (i < size) {
        int32_t c;
        size_t n = char_at((const uint8_t *)text + i, size - i, &c);
        if (!is_space(c)) break;
        i += n;
    }
    return i;
}

static int source_encode(const struct unigram *t, struct source s, int normalized,
                         struct output *out, struct steer_error *err);

/* What lies between added tokens, on its way to the next stage. */
static int between_encode(const struct unigram *t, struct source s, int normalized,
                          struct output *out, struct steer_error *err)
{
    struct normalized n = {0};
    int code;
    if (!s.size || output_full(out)) return 0;
    if (normalized) {
        code = words_encode(t, s, out);
        return code ? steer_fail(err, code, "out of memory") : 0;
    }
    code = charsmap_normalize(t->charsmap, s.text, s.size, &n, err);
    if (!code)
        code = source_encode(t, (struct source){n.text, n.size, n.from, s.base}, 1, out, err);
    normalized_free(&n);
    return code;
}

/* First the tokens that are looked for in the text as given, then, in what lies between, once
 * normalized, those of the normalized text, and between those are words. */
static int source_encode(const struct unigram *t, struct source s, int normalized,
                         struct output *out, struct steer_error *err)
{
    size_t done = 0;
    for (size_t i = 0; i < s.size && !output_full(out);) {
        const struct added_token *a = added_at(t, s.text + i, s.size - i, normalized);
        if (!a) {
            i++;
            continue;
        }
        size_t start = a->lstrip ? spaces_before(s.text, i, done) : i;
        if (done < start) {
            int code = between_encode(t, source_part(&s, done, start), normalized, out, err);
            if (code) return code;
        }
        output_add(out, a->id, source_from(&s, i));
        i += a->bytes;
        done = a->rstrip ? spaces_behind(s.text, s.size, i) : i;
    }
    return between_encode(t, source_part(&s, done, s.size), normalized, out, err);
}

int unigram_tokens(const struct unigram *t, const char *text, size_t size, int32_t *ids, int most,
                   int *ret_count, size_t *ret_cut, struct steer_error *err)
{
    for (size_t i = 0; i < size;) {
        int32_t c;
        size_t n = char_at((const uint8_t *)text + i, size - i, &c);
        if (c == 0xfffd && n == 1)
            return steer_fail(err, STEER_BAD_TEXT, "the prompt is not UTF-8 at byte %zu", i);
        i += n;
    }
    struct output out = {ids, 0, most, 0};
    int code = source_encode(t, (struct source){text, size, NULL, 0}, 0, &out, err);
    *ret_count = out.count;
    *ret_cut = out.cut;
    return code;
}

void unigram_frame(const struct unigram *t, int32_t *ids, int used, int length)
{
    ids[used++] = t->eos;
    for (int k = used; k < length; k++)
        ids[k] = t->pad;
}

int unigram_encode(const struct unigram *t, const char *text, size_t size, int32_t *ids, int length,
                   int *ret_used, size_t *ret_cut, struct steer_error *err)
{
    int count;
    size_t cut;
    if (length < 1 || length > UNIGRAM_TOKENS_MAX)
        return steer_fail(err, STEER_INTERNAL, "%d tokens wanted", length);
    int code = unigram_tokens(t, text, size, ids, length - 1, &count, &cut, err);
    if (code) return code;
    int full = count == length;
    count -= full;
    *ret_cut = full ? cut + !cut : 0; /* 0 says that nothing was */
    *ret_used = count + 1;
    unigram_frame(t, ids, count, length);
    return 0;
}
