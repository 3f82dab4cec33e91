/* memory.c - ld, st, atom, red, cp.async and ldmatrix, and what is watched at them.
 *
 * 1. Between two barriers, a place of shared memory belongs to those who read it or to the one
 * thread that writes it; within a warp __syncwarp parts accesses too. A cell remembers enough of
 * the last accesses to tell.
 * 2. cp.async's bytes are read and written when the thread waits for their group, not before. Until
 * then their cells are in flight: nobody may touch them.
 * 3. A lane's access lies wholly in one allocation, at a multiple of its size. */
#include <stdlib.h>
#include <string.h>

#include "gmem.h"
#include "machine.h"

#define ACTIVE                                                                                     \
    for (unsigned i = 0; i < LANES; i++)                                                           \
        if (mask >> i & 1)

enum { READ, WRITE };
enum { CELL = 2 }; /* bytes */

static int race(struct warp *w, unsigned lane, const char *what, uint32_t address, unsigned other)
{
    fault_set(w, lane, PTX_UNSOUND,
              "race at shared address %u: %s thread %u without a barrier between", address, what,
              other);
    return -1;
}

static int cell_read(struct warp *w, unsigned lane, struct cell *c, uint32_t address)
{
    uint32_t epoch = w->block->epoch;
    uint16_t me = (uint16_t)(w->index * LANES + lane);
    if (c->write_epoch == IN_FLIGHT) {
        fault_set(w, lane, PTX_UNSOUND,
                  "it reads shared address %u while cp.async of thread %u is in flight", address,
                  c->writer);
        return -1;
    }
    if (!c->write_epoch) {
        fault_set(w, lane, PTX_UNSOUND, "it reads shared address %u, which nobody has written",
                  address);
        return -1;
    }
    if (c->write_epoch == epoch && c->writer != me &&
        (c->writer / LANES != w->index || c->write_sync == w->sync))
        return race(w, lane, "it reads what was written by", address, c->writer);
    int mine = c->reader != READER_ALL && (unsigned)(c->reader & ~READER_WARP) / LANES == w->index;
    if (c->read_epoch != epoch || (mine && c->read_sync != w->sync))
        c->reader = me;
    else if (!mine)
        c->reader = READER_ALL;
    else if (c->reader != me)
        c->reader = me | READER_WARP;
    c->read_epoch = epoch;
    c->read_sync = w->sync;
    return 0;
}

/* For a write now, or for one of cp.async that may come at any time from now. */
static int cell_free(struct warp *w, unsigned lane, const struct cell *c, uint32_t address)
{
    uint32_t epoch = w->block->epoch;
    uint16_t me = (uint16_t)(w->index * LANES + lane);
    if (c->write_epoch == IN_FLIGHT) {
        fault_set(w, lane, PTX_UNSOUND,
                  "it writes to shared address %u while cp.async of thread %u is in flight",
                  address, c->writer);
        return -1;
    }
    if (c->write_epoch == epoch && c->writer != me &&
        (c->writer / LANES != w->index || c->write_sync == w->sync))
        return race(w, lane, "it writes over", address, c->writer);
    if (c->read_epoch == epoch) {
        unsigned reader = c->reader & (unsigned)~READER_WARP;
        if (c->reader == READER_ALL || reader / LANES != w->index ||
            (c->read_sync == w->sync && c->reader != me))
            return race(w, lane, "it writes over what is read by", address, reader);
    }
    return 0;
}

static void cell_write(struct warp *w, unsigned lane, struct cell *c, uint32_t epoch)
{
    c->write_epoch = epoch;
    c->writer = (uint16_t)(w->index * LANES + lane);
    c->write_sync = w->sync;
}

/* The place of a shared access in the block's bytes, or -1. */
static int64_t shared_place(struct warp *w, unsigned lane, uint64_t address, unsigned bytes)
{
    const struct block *b = w->block;
    if (address <= b->fixed_bytes && bytes <= b->fixed_bytes - address) return (int64_t)address;
    uint64_t at = address - SHARED_DYNAMIC;
    if (address >= SHARED_DYNAMIC && at <= b->dynamic_bytes && bytes <= b->dynamic_bytes - at)
        return (int64_t)(at + b->fixed_bytes);
    fault_set(w, lane, PTX_ADDRESS, "%u bytes at shared address %llu: the block has %u bytes%s",
              bytes, (unsigned long long)(address < SHARED_DYNAMIC ? address : at),
              address < SHARED_DYNAMIC ? b->fixed_bytes : b->dynamic_bytes,
              address < SHARED_DYNAMIC ? "" : " by its launch");
    return -1;
}

static uint8_t *shared_at(struct warp *w, unsigned lane, uint64_t address, unsigned bytes,
                          int access)
{
    int64_t at = shared_place(w, lane, address, bytes);
    if (at < 0) return NULL;
    if (bytes < CELL) {
        fault_set(w, lane, PTX_UNKNOWN, "an access of one byte of shared memory is not modelled");
        return NULL;
    }
    for (int64_t i = at; i < at + bytes; i += CELL) {
        struct cell *c = &w->block->cells[i / CELL];
        uint32_t where = (uint32_t)(address + (uint64_t)(i - at));
        if (access == READ ? cell_read(w, lane, c, where) : cell_free(w, lane, c, where))
            return NULL;
        if (access == WRITE) cell_write(w, lane, c, w->block->epoch);
    }
    return w->block->shared + at;
}

static uint8_t *inside(struct warp *w, unsigned lane, uint8_t *all, uint64_t size, uint64_t address,
                       unsigned bytes, const char *what)
{
    if (address <= size && bytes <= size - address) return all + address;
    fault_set(w, lane, PTX_ADDRESS, "%u bytes at %s address %llu: there are %llu bytes", bytes,
              what, (unsigned long long)address, (unsigned long long)size);
    return NULL;
}

static uint8_t *global_at(struct warp *w, unsigned lane, uint64_t address, unsigned bytes)
{
    uint8_t *p = gmem_at(address, bytes);
    if (!p)
        fault_set(w, lane, PTX_ADDRESS,
                  "%u bytes at global address %#llx: not within an allocation", bytes,
                  (unsigned long long)address);
    return p;
}

/* The bytes of a lane's access, which has been found sound; NULL: a fault is set. */
static uint8_t *bytes_at(struct warp *w, const struct insn *n, unsigned lane, uint64_t address,
                         unsigned bytes, int access)
{
    unsigned space = n->space;
    if (space == SPACE_GENERIC) {
        static const uint8_t windows[] = {SPACE_GLOBAL, SPACE_SHARED, SPACE_LOCAL, SPACE_PARAM};
        space = address >> 56 < 4 ? windows[address >> 56] : SPACE_GLOBAL;
        if (space != SPACE_GLOBAL) address &= WINDOW_SHARED - 1;
    }
    if (address % bytes) {
        fault_set(w, lane, PTX_MISALIGNED,
                  "%u bytes at address %#llx, which is no multiple of them", bytes,
                  (unsigned long long)address);
        return NULL;
    }
    const struct block *b = w->block;
    switch (space) {
    case SPACE_SHARED: return shared_at(w, lane, address, bytes, access);
    case SPACE_LOCAL:
        return inside(w, lane, w->local + lane * b->k->pub.local_bytes, b->k->pub.local_bytes,
                      address, bytes, "local");
    case SPACE_PARAM:
        return inside(w, lane, (uint8_t *)b->launch->params, b->k->pub.param_bytes, address, bytes,
                      "parameter");
    default: return global_at(w, lane, address, bytes);
    }
}

/* --- counts --- */

/* Passes over the banks: of each 128 bytes that lanes ask for in order, as many as different words
 * meet in one bank. */
static void count_waves(const uint64_t *address, uint32_t mask, unsigned bytes, uint64_t *waves,
                        uint64_t *least)
{
    unsigned words = bytes < 4 ? 1 : bytes / 4, lanes = LANES / words;
    for (unsigned first = 0; first < LANES; first += lanes) {
        uint32_t seen[32][32];
        unsigned n[32] = {0}, most = 0;
        for (unsigned i = first; i < first + lanes; i++)
            for (unsigned j = 0; j < words && mask >> i & 1; j++) {
                uint32_t word = (uint32_t)(address[i] / 4) + j, bank = word % 32, k = 0;
                while (k < n[bank] && seen[bank][k] != word)
                    k++;
                if (k == n[bank]) seen[bank][n[bank]++] = word;
                if (n[bank] > most) most = n[bank];
            }
        *waves += most;
        *least += most > 0;
    }
}

static void count_sectors(const uint64_t *address, uint32_t mask, unsigned bytes, uint64_t *sectors,
                          uint64_t *total)
{
    uint64_t seen[LANES];
    unsigned n = 0;
    ACTIVE
    {
        unsigned k = n;
        while (k && seen[k - 1] != address[i] / 32)
            k--;
        if (!k) seen[n++] = address[i] / 32;
        *total += bytes;
    }
    *sectors += n;
}

static void count(struct warp *w, const struct insn *n, const uint64_t *address, uint32_t mask,
                  unsigned bytes, int access)
{
    struct ptx_counts *c = w->block->counts;
    if (n->space == SPACE_SHARED)
        count_waves(address, mask, bytes, &c->shared_waves, &c->shared_waves_least);
    else if (n->class == CLASS_GLOBAL && access == READ)
        count_sectors(address, mask, bytes, &c->read_sectors, &c->read_bytes);
    else if (n->class == CLASS_GLOBAL)
        count_sectors(address, mask, bytes, &c->written_sectors, &c->written_bytes);
}

/* --- ld, st --- */

static void addresses(struct warp *w, const struct insn *n, int operand, uint64_t *out)
{
    const void *p = place(w, n, operand);
    for (int i = 0; i < LANES; i++)
        out[i] =
            (n->wide ? ((const uint64_t *)p)[i] : ((const uint32_t *)p)[i]) + (uint64_t)n->offset;
}

static void run_ld(struct warp *w, const struct insn *n, uint32_t mask)
{
    uint64_t address[LANES];
    unsigned bytes = (unsigned)n->bytes * n->count;
    addresses(w, n, n->count, address);
    count(w, n, address, mask, bytes, READ);
    ACTIVE
    {
        const uint8_t *from = bytes_at(w, n, i, address[i], bytes, READ);
        if (!from) return;
        for (int j = 0; j < n->count; j++) {
            uint8_t *to = (uint8_t *)place(w, n, j) + i * n->reg_bytes;
            if (n->reg_bytes > n->bytes)
                memset(to, n->is_signed && from[(j + 1) * n->bytes - 1] & 0x80 ? 0xff : 0,
                       n->reg_bytes);
            memcpy(to, from + j * n->bytes, n->bytes);
        }
    }
}

static void run_st(struct warp *w, const struct insn *n, uint32_t mask)
{
    uint64_t address[LANES];
    unsigned bytes = (unsigned)n->bytes * n->count;
    addresses(w, n, 0, address);
    count(w, n, address, mask, bytes, WRITE);
    ACTIVE
    {
        uint8_t *to = bytes_at(w, n, i, address[i], bytes, WRITE);
        if (!to) return;
        for (int j = 0; j < n->count; j++)
            memcpy(to + j * n->bytes, (uint8_t *)place(w, n, 1 + j) + i * n->reg_bytes, n->bytes);
    }
}

/* --- atom, red: on global memory, lane after lane --- */

enum { ATOM_ADD, ATOM_MIN, ATOM_MAX, ATOM_EXCH, ATOM_CAS, ATOM_AND, ATOM_OR };
enum { ATOM_U32, ATOM_S32, ATOM_U64, ATOM_F32, ATOM_B32 };

static uint64_t atom(const struct insn *n, uint64_t old, uint64_t x, uint64_t y)
{
    float f, g;
    uint32_t bits = (uint32_t)old, other = (uint32_t)x;
    int less = n->from == ATOM_S32 ? (int32_t)x < (int32_t)old : x < old;
    switch (n->mode) {
    case ATOM_ADD:
        if (n->from != ATOM_F32) return old + x;
        memcpy(&f, &bits, 4);
        memcpy(&g, &other, 4);
        f += g;
        memcpy(&bits, &f, 4);
        return bits;
    case ATOM_MIN: return less ? x : old;
    case ATOM_MAX: return less ? old : x;
    case ATOM_EXCH: return x;
    case ATOM_CAS: return old == x ? y : old;
    case ATOM_AND: return old & x;
    default: return old | x;
    }
}

static void run_atom(struct warp *w, const struct insn *n, uint32_t mask)
{
    uint64_t address[LANES];
    addresses(w, n, 1, address);
    count(w, n, address, mask, n->bytes, WRITE);
    ACTIVE
    {
        if (n->space == SPACE_GENERIC && address[i] >> 56) {
            fault_set(w, i, PTX_UNKNOWN, "atomics outside of global memory are not modelled");
            return;
        }
        uint8_t *p = bytes_at(w, n, i, address[i], n->bytes, WRITE);
        uint64_t old = 0, x = 0, y = 0;
        if (!p) return;
        memcpy(&old, p, n->bytes);
        memcpy(&x, (uint8_t *)place(w, n, 2) + i * n->bytes, n->bytes);
        memcpy(&y, (uint8_t *)place(w, n, 3) + i * n->bytes, n->bytes);
        y = atom(n, old, x, y);
        memcpy(p, &y, n->bytes);
        memcpy((uint8_t *)place(w, n, 0) + i * n->bytes, &old, n->bytes);
    }
}

/* --- cp.async --- */

static void run_copy(struct warp *w, const struct insn *n, uint32_t mask)
{
    uint64_t to[LANES], from[LANES];
    struct insn of = *n; /* each address with its own offset and register width */
    addresses(w, n, 0, to);
    of.offset = (int64_t)n->target;
    of.wide = 1;
    addresses(w, &of, 1, from);
    const uint32_t *read = place(w, n, 2);
    uint32_t reading = 0;
    for (unsigned i = 0; i < LANES; i++)
        reading |= (uint32_t)(!n->mode || read[i] > 0) << i;
    struct ptx_counts *counts = w->block->counts;
    count_sectors(from, mask & reading, n->bytes, &counts->copied_sectors, &counts->copied_bytes);
    counts->copies += (unsigned)__builtin_popcount(mask);
    counts->copies_nothing += (unsigned)__builtin_popcount(mask & ~reading);
    ACTIVE
    {
        if (n->mode && read[i] > n->bytes) {
            fault_set(w, i, PTX_UNSOUND, "it copies %u of %u bytes", read[i], n->bytes);
            return;
        }
        unsigned bytes_read = n->mode ? read[i] : n->bytes;
        if (to[i] % n->bytes || from[i] % n->bytes) {
            fault_set(
                w, i, PTX_MISALIGNED,
                "%u bytes from %#llx to shared address %llu, which are not both multiples of them",
                n->bytes, (unsigned long long)from[i], (unsigned long long)to[i]);
            return;
        }
        int64_t at = shared_place(w, i, to[i], n->bytes);
        /* Where nothing is read, hardware does not look at the address. */
        if (at < 0 || (bytes_read && !global_at(w, i, from[i], bytes_read))) return;
        for (unsigned j = 0; j < n->bytes; j += CELL) {
            struct cell *c = &w->block->cells[(at + j) / CELL];
            if (cell_free(w, i, c, (uint32_t)to[i] + j)) return;
            cell_write(w, i, c, IN_FLIGHT);
        }
        if (w->n_copies == w->copies_size) {
            size_t size = w->copies_size ? w->copies_size * 2 : 256;
            struct copy *copies = realloc(w->copies, size * sizeof *copies);
            if (!copies) {
                fault_set(w, i, PTX_NO_MEMORY, "out of memory");
                return;
            }
            w->copies = copies;
            w->copies_size = size;
        }
        w->copies[w->n_copies++] = (struct copy){from[i],    (uint32_t)at, w->committed[i],
                                                 (uint8_t)i, n->bytes,     (uint8_t)bytes_read};
    }
}

static void run_commit(struct warp *w, const struct insn *n, uint32_t mask)
{
    (void)n;
    ACTIVE w->committed[i]++;
}

/* All but the newest n->target groups of each lane land; mode: those not committed too. */
static void run_wait(struct warp *w, const struct insn *n, uint32_t mask)
{
    size_t kept = 0;
    for (size_t j = 0; j < w->n_copies; j++) {
        struct copy *c = &w->copies[j];
        int lands = mask >> c->lane & 1 &&
                    (n->mode || c->group + (uint64_t)n->target < w->committed[c->lane]);
        if (!lands) {
            w->copies[kept++] = *c;
            continue;
        }
        uint8_t *to = w->block->shared + c->to;
        const uint8_t *from = c->bytes_read ? global_at(w, c->lane, c->from, c->bytes_read) : NULL;
        if (c->bytes_read && !from) return;
        if (from) memcpy(to, from, c->bytes_read);
        memset(to + c->bytes_read, 0, (size_t)(c->bytes - c->bytes_read));
        for (unsigned k = 0; k < c->bytes; k += CELL)
            cell_write(w, c->lane, &w->block->cells[(c->to + k) / CELL], w->block->epoch);
    }
    w->n_copies = kept;
}

/* --- ldmatrix: n->count matrices of 8 rows of 16 bytes; lane 8 m + r has the address of row r of
 * matrix m --- */

static void run_ldmatrix(struct warp *w, const struct insn *n, uint32_t mask)
{
    if (mask != ~0u) {
        fault_set(w, 0, PTX_UNSOUND, "only lanes %08x of the warp are here", mask);
        return;
    }
    uint64_t address[LANES];
    uint16_t rows[4][8][8];
    unsigned lanes = 8u * n->count;
    addresses(w, n, n->count, address);
    count_waves(address, lanes == 32 ? ~0u : (1u << lanes) - 1, 16,
                &w->block->counts->ldmatrix_waves, &w->block->counts->ldmatrix_waves_least);
    for (unsigned i = 0; i < lanes; i++) {
        const uint8_t *p = bytes_at(w, n, i, address[i], 16, READ);
        if (!p) return;
        memcpy(rows[i / 8][i % 8], p, 16);
    }
    for (int m = 0; m < n->count; m++) {
        uint32_t *d = place(w, n, m);
        for (int i = 0; i < LANES; i++) {
            int r = i / 4, c = i % 4 * 2;
            d[i] = n->mode ? rows[m][c][r] | (uint32_t)rows[m][c + 1][r] << 16
                           : rows[m][r][c] | (uint32_t)rows[m][r][c + 1] << 16;
        }
    }
}

/* --- decoding --- */

/* Hints of caching, which change no value. */
static void take_hints(const char **s)
{
    static const char *const hints[] = {"nc",
                                        "ca",
                                        "cg",
                                        "cs",
                                        "lu",
                                        "wb",
                                        "wt",
                                        "L1::no_allocate",
                                        "L1::evict_first",
                                        "L1::evict_last",
                                        "L2::64B",
                                        "L2::128B",
                                        "L2::256B"};
    for (size_t i = 0; i < sizeof hints / sizeof *hints; i++)
        spelling_take(s, hints[i]);
}

static const char *address_bind(struct parser *p, struct insn *n, int at, const struct operand *o)
{
    if (!o->address || o->sink || o->negated) return "an operand that is no address";
    n->offset = o->offset;
    n->wide = 1;
    if (o->kind == OPERAND_VALUE) {
        n->at[at] = parser_constant(p, o->value, 8);
        return NULL;
    }
    if (o->kind != OPERAND_REG || o->bytes < 4) return "an operand that is no address";
    n->wide = o->bytes == 8;
    n->at[at] = o->at;
    return NULL;
}

static const char *value_bind(struct parser *p, struct insn *n, int at, const struct operand *o,
                              unsigned bytes, int is_result)
{
    if (o->address || o->negated) return "an operand of another kind than modelled";
    if (o->sink && is_result)
        n->at[at] = parser_scratch(p, (uint8_t)bytes);
    else if (o->kind == OPERAND_VALUE && !is_result)
        n->at[at] = parser_constant(p, o->value, (uint8_t)bytes);
    else if (o->kind == OPERAND_REG && o->bytes == bytes)
        n->at[at] = o->at;
    else
        return "an operand of another kind or width than modelled";
    return NULL;
}

static const char *decode_access(struct parser *p, struct insn *n, struct operand *o, size_t count)
{
    static const struct {
        const char *name;
        uint8_t bytes, is_signed;
    } types[] = {{"b8", 1, 0},  {"u8", 1, 0},  {"s8", 1, 1},  {"b16", 2, 0}, {"u16", 2, 0},
                 {"s16", 2, 1}, {"f16", 2, 0}, {"b32", 4, 0}, {"u32", 4, 0}, {"s32", 4, 1},
                 {"f32", 4, 0}, {"b64", 8, 0}, {"u64", 8, 0}, {"s64", 8, 1}, {"f64", 8, 0}};
    const char *s = n->name + 2;
    int loads = n->name[0] == 'l';
    n->space = SPACE_GENERIC;
    n->class = CLASS_GLOBAL;
    if (spelling_take(&s, "global"))
        n->space = SPACE_GLOBAL;
    else if (spelling_take(&s, "shared") || spelling_take(&s, "shared::cta"))
        n->space = SPACE_SHARED, n->class = CLASS_SHARED;
    else if (spelling_take(&s, "local"))
        n->space = SPACE_LOCAL, n->class = CLASS_LOCAL;
    else if (spelling_take(&s, "param"))
        n->space = SPACE_PARAM, n->class = CLASS_OTHER;
    else if (loads && spelling_take(&s, "const"))
        n->space = SPACE_GLOBAL, n->class = CLASS_OTHER;
    take_hints(&s);
    n->count = spelling_take(&s, "v2") ? 2 : spelling_take(&s, "v4") ? 4 : 1;
    for (size_t i = 0; i < sizeof types / sizeof *types && !n->bytes; i++)
        if (spelling_take(&s, types[i].name))
            n->bytes = types[i].bytes, n->is_signed = types[i].is_signed;
    if (*s || !n->bytes || n->bytes * n->count > 16)
        return "a modifier or type that is not modelled";
    if (count != n->count + 1u) return "it has another number of operands here";
    const struct operand *values = loads ? o : o + 1;
    n->run = loads ? run_ld : run_st;
    /* Registers may be wider than what is loaded or stored. */
    n->reg_bytes = n->bytes;
    for (size_t i = 0; i < n->count; i++)
        if (values[i].kind == OPERAND_REG && !values[i].sink) n->reg_bytes = values[i].bytes;
    if (n->reg_bytes < n->bytes) return "a register too narrow";
    const char *wrong = address_bind(p, n, loads ? n->count : 0, loads ? &o[n->count] : &o[0]);
    for (int i = 0; i < n->count && !wrong; i++)
        wrong = value_bind(p, n, loads ? i : 1 + i, &values[i], n->reg_bytes, loads);
    return wrong;
}

static const char *decode_atom(struct parser *p, struct insn *n, struct operand *o, size_t count)
{
    static const char *const ops[] = {"add", "min", "max", "exch", "cas", "and", "or"};
    static const struct {
        const char *name;
        uint8_t bytes;
    } types[] = {{"u32", 4}, {"s32", 4}, {"u64", 8}, {"f32", 4}, {"b32", 4}};
    int returns = n->name[0] == 'a', mode = -1, type = -1;
    const char *s = n->name + (returns ? 4 : 3);
    spelling_take(&s, "relaxed");
    spelling_take(&s, "gpu");
    n->space = spelling_take(&s, "global") ? SPACE_GLOBAL : SPACE_GENERIC;
    for (int i = 0; i < 7 && mode < 0; i++)
        if (spelling_take(&s, ops[i])) mode = i;
    for (int i = 0; i < 5 && type < 0; i++)
        if (spelling_take(&s, types[i].name)) type = i;
    if (*s || mode < 0 || type < 0 || (type == ATOM_F32 && mode != ATOM_ADD))
        return "a modifier or type that is not modelled";
    n->mode = (uint8_t)mode;
    n->from = (uint8_t)type;
    n->bytes = types[type].bytes;
    n->class = CLASS_GLOBAL;
    n->run = run_atom;
    size_t first = returns ? 1 : 0, values = mode == ATOM_CAS ? 2 : 1;
    if (count != first + 1 + values) return "it has another number of operands here";
    n->at[0] = parser_scratch(p, n->bytes);
    n->at[3] = parser_scratch(p, n->bytes);
    const char *wrong = returns ? value_bind(p, n, 0, &o[0], n->bytes, 1) : NULL;
    if (!wrong) wrong = address_bind(p, n, 1, &o[first]);
    for (size_t i = 0; i < values && !wrong; i++)
        wrong = value_bind(p, n, (int)(2 + i), &o[first + 1 + i], n->bytes, 0);
    return wrong;
}

static const char *decode_copy(struct parser *p, struct insn *n, struct operand *o, size_t count)
{
    const char *s = n->name + strlen("cp.async");
    if (spelling_take(&s, "commit_group") && !*s && !count) {
        n->run = run_commit;
        return NULL;
    }
    int all = spelling_take(&s, "wait_all");
    if ((all && !*s && !count) ||
        (spelling_take(&s, "wait_group") && !*s && count == 1 && o[0].kind == OPERAND_VALUE)) {
        n->run = run_wait;
        n->mode = (uint8_t)all;
        n->target = all ? 0 : (uint32_t)o[0].value;
        return NULL;
    }
    int whole_line = spelling_take(&s, "cg");
    if ((!whole_line && !spelling_take(&s, "ca")) ||
        (!spelling_take(&s, "shared") && !spelling_take(&s, "shared::cta")) ||
        !spelling_take(&s, "global"))
        return "not modelled";
    take_hints(&s);
    if (*s || count < 3 || count > 4 || o[2].kind != OPERAND_VALUE)
        return "a modifier or operand that is not modelled";
    uint64_t bytes = o[2].value;
    if (bytes != 16 && (whole_line || (bytes != 8 && bytes != 4)))
        return "a size that cp.async does not have";
    n->run = run_copy;
    n->bytes = (uint8_t)bytes;
    n->mode = count == 4;
    const char *wrong = address_bind(p, n, 1, &o[1]);
    if (!wrong && (!n->wide || n->offset < 0 || n->offset > INT32_MAX))
        wrong = "an operand that is no address";
    if (wrong) return wrong;
    n->target = (uint32_t)n->offset;
    wrong = address_bind(p, n, 0, &o[0]);
    return wrong || count == 3 ? wrong : value_bind(p, n, 2, &o[3], 4, 0);
}

static const char *decode_ldmatrix(struct parser *p, struct insn *n, struct operand *o,
                                   size_t count)
{
    const char *s = n->name + strlen("ldmatrix");
    if (!spelling_take(&s, "sync") || !spelling_take(&s, "aligned") || !spelling_take(&s, "m8n8"))
        return "not modelled";
    n->count = spelling_take(&s, "x4")   ? 4
               : spelling_take(&s, "x2") ? 2
               : spelling_take(&s, "x1") ? 1
                                         : 0;
    n->mode = (uint8_t)spelling_take(&s, "trans");
    if (!n->count || (!spelling_take(&s, "shared") && !spelling_take(&s, "shared::cta")) ||
        !spelling_take(&s, "b16") || *s || count != n->count + 1u)
        return "a modifier or operand that is not modelled";
    n->space = SPACE_SHARED;
    n->class = CLASS_LDMATRIX;
    n->run = run_ldmatrix;
    const char *wrong = address_bind(p, n, n->count, &o[n->count]);
    for (int i = 0; i < n->count && !wrong; i++)
        wrong = value_bind(p, n, i, &o[i], 4, 1);
    return wrong;
}

const char *decode_memory(struct parser *p, struct insn *n, struct operand *o, size_t count)
{
    static const struct {
        const char *begin;
        const char *(*decode)(struct parser *p, struct insn *n, struct operand *o, size_t count);
    } of[] = {{"ld.", decode_access}, {"st.", decode_access},     {"atom.", decode_atom},
              {"red.", decode_atom},  {"cp.async.", decode_copy}, {"ldmatrix.", decode_ldmatrix}};
    for (size_t i = 0; i < sizeof of / sizeof *of; i++)
        if (!strncmp(n->name, of[i].begin, strlen(of[i].begin)))
            return of[i].decode(p, n, o, count);
    return "";
}
