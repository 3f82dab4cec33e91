// SPDX-License-Identifier: Apache-2.0
#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "clip_bpe.h"
#include "unigram.h"

/* A kind of tokenizer: the classes that are it, and how it is used. */
struct kind {
    const char *classes[3];
    const char *const *files;
    int (*open)(void **ret, const char *dir, struct steer_error *err);
    void (*close)(void *own);
    int (*length)(const void *own);
    int (*encode)(const void *own, const char *text, size_t size, int32_t *ids, int length,
                  struct tokenized *ret, struct steer_error *err);
};

struct tokenizer {
    const struct kind *kind;
    void *own;
};

/* ---- CLIP ---- */

static int clip_open(void **ret, const char *dir, struct steer_error *err)
{
    struct clip_bpe *t;
    int code = clip_bpe_open(&t, dir, err);
    if (!code) *ret = t;
    return code;
}

static void clip_close(void *own)
{
    clip_bpe_close(own);
}

static int clip_length(const void *own)
{
    return clip_bpe_length(own);
}

static int clip_encode(const void *own, const char *text, size_t size, int32_t *ids, int length,
                       struct tokenized *ret, struct steer_error *err)
{
    return clip_bpe_encode(own, text, size, ids, length, &ret->used, &ret->cut, err);
}

static const char *const clip_files[] = {
    "tokenizer.json",          "vocab.json",        "merges.txt", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", NULL};

/* ---- T5 ---- */

static int t5_open(void **ret, const char *dir, struct steer_error *err)
{
    struct unigram *t;
    int code = unigram_open(&t, dir, err);
    if (!code) *ret = t;
    return code;
}

static void t5_close(void *own)
{
    unigram_close(own);
}

static int t5_length(const void *own)
{
    return unigram_length(own);
}

static int t5_encode(const void *own, const char *text, size_t size, int32_t *ids, int length,
                     struct tokenized *ret, struct steer_error *err)
{
    return unigram_encode(own, text, size, ids, length, &ret->used, &ret->cut, err);
}

static const char *const t5_files[] = {"tokenizer.json",        "spiece.model",
                                       "tokenizer_config.json", "special_tokens_map.json",
                                       "added_tokens.json",     NULL};

/* ---- all ---- */

static const struct kind kinds[] = {
    {{"CLIPTokenizer", "CLIPTokenizerFast", NULL},
     clip_files,
     clip_open,
     clip_close,
     clip_length,
     clip_encode},
    {{"T5Tokenizer", "T5TokenizerFast", NULL}, t5_files, t5_open, t5_close, t5_length, t5_encode}};

static const struct kind *kind_find(const char *class_name)
{
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        for (int i = 0; kinds[k].classes[i]; i++)
            if (strcmp(kinds[k].classes[i], class_name) == 0) return kinds + k;
    return NULL;
}

int tokenizer_open(struct tokenizer **ret, const char *class_name, const char *dir,
                   struct steer_error *err)
{
    const struct kind *kind = kind_find(class_name);
    if (!kind)
        return steer_fail(err, STEER_UNSUPPORTED,
                          "%s: class \"%s\": expected CLIPTokenizer or T5Tokenizer", dir,
                          class_name);
    struct tokenizer *t = calloc(1, sizeof *t);
    if (!t) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    t->kind = kind;
    int code = kind->open(&t->own, dir, err);
    if (code)
        free(t);
    else
        *ret = t;
    return code;
}

void tokenizer_close(struct tokenizer *t)
{
    if (!t) return;
    t->kind->close(t->own);
    free(t);
}

int tokenizer_length(const struct tokenizer *t)
{
    return t->kind->length(t->own);
}

const char *const *tokenizer_files(const struct tokenizer *t)
{
    return t->kind->files;
}

const struct clip_bpe *tokenizer_clip(const struct tokenizer *t)
{
    return t->kind->encode == clip_encode ? t->own : NULL;
}

const struct unigram *tokenizer_unigram(const struct tokenizer *t)
{
    return t->kind->encode == t5_encode ? t->own : NULL;
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t size, int32_t *ids,
                     int length, struct tokenized *ret, struct steer_error *err)
{
    return t->kind->encode(t->own, text, size, ids, length, ret, err);
}
