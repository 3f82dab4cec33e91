// SPDX-License-Identifier: Apache-2.0
#include "clip_tables.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "../file.h"
#include "../json.h"
#include "chars.h"
#include "tokenizer_files.h"

#define VOCAB_MAX        (1 << 20)
#define MERGES_BYTES_MAX ((size_t)64 << 20)
#define TOKEN_BYTES_MAX  1024
#define PATH_BYTES       1600

/* ---- characters ---- */

uint8_t *clip_normalize(const uint8_t *text, size_t size, size_t *ret_size)
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

const struct merge *merge_find(const struct clip_bpe *t, int32_t left, int32_t right)
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

static int vocab_fill(struct clip_bpe *t, const json_t *words, const char *path,
                      struct steer_error *err)
{
    size_t count = json_object_size(words);
    int code = 0;
    if (!count || count > VOCAB_MAX)
        return steer_fail(err, STEER_BAD_MODEL, "%s: %zu tokens: expected 1 to %d", path, count,
                          VOCAB_MAX);
    t->next_id = (int32_t)count;
    t->words_room = room_for(count);
    t->words = calloc(t->words_room, sizeof *t->words);
    const char *key;
    json_t *value;
    if (!t->words) code = steer_fail(err, STEER_NO_MEMORY, "out of memory");
    json_object_foreach((json_t *)(uintptr_t)words, key, value)
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
    return code;
}

static int merges_room(struct clip_bpe *t, size_t count, struct steer_error *err)
{
    t->merges_room = room_for(count);
    t->merges = malloc(t->merges_room * sizeof *t->merges);
    if (!t->merges) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < t->merges_room; i++)
        t->merges[i].pair = UINT64_MAX;
    return 0;
}

/* The pair of that rank; number says where it stands. */
static int merge_add(struct clip_bpe *t, const char *left, size_t left_bytes, const char *right,
                     size_t right_bytes, int32_t rank, const char *path, int number,
                     struct steer_error *err)
{
    char joined[2 * TOKEN_BYTES_MAX];
    if (!left_bytes || !right_bytes || left_bytes > TOKEN_BYTES_MAX ||
        right_bytes > TOKEN_BYTES_MAX)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s, merge %d: expected two tokens with a space between", path, number);
    memcpy(joined, left, left_bytes);
    memcpy(joined + left_bytes, right, right_bytes);
    int32_t a = word_id(t, left, left_bytes), b = word_id(t, right, right_bytes),
            c = word_id(t, joined, left_bytes + right_bytes);
    if (a < 0 || b < 0 || c < 0)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s, merge %d: \"%.*s %.*s\" is of a token that the vocabulary does not "
                          "have",
                          path, number, left_bytes > 40 ? 40 : (int)left_bytes, left,
                          right_bytes > 40 ? 40 : (int)right_bytes, right);
    struct merge *m = merge_slot(t, a, b);
    if (m->pair == UINT64_MAX)
        *m = (struct merge){(uint64_t)(uint32_t)a << 32 | (uint32_t)b, rank, c};
    return 0;
}

/* "left right" */
static int merge_line(struct clip_bpe *t, const char *line, size_t n, int32_t rank,
                      const char *path, int number, struct steer_error *err)
{
    const char *space = memchr(line, ' ', n);
    size_t left = space ? (size_t)(space - line) : 0, right = space ? n - left - 1 : 0;
    if (right && memchr(space + 1, ' ', right)) left = 0;
    return merge_add(t, line, left, space ? space + 1 : line, right, rank, path, number, err);
}

/* merges.txt: a pair a line; only lines of "#version" are none, any other # is a token. */
static int merges_read(struct clip_bpe *t, const char *path, struct steer_error *err)
{
    char *data = NULL;
    size_t size = 0, lines = 1;
    int code = file_read(&data, &size, path, MERGES_BYTES_MAX, err);
    if (code == STEER_NOT_FOUND) return steer_fail(err, STEER_BAD_MODEL, "%s does not exist", path);
    if (code) return code;
    for (size_t i = 0; i < size; i++)
        lines += data[i] == '\n';
    code = merges_room(t, lines, err);
    int32_t rank = 0;
    int number = 0;
    for (char *line = data, *end; line < data + size && !code; line = end + 1) {
        end = memchr(line, '\n', (size_t)(data + size - line));
        if (!end) end = data + size;
        size_t n = (size_t)(end - line);
        if (n && line[n - 1] == '\r') n--;
        number++;
        if (!n || (n >= 8 && memcmp(line, "#version", 8) == 0)) continue;
        code = merge_line(t, line, n, rank++, path, number, err);
    }
    free(data);
    return code;
}

/* tokenizer.json: model.merges has pairs, or texts with a space between. */
static int merges_fill(struct clip_bpe *t, const json_t *list, const char *path,
                       struct steer_error *err)
{
    size_t count = json_array_size(list);
    if (!json_is_array(list) || count > VOCAB_MAX)
        return steer_fail(err, STEER_BAD_MODEL, "%s: \"merges\": expected a list of pairs", path);
    int code = merges_room(t, count, err);
    for (size_t i = 0; i < count && !code; i++) {
        const json_t *pair = json_array_get(list, i), *left = json_array_get(pair, 0),
                     *right = json_array_get(pair, 1);
        if (json_is_string(pair))
            code = merge_line(t, json_string_value(pair), json_string_length(pair), (int32_t)i,
                              path, (int)i, err);
        else
            code = merge_add(t, json_string_value(left), json_string_length(left),
                             json_string_value(right), json_string_length(right), (int32_t)i, path,
                             (int)i, err);
    }
    return code;
}

/* A key of tokenizer.json's model that must be what CLIP has, or one of two ways to leave it out.
 */
static int model_key_check(const json_t *model, const char *key, const char *expected,
                           const char *also, const char *path, struct steer_error *err)
{
    const json_t *value = json_object_get(model, key);
    const char *text = json_string_value(value);
    char shown[JSON_SHOWN_BYTES];
    if (text ? strcmp(text, expected) == 0 || (also && strcmp(text, also) == 0)
             : also && (!value || json_is_null(value)))
        return 0;
    return steer_fail(err, STEER_UNSUPPORTED, "%s: the model's \"%s\" is %s: expected \"%s\"", path,
                      key, json_shown(shown, value), expected);
}

/* The file that tokenizers of transformers 5 are saved as. Its normalizer, pre-tokenizer and
 * post-processor are not read: CLIPTokenizer has its own. */
static int whole_read(struct clip_bpe *t, const json_t *whole, const char *path,
                      struct steer_error *err)
{
    const json_t *model = json_object_get(whole, "model");
    int code;
    if ((code = model_key_check(model, "type", "BPE", "BPE", path, err)) ||
        (code = model_key_check(model, "end_of_word_suffix", "</w>", NULL, path, err)) ||
        (code = model_key_check(model, "continuing_subword_prefix", "", "", path, err)) ||
        (code = vocab_fill(t, json_object_get(model, "vocab"), path, err)))
        return code;
    return merges_fill(t, json_object_get(model, "merges"), path, err);
}

/* ---- tokens that are seen in the text ---- */

/* Of a word of the vocabulary, or of a token that was added to it. */
static int32_t token_id(const struct clip_bpe *t, const char *text)
{
    for (int i = 0; i < t->specials_count; i++)
        if (strcmp(t->specials[i].name, text) == 0) return t->specials[i].id;
    return word_id(t, text, strlen(text));
}

static int has_space(const char *text, size_t n)
{
    int32_t c;
    for (size_t i = 0; i < n;) {
        i += char_at((const uint8_t *)text + i, n - i, &c);
        if (is_space(c)) return 1;
    }
    return 0;
}

/* A token given as a text, or as an object. One that the vocabulary does not have gets the next id:
 * what the folder says of ids is only their order. lstrip and rstrip swallow white space, which no
 * token of ours holds anyway. */
static int special_add(struct clip_bpe *t, const json_t *value, int normalized, const char *dir,
                       struct steer_error *err)
{
    const json_t *content = json_is_object(value) ? json_object_get(value, "content") : value;
    const char *text = json_string_value(content);
    char shown[JSON_SHOWN_BYTES];
    if (!text)
        return steer_fail(err, STEER_BAD_MODEL, "%s: an added token is %s: expected a text", dir,
                          json_shown(shown, value));
    size_t n = strlen(text);
    if (!n) return 0;
    for (int i = 0; i < t->specials_count; i++)
        if (strcmp(t->specials[i].name, text) == 0) return 0;
    int code, single;
    if ((code = json_flag(&single, value, "single_word", 0, dir, err)) ||
        (code = json_flag(&normalized, value, "normalized", normalized, dir, err)))
        return code;
    if (single || has_space(text, n))
        return steer_fail(err, STEER_UNSUPPORTED, "%s: added token \"%.80s\" %s", dir, text,
                          single ? "is a \"single_word\": expected false" : "has white space");
    if (t->specials_count == SPECIALS_MAX)
        return steer_fail(err, STEER_BAD_MODEL, "%s: over %d added tokens", dir, SPECIALS_MAX);
    struct special *s = t->specials + t->specials_count;
    *s = (struct special){.name = strdup(text), .bytes = n, .normalized = normalized};
    if (normalized) {
        uint8_t *lower = clip_normalize((const uint8_t *)text, n, &s->bytes);
        s->text = lower ? strndup((const char *)lower, s->bytes) : NULL;
        free(lower);
    } else {
        s->text = strdup(text);
    }
    t->specials_count++;
    if (!s->name || !s->text) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    s->id = word_id(t, text, n);
    if (s->id < 0) s->id = t->next_id++;
    if (s->id >= t->vocab) t->vocab = s->id + 1;
    return 0;
}

/* A list of added tokens on its way into the order of their ids. */
struct added {
    const json_t *value;
    long long id;
    int normalized;
};

static int by_id(const void *a, const void *b)
{
    const struct added *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

static int added_add(struct clip_bpe *t, struct added *list, size_t count, const char *dir,
                     struct steer_error *err)
{
    int code = 0;
    qsort(list, count, sizeof *list, by_id);
    for (size_t i = 0; i < count && !code; i++)
        code = special_add(t, list[i].value, list[i].normalized, dir, err);
    return code;
}

/* As transformers 5 reads them: an added_tokens_decoder in tokenizer_config.json is all there is;
 * without one, tokenizer.json's list and added_tokens.json together. */
static int added_read(struct clip_bpe *t, const struct tokenizer_files *f, const char *dir,
                      struct steer_error *err)
{
    json_t *decoder = json_object_get(f->config, "added_tokens_decoder"),
           *list = json_object_get(f->whole, "added_tokens"), *entry;
    struct added found[2 * SPECIALS_MAX];
    size_t count = 0, i;
    const char *key;
    json_t *names = json_object(); /* "content" for each token of added_tokens.json */
    int code = 0;
    if (json_object_size(decoder) + json_array_size(list) + json_object_size(f->added) >
        2 * SPECIALS_MAX)
        code = steer_fail(err, STEER_BAD_MODEL, "%s: over %d added tokens", dir, SPECIALS_MAX);
    if (!names) code = steer_fail(err, STEER_NO_MEMORY, "out of memory");
    if (!code && json_is_object(decoder)) {
        json_object_foreach(decoder, key, entry) found[count++] =
            (struct added){entry, atoll(key), 1};
    } else if (!code) {
        json_array_foreach(list, i, entry) found[count++] =
            (struct added){entry, json_integer_value(json_object_get(entry, "id")),
                           !json_is_true(json_object_get(entry, "special"))};
        json_object_foreach(f->added, key, entry)
        {
            static const char *const named[] = {"bos_token", "eos_token", "pad_token", "unk_token"};
            int special = 0;
            for (int k = 0; k < 4; k++) {
                const json_t *value = json_object_get(f->map, named[k]);
                if (!value) value = json_object_get(f->config, named[k]);
                if (json_is_object(value)) value = json_object_get(value, "content");
                special |= json_is_string(value) && strcmp(json_string_value(value), key) == 0;
            }
            if (!json_is_integer(entry) || json_object_set_new(names, key, json_string(key)))
                code = steer_fail(err, STEER_BAD_MODEL,
                                  "%s/added_tokens.json: \"%.80s\": expected an id", dir, key);
            else
                found[count++] = (struct added){json_object_get(names, key),
                                                json_integer_value(entry), !special};
        }
    }
    if (!code) code = added_add(t, found, count, dir, err);
    json_decref(names);
    return code;
}

/* bos, eos, unk and pad. special_tokens_map.json wins, but is only read where there is no
 * added_tokens_decoder. */
static int named_read(struct clip_bpe *t, const struct tokenizer_files *f, const char *dir,
                      struct steer_error *err)
{
    static const struct {
        const char *key, *fallback;
    } names[] = {{"bos_token", "<|startoftext|>"},
                 {"eos_token", "<|endoftext|>"},
                 {"unk_token", "<|endoftext|>"},
                 {"pad_token", "<|endoftext|>"}};
    int32_t *ids[] = {&t->bos, &t->eos, &t->unk, &t->pad};
    int code = 0;
    for (int i = 0; i < 4 && !code; i++) {
        const json_t *value = json_object_get(f->map, names[i].key);
        if (!value || json_is_null(value)) value = json_object_get(f->config, names[i].key);
        json_t *fallback = json_string(names[i].fallback);
        if (!value || json_is_null(value)) value = fallback;
        const char *text =
            json_string_value(json_is_object(value) ? json_object_get(value, "content") : value);
        /* An unknown-token that nobody knows is never written. */
        if (i == 2 && text && token_id(t, text) < 0)
            *ids[i] = -1;
        else if (!(code = special_add(t, value, 0, dir, err)))
            *ids[i] = token_id(t, text);
        json_decref(fallback);
    }
    return code;
}

static int more_read(struct clip_bpe *t, const json_t *from, const char *dir,
                     struct steer_error *err)
{
    static const char *const keys[] = {"additional_special_tokens", "extra_special_tokens"};
    int code = 0;
    for (int k = 0; k < 2; k++) {
        json_t *list = json_object_get(from, keys[k]), *entry;
        const char *name;
        size_t i;
        json_array_foreach(list, i, entry) if (!code) code = special_add(t, entry, 0, dir, err);
        json_object_foreach(list, name, entry) if (!code) code = special_add(t, entry, 0, dir, err);
    }
    return code;
}

/* ---- the folder ---- */

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

/* tokenizer.json wins over vocab.json and merges.txt, as in transformers. */
static int words_read(struct clip_bpe *t, const struct tokenizer_files *f, const char *dir,
                      struct steer_error *err)
{
    char path[PATH_BYTES];
    json_t *words = NULL;
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    if (f->whole) return whole_read(t, f->whole, path, err);
    snprintf(path, sizeof path, "%s/vocab.json", dir);
    int code = json_file_load(&words, path, err);
    if (!code) code = vocab_fill(t, words, path, err);
    json_decref(words);
    snprintf(path, sizeof path, "%s/merges.txt", dir);
    return code ? code : merges_read(t, path, err);
}

int clip_bpe_open(struct clip_bpe **ret, const char *dir, struct steer_error *err)
{
    struct clip_bpe *t = calloc(1, sizeof *t);
    struct tokenizer_files f = {0};
    int code;
    if (!t) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    if ((code = tokenizer_files_load(&f, dir, err)) ||
        (code = tokenizer_config_read(&t->length, f.config, CLIP_BPE_TOKENS_MAX, dir, err)) ||
        (code = words_read(t, &f, dir, err)) || (code = added_read(t, &f, dir, err)) ||
        (code = named_read(t, &f, dir, err)) || (code = more_read(t, f.map, dir, err)) ||
        (code = more_read(t, f.config, dir, err)))
        goto done;
    byte_ids(t);
    *ret = t;
done:
    tokenizer_files_free(&f);
    if (code) clip_bpe_close(t);
    return code;
}

void clip_bpe_close(struct clip_bpe *t)
{
    if (!t) return;
    for (size_t i = 0; t->words && i < t->words_room; i++)
        free(t->words[i].text);
    for (int i = 0; i < t->specials_count; i++) {
        free(t->specials[i].name);
        free(t->specials[i].text);
    }
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
