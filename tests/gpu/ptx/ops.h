/* ops.h - how a spelling becomes a function: tables of whole spellings, and decoders of opcodes
 * whose modifiers combine. */
#ifndef GPU_OPS_H
#define GPU_OPS_H
#include <stdint.h>
#include <string.h>

#include "machine.h"

typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;
typedef float f32;
typedef double f64;
__extension__ typedef unsigned __int128 u128;
__extension__ typedef __int128 s128;

#define FOR_LANES for (int i = 0; i < LANES; i++)
#define ACTIVE    FOR_LANES if (mask >> i & 1)
/* The halves of 32 bits. */
#define LO(v) ((u16)(v))
#define HI(v) ((u16)((v) >> 16))

struct op {
    const char *name;
    const char *sig; /* h w d p: operands of 16, 32, 64 bits and predicates; the first is a result
                        unless W */
    run_fn *run;
    uint8_t class, mode;
};
extern const struct op arithmetic_ops[], predicate_ops[], warp_ops[];
extern const size_t n_arithmetic_ops, n_predicate_ops, n_warp_ops;
run_fn run_shfl;

enum type { U8, S8, U16, S16, U32, S32, U64, S64, TYPE_F16, TYPE_BF16, F32, F64, TYPES };
int type_take(const char **s); /* `.type` from the front of *s; -1 */
uint8_t type_bytes(enum type t);

/* Binds operands to a signature, into n->at. NULL, or what is not modelled. */
const char *bind(struct parser *p, struct insn *n, struct operand *o, size_t count,
                 const char *sig);
const char *decode_setp(struct parser *p, struct insn *n, struct operand *o, size_t count);
const char *decode_cvt(struct insn *n, struct operand *o, size_t count);
const char *decode_pack(struct parser *p, struct insn *n, struct operand *o,
                        size_t count); /* mov between a register and its parts */

static inline void set_predicate(struct warp *w, const struct insn *n, int i, uint32_t value,
                                 uint32_t mask)
{
    u32 *p = place(w, n, i);
    *p = (*p & ~mask) | (value & mask);
}
#endif
