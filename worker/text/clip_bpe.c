// SPDX-License-Identifier: Apache-2.0
#include "clip_bpe.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utf8proc.h>

#include "../file.h"
#include "../json.h"

#define VOCAB_MAX        (1 << 20)
#define MERGES_BYTES_MAX ((size_t)64 << 20)
#define TOKEN_BYTES_MAX  1024
#define SPECIALS_MAX     512

struct word {
    char *text; /* NULL: free */
    int32_t id;
};

struct merge {
    uint64_t pair; /* left << 32 | right; UINT64_MAX: free */
    int32_t rank, id;
};

struct special {
    char *text;
    size_t bytes;
    int32_t id;
    int normalized; /* looked for in the normalized text, else in the text as given */
};

struct clip_bpe {
    struct word *words; /* open addressing, at most half full */
    size_t words_room;
    struct merge *merges;
    size_t merges_room;
    struct special specials[SPECIALS_MAX];
    int specials_count;
    int32_t bos, eos, pad, unk; /* unk -1: none */
    int32_t byte_id[256],
        byte_end_id[256]; /* of one byte; at a word's end. -1: not in the vocabulary */
    int length, vocab;
};

/* ---- tables ---- */

static uint64_t hash_bytes(const char *text, size_t n)
{
    uint64_t h = UINT64_C(14695981039346656037);
    for (size_t i = 0; i < n; i++)
        h = (h ^ (unsigned char)text[i]) * UINT64_C(1099511628211);
    return h ^ h >> 29;
}

static int32_t word_id(const struct clip_bpe *t, const char *text, size_t n)
{
    for (size_t i = hash_bytes(text, n) & (t->words_room - 1); t->words[i].text;
         i = (i + 1) & (t->words_room - 1))
        if (strlen(t->words[i].text) == n && memcmp(t->words[i].text, text, n) == 0)
            return t->words[i].id;
    return -1;
}

static uint64_t hash_pair(uint64_t pair)
{
    pair ^= pair >> 33;
    pair *= UINT64_C(0xff51afd7ed558ccd);
    return pair ^ pair >> 33;
}

static struct merge *merge_slot(const struct clip_bpe *t, int32_t left, int32_t right)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    size_t i = hash_pair(pair) & (t->merges_room - 1);
    while (t->merges[i].pair != UINT64_MAX && t->merges[i].pair != pair)
        i = (i + 1) & (t->merges_room - 1);
    return t->merges + i;
}

static const struct merge *merge_find(const struct clip_bpe *t, int32_t left, int32_t right)
{
    if (left < 0 || right < 0) return NULL;
    const struct merge *m = merge_slot(t, left, right);
    return m->pair == UINT64_MAX ? NULL : m;
}

static size_t room_for(size_t count)
{
    size_t room = 64;
    while (room < 2 * count + 2)
        room *= 2;
    return room;
}

/* The printable character that stands for a byte in the vocabulary, as GPT-2 chose them. */
static int byte_char(int byte)
{
    int printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    if (printable) return byte;
    int n = 0;
    for (int b = 0; b < byte; b++)
        n += !((b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae);
    return 256 + n;
}

/* ---- reading the folder ---- */

static int vocab_read(struct clip_bpe *t, const char *path, struct steer_error *err)
{
    json_t *root = NULL;
    int code = json_file_load(&root, path, err);
    if (code) return code;
    size_t count = json_object_size(root);
    if (!count || count > VOCAB_MAX) {
        json_decref(root);
        return steer_fail(err, STEER_BAD_MODEL, "%s: %zu tokens: expected 1 to %d", path, count,
                          VOCAB_MAX);
    }
    t->words_room = room_for(count);
    t->words = calloc(t->words_room, sizeof *t->words);
    const char *key;
    json_t *value;
    if (!t->words) code = steer_fail(err, STEER_NO_MEMORY, "out of memory");
    json_object_foreach(root, key, value)
    {
        if (code) break;
        if (!json_is_integer(value) || json_integer_value(value) < 0 ||
            json_integer_value(value) >= VOCAB_MAX) {
            code =
                steer_fail(err, STEER_BAD_MODEL, "%s: token \"%.80s\": expected an id from 0 to %d",
                           path, key, VOCAB_MAX - 1);
            break;
        }
        size_t i = hash_bytes(key, strlen(key)) & (t->words_room - 1);
        while (t->words[i].text)
            i = (i + 1) & (t->words_room - 1);
        if (!(t->words[i].text = strdup(key)))
            code = steer_fail(err, STEER_NO_MEMORY, "out of memory");
        t->words[i].id = (int32_t)json_integer_value(value);
        if (t->words[i].id >= t->vocab) t->vocab = t->words[i].id + 1;
    }
    json_decref(root);
    return code;
}

/* "left right" a line; the first line may be "#version: ...", any other that begins with # is a
 * pair. */
static int merges_read(struct clip_bpe *t, const char *path, struct steer_error *err)
{
    char *data = NULL;
    size_t size = 0, lines = 1;
    int code = file_read(&data, &size, path, MERGES_BYTES_MAX, err);
    if (code) return code == STEER_NOT_FOUND ? STEER_BAD_MODEL : code;
    for (size_t i = 0; i < size; i++)
        lines += data[i] == '\n';
    t->merges_room = room_for(lines);
    t->merges = malloc(t->merges_room * sizeof *t->merges);
    if (!t->merges) {
        free(data);
        return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    }
    for (size_t i = 0; i < t->merges_room; i++)
        t->merges[i].pair = UINT64_MAX;

    int32_t rank = 0;
    int number = 0;
    for (char *line = data, *end; line < data + size && !code; line = end + 1) {
        end = memchr(line, '\n', (size_t)(data + size - line));
        if (!end) end = data + size;
        size_t n = (size_t)(end - line);
        if (n && line[n - 1] == '\r') n--;
        number++;
        if (!n || (number == 1 && n >= 8 && memcmp(line, "#version", 8) == 0)) continue;
        char *space = memchr(line, ' ', n), joined[2 * TOKEN_BYTES_MAX];
        size_t left = space ? (size_t)(space - line) : 0, right = space ? n - left - 1 : 0;
        if (!left || !right || left > TOKEN_BYTES_MAX || right > TOKEN_BYTES_MAX ||
            memchr(space + 1, ' ', right)) {
            code =
                steer_fail(err, STEER_BAD_MODEL,
                           "%s, line %d: expected two tokens with a space between", path, number);
            break;
        }
        memcpy(joined, line, left);
        memcpy(joined + left, space + 1, right);
        int32_t a = word_id(t, line, left), b = word_id(t, space + 1, right),
                c = word_id(t, joined, left + right);
        if (a < 0 || b < 0 || c < 0) {
            code = steer_fail(err, STEER_BAD_MODEL,
                              "%s, line %d: \"%.*s\" is of a token that vocab.json does not have",
                              path, number, n > 80 ? 80 : (int)n, line);
            break;
        }
        struct merge *m = merge_slot(t, a, b);
        if (m->pair == UINT64_MAX)
            *m = (struct merge){(uint64_t)(uint32_t)a << 32 | (uint32_t)b, rank, c};
        rank++;
    }
    free(data);
    return code;
}

/* Of a word of vocab.json, or of a token that was added to it. */
static int32_t token_id(const struct clip_bpe *t, const char *text)
{
    for (int i = 0; i < t->specials_count; i++)
        if (strcmp(t->specials[i].text, text) == 0) return t->specials[i].id;
    return word_id(t, text, strlen(text));
}

/* added_id: the id of a token that vocab.json does not have; -1: nobody says. */
static int special_add(struct clip_bpe *t, const char *text, long long added_id, int normalized,
                       struct steer_error *err)
{
    size_t n = strlen(text);
    if (!n) return 0;
    for (int i = 0; i < t->specials_count; i++)
        if (strcmp(t->specials[i].text, text) == 0) return 0;
    int32_t id = word_id(t, text, n);
    if (id < 0 && (added_id < 0 || added_id >= VOCAB_MAX))
        return 0; /* a token without an id of its own cannot be in a text */
    if (id < 0) id = (int32_t)added_id;
    if (id >= t->vocab) t->vocab = id + 1;
    if (t->specials_count == SPECIALS_MAX)
        return steer_fail(err, STEER_BAD_MODEL, "over %d special tokens", SPECIALS_MAX);
    struct special *s = t->specials + t->specials_count;
    *s = (struct special){strdup(text), n, id, normalized};
    if (!s->text) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    t->specials_count++;
    return 0;
}

/* A token given as a text, or as an object with "content" and "normalized". */
static const char *token_text(const json_t *value, int *normalized)
{
    *normalized = 0;
    if (json_is_string(value)) return json_string_value(value);
    const json_t *n = json_object_get(value, "normalized");
    *normalized = json_is_true(n);
    return json_string_value(json_object_get(value, "content"));
}

/* added: added_tokens.json, which tells of added tokens in folders without an added_tokens_decoder.
 */
static int specials_read(struct clip_bpe *t, const json_t *config, const json_t *map,
                         const json_t *added, const char *dir, struct steer_error *err)
{
    static const struct {
        const char *key, *fallback;
    } names[] = {{"bos_token", "<|startoftext|>"},
                 {"eos_token", "<|endoftext|>"},
                 {"pad_token", "<|endoftext|>"},
                 {"unk_token", "<|endoftext|>"}};
    int32_t *ids[] = {&t->bos, &t->eos, &t->pad, &t->unk};
    const json_t *decoder = json_object_get(config, "added_tokens_decoder");
    const char *key;
    json_t *entry;
    int normalized, code = 0;
    json_object_foreach((json_t *)(uintptr_t)decoder, key, entry)
    {
        const char *text = token_text(entry, &normalized);
        if (text && !code) code = special_add(t, text, atoll(key), normalized, err);
    }
    for (int i = 0; i < 4 && !code; i++) {
        const json_t *value = json_object_get(config, names[i].key);
        if (!value || json_is_null(value)) value = json_object_get(map, names[i].key);
        const char *text = value ? token_text(value, &normalized) : NULL;
        if (!text) {
            text = names[i].fallback;
            normalized = 0;
        }
        if (json_is_integer(json_object_get(added, text)))
            code = special_add(t, text, json_integer_value(json_object_get(added, text)), 0, err);
        *ids[i] = token_id(t, text);
        if (*ids[i] < 0 && i < 3)
            return steer_fail(err, STEER_BAD_MODEL, "%s: %s \"%.80s\" is not in vocab.json", dir,
                              names[i].key, text);
        if (!code) code = special_add(t, text, -1, normalized, err);
    }
    json_object_foreach((json_t *)(uintptr_t)added, key, entry)
    {
        if (!code && json_is_integer(entry))
            code = special_add(t, key, json_integer_value(entry), 1, err);
    }
    return code;
}

static void byte_ids(struct clip_bpe *t)
{
    for (int b = 0; b < 256; b++) {
        char text[16];
        utf8proc_ssize_t n = utf8proc_encode_char(byte_char(b), (utf8proc_uint8_t *)text);
        t->byte_id[b] = word_id(t, text, (size_t)n);
        memcpy(text + n, "</w>", 4);
        t->byte_end_id[b] = word_id(t, text, (size_t)n + 4);
    }
}

int clip_bpe_open(struct clip_bpe **ret, const char *dir, struct steer_error *err)
{
    struct clip_bpe *t = calloc(1, sizeof *t);
    if (!t) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    char path[1600];
    json_t *config = NULL, *map = NULL, *added = NULL;
    snprintf(path, sizeof path, "%s/vocab.json", dir);
    int code = vocab_read(t, path, err);
    snprintf(path, sizeof path, "%s/merges.txt", dir);
    if (!code) code = merges_read(t, path, err);
    snprintf(path, sizeof path, "%s/tokenizer_config.json", dir);
    if (!code && access(path, F_OK) == 0) code = json_file_load(&config, path, err);
    snprintf(path, sizeof path, "%s/special_tokens_map.json", dir);
    if (!code && access(path, F_OK) == 0) code = json_file_load(&map, path, err);
    snprintf(path, sizeof path, "%s/added_tokens.json", dir);
    if (!code && access(path, F_OK) == 0) code = json_file_load(&added, path, err);
    if (!code) code = specials_read(t, config, map, added, dir, err);
    if (!code) {
        /* transformers writes 1e30 where no length was set. */
        const json_t *length = json_object_get(config, "model_max_length");
        double most = json_number_value(length);
        if (json_is_number(length) && most >= 2 && most <= CLIP_BPE_TOKENS_MAX)
            t->length = (int)most;
        byte_ids(t);
    }
    json_decref(config);
    json_decref(map);
    json_decref(added);
    if (code) {
        clip_bpe_close(t);
        return code;
    }
    *ret = t;
    return 0;
}

void clip_bpe_close(struct clip_bpe *t)
{
    if (!t) return;
    for (size_t i = 0; t->words && i < t->words_room; i++)
        free(t->words[i].text);
    for (int i = 0; i < t->specials_count; i++)
        free(t->specials[i].text);
    free(t->words);
    free(t->merges);
    free(t);
}

int clip_bpe_length(const struct clip_bpe *t)
{
    return t->length;
}

int clip_bpe_vocab(const struct clip_bpe *t)
{
    return t->vocab;
}

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

static int is_space(int32_t c)
{
    return (c >= 9 && c <= 13) || c == ' ' || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
           c == 0x205f || c == 0x3000;
}

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

static size_t char_at(const uint8_t *text, size_t size, int32_t *c)
{
    utf8proc_ssize_t n = utf8proc_iterate(text, (utf8proc_ssize_t)size, c);
    if (n > 0) return (size_t)n;
    *c = 0xfffd;
    return 1;
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

/* The alternatives of the splitting expression in order: a contraction, letters, one number, other
 * signs. The signs swallow an apostrophe that is not first. */
static int text_split(const struct clip_bpe *t, const uint8_t *text, size_t size,
                      struct output *out)
{
    size_t i = 0;
    while (i < size && out->count <= out->most) {
        int32_t c;
        size_t n = char_at(text + i, size - i, &c), end = i + n;
        enum kind kind = kind_of(c);
        size_t short_form = c == '\'' ? contraction(text + i, size - i) : 0;
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

/* ---- normalizing ---- */

/* NFC, then every letter lower by itself (so a final sigma stays one, and U+0130 becomes two). */
static uint8_t *normalize(const uint8_t *text, size_t size, size_t *ret_size)
{
    utf8proc_uint8_t *nfc = NULL;
    utf8proc_ssize_t n =
        utf8proc_map(text, (utf8proc_ssize_t)size, &nfc, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    if (n < 0) return NULL;
    uint8_t *out =
        malloc(3 * (size_t)n +
               4); /* a lower letter is at most one and a half times as long; U+0130 twice */
    size_t at = 0;
    for (utf8proc_ssize_t i = 0; out && i < n;) {
        int32_t c;
        i += (utf8proc_ssize_t)char_at(nfc + i, (size_t)(n - i), &c);
        if (c == 0x130) {
            at += (size_t)utf8proc_encode_char('i', out + at);
            c = 0x307;
        } else {
            c = utf8proc_tolower(c);
        }
        at += (size_t)utf8proc_encode_char(c, out + at);
    }
    free(nfc);
    *ret_size = at;
    return out;
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
    uint8_t *lower = normalize(text, size, &n);
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

int clip_bpe_encode(const struct clip_bpe *t, const char *text, size_t size, int32_t *ids,
                    int length, size_t *ret_cut, struct steer_error *err)
{
    const uint8_t *bytes = (const uint8_t *)text;
    if (length < 2 || length > CLIP_BPE_TOKENS_MAX)
        return steer_fail(err, STEER_INTERNAL, "%d tokens wanted", length);
    struct output out = {ids + 1, 0, length - 2};
    *ret_cut = 0;
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
                *ret_cut = start ? start : 1;
                break;
            }
        }
        i += n;
        start = i;
    }
    int used = out.count < out.most ? out.count : out.most;
    ids[0] = t->bos;
    ids[1 + used] = t->eos;
    for (int k = used + 2; k < length; k++)
        ids[k] = t->pad;
    return 0;
}
