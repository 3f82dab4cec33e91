// SPDX-License-Identifier: Apache-2.0
#include "spiece.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- protobuf's wire format ---- */

enum wire_type { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

struct message {
    const uint8_t *at, *end;
};
struct field {
    uint64_t number;
    enum wire_type type;
    uint64_t value;      /* WIRE_VARINT, WIRE_32 */
    const uint8_t *data; /* WIRE_BYTES */
    size_t size;
};

static int varint_read(struct message *m, uint64_t *ret)
{
    *ret = 0;
    for (int shift = 0; shift < 64 && m->at < m->end; shift += 7) {
        uint8_t byte = *m->at++;
        *ret |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80)) return 0;
    }
    return -1;
}

/* 1: there was one; 0: the end; -1: no protobuf. Groups, long out of use, are none. */
static int field_next(struct message *m, struct field *ret)
{
    uint64_t key;
    if (m->at == m->end) return 0;
    if (varint_read(m, &key) || !(key >> 3)) return -1;
    *ret = (struct field){.number = key >> 3, .type = (enum wire_type)(key & 7)};
    size_t left = (size_t)(m->end - m->at);
    switch (ret->type) {
    case WIRE_VARINT: return varint_read(m, &ret->value) ? -1 : 1;
    case WIRE_BYTES:
        if (varint_read(m, &ret->value) || ret->value > (size_t)(m->end - m->at)) return -1;
        ret->data = m->at;
        ret->size = (size_t)ret->value;
        m->at += ret->size;
        return 1;
    case WIRE_64:
        if (left < 8) return -1;
        m->at += 8;
        return 1;
    case WIRE_32:
        if (left < 4) return -1;
        for (int i = 0; i < 4; i++)
            ret->value |= (uint64_t)m->at[i] << 8 * i;
        m->at += 4;
        return 1;
    }
    return -1;
}

static struct message message_of(const struct field *f)
{
    return (struct message){f->data, f->data + f->size};
}

static int is_field(const struct field *f, uint64_t number, enum wire_type type)
{
    return f->number == number && f->type == type;
}

/* ---- sentencepiece_model.proto ---- */

struct parse {
    struct spiece *s;
    size_t room;
    const char *file;
    struct steer_error *err;
};

static int not_a_model(const struct parse *p, const char *where)
{
    return steer_fail(p->err, STEER_BAD_MODEL, "%s: not a SentencePiece model: %s is damaged",
                      p->file, where);
}

static int piece_parse(struct parse *p, struct message m)
{
    struct spiece *s = p->s;
    struct spiece_piece piece = {.text = "", .type = SPIECE_NORMAL};
    struct field f;
    int more;
    while ((more = field_next(&m, &f)) > 0) {
        if (is_field(&f, 1, WIRE_BYTES)) {
            piece.text = (const char *)f.data;
            piece.bytes = f.size;
        } else if (is_field(&f, 2, WIRE_32)) {
            uint32_t bits = (uint32_t)f.value;
            memcpy(&piece.score, &bits, sizeof bits);
        } else if (is_field(&f, 3, WIRE_VARINT) && f.value >= SPIECE_NORMAL &&
                   f.value <= SPIECE_BYTE) {
            piece.type = (enum spiece_type)f.value;
        }
    }
    if (more < 0 || !isfinite(piece.score)) return not_a_model(p, "a piece");
    if (s->count == SPIECE_PIECES_MAX)
        return steer_fail(p->err, STEER_BAD_MODEL, "%s: over %d pieces", p->file,
                          SPIECE_PIECES_MAX);
    if (s->count == p->room) {
        p->room = p->room ? 2 * p->room : 1024;
        struct spiece_piece *all = realloc(s->pieces, p->room * sizeof *all);
        if (!all) return steer_fail(p->err, STEER_NO_MEMORY, "out of memory");
        s->pieces = all;
    }
    s->pieces[s->count++] = piece;
    return 0;
}

/* Fields of a message of settings that must have one value. */
struct fixed {
    uint64_t number;
    const char *name;
    uint64_t value;
};

static int fixed_check(const struct parse *p, const struct fixed *table, size_t count,
                       const struct field *f)
{
    for (size_t i = 0; i < count; i++)
        if (is_field(f, table[i].number, WIRE_VARINT) && f->value != table[i].value)
            return steer_fail(p->err, STEER_UNSUPPORTED,
                              "%s: \"%s\" is %lld: T5's tokenizer has %lld", p->file, table[i].name,
                              (long long)f->value, (long long)table[i].value);
    return 0;
}

static int trainer_parse(struct parse *p, struct message m)
{
    static const struct fixed table[] = {{3, "model_type", 1 /* UNIGRAM */},
                                         {24, "treat_whitespace_as_suffix", 0},
                                         {35, "byte_fallback", 0}};
    struct field f;
    int more, code = 0;
    while ((more = field_next(&m, &f)) > 0 && !code)
        code = fixed_check(p, table, sizeof table / sizeof *table, &f);
    return more < 0 ? not_a_model(p, "trainer_spec") : code;
}

static int normalizer_parse(struct parse *p, struct message m)
{
    static const struct fixed table[] = {{3, "add_dummy_prefix", 1},
                                         {4, "remove_extra_whitespaces", 1},
                                         {5, "escape_whitespaces", 1}};
    struct field f;
    int more, code = 0;
    while ((more = field_next(&m, &f)) > 0 && !code) {
        if (is_field(&f, 2, WIRE_BYTES)) {
            p->s->charsmap = f.size ? (const char *)f.data : NULL;
            p->s->charsmap_size = f.size;
        }
        code = fixed_check(p, table, sizeof table / sizeof *table, &f);
    }
    return more < 0 ? not_a_model(p, "normalizer_spec") : code;
}

int spiece_parse(struct spiece *ret, const char *data, size_t size, const char *file,
                 struct steer_error *err)
{
    struct spiece s = {0};
    struct parse p = {&s, 0, file, err};
    struct message m = {(const uint8_t *)data, (const uint8_t *)data + size};
    struct field f;
    int more, code = 0;
    while ((more = field_next(&m, &f)) > 0 && !code) {
        if (is_field(&f, 1, WIRE_BYTES))
            code = piece_parse(&p, message_of(&f));
        else if (is_field(&f, 2, WIRE_BYTES))
            code = trainer_parse(&p, message_of(&f));
        else if (is_field(&f, 3, WIRE_BYTES))
            code = normalizer_parse(&p, message_of(&f));
    }
    if (!code && (more < 0 || !s.count)) code = not_a_model(&p, s.count ? "its end" : "it");
    for (size_t i = 0; i < s.count && !code; i++)
        if ((s.pieces[i].type == SPIECE_UNKNOWN) != (i == SPIECE_UNK))
            code = steer_fail(err, STEER_UNSUPPORTED,
                              "%s: piece %zu is %sthe unknown one: T5's tokenizer has it at %d",
                              file, i, i == SPIECE_UNK ? "not " : "", SPIECE_UNK);
    if (code)
        spiece_free(&s);
    else
        *ret = s;
    return code;
}

void spiece_free(struct spiece *s)
{
    free(s->pieces);
    *s = (struct spiece){0};
}
