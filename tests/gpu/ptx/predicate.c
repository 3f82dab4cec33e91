/* predicate.c - predicates: their logic, choices by them, comparisons that make them. */
#include <string.h>

#include "half.h"
#include "ops.h"

#define PREDICATE(name, value)                                                                     \
    static void run_##name(struct warp *w, const struct insn *n, uint32_t mask)                    \
    {                                                                                              \
        u32 x = predicate(w, n, 1), y = predicate(w, n, 2);                                        \
        (void)y;                                                                                   \
        set_predicate(w, n, 0, value, mask);                                                       \
    }
PREDICATE(and_pred, x &y)
PREDICATE(or_pred, x | y)
PREDICATE(xor_pred, x ^ y)
PREDICATE(not_pred, ~x)
PREDICATE(mov_pred, x)

#define SELECT(name, T)                                                                            \
    static void run_##name(struct warp *w, const struct insn *n, uint32_t mask)                    \
    {                                                                                              \
        T *d = place(w, n, 0);                                                                     \
        const T *a = place(w, n, 1), *b = place(w, n, 2);                                          \
        u32 p = predicate(w, n, 3);                                                                \
        ACTIVE d[i] = p >> i & 1 ? a[i] : b[i];                                                    \
    }
SELECT(selp_16, u16)
SELECT(selp_32, u32)
SELECT(selp_64, u64)

enum {
    CMP_EQ,
    CMP_NE,
    CMP_LT,
    CMP_LE,
    CMP_GT,
    CMP_GE,
    CMP_EQU,
    CMP_NEU,
    CMP_LTU,
    CMP_LEU,
    CMP_GTU,
    CMP_GEU,
    CMP_NUM,
    CMP_NAN
};
enum { JOIN_NONE, JOIN_AND, JOIN_OR, JOIN_XOR };

#define COMPARE(op)                                                                                \
    FOR_LANES r |= (u32)(a[i] op b[i]) << i;                                                       \
    break
#define UNORDERED(op)                                                                              \
    FOR_LANES r |= (u32)(a[i] op b[i] || a[i] != a[i] || b[i] != b[i]) << i;                       \
    break
/* Integers have no unordered comparisons: decode gives them none. */
#define SETP(T, LOAD)                                                                              \
    static void run_setp_##T(struct warp *w, const struct insn *n, uint32_t mask)                  \
    {                                                                                              \
        LOAD;                                                                                      \
        u32 r = 0;                                                                                 \
        switch (n->mode) {                                                                         \
        case CMP_EQ: COMPARE(==);                                                                  \
        case CMP_NE: FOR_LANES r |= (u32)(a[i] < b[i] || a[i] > b[i]) << i; break;                 \
        case CMP_LT: COMPARE(<);                                                                   \
        case CMP_LE: COMPARE(<=);                                                                  \
        case CMP_GT: COMPARE(>);                                                                   \
        case CMP_GE: COMPARE(>=);                                                                  \
        case CMP_EQU: UNORDERED(==);                                                               \
        case CMP_NEU: COMPARE(!=);                                                                 \
        case CMP_LTU: UNORDERED(<);                                                                \
        case CMP_LEU: UNORDERED(<=);                                                               \
        case CMP_GTU: UNORDERED(>);                                                                \
        case CMP_GEU: UNORDERED(>=);                                                               \
        case CMP_NUM: FOR_LANES r |= (u32)(a[i] == a[i] && b[i] == b[i]) << i; break;              \
        case CMP_NAN: FOR_LANES r |= (u32)(a[i] != a[i] || b[i] != b[i]) << i; break;              \
        }                                                                                          \
        u32 c = n->to == JOIN_NONE ? 0 : predicate(w, n, 4);                                       \
        u32 p = n->to == JOIN_AND   ? r & c                                                        \
                : n->to == JOIN_OR  ? r | c                                                        \
                : n->to == JOIN_XOR ? r ^ c                                                        \
                                    : r;                                                           \
        u32 q = n->to == JOIN_AND   ? ~r & c                                                       \
                : n->to == JOIN_OR  ? ~r | c                                                       \
                : n->to == JOIN_XOR ? ~r ^ c                                                       \
                                    : ~r;                                                          \
        set_predicate(w, n, 0, p, mask);                                                           \
        set_predicate(w, n, 1, q, mask);                                                           \
    }
#define PLAIN(T) const T *a = place(w, n, 2), *b = place(w, n, 3)
#define CONVERTED(to)                                                                              \
    const u16 *x = place(w, n, 2), *y = place(w, n, 3);                                            \
    f32 a[LANES], b[LANES];                                                                        \
    FOR_LANES a[i] = to(x[i]), b[i] = to(y[i])
SETP(u16, PLAIN(u16))
SETP(s16, PLAIN(s16))
SETP(u32, PLAIN(u32))
SETP(s32, PLAIN(s32))
SETP(u64, PLAIN(u64))
SETP(s64, PLAIN(s64))
SETP(f32, PLAIN(f32))
SETP(f64, PLAIN(f64))
SETP(f16, CONVERTED(f16_to))
SETP(bf16, CONVERTED(bf16_to))

const struct op predicate_ops[] = {
    {"and.pred", "ppp", run_and_pred, 0, 0}, {"or.pred", "ppp", run_or_pred, 0, 0},
    {"xor.pred", "ppp", run_xor_pred, 0, 0}, {"not.pred", "pp", run_not_pred, 0, 0},
    {"mov.pred", "pp", run_mov_pred, 0, 0},  {"selp.b16", "hhhp", run_selp_16, 0, 0},
    {"selp.u16", "hhhp", run_selp_16, 0, 0}, {"selp.s16", "hhhp", run_selp_16, 0, 0},
    {"selp.b32", "wwwp", run_selp_32, 0, 0}, {"selp.u32", "wwwp", run_selp_32, 0, 0},
    {"selp.s32", "wwwp", run_selp_32, 0, 0}, {"selp.f32", "wwwp", run_selp_32, 0, 0},
    {"selp.b64", "dddp", run_selp_64, 0, 0}, {"selp.u64", "dddp", run_selp_64, 0, 0},
    {"selp.s64", "dddp", run_selp_64, 0, 0}, {"selp.f64", "dddp", run_selp_64, 0, 0}};
const size_t n_predicate_ops = sizeof predicate_ops / sizeof *predicate_ops;

const char *decode_setp(struct parser *p, struct insn *n, struct operand *o, size_t count)
{
    static const char *const compares[] = {"eq",  "ne",  "lt",  "le",  "gt",  "ge",
                                           "equ", "neu", "ltu", "leu", "gtu", "geu",
                                           "num", "nan", "lo",  "ls",  "hi",  "hs"};
    static run_fn *const runs[TYPES] = {
        [U16] = run_setp_u16,      [S16] = run_setp_s16,        [U32] = run_setp_u32,
        [S32] = run_setp_s32,      [U64] = run_setp_u64,        [S64] = run_setp_s64,
        [TYPE_F16] = run_setp_f16, [TYPE_BF16] = run_setp_bf16, [F32] = run_setp_f32,
        [F64] = run_setp_f64};
    const char *s = n->name + strlen("setp");
    int compare = -1, type;
    for (int i = 0; i < (int)(sizeof compares / sizeof *compares) && compare < 0; i++)
        if (spelling_take(&s, compares[i])) compare = i;
    if (compare < 0) return "a comparison that is not modelled";
    n->to = spelling_take(&s, "and")   ? JOIN_AND
            : spelling_take(&s, "or")  ? JOIN_OR
            : spelling_take(&s, "xor") ? JOIN_XOR
                                       : JOIN_NONE;
    if (spelling_take(&s, "b16"))
        type = U16;
    else if (spelling_take(&s, "b32"))
        type = U32;
    else if (spelling_take(&s, "b64"))
        type = U64;
    else
        type = type_take(&s);
    if (*s || type < 0 || !runs[type]) return "a type or modifier that is not modelled";
    if (compare >= CMP_EQU && compare <= CMP_NAN && type < TYPE_F16)
        return "an unordered comparison of integers";
    if (compare > CMP_NAN) compare = CMP_LT + compare - CMP_NAN - 1; /* lo, ls, hi, hs */
    n->mode = (uint8_t)compare;
    n->run = runs[type];
    /* p or p|q, then a, b, and c where joined. */
    struct operand all[5] = {o[0], {.sink = 1}};
    size_t first = count > 1 && o[1].group == 0 ? 2 : 1, rest = n->to == JOIN_NONE ? 2 : 3;
    if (first == 2) all[1] = o[1];
    if (count != first + rest) return "it has another number of operands here";
    memcpy(all + 2, o + first, rest * sizeof *o);
    char sig[6] = "pphhp";
    sig[2] = sig[3] = type_bytes((enum type)type) == 2   ? 'h'
                      : type_bytes((enum type)type) == 4 ? 'w'
                                                         : 'd';
    sig[2 + rest] = 0;
    return bind(p, n, all, 2 + rest, sig);
}
