/* run.c - a launch: blocks one after another, in each the warps in turn from barrier to barrier.
 *
 * A warp runs the lanes that stand at its lowest instruction until they meet others or part, so
 * lanes that parted at a branch go on together where they meet. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "machine.h"

/* A kernel that loops for ever is a fault too: a warp's branches between two barriers. */
#define BRANCHES_MAX 50000000u

void fault_set(struct warp *w, unsigned lane, enum ptx_fault_kind kind, const char *format, ...)
{
    const struct block *b = w->block;
    struct ptx_fault *f = b->fault;
    if (f->kind) return;
    f->kind = kind;
    int n = snprintf(f->text, sizeof f->text,
                     "kernel %.160s, PTX line %u `%.64s`, block (%u, %u, %u), thread %u: ",
                     b->k->pub.name, (unsigned)w->now->line, w->now->name, b->ctaid[0], b->ctaid[1],
                     b->ctaid[2], w->index * LANES + lane);
    va_list list;
    va_start(list, format);
    vsnprintf(f->text + n, sizeof f->text - (size_t)n, format, list);
    va_end(list);
}

static void put_pc(struct warp *w, uint32_t lanes, uint32_t pc)
{
    for (unsigned i = 0; i < LANES; i++)
        if (lanes >> i & 1) w->pc[i] = pc;
}

/* Runs the lanes of group, which all stand at pc, until they part, wait or come to next, where
 * others stand. */
static void group_run(struct warp *w, uint32_t group, uint32_t pc, uint32_t next)
{
    struct block *b = w->block;
    const struct insn *code = b->k->code;
    for (uint32_t branches = 0; pc < next;) {
        const struct insn *n = &code[pc];
        uint32_t mask = group & (*(const uint32_t *)(w->file + n->guard) ^ n->guard_flip);
        b->executed[pc]++;
        w->now = n;
        if (n->control == CONTROL_NONE) {
            if (mask) n->run(w, n, mask);
            if (n->class == CLASS_SPECIAL) b->counts->special += (unsigned)__builtin_popcount(mask);
            if (b->fault->kind) return;
            pc++;
        } else if (!mask) {
            pc++;
        } else if (n->control == CONTROL_BRANCH) {
            if (++branches > BRANCHES_MAX) {
                fault_set(w, 0, PTX_UNSOUND, "it does not come to an end");
                return;
            }
            if (mask != group) {
                put_pc(w, mask, n->target);
                put_pc(w, group & ~mask, pc + 1);
                return;
            }
            pc = n->target;
        } else if (n->control == CONTROL_EXIT) {
            w->live &= ~mask;
            put_pc(w, group & ~mask, pc + 1);
            return;
        } else {
            if (mask != w->live) {
                fault_set(w, (unsigned)__builtin_ctz(mask), PTX_UNSOUND,
                          "lanes %08x of the warp are at the barrier, lanes %08x are not", mask,
                          w->live & ~mask);
                return;
            }
            put_pc(w, mask, pc + 1);
            w->at_barrier = 1;
            return;
        }
    }
    put_pc(w, group, pc);
}

static void warp_run(struct warp *w)
{
    while (w->live && !w->at_barrier && !w->block->fault->kind) {
        uint32_t pc = UINT32_MAX, next = UINT32_MAX, group = 0;
        for (unsigned i = 0; i < LANES; i++) {
            if (!(w->live >> i & 1)) continue;
            if (w->pc[i] < pc)
                next = pc, pc = w->pc[i], group = 0;
            else if (w->pc[i] > pc && w->pc[i] < next)
                next = w->pc[i];
            if (w->pc[i] == pc) group |= 1u << i;
        }
        group_run(w, group, pc, next);
    }
}

static void fill(uint8_t *file, uint32_t at, uint8_t bytes, uint64_t value)
{
    if (bytes == 1) {
        *(uint32_t *)(file + at) = value ? ~0u : 0;
        return;
    }
    for (int i = 0; i < LANES; i++)
        memcpy(file + at + (size_t)i * bytes, &value, bytes);
}

static void special_registers(struct warp *w)
{
    const struct block *b = w->block;
    const struct kernel *k = b->k;
    const unsigned *size = b->launch->block;
    uint32_t *at[SPECIALS];
    for (int i = 0; i < SPECIALS; i++)
        at[i] = k->special[i] ? (uint32_t *)(w->file + k->special[i]) : NULL;
    for (unsigned i = 0; i < LANES; i++) {
        unsigned t = w->index * LANES + i;
        const uint32_t values[SPECIALS] = {t % size[0],
                                           t / size[0] % size[1],
                                           t / size[0] / size[1],
                                           size[0],
                                           size[1],
                                           size[2],
                                           b->ctaid[0],
                                           b->ctaid[1],
                                           b->ctaid[2],
                                           b->launch->grid[0],
                                           b->launch->grid[1],
                                           b->launch->grid[2],
                                           i,
                                           w->index};
        for (int j = 0; j < SPECIALS; j++)
            if (at[j]) at[j][i] = values[j];
    }
}

static void block_run(struct block *b)
{
    for (unsigned i = 0; i < b->n_warps; i++) {
        struct warp *w = &b->warps[i];
        special_registers(w);
        w->live = w->all;
        put_pc(w, w->live, 0);
        w->at_barrier = 0;
        w->sync = 0;
        w->n_copies = 0;
        memset(w->committed, 0, sizeof w->committed);
        memset(w->local, 0xff, LANES * b->k->pub.local_bytes);
    }
    memset(b->cells, 0, ((size_t)b->fixed_bytes + b->dynamic_bytes) / 2 * sizeof *b->cells);
    for (b->epoch = 1;; b->epoch++) {
        unsigned waiting = 0;
        struct warp *ended = NULL;
        for (unsigned i = 0; i < b->n_warps && !b->fault->kind; i++) {
            struct warp *w = &b->warps[i];
            warp_run(w);
            waiting += (unsigned)w->at_barrier;
            if (!w->live) ended = w;
        }
        if (b->fault->kind || !waiting) return;
        if (ended) {
            fault_set(ended, 0, PTX_UNSOUND, "it has ended while %u warps wait at a barrier",
                      waiting);
            return;
        }
        for (unsigned i = 0; i < b->n_warps; i++)
            b->warps[i].at_barrier = 0;
    }
}

static void tally(const struct block *b)
{
    struct ptx_counts *c = b->counts;
    for (size_t i = 0; i < b->k->n_code; i++) {
        uint64_t n = b->executed[i];
        c->instructions += n;
        switch (b->k->code[i].class) {
        case CLASS_MMA: c->mma += n; break;
        case CLASS_LDMATRIX: c->ldmatrix += n; break;
        case CLASS_BARRIER: c->barriers += n; break;
        case CLASS_GLOBAL: c->global += n; break;
        case CLASS_SHARED: c->shared += n; break;
        case CLASS_LOCAL: c->local += n; break;
        case CLASS_BRANCH: c->branches += n; break;
        case CLASS_CONVERSION: c->conversions += n; break;
        }
    }
}

static int warps_make(struct block *b)
{
    const struct kernel *k = b->k;
    b->warps = calloc(b->n_warps, sizeof *b->warps);
    if (!b->warps) return -1;
    for (unsigned i = 0; i < b->n_warps; i++) {
        struct warp *w = &b->warps[i];
        unsigned threads = b->n_threads - i * LANES;
        w->block = b;
        w->index = i;
        w->all = threads >= LANES ? ~0u : (1u << threads) - 1;
        w->file = aligned_alloc(64, (k->file_bytes + 63) & ~(size_t)63);
        w->local = malloc(LANES * k->pub.local_bytes + 1);
        if (!w->file || !w->local) return -1;
        memset(w->file, 0, k->file_bytes);
        *(uint32_t *)w->file = ~0u;
        w->now = k->code;
        for (size_t j = 0; j < k->n_constants; j++)
            fill(w->file, k->constants[j].at, k->constants[j].bytes, k->constants[j].value);
    }
    return 0;
}

int ptx_run(const struct ptx_kernel *kernel, const struct ptx_launch *l, struct ptx_counts *counts,
            struct ptx_fault *fault)
{
    const struct kernel *k = (const struct kernel *)kernel;
    struct block b = {.k = k, .launch = l, .counts = counts, .fault = fault};
    *fault = (struct ptx_fault){PTX_FINE, ""};
    if (kernel->unknown) {
        fault->kind = PTX_UNKNOWN;
        snprintf(fault->text, sizeof fault->text, "kernel %.160s: %.300s", kernel->name,
                 kernel->unknown);
        return -1;
    }
    b.n_threads = l->block[0] * l->block[1] * l->block[2];
    b.n_warps = (b.n_threads + LANES - 1) / LANES;
    b.fixed_bytes = (uint32_t)((kernel->shared_bytes + 15) & ~(size_t)15);
    b.dynamic_bytes = (uint32_t)((l->dynamic_shared_bytes + 15) & ~(size_t)15);
    size_t shared = (size_t)b.fixed_bytes + b.dynamic_bytes;
    b.shared = calloc(1, shared + 1);
    b.cells = calloc(shared / 2 + 1, sizeof *b.cells);
    b.executed = calloc(k->n_code, sizeof *b.executed);
    if (!b.shared || !b.cells || !b.executed || warps_make(&b)) {
        fault->kind = PTX_NO_MEMORY;
        snprintf(fault->text, sizeof fault->text, "out of memory");
    }
    for (unsigned z = 0; z < l->grid[2]; z++)
        for (unsigned y = 0; y < l->grid[1]; y++)
            for (unsigned x = 0; x < l->grid[0] && !fault->kind; x++) {
                b.ctaid[0] = x, b.ctaid[1] = y, b.ctaid[2] = z;
                block_run(&b);
            }
    if (b.executed) tally(&b);
    counts->launches++;
    for (unsigned i = 0; b.warps && i < b.n_warps; i++) {
        free(b.warps[i].file);
        free(b.warps[i].local);
        free(b.warps[i].copies);
    }
    free(b.warps);
    free(b.shared);
    free(b.cells);
    free(b.executed);
    return fault->kind ? -1 : 0;
}
