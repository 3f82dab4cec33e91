// SPDX-License-Identifier: Apache-2.0
#include "clip_bpe.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "chars.h"
#include "clip_tables.h"

/* ---- merging one word ---- */

struct output {
    int32_t *ids;
    int count, most;
};

static void output_add(struct output *o, int32_t id)
{
    if (o->count < o->most) o->ids[o->count] = id;
    if (o->count <= o->most) o->count++; /* most + 1: it did not fit */
}

/* Symbols are a list in an array; candidates a heap by (rank, place). A candidate is stale when its
 * symbols have changed since; stale ones are skipped when they surface. */
struct symbol {
    int32_t id;
    int next, before; /* -1: none */
};
struct candidate {
    int32_t rank, id;
    int place;
};
struct heap {
    struct candidate *items;
    size_t count;
};

static int heap_less(struct candidate a, struct candidate b)
{
    return a.rank != b.rank ? a.rank < b.rank : a.place < b.place;
}

static void heap_push(struct heap *h, struct candidate c)
{
    size_t i = h->count++;
    while (i && heap_less(c, h->items[(i - 1) / 2])) {
        h->items[i] = h->items[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    h->items[i] = c;
}

static struct candidate heap_pop(struct heap *h)
{
    struct candidate top = h->items[0], last = h->items[--h->count];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= h->count) break;
        if (child + 1 < h->count && heap_less(h->items[child + 1], h->items[child])) child++;
        if (!heap_less(h->items[child], last)) break;
        h->items[i] = h->items[child];
        i = child;
    }
    h->items[i] = last;
    return top;
}

static void candidate_push(const struct clip_bpe *t, struct heap *h, const struct symbol *s,
                           int place)
{
    if (place < 0 || s[place].next < 0) return;
    const struct merge *m = merge_find(t, s[place].id, s[s[place].next].id);
    if (m) heap_push(h, (struct candidate){m->rank, m->id, place});
}

/* bytes of one word to tokens. Each merge adds at most two candidates, so 3 n places suffice. */
static int word_merge(const struct clip_bpe *t, const uint8_t *bytes, size_t n, struct output *out)
{
    struct symbol *s = malloc(n * sizeof *s);
    struct heap heap = {malloc(3 * n * sizeof *heap.items), 0};
    if (!s || !heap.items) {
        free(s);
        free(heap.items);
        return STEER_NO_MEMORY;
    }
    for (size_t i = 0; i < n; i++) {
        s[i].id = i + 1 == n ? t->byte_end_id[bytes[i]] : t->byte_id[bytes[i]];
        s[i].next = i + 1 == n ? -1 : (int)i + 1;
        s[i].before = (int)i - 1;
        if (s[i].id < 0) s[i].id = t->unk >= 0 ? -2 : -1; /* -2: becomes the unknown token */
    }
    for (size_t i = 0; i < n; i++)
        candidate_push(t, &heap, s, (int)i);
    while (heap.count) {
        struct candidate c = heap_pop(&heap);
        struct symbol *left = s + c.place;
        if (left->id == INT32_MIN || left->next < 0) continue; /* swallowed, or now the last */
        struct symbol *right = s + left->next;
        const struct merge *m = merge_find(t, left->id, right->id);
        if (!m || m->id != c.id || m->rank != c.rank) continue;
        left->id = c.id;
        left->next = right->next;
        right->id = INT32_MIN;
        if (left->next >= 0) s[left->next].before = c.place;
        candidate_push(t, &heap, s, left->before);
        candidate_push(t, &heap, s, c.place);
    }
    for (int i = 0; i >= 0; i = s[i].next) {
        if (s[i].id >= 0) output_add(out, s[i].id);
        if (s[i].id == -2) output_add(out, t->unk);
    }
    free(s);
    free(heap.items);
    return 0;
}

/* ---- splitting ---- */

enum kind { KIND_SPACE, KIND_LETTER, KIND_NUMBER, KIND_OTHER };

static enum kind kind_of(int32_t c)
{
    if (is_space(c)) return KIND_SPACE;
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO: return KIND_LETTER;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO: return KIND_NUMBER;
    default: return KIND_OTHER;
    }
}

/* 's 't 're 've 'm 'll 'd */
static size_t contraction(const uint8_t *text, size_t size)
{
    static const char *const endings[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        size_t n = strlen(endings[i]);
        if (n <= size && memcmp(text, endings[i], n) == 0) return n;
    }
    return 0;
}

/* The two names that the splitting expression keeps whole, special tokens or not. */
static size_t marker(const uint8_t *text, size_t size)
{
    static const char *const markers[] = {"<|startoftext|>", "<|endoftext|>"};
    for (int i = 0; i < 2; i++) {
        size_t n = strlen(markers[i]);
        if (n <= size && memcmp(text, markers[i], n) == 0) return n;
    }
    return 0;
}

/* The alternatives of the splitting expression in order: a marker, a contraction, letters, one
 * number, other signs. The signs swallow an apostrophe that is not first. */
static int text_split(const struct clip_bpe *t, const uint8_t *text, size_t size,
                      struct output *out)
{
    size_t i = 0;
    while (i < size && out->count <= out->most) {
        int32_t c;
        size_t n = char_at(text + i, size - i, &c), end = i + n;
        enum kind kind = kind_of(c);
        size_t short_form = c == '\''  ? contraction(text + i, size - i)
                            : c == '<' ? marker(text + i, size - i)
                                       : 0;
        if (kind == KIND_SPACE) {
            i = end;
            continue;
        }
        if (short_form) {
            end = i + short_form;
        } else if (kind != KIND_NUMBER) {
            while (end < size) {
                n = char_at(text + end, size - end, &c);
                if (kind_of(c) != kind) break;
                end += n;
            }
        }
        int code = word_merge(t, text + i, end - i, out);
        if (code) return code;
        i = end;
    }
    return 0;
}

/* The longest special token of that sort that begins at text. */
static const struct special *special_at(const struct clip_bpe *t, const uint8_t *text, size_t size,
                                        int normalized)
{
    const struct special *best = NULL;
    for (int i = 0; i < t->specials_count; i++) {
        const struct special *s = t->specials + i;
        if (s->normalized == normalized && s->bytes <= size &&
            memcmp(s->text, text, s->bytes) == 0 && (!best || s->bytes > best->bytes))
            best = s;
    }
    return best;
}

static int piece_encode(const struct clip_bpe *t, const uint8_t *text, size_t size, int normalized,
                        struct output *out);

/* What lies between special tokens, on its way to the next stage. */
static int between_encode(const struct clip_bpe *t, const uint8_t *text, size_t size,
                          int normalized, struct output *out)
{
    if (!size) return 0;
    if (normalized) return text_split(t, text, size, out);
    size_t n;
    uint8_t *lower = clip_normalize(text, size, &n);
    if (!lower) return STEER_NO_MEMORY;
    int code = piece_encode(t, lower, n, 1, out);
    free(lower);
    return code;
}

static int piece_encode(const struct clip_bpe *t, const uint8_t *text, size_t size, int normalized,
                        struct output *out)
{
    size_t start = 0;
    for (size_t i = 0; i < size;) {
        const struct special *s = special_at(t, text + i, size - i, normalized);
        if (!s) {
            i++;
            continue;
        }
        int code = between_encode(t, text + start, i - start, normalized, out);
        if (code) return code;
        output_add(out, s->id);
        i += s->bytes;
        start = i;
    }
    return between_encode(t, text + start, size - start, normalized, out);
}

int32_t clip_bpe_comma(const struct clip_bpe *t)
{
    return t->byte_end_id[','];
}

int clip_bpe_tokens(const struct clip_bpe *t, const char *text, size_t size, int32_t *ids, int most,
                    int *ret_count, size_t *ret_cut, struct steer_error *err)
{
    const uint8_t *bytes = (const uint8_t *)text;
    struct output out = {ids, 0, most};
    /* Word by word as white space parts them: no rule crosses it, and the first word that does not
     * fit tells where the text was cut. */
    size_t start = 0, i = 0;
    while (i < size || start < i) {
        int32_t c = ' ';
        size_t n = 0;
        if (i < size) {
            n = char_at(bytes + i, size - i, &c);
            if (c == 0xfffd && n == 1)
                return steer_fail(err, STEER_BAD_TEXT, "the prompt is not UTF-8 at byte %zu", i);
        }
        if (!is_space(c) && i < size) {
            i += n;
            continue;
        }
        if (start < i) {
            int code = piece_encode(t, bytes + start, i - start, 0, &out);
            if (code) return steer_fail(err, code, "out of memory");
            if (out.count > out.most) {
                *ret_cut = start;
                break;
            }
        }
        i += n;
        start = i;
    }
    *ret_count = out.count;
    return 0;
}

void clip_bpe_frame(const struct clip_bpe *t, int32_t *ids, int used, int length)
{
    ids[0] = t->bos;
    ids[1 + used] = t->eos;
    for (int k = used + 2; k < length; k++)
        ids[k] = t->pad;
}

int clip_bpe_encode(const struct clip_bpe *t, const char *text, size_t size, int32_t *ids,
                    int length, int *ret_used, size_t *ret_cut, struct steer_error *err)
{
    if (length < 2 || length > CLIP_BPE_TOKENS_MAX)
        return steer_fail(err, STEER_INTERNAL, "%d tokens wanted", length);
    int most = length - 2, count;
    size_t cut = 0;
    int code = clip_bpe_tokens(t, text, size, ids + 1, most, &count, &cut, err);
    if (code) return code;
    *ret_cut = count <= most ? 0 : cut ? cut : 1;
    int used = count < most ? count : most;
    clip_bpe_frame(t, ids, used, length);
    *ret_used = used + 2;
    return 0;
}
