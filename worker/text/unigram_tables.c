// SPDX-License-Identifier: Apache-2.0
#include "unigram_tables.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../file.h"
#include "../json.h"
#include "chars.h"
#include "tokenizer_files.h"

#define PIECE_BYTES_MAX 512
#define TEXTS_BYTES_MAX ((size_t)64 << 20)
#define PATH_BYTES      1600

/* ---- pieces ---- */

static const char *piece_text(const struct unigram *t, const struct piece *p)
{
    return t->texts + p->at;
}

struct piece_range piece_range_all(const struct unigram *t)
{
    return (struct piece_range){0, t->count};
}

/* The first of r whose byte at depth is at least `least`. One that has ended comes first. */
static size_t range_bound(const struct unigram *t, struct piece_range r, size_t depth, int least)
{
    while (r.first < r.end) {
        size_t middle = r.first + (r.end - r.first) / 2;
        const struct piece *p = t->pieces + middle;
        int byte = p->bytes > depth ? (uint8_t)piece_text(t, p)[depth] : -1;
        if (byte < least)
            r.first = middle + 1;
        else
            r.end = middle;
    }
    return r.first;
}

struct piece_range piece_range_narrow(const struct unigram *t, struct piece_range r, size_t depth,
                                      uint8_t byte)
{
    size_t first = range_bound(t, r, depth, byte);
    return (struct piece_range){
        first, range_bound(t, (struct piece_range){first, r.end}, depth, byte + 1)};
}

const struct piece *piece_find(const struct unigram *t, const char *text, size_t bytes)
{
    struct piece_range r = piece_range_all(t);
    for (size_t n = 0; n < bytes && r.first < r.end; n++)
        r = piece_range_narrow(t, r, n, (uint8_t)text[n]);
    const struct piece *p = t->pieces + r.first;
    return r.first < r.end && p->bytes == bytes ? p : NULL;
}

/* The next piece; ids count up. */
static int piece_add(struct unigram *t, const char *text, size_t bytes, double score, int special,
                     const char *path, struct steer_error *err)
{
    int32_t c;
    for (size_t i = 0, n; i < bytes; i += n) {
        n = char_at((const uint8_t *)text + i, bytes - i, &c);
        if (c == 0xfffd && n == 1)
            return steer_fail(err, STEER_BAD_MODEL, "%s: piece %d is not UTF-8", path, t->next_id);
    }
    if (bytes > PIECE_BYTES_MAX || bytes > TEXTS_BYTES_MAX - t->texts_size ||
        t->next_id >= SPIECE_PIECES_MAX)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: piece %d has %zu bytes: expected at most %d pieces, of at most %d "
                          "bytes each and %zu in all",
                          path, t->next_id, bytes, SPIECE_PIECES_MAX, PIECE_BYTES_MAX,
                          TEXTS_BYTES_MAX);
    if (t->count == t->room) {
        size_t room = t->room ? 2 * t->room : 1024;
        struct piece *all = realloc(t->pieces, room * sizeof *all);
        if (!all) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
        t->pieces = all;
        t->room = room;
    }
    if (!t->texts || bytes > t->texts_room - t->texts_size) {
        size_t room = 2 * t->texts_room + PIECE_BYTES_MAX;
        char *all = realloc(t->texts, room);
        if (!all) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
        t->texts = all;
        t->texts_room = room;
    }
    memcpy(t->texts + t->texts_size, text, bytes);
    t->pieces[t->count++] =
        (struct piece){(uint32_t)t->texts_size, (uint32_t)bytes, score, t->next_id++, special};
    t->texts_size += bytes;
    return 0;
}

/* By bytes, and of equal ones the last first. */
static int piece_order(const void *a, const void *b, void *data)
{
    const struct unigram *t = data;
    const struct piece *x = a, *y = b;
    size_t n = x->bytes < y->bytes ? x->bytes : y->bytes;
    int order = memcmp(piece_text(t, x), piece_text(t, y), n);
    if (order) return order;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1;
    return x->id > y->id ? -1 : 1;
}

/* When all are there: sorts them, keeps the last of each text, and works out what an unknown
 * character costs. */
static int pieces_seal(struct unigram *t, const char *path, struct steer_error *err)
{
    if (t->count <= SPIECE_UNK)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: %zu pieces: expected more than %d, which is <unk>", path, t->count,
                          SPIECE_UNK);
    t->unk_score = t->pieces[0].score;
    for (size_t i = 1; i < t->count; i++)
        if (t->pieces[i].score < t->unk_score) t->unk_score = t->pieces[i].score;
    t->unk_score -= 10;
    qsort_r(t->pieces, t->count, sizeof *t->pieces, piece_order, t);
    size_t kept = 1;
    for (size_t i = 1; i < t->count; i++) {
        const struct piece *p = t->pieces + i, *last = t->pieces + kept - 1;
        if (p->bytes != last->bytes || memcmp(piece_text(t, p), piece_text(t, last), p->bytes) != 0)
            t->pieces[kept++] = *p;
    }
    t->count = kept;
    t->vocab = t->next_id;
    return 0;
}

/* ---- spiece.model ---- */

/* T5Tokenizer puts <extra_id_99> to <extra_id_0> behind the pieces of the file. */
static int extra_pieces_add(struct unigram *t, int extra_ids, const char *path,
                            struct steer_error *err)
{
    int code = 0;
    for (int i = extra_ids - 1; i >= 0 && !code; i--) {
        char text[32];
        int n = snprintf(text, sizeof text, "<extra_id_%d>", i);
        code = piece_add(t, text, (size_t)n, 0, 0, path, err);
    }
    return code;
}

static int spiece_read(struct unigram *t, const char *dir, int extra_ids, struct steer_error *err)
{
    char path[PATH_BYTES], *data = NULL;
    struct spiece s = {0};
    size_t size = 0;
    snprintf(path, sizeof path, "%s/spiece.model", dir);
    int code = file_read(&data, &size, path, SPIECE_BYTES_MAX, err);
    if (code == STEER_NOT_FOUND)
        return steer_fail(err, STEER_BAD_MODEL, "%s: neither tokenizer.json nor spiece.model", dir);
    if (!code) code = spiece_parse(&s, data, size, path, err);
    for (size_t i = 0; i < s.count && !code; i++) {
        const struct spiece_piece *p = s.pieces + i;
        int special = p->type == SPIECE_CONTROL || p->type == SPIECE_USER_DEFINED;
        code = piece_add(t, p->text, p->bytes, (double)p->score, special, path, err);
    }
    if (!code) code = extra_pieces_add(t, extra_ids, path, err);
    if (!code && s.charsmap)
        code = charsmap_open(&t->charsmap, s.charsmap, s.charsmap_size, path, err);
    if (!code) code = pieces_seal(t, path, err);
    spiece_free(&s);
    free(data);
    return code;
}

/* ---- tokenizer.json ---- */

static int base64_digit(char c)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = c ? strchr(digits, c) : NULL;
    return at ? (int)(at - digits) : -1;
}

/* Groups of four digits make three bytes; the last is filled up with "=". In place. */
static int base64_decode(char *text, size_t size, size_t *ret_size)
{
    size_t out = 0;
    if (size % 4) return -1;
    for (size_t i = 0; i < size; i += 4) {
        int bytes = i + 4 < size || text[i + 3] != '=' ? 3 : text[i + 2] != '=' ? 2 : 1;
        uint32_t group = 0;
        for (int k = 0; k < 4; k++) {
            int digit = k > bytes ? 0 : base64_digit(text[i + (size_t)k]);
            if (digit < 0) return -1;
            group = group << 6 | (uint32_t)digit;
        }
        for (int k = 0; k < bytes; k++)
            text[out++] = (char)(group >> (16 - 8 * k));
    }
    *ret_size = out;
    return 0;
}

/* The Precompiled normalizer, alone or the first of a Sequence; T5Tokenizer heeds no other. */
static int normalizer_read(struct unigram *t, const json_t *whole, const char *path,
                           struct steer_error *err)
{
    const json_t *normalizer = json_object_get(whole, "normalizer"),
                 *list = json_object_get(normalizer, "normalizers");
    const char *encoded = NULL;
    for (size_t i = 0; i < (json_is_array(list) ? json_array_size(list) : 1) && !encoded; i++) {
        const json_t *one = json_is_array(list) ? json_array_get(list, i) : normalizer;
        const char *type = json_string_value(json_object_get(one, "type"));
        if (type && strcmp(type, "Precompiled") == 0)
            encoded = json_string_value(json_object_get(one, "precompiled_charsmap"));
    }
    if (!encoded || !*encoded) return 0;
    size_t size = strlen(encoded);
    char *bytes = strdup(encoded);
    int code = 0;
    if (!bytes)
        code = steer_fail(err, STEER_NO_MEMORY, "out of memory");
    else if (base64_decode(bytes, size, &size))
        code = steer_fail(err, STEER_BAD_MODEL, "%s: \"precompiled_charsmap\" is not base64", path);
    else
        code = charsmap_open(&t->charsmap, bytes, size, path, err);
    free(bytes);
    return code;
}

/* What would make other tokens than T5Tokenizer does with the same pieces. */
static int whole_check(const json_t *whole, const char *path, struct steer_error *err)
{
    static const char *const types[] = {"Unigram", NULL}, *const directions[] = {"Right", NULL};
    const json_t *model = json_object_get(whole, "model");
    const char *type = json_string_value(json_object_get(model, "type"));
    int unused, bytes, unk, code;
    if (!type)
        return steer_fail(err, STEER_BAD_MODEL, "%s: \"model\" has no \"type\": expected Unigram",
                          path);
    if ((code = json_choice(&unused, model, "type", 0, types, path, err)) ||
        (code = json_whole(&unk, model, "unk_id", -1, 0, SPIECE_PIECES_MAX, path, err)) ||
        (code = json_flag(&bytes, model, "byte_fallback", 0, path, err)) ||
        (code = json_choice(&unused, json_object_get(whole, "truncation"), "direction", 0,
                            directions, path, err)) ||
        (code = json_choice(&unused, json_object_get(whole, "padding"), "direction", 0, directions,
                            path, err)))
        return code;
    if (bytes)
        return steer_fail(err, STEER_UNSUPPORTED,
                          "%s: \"byte_fallback\" is true: T5's tokenizer has false", path);
    if (unk != SPIECE_UNK)
        return steer_fail(err, STEER_UNSUPPORTED, "%s: \"unk_id\" is %d: T5's tokenizer has %d",
                          path, unk, SPIECE_UNK);
    return 0;
}

/* Its pre-tokenizer, its post-processor and other normalizers are not read: T5Tokenizer has its
 * own. */
static int whole_read(struct unigram *t, const json_t *whole, const char *dir,
                      struct steer_error *err)
{
    char path[PATH_BYTES], shown[JSON_SHOWN_BYTES];
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    const json_t *vocab = json_object_get(json_object_get(whole, "model"), "vocab");
    int code = whole_check(whole, path, err);
    for (size_t i = 0; i < json_array_size(vocab) && !code; i++) {
        const json_t *entry = json_array_get(vocab, i), *text = json_array_get(entry, 0),
                     *score = json_array_get(entry, 1);
        if (!json_is_string(text) || !json_is_number(score))
            code =
                steer_fail(err, STEER_BAD_MODEL, "%s: piece %zu is %s: expected a text and a score",
                           path, i, json_shown(shown, entry));
        else
            code = piece_add(t, json_string_value(text), json_string_length(text),
                             json_number_value(score), 0, path, err);
    }
    if (!code) code = normalizer_read(t, whole, path, err);
    return code ? code : pieces_seal(t, path, err);
}

/* ---- tokens that are seen in the text ---- */

/* Of a piece, or of a token that was added to them; -1: of none. */
static int32_t token_id(const struct unigram *t, const char *text)
{
    for (int i = 0; i < t->added_count; i++)
        if (strcmp(t->added[i].name, text) == 0) return t->added[i].id;
    const struct piece *p = piece_find(t, text, strlen(text));
    return p ? p->id : -1;
}

/* Of a token given as a text, or as an object; NULL: it is neither. */
static const char *token_text(const json_t *value)
{
    return json_string_value(json_is_object(value) ? json_object_get(value, "content") : value);
}

/* What is looked for: the text itself, or what the normalizer makes of it. */
static int added_text(struct unigram *t, struct added_token *a, const char *dir,
                      struct steer_error *err)
{
    size_t n = strlen(a->name);
    struct normalized out = {0};
    if (a->normalized) {
        int code = charsmap_normalize(t->charsmap, a->name, n, &out, err);
        if (code) return code;
    }
    a->bytes = a->normalized ? out.size : n;
    a->text = strndup(a->normalized ? out.text : a->name, a->bytes);
    normalized_free(&out);
    if (!a->text) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    if (a->bytes) return 0;
    return steer_fail(err, STEER_UNSUPPORTED,
                      "%s: the normalizer leaves nothing of the added token \"%.80s\"", dir,
                      a->name);
}

/* A token given as a text, or as an object. One that no piece is gets the next id: what the folder
 * says of ids is only their order. */
static int added_add(struct unigram *t, const json_t *value, int normalized, const char *dir,
                     struct steer_error *err)
{
    const char *text = token_text(value);
    char shown[JSON_SHOWN_BYTES];
    if (!text)
        return steer_fail(err, STEER_BAD_MODEL, "%s: an added token is %s: expected a text", dir,
                          json_shown(shown, value));
    if (!*text) return 0;
    for (int i = 0; i < t->added_count; i++)
        if (strcmp(t->added[i].name, text) == 0) return 0;
    struct added_token a = {.normalized = normalized};
    int code, single;
    if ((code = json_flag(&single, value, "single_word", 0, dir, err)) ||
        (code = json_flag(&a.normalized, value, "normalized", normalized, dir, err)) ||
        (code = json_flag(&a.lstrip, value, "lstrip", 0, dir, err)) ||
        (code = json_flag(&a.rstrip, value, "rstrip", 0, dir, err)))
        return code;
    if (single)
        return steer_fail(err, STEER_UNSUPPORTED,
                          "%s: added token \"%.80s\" is a \"single_word\": expected false", dir,
                          text);
    if (t->added_count == UNIGRAM_ADDED_MAX || strlen(text) > PIECE_BYTES_MAX)
        return steer_fail(err, STEER_BAD_MODEL, "%s: over %d added tokens, or one of over %d bytes",
                          dir, UNIGRAM_ADDED_MAX, PIECE_BYTES_MAX);
    a.id = token_id(t, text);
    if (a.id < 0) a.id = t->next_id++;
    if (a.id >= t->vocab) t->vocab = a.id + 1;
    if (!(a.name = strdup(text))) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    t->added[t->added_count] = a;
    return added_text(t, t->added + t->added_count++, dir, err);
}

/* The flag of an object that is no special token by its place: normalized unless it says
 * "special". */
static int is_plain(const json_t *value)
{
    return json_is_object(value) && !json_is_true(json_object_get(value, "special"));
}

/* An added token on its way into the order of ids. */
struct listed {
    const json_t *value;
    long long id;
    int normalized;
};

static int by_id(const void *a, const void *b)
{
    const struct listed *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

static const char *const named[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                    "pad_token", "cls_token", "mask_token"};
enum { NAMED = sizeof named / sizeof *named };

/* The map wins over the config; NULL: neither has it. */
static const json_t *named_value(const struct tokenizer_files *f, const char *key)
{
    const json_t *value = json_object_get(f->map, key);
    if (!value || json_is_null(value)) value = json_object_get(f->config, key);
    return json_is_null(value) ? NULL : value;
}

static int is_text(const json_t *value, const char *text)
{
    const char *given = token_text(value);
    return given && strcmp(given, text) == 0;
}

/* The config's list of other special tokens, under its name of today or of before. */
static const json_t *extra_value(const json_t *config)
{
    const json_t *extra = json_object_get(config, "extra_special_tokens"),
                 *before = json_object_get(config, "additional_special_tokens");
    return before && !json_array_size(extra) && !json_object_size(extra) ? before : extra;
}

/* Whether the map or the config calls that text special. */
static int is_special(const struct tokenizer_files *f, const char *text)
{
    const json_t *extra = extra_value(f->config);
    for (int i = 0; i < NAMED; i++)
        if (is_text(named_value(f, named[i]), text)) return 1;
    for (size_t i = 0; i < json_array_size(extra); i++)
        if (is_text(json_array_get(extra, i), text)) return 1;
    return 0;
}

/* As transformers 5 reads them: an added_tokens_decoder in tokenizer_config.json is all there is;
 * without one, added_tokens.json and tokenizer.json's list together. */
static int listed_read(struct unigram *t, const struct tokenizer_files *f, const char *dir,
                       struct steer_error *err)
{
    json_t *decoder = json_object_get(f->config, "added_tokens_decoder"),
           *list = json_object_get(f->whole, "added_tokens"), *entry;
    struct listed *all = NULL;
    json_t *texts = json_array(); /* of added_tokens.json, whose tokens are keys */
    size_t count = 0, i,
           most = json_object_size(decoder) + json_object_size(f->added) + json_array_size(list);
    const char *key;
    int code = 0;
    if (most > 2 * UNIGRAM_ADDED_MAX)
        code = steer_fail(err, STEER_BAD_MODEL, "%s: %zu added tokens: expected at most %d", dir,
                          most, 2 * UNIGRAM_ADDED_MAX);
    else if (!texts || !(all = malloc((most + 1) * sizeof *all)))
        code = steer_fail(err, STEER_NO_MEMORY, "out of memory");
    if (!code && json_is_object(decoder)) {
        json_object_foreach(decoder, key, entry) all[count++] =
            (struct listed){entry, atoll(key), is_plain(entry)};
    } else if (!code) {
        json_object_foreach(f->added, key, entry)
        {
            json_t *text = json_string(key);
            if (!json_is_integer(entry) || json_array_append_new(texts, text))
                code = steer_fail(err, STEER_BAD_MODEL,
                                  "%s/added_tokens.json: \"%.80s\": expected an id", dir, key);
            else
                all[count++] =
                    (struct listed){text, json_integer_value(entry), !is_special(f, key)};
        }
        json_array_foreach(list, i, entry) all[count++] = (struct listed){
            entry, json_integer_value(json_object_get(entry, "id")), is_plain(entry)};
    }
    if (!code) qsort(all, count, sizeof *all, by_id);
    for (i = 0; i < count && !code; i++)
        code = added_add(t, all[i].value, all[i].normalized, dir, err);
    free(all);
    json_decref(texts);
    return code;
}

/* The tokens that have names: eos, unk and pad always; a name of its own ends with "_token". */
static int named_read(struct unigram *t, const struct tokenizer_files *f, const char *dir,
                      struct steer_error *err)
{
    static const char *const fallbacks[NAMED] = {[1] = "</s>", [2] = "<unk>", [4] = "<pad>"};
    int32_t *const ids[NAMED] = {[1] = &t->eos, [4] = &t->pad};
    const char *key;
    json_t *own;
    int code = 0;
    for (int i = 0; i < NAMED && !code; i++) {
        const json_t *value = named_value(f, named[i]);
        json_t *fallback = fallbacks[i] ? json_string(fallbacks[i]) : NULL;
        if (!value) value = fallback;
        if (value && !(code = added_add(t, value, 0, dir, err)) && ids[i])
            *ids[i] = token_id(t, token_text(value));
        json_decref(fallback);
    }
    json_object_foreach((json_t *)(uintptr_t)f->config, key, own)
    {
        size_t n = strlen(key);
        if (!code && n > 6 && strcmp(key + n - 6, "_token") == 0 && token_text(own))
            code = added_add(t, own, 0, dir, err);
    }
    if (!code && (t->eos < 0 || t->pad < 0))
        code = steer_fail(err, STEER_BAD_MODEL, "%s: \"eos_token\" or \"pad_token\" is empty", dir);
    return code;
}

/* A list of tokens, or an object whose values they are. */
static int extra_list_read(struct unigram *t, const json_t *list, const char *dir,
                           struct steer_error *err)
{
    json_t *all = (json_t *)(uintptr_t)list, *entry;
    const char *name;
    size_t i;
    int code = 0;
    json_array_foreach(all, i, entry) if (!code) code =
        added_add(t, entry, is_plain(entry), dir, err);
    json_object_foreach(all, name, entry) if (!code) code = added_add(t, entry, 0, dir, err);
    return code;
}

/* The other special tokens: those of the config. Without any they are T5Tokenizer's own
 * <extra_id_0> and so on, behind what the map or the special pieces of spiece.model add. */
static int extra_read(struct unigram *t, const struct tokenizer_files *f, int extra_ids,
                      const char *dir, struct steer_error *err)
{
    const json_t *extra = extra_value(f->config),
                 *mapped = json_object_get(f->map, "extra_special_tokens");
    int code = extra_list_read(t, extra, dir, err);
    if (!code) code = extra_list_read(t, mapped, dir, err);
    /* Tokens with names of their own are none of these. */
    if ((extra && !json_is_object(extra)) || (mapped && !json_is_object(mapped))) return code;
    if (f->whole && !code)
        code = extra_list_read(t, json_object_get(f->map, "additional_special_tokens"), dir, err);
    for (size_t i = 0; i < t->count && !code; i++) {
        const struct piece *p = t->pieces + i;
        if (!p->special) continue;
        json_t *text = json_stringn(piece_text(t, p), p->bytes);
        code = added_add(t, text, 0, dir, err);
        json_decref(text);
    }
    for (int i = 0; i < extra_ids && !code; i++) {
        json_t *text = json_sprintf("<extra_id_%d>", i);
        code = added_add(t, text, 0, dir, err);
        json_decref(text);
    }
    return code;
}

/* ---- the folder ---- */

int unigram_open(struct unigram **ret, const char *dir, struct steer_error *err)
{
    struct unigram *t = calloc(1, sizeof *t);
    struct tokenizer_files f = {0};
    char path[PATH_BYTES];
    int code, extra_ids;
    if (!t) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    snprintf(path, sizeof path, "%s/tokenizer_config.json", dir);
    if ((code = tokenizer_files_load(&f, dir, err)) ||
        (code = tokenizer_config_read(&t->length, f.config, UNIGRAM_TOKENS_MAX, dir, err)) ||
        (code = json_whole(&extra_ids, f.config, "extra_ids", 100, 0, 512, path, err)) ||
        (code = f.whole ? whole_read(t, f.whole, dir, err) : spiece_read(t, dir, extra_ids, err)) ||
        (code = listed_read(t, &f, dir, err)) || (code = named_read(t, &f, dir, err)) ||
        (code = extra_read(t, &f, extra_ids, dir, err)))
        goto done;
    *ret = t;
done:
    tokenizer_files_free(&f);
    if (code) unigram_close(t);
    return code;
}

void unigram_close(struct unigram *t)
{
    if (!t) return;
    for (int i = 0; i < t->added_count; i++) {
        free(t->added[i].name);
        free(t->added[i].text);
    }
    charsmap_close(t->charsmap);
    free(t->pieces);
    free(t->texts);
    free(t);
}

int unigram_length(const struct unigram *t)
{
    return t->length;
}

int unigram_vocab(const struct unigram *t)
{
    return t->vocab;
}
