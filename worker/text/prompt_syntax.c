// SPDX-License-Identifier: Apache-2.0
#include "prompt_syntax.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "limits.h"
#include "text.h"

/* One pass over the bytes, no recursion: every sign with a meaning is ASCII. Brackets that are open
 * lie on two stacks, round and square, as neither closes the other. Every array has a place for
 * each byte of the text, which nothing can exceed: a piece takes at least one. */

static const double ROUND_FACTOR = 1.1, SQUARE_FACTOR = 1 / 1.1;

struct bracket {
    size_t at;    /* byte of the text */
    size_t piece; /* the first that it weighs */
    int bar;      /* there is a | in it */
};

struct stack {
    struct bracket *items;
    size_t count;
};

struct parser {
    const char *text;
    size_t at, size, used; /* used: bytes of out->text */
    struct prompt *out;
    struct stack rounds, squares;
    int growing; /* the last piece takes what comes */
};

static void put(struct parser *p, size_t at)
{
    struct prompt *out = p->out;
    if (!p->growing)
        out->pieces[out->count++] = (struct prompt_piece){.begin = p->used, .weight = 1};
    out->text[p->used] = p->text[at];
    out->source[p->used++] = at;
    out->pieces[out->count - 1].end = p->used;
    p->growing = 1;
}

static void push(struct parser *p, struct stack *s)
{
    s->items[s->count++] = (struct bracket){.at = p->at, .piece = p->out->count};
    p->growing = 0;
}

/* In this order and in double, so that products are those of the web UI. */
static void weigh(struct parser *p, size_t first, double factor)
{
    for (size_t i = first; i < p->out->count; i++)
        p->out->pieces[i].weight *= factor;
    p->growing = 0;
}

static void pop(struct parser *p, struct stack *s, double factor)
{
    weigh(p, s->items[--s->count].piece, factor);
}

/* ---- words with a meaning ---- */

/* Python's \w */
static int is_word(const char *text, size_t bytes)
{
    utf8proc_int32_t c;
    if (utf8proc_iterate((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)bytes, &c) <= 0)
        return 0;
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO: return 1;
    default: return c == '_';
    }
}

/* 1 when word stands here by itself. */
static int word_here(const struct parser *p, const char *word)
{
    size_t n = strlen(word), before = p->at, behind = p->at + n;
    if (strncmp(p->text + p->at, word, n) != 0 || is_word(p->text + behind, p->size - behind))
        return 0;
    while (before && ((unsigned char)p->text[--before] & 0xc0) == 0x80)
        ;
    return !p->at || !is_word(p->text + before, p->at - before);
}

static int is_white(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* White space on both sides of BREAK belongs to it. */
static void put_break(struct parser *p)
{
    struct prompt *out = p->out;
    if (p->growing) {
        struct prompt_piece *last = out->pieces + out->count - 1;
        while (last->end > last->begin && is_white(out->text[last->end - 1]))
            p->used = --last->end;
        if (last->end == last->begin) out->count--;
    }
    out->pieces[out->count++] =
        (struct prompt_piece){.begin = p->used, .end = p->used, .weight = 1, .is_break = 1};
    p->growing = 0;
    p->at += strlen("BREAK");
    while (is_white(p->text[p->at]))
        p->at++;
}

static int foreign(size_t at, const char *text, size_t bytes, const char *what,
                   struct steer_error *err)
{
    size_t shown = text_cut(text, bytes < 40 ? bytes : 40);
    return steer_fail(err, STEER_BAD_TEXT,
                      "\"%.*s\" at byte %zu: %s is not supported: expected ( ) [ ] with weights "
                      "and BREAK, and a backslash before a bracket that is meant as a sign",
                      (int)shown, text, at, what);
}

/* <name:..> */
static int network_here(const struct parser *p)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_";
    const char *name = p->text + p->at + 1, *colon = name + strspn(name, letters);
    return colon > name && *colon == ':' && colon[1] != '>' && strchr(colon, '>');
}

/* A square bracket that closes here: is it [..|..] or [..:number]? */
static int square_check(const struct parser *p, struct steer_error *err)
{
    const struct bracket *open = p->squares.items + p->squares.count - 1;
    const char *begin = p->text + open->at, *end = p->text + p->at;
    size_t bytes = (size_t)(end - begin) + 1;
    if (open->bar) return foreign(open->at, begin, bytes, "alternation", err);
    while (is_white(end[-1]))
        end--;
    const char *number = end;
    while ((number[-1] >= '0' && number[-1] <= '9') || number[-1] == '.')
        number--;
    if (number == end) return 0;
    while (is_white(number[-1]))
        number--;
    return number[-1] == ':' ? foreign(open->at, begin, bytes, "prompt editing", err) : 0;
}

/* ---- weights ---- */

/* ":1.3)" with white space as it may stand: its bytes, or 0 when there is none here. */
static size_t weight_here(const char *text, const char **ret_number, size_t *ret_bytes)
{
    const char *at = text + 1;
    while (is_white(*at))
        at++;
    const char *number = at, *digits = at += *at == '+' || *at == '-';
    while ((*at >= '0' && *at <= '9') || *at == '.')
        at++;
    *ret_number = number;
    *ret_bytes = (size_t)(at - number);
    if (at == digits) return 0;
    while (is_white(*at))
        at++;
    return *at == ')' ? (size_t)(at + 1 - text) : 0;
}

/* Closes a round bracket with its own weight; *ret_bytes 0: the colon is text. */
static int weight_read(struct parser *p, size_t *ret_bytes, struct steer_error *err)
{
    const char *number;
    char *end;
    size_t bytes;
    *ret_bytes = p->rounds.count ? weight_here(p->text + p->at, &number, &bytes) : 0;
    if (!*ret_bytes) return 0;
    double weight = strtod(number, &end);
    if (end != number + bytes)
        return steer_fail(err, STEER_BAD_VALUE, "weight \"%.*s\" at byte %zu: expected a number",
                          (int)(bytes < 40 ? bytes : 40), number, (size_t)(number - p->text));
    pop(p, &p->rounds, weight);
    return 0;
}

/* ---- the whole ---- */

/* The sign at p->at. */
static int sign_read(struct parser *p, struct steer_error *err)
{
    char c = p->text[p->at];
    const struct bracket *round = p->rounds.items + p->rounds.count,
                         *square = p->squares.items + p->squares.count;
    int inner_square = p->squares.count && (!p->rounds.count || square[-1].at > round[-1].at);
    size_t bytes = 1;
    int code = 0;
    if (c == '\\') {
        char next = p->text[p->at + 1];
        bytes += next && strchr("()[]\\", next);
        if (bytes == 2) put(p, p->at + 1); /* alone it is nothing */
    } else if (c == '(') {
        push(p, &p->rounds);
    } else if (c == '[') {
        push(p, &p->squares);
    } else if (c == ')' && p->rounds.count) {
        pop(p, &p->rounds, ROUND_FACTOR);
    } else if (c == ']' && p->squares.count) {
        if (inner_square && (code = square_check(p, err))) return code;
        pop(p, &p->squares, SQUARE_FACTOR);
    } else if (c == 'B' && word_here(p, "BREAK")) {
        put_break(p);
        return 0;
    } else if (c == 'A' && word_here(p, "AND")) {
        return foreign(p->at, "AND", 3, "a composition of prompts", err);
    } else if (c == '<' && network_here(p)) {
        return foreign(p->at, p->text + p->at, p->size - p->at, "an extra network", err);
    } else {
        size_t weight = 0;
        if (c == ':' && (code = weight_read(p, &weight, err))) return code;
        if (c == '|' && inner_square) p->squares.items[p->squares.count - 1].bar = 1;
        if (weight)
            bytes = weight;
        else
            put(p, p->at);
    }
    p->at += bytes;
    return 0;
}

static int weights_check(const struct prompt *out, struct steer_error *err)
{
    for (size_t i = 0; i < out->count; i++) {
        const struct prompt_piece *piece = out->pieces + i;
        if (piece->is_break || fabs(piece->weight) <= STEER_PROMPT_WEIGHT_MAX) continue;
        const char *text = out->text + piece->begin;
        size_t bytes = piece->end - piece->begin;
        return steer_fail(err, STEER_BAD_VALUE, "weight %g of \"%.*s\": expected %d to %d",
                          piece->weight, (int)text_cut(text, bytes < 40 ? bytes : 40), text,
                          -STEER_PROMPT_WEIGHT_MAX, STEER_PROMPT_WEIGHT_MAX);
    }
    return 0;
}

static void pieces_merge(struct prompt *out)
{
    size_t count = 0;
    for (size_t i = 0; i < out->count; i++) {
        struct prompt_piece *last = out->pieces + count - 1, *piece = out->pieces + i;
        if (count && !last->is_break && !piece->is_break && last->weight == piece->weight)
            last->end = piece->end;
        else
            out->pieces[count++] = *piece;
    }
    out->count = count;
}

static int a1111_parse(struct parser *p, struct steer_error *err)
{
    int code = 0;
    while (p->at < p->size && !code)
        code = sign_read(p, err);
    for (size_t i = 0; i < p->rounds.count; i++)
        weigh(p, p->rounds.items[i].piece, ROUND_FACTOR);
    for (size_t i = 0; i < p->squares.count; i++)
        weigh(p, p->squares.items[i].piece, SQUARE_FACTOR);
    return code;
}

int prompt_parse(struct prompt *ret, const char *text, enum prompt_syntax syntax,
                 struct steer_error *err)
{
    size_t size = strlen(text);
    struct prompt out = {malloc(size + 1), malloc((size + 1) * sizeof *out.source),
                         malloc((size + 1) * sizeof *out.pieces), 0};
    struct bracket *brackets = malloc(2 * (size + 1) * sizeof *brackets);
    struct parser p = {.text = text,
                       .size = size,
                       .out = &out,
                       .rounds = {brackets, 0},
                       .squares = {brackets ? brackets + size + 1 : NULL, 0}};
    int code = 0;
    if (!out.text || !out.source || !out.pieces || !brackets) {
        code = steer_fail(err, STEER_NO_MEMORY, "out of memory");
    } else {
        if (syntax == PROMPT_A1111) code = a1111_parse(&p, err);
        for (; !code && p.at < size; p.at++)
            put(&p, p.at);
        out.text[p.used] = 0;
        if (!code) code = weights_check(&out, err);
        if (!code) pieces_merge(&out);
    }
    free(brackets);
    if (code) {
        prompt_free(&out);
        return code;
    }
    *ret = out;
    return 0;
}

void prompt_free(struct prompt *p)
{
    free(p->text);
    free(p->source);
    free(p->pieces);
    *p = (struct prompt){0};
}
