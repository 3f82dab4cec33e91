/* machine.h - what the interpreter's parts share: decoded instructions and the state of a block.
 *
 * Every operand is a place in the warp's register file: 32 lanes of 2, 4 or 8 bytes, or 4 bytes of
 * which a bit is a lane's predicate. Immediates, addresses and special registers have places of
 * their own, filled at the start, so an instruction never asks what kind its operand is. Place 0 is
 * the predicate that always holds. */
#ifndef GPU_MACHINE_H
#define GPU_MACHINE_H
#include "ptx.h"

enum { LANES = 32, OPERANDS_MAX = 16 };

/* Generic addresses outside of global memory begin here, 32 bits of address each. */
#define WINDOW_SHARED ((uint64_t)1 << 56)
#define WINDOW_LOCAL  ((uint64_t)2 << 56)
#define WINDOW_PARAM  ((uint64_t)3 << 56)
/* Where extern __shared__ begins in shared addresses; a kernel's own variables begin at 0. */
#define SHARED_DYNAMIC 0x40000u

enum space { SPACE_GENERIC, SPACE_GLOBAL, SPACE_SHARED, SPACE_LOCAL, SPACE_PARAM };
enum control { CONTROL_NONE, CONTROL_BRANCH, CONTROL_EXIT, CONTROL_BARRIER };
enum class {
    CLASS_OTHER,
    CLASS_MMA,
    CLASS_LDMATRIX,
    CLASS_BARRIER,
    CLASS_GLOBAL,
    CLASS_SHARED,
    CLASS_LOCAL,
    CLASS_BRANCH,
    CLASS_CONVERSION,
    CLASS_SPECIAL
};

struct warp;
struct insn;
typedef void run_fn(struct warp *w, const struct insn *n, uint32_t mask);

struct insn {
    run_fn *run;                /* NULL for control */
    uint32_t at[OPERANDS_MAX];  /* places: results first */
    uint32_t guard, guard_flip; /* runs in lanes of (guard ^ flip) */
    uint32_t flip;              /* bit i: predicate operand i is negated */
    int64_t offset;             /* of an address */
    uint32_t target;            /* of a branch */
    uint8_t control, class, space;
    uint8_t bytes, is_signed, count; /* of one element; ld, st: elements a lane */
    uint8_t wide;                    /* the address register has 64 bits */
    uint8_t reg_bytes; /* of the registers that ld fills or st reads, of cvt's source */
    uint8_t mode;      /* the opcode's own: comparison, shuffle, rounding */
    uint8_t from, to;  /* types of cvt and atom; to of setp: how it joins */
    uint8_t saturates; /* cvt */
    uint32_t line;
    const char *name; /* its spelling */
};

struct constant {
    uint32_t at;
    uint8_t bytes;
    uint64_t value;
};

enum special {
    TID_X,
    TID_Y,
    TID_Z,
    NTID_X,
    NTID_Y,
    NTID_Z,
    CTAID_X,
    CTAID_Y,
    CTAID_Z,
    NCTAID_X,
    NCTAID_Y,
    NCTAID_Z,
    LANEID,
    WARPID,
    SPECIALS
};

struct kernel {
    struct ptx_kernel pub; /* first: pointers to it are cast */
    struct insn *code;
    size_t n_code;
    struct constant *constants;
    size_t n_constants;
    uint32_t special[SPECIALS]; /* places, 0 where unused */
    size_t file_bytes;
};

/* Two bytes of shared memory: who touched them last, in which interval between barriers, and after
 * how many
 * __syncwarp of its warp. */
struct cell {
    uint32_t write_epoch, read_epoch; /* 0: never */
    uint16_t writer, reader;          /* threads; reader may be READER_ALL or have READER_WARP */
    uint16_t write_sync, read_sync;
};
#define IN_FLIGHT   UINT32_MAX         /* write_epoch: cp.async is on its way */
#define READER_ALL  ((uint16_t)0xffff) /* threads of several warps */
#define READER_WARP ((uint16_t)0x8000) /* several threads of this one's warp */

struct copy {
    uint64_t from;
    uint32_t to, group;
    uint8_t lane, bytes, bytes_read;
};

struct block;
struct warp {
    struct block *block;
    uint8_t *file, *local;
    uint32_t pc[LANES];
    uint32_t live, all; /* lanes that have not ended; lanes that exist */
    int at_barrier;
    unsigned index;
    uint16_t sync; /* __syncwarp so far */
    const struct insn *now;
    struct copy *copies; /* issued, not landed */
    size_t n_copies, copies_size;
    uint32_t committed[LANES];
};

struct block {
    const struct kernel *k;
    const struct ptx_launch *launch;
    struct ptx_counts *counts;
    struct ptx_fault *fault;
    uint64_t *executed; /* per instruction */
    unsigned ctaid[3];
    uint32_t epoch;
    uint8_t *shared;
    struct cell *cells;
    uint32_t fixed_bytes, dynamic_bytes; /* of shared: the kernel's, the launch's; the latter's
                                            bytes and cells follow the former's */
    struct warp *warps;
    unsigned n_warps, n_threads;
};

static inline void *place(const struct warp *w, const struct insn *n, int i)
{
    return w->file + n->at[i];
}

static inline uint32_t predicate(const struct warp *w, const struct insn *n, int i)
{
    return *(const uint32_t *)place(w, n, i) ^ (n->flip >> i & 1 ? ~0u : 0);
}

/* The first fault of a launch is kept; the launch ends at it. */
void fault_set(struct warp *w, unsigned lane, enum ptx_fault_kind kind, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* Fills in *n for a spelling whose operands are of given register sizes; NULL, or what is not
 * modelled. See ops.c. */
struct operand {
    enum { OPERAND_REG, OPERAND_VALUE, OPERAND_LABEL } kind;
    uint8_t bytes;   /* of a register: 2, 4, 8; 1: predicate */
    uint8_t group;   /* its position in the list, vectors counting once */
    uint8_t address; /* in brackets */
    uint8_t negated, is_float, sink;
    uint32_t at;
    uint64_t value; /* of an immediate; of an address without register */
    int64_t offset;
};
struct parser;
uint32_t parser_constant(struct parser *p, uint64_t value, uint8_t bytes);
uint32_t parser_scratch(struct parser *p, uint8_t bytes);
/* Takes `.word` from the front of *s. */
int spelling_take(const char **s, const char *word);
const char *decode(struct parser *p, struct insn *n, struct operand *o, size_t count);
const char *decode_memory(struct parser *p, struct insn *n, struct operand *o,
                          size_t count); /* "" where it is not of memory */
#endif
