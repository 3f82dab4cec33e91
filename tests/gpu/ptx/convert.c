/* convert.c - cvt between types, mov between registers of different widths. */
#include <math.h>
#include <string.h>

#include "half.h"
#include "ops.h"

/* --- moves between widths --- */

/* mov.b32 {a, b}, c and mov.b32 c, {a, b}, and of 64 bits; bytes: of a part, count: of parts. */
static void run_pack(struct warp *w, const struct insn *n, uint32_t mask)
{
    ACTIVE
    {
        u64 v = 0;
        for (int j = 0; j < n->count; j++)
            memcpy((uint8_t *)&v + j * n->bytes, (uint8_t *)place(w, n, 1 + j) + i * n->bytes,
                   n->bytes);
        size_t whole = (size_t)n->bytes * n->count;
        memcpy((uint8_t *)place(w, n, 0) + (size_t)i * whole, &v, whole);
    }
}

static void run_unpack(struct warp *w, const struct insn *n, uint32_t mask)
{
    size_t whole = (size_t)n->bytes * n->count;
    ACTIVE
    {
        u64 v = 0;
        memcpy(&v, (uint8_t *)place(w, n, n->count) + (size_t)i * whole, whole);
        for (int j = 0; j < n->count; j++)
            memcpy((uint8_t *)place(w, n, j) + i * n->bytes, (uint8_t *)&v + j * n->bytes,
                   n->bytes);
    }
}

/* --- conversions --- */

static const struct {
    const char *name;
    uint8_t bytes;
} types[] = {{"u8", 1},  {"s8", 1},  {"u16", 2}, {"s16", 2},  {"u32", 4}, {"s32", 4},
             {"u64", 8}, {"s64", 8}, {"f16", 2}, {"bf16", 2}, {"f32", 4}, {"f64", 8}};
enum { ROUND_NONE, RN, RZ, RM, RP, RNI, RZI, RMI, RPI };

static long double value_of(u64 bits, enum type t)
{
    f32 f;
    f64 d;
    switch (t) {
    case U8: return (uint8_t)bits;
    case S8: return (int8_t)bits;
    case U16: return (u16)bits;
    case S16: return (s16)bits;
    case U32: return (u32)bits;
    case S32: return (s32)bits;
    case U64: return bits;
    case S64: return (s64)bits;
    case TYPE_F16: return f16_to((u16)bits);
    case TYPE_BF16: return bf16_to((u16)bits);
    case F32: memcpy(&f, &bits, 4); return f;
    case F64: memcpy(&d, &bits, 8); return d;
    default: return 0;
    }
}

/* To f32 by the mode: the nearest, or its neighbour where the nearest is on the wrong side. */
static f32 f32_rounded(long double v, int mode)
{
    f32 f = (f32)v;
    if (mode == RZ && fabsl((long double)f) > fabsl(v)) return nextafterf(f, 0);
    if (mode == RM && f > v) return nextafterf(f, -INFINITY);
    if (mode == RP && f < v) return nextafterf(f, INFINITY);
    return f;
}

static u64 bits_of_value(long double v, enum type t, int mode)
{
    if (mode == RNI) v = rintl(v);
    if (mode == RZI) v = truncl(v);
    if (mode == RMI) v = floorl(v);
    if (mode == RPI) v = ceill(v);
    f32 f;
    f64 d;
    u64 bits = 0;
    switch (t) {
    case TYPE_F16: return f16_of(odd_float((f64)v));
    case TYPE_BF16: return bf16_of(odd_float((f64)v));
    case F32:
        f = f32_rounded(v, mode);
        memcpy(&bits, &f, 4);
        return bits;
    case F64:
        d = (f64)v;
        memcpy(&bits, &d, 8);
        return bits;
    default: break;
    }
    /* To integers: what is beyond them becomes the nearest, no number becomes 0. */
    int width = types[t].bytes * 8, is_signed = t % 2;
    if (v != v) return 0;
    long double most = ldexpl(1, is_signed ? width - 1 : width), least = is_signed ? -most : 0;
    if (v < least) v = least;
    if (v > most - 1) v = most - 1;
    return is_signed ? (u64)(s64)v : (u64)v;
}

static void run_cvt(struct warp *w, const struct insn *n, uint32_t mask)
{
    uint8_t *d = place(w, n, 0), *a = place(w, n, 1);
    int is_float = n->from >= TYPE_F16 || n->to >= TYPE_F16;
    ACTIVE
    {
        u64 x = 0, y;
        memcpy(&x, a + i * n->reg_bytes, n->reg_bytes);
        if (is_float || n->saturates) {
            y = bits_of_value(value_of(x, n->from), n->to, n->mode);
        } else {
            /* Sign or zero extended from the source's type, cut to the result's, extended to its
             * register. */
            y = n->from == U64 ? x : (u64)(s64)value_of(x, n->from);
            if (n->to % 2)
                y = (u64)(s64)value_of(y, n->to);
            else if (types[n->to].bytes < 8)
                y &= ((u64)1 << types[n->to].bytes * 8) - 1;
        }
        memcpy(d + i * n->bytes, &y, n->bytes);
    }
}

int type_take(const char **s)
{
    for (int i = 0; i < TYPES; i++)
        if (spelling_take(s, types[i].name)) return i;
    return -1;
}
uint8_t type_bytes(enum type t)
{
    return types[t].bytes;
}

const char *decode_cvt(struct insn *n, struct operand *o, size_t count)
{
    static const char *const modes[] = {"", "rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi"};
    const char *s = n->name + strlen("cvt");
    for (uint8_t i = 1; i < sizeof modes / sizeof *modes && !n->mode; i++)
        if (spelling_take(&s, modes[i])) n->mode = i;
    int saturates = spelling_take(&s, "sat"), to = type_take(&s), from = type_take(&s);
    if (*s || to < 0 || from < 0) return "a type or modifier that is not modelled";
    if (saturates && to >= TYPE_F16) return "saturation that is not modelled";
    if ((to == TYPE_F16 || to == TYPE_BF16 || to == F64) && n->mode > RN && n->mode < RNI)
        return "a rounding that is not modelled";
    n->saturates = (uint8_t)saturates; /* to integers from floating point is always so */
    n->to = (uint8_t)to;
    n->from = (uint8_t)from;
    n->run = run_cvt;
    if (count != 2 || o[0].kind != OPERAND_REG || o[1].kind != OPERAND_REG ||
        o[0].bytes < types[to].bytes || o[1].bytes < types[from].bytes || o[0].bytes == 1 ||
        o[1].bytes == 1)
        return "an operand of another kind or width than modelled";
    if (o[0].bytes > types[to].bytes && to >= TYPE_F16)
        return "an operand of another kind or width than modelled";
    n->bytes = o[0].bytes;
    n->reg_bytes = o[1].bytes;
    n->at[0] = o[0].at;
    n->at[1] = o[1].at;
    return NULL;
}

/* mov between a register and its parts. */
const char *decode_pack(struct parser *p, struct insn *n, struct operand *o, size_t count)
{
    int packs = o[0].group != o[1].group;
    const struct operand *whole = packs ? &o[0] : &o[count - 1];
    n->count = (uint8_t)(count - 1);
    n->bytes = (uint8_t)(whole->bytes / n->count);
    if (whole->kind != OPERAND_REG || (n->bytes != 2 && n->bytes != 4) ||
        n->bytes * n->count != whole->bytes)
        return "parts that do not make the whole";
    for (size_t i = 0; i < count; i++) {
        if (o[i].sink && !packs)
            n->at[i] = parser_scratch(p, n->bytes);
        else if (o[i].kind == OPERAND_VALUE && packs && i)
            n->at[i] = parser_constant(p, o[i].value, n->bytes);
        else if (o[i].kind == OPERAND_REG && !o[i].sink &&
                 (&o[i] == whole || o[i].bytes == n->bytes))
            n->at[i] = o[i].at;
        else
            return "parts that are not registers of one width";
    }
    n->run = packs ? run_pack : run_unpack;
    return NULL;
}
