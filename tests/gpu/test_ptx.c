/* The PTX interpreter by itself, on PTX written here: what opcodes compute, against values worked
 * out by the PTX manual's definitions; how lanes part and meet; and everything that it must refuse.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ptx/gmem.h"
#include "ptx/ptx.h"

#define MEMORY ((size_t)64 << 20)

static struct ptx_counts counts;
static struct ptx_fault fault;
static char error[600];

/* Runs `body` with two pointers, %out and %in, as kernel k; -1 where it cannot be parsed or faults.
 */
static int run_blocks(const char *body, unsigned blocks, unsigned threads, uint64_t out,
                      uint64_t in, size_t dynamic)
{
    static const char head[] =
        ".version 9.0\n.target sm_90\n.address_size 64\n.extern .shared .align 16 .b8 "
        "dynamic[];\n.global .align 4 .u32 table[3] = {7, 8, 9};\n"
        ".visible .entry k(.param .u64 k_0, .param .u64 k_1)\n.maxntid 256, 1, 1\n{\n.reg .pred "
        "%p<9>; .reg .b16 %h<9>; .reg .b32 %r<40>; .reg .f32 %f<20>; .reg .b64 %rd<20>; .reg .f64 "
        "%fd<4>;\n"
        ".reg .b64 %out, %in; ld.param.u64 %out, [k_0]; ld.param.u64 %in, [k_1]; mov.u32 %r0, "
        "%tid.x;\n";
    char *text = malloc(strlen(body) + sizeof head + 16);
    struct ptx_module *m = NULL;
    sprintf(text, "%s%s\nret;\n}\n", head, body);
    memset(&counts, 0, sizeof counts);
    memset(&fault, 0, sizeof fault);
    int code = ptx_parse(&m, text, strlen(text), MEMORY, error, sizeof error);
    if (!code) {
        uint64_t params[2] = {out, in};
        const struct ptx_launch l = {{blocks, 1, 1}, {threads, 1, 1}, dynamic, params};
        const struct ptx_kernel *k = ptx_kernel_find(m, "k");
        assert_non_null(k);
        assert_int_equal(k->param_bytes, 16);
        assert_int_equal(k->threads_max, 256);
        code = ptx_run(k, &l, &counts, &fault);
    }
    ptx_free(m);
    free(text);
    return code;
}

/* One warp; out gets 32 words from device memory at %out, in stands at %in. */
static int run(const char *body, uint32_t *out, const uint32_t *in, size_t in_words)
{
    uint64_t o = gmem_alloc(4096, MEMORY), i = gmem_alloc(4096, MEMORY);
    assert_true(o && i && in_words <= 1024);
    if (in) memcpy(gmem_at(i, 4096), in, in_words * 4);
    int code = run_blocks(body, 1, 32, o, i, 0);
    if (out) memcpy(out, gmem_at(o, 128), 128);
    assert_int_equal(gmem_free(o), 0);
    assert_int_equal(gmem_free(i), 0);
    return code;
}

static void check_run(const char *body, uint32_t *out)
{
    if (run(body, out, NULL, 0)) fail_msg("%s\n%s %s", body, error, fault.text);
}

#define STORE "mul.wide.u32 %rd1, %r0, 4; add.s64 %rd2, %out, %rd1; st.global.u32 [%rd2], %r1;"

/* --- what opcodes compute --- */

struct sum {
    const char *opcode, *types; /* h w d: 16, 32, 64 bits; result first */
    uint64_t operands[4], result;
};

static const struct sum sums[] = {
    {"add.s32", "www", {0x7fffffff, 1}, 0x80000000},
    {"sub.s16", "hhh", {0, 1}, 0xffff},
    {"add.s64", "ddd", {0xffffffff, 1}, 0x100000000},
    {"mul.lo.s32", "www", {0xffffffff, 3}, 0xfffffffd},
    {"mul.hi.u32", "www", {0x80000000, 6}, 3},
    {"mul.hi.s32", "www", {0xffffffff, 3}, 0xffffffff},
    {"mul.hi.u64", "ddd", {(uint64_t)1 << 63, 6}, 3},
    {"mul.wide.s32", "dww", {0xffffffff, 5}, (uint64_t)-5},
    {"mul.wide.u32", "dww", {0xffffffff, 5}, 0x4fffffffb},
    {"mul.wide.u16", "whh", {0xffff, 0xffff}, 0xfffe0001},
    {"mad.lo.s32", "wwww", {7, 6, 0xffffffff}, 41},
    {"mad.wide.s32", "dwwd", {0xffffffff, 5, 3}, (uint64_t)-2},
    {"div.s32", "www", {0xfffffff9, 2}, 0xfffffffd},
    {"rem.s32", "www", {0xfffffff9, 2}, 0xffffffff},
    {"div.u64", "ddd", {100, 7}, 14},
    {"rem.u32", "www", {100, 7}, 2},
    {"min.s32", "www", {0xffffffff, 1}, 0xffffffff},
    {"max.u32", "www", {0xffffffff, 1}, 0xffffffff},
    {"abs.s32", "ww", {0xfffffffb}, 5},
    {"neg.s32", "ww", {5}, 0xfffffffb},
    {"shl.b32", "www", {1, 32}, 0},
    {"shl.b64", "ddw", {1, 40}, (uint64_t)1 << 40},
    {"shr.s32", "www", {0x80000000, 40}, 0xffffffff},
    {"shr.u32", "www", {0x80000000, 31}, 1},
    {"shr.s16", "hhw", {0x8000, 3}, 0xf000},
    {"not.b32", "ww", {0xf0f0f0f0}, 0x0f0f0f0f},
    {"popc.b32", "ww", {0xf0f0}, 8},
    {"clz.b32", "ww", {0}, 32},
    {"clz.b64", "wd", {1}, 63},
    {"brev.b32", "ww", {1}, 0x80000000},
    {"bfe.u32", "wwww", {0xabcd1234, 8, 12}, 0xd12},
    {"bfe.s32", "wwww", {0xabcd1234, 8, 12}, 0xfffffd12},
    {"bfi.b32", "wwwww", {0xff, 0x12345678, 4, 8}, 0x12345ff8},
    {"lop3.b32", "wwwww", {0xff00ff00, 0xf0f0f0f0, 0xcccccccc, 0xe8}, 0xfcc0fcc0}, /* majority */
    {"prmt.b32", "wwww", {0x44332211, 0x88776655, 0x7610}, 0x88772211},
    {"prmt.b32", "wwww", {0x000000ff, 0, 0x8888}, 0xffffffff},
    {"shf.l.wrap.b32", "wwww", {0x80000000, 1, 1}, 3},
    {"shf.r.clamp.b32", "wwww", {0x12345678, 0x9abcdef0, 40}, 0x9abcdef0},
    {"cvt.s64.s32", "dw", {0xfffffffe}, (uint64_t)-2},
    {"cvt.u32.u64", "wd", {0x123456789}, 0x23456789},
    {"cvt.u32.u8", "ww", {0x1ff}, 0xff},
    {"cvt.s32.s8", "ww", {0x1ff}, 0xffffffff},
    {"cvt.s32.s16", "wh", {0x8000}, 0xffff8000},
    {"cvt.sat.u8.s32", "ww", {300}, 255},
    {"cvt.sat.s8.s32", "ww", {0xffffff00}, 0xffffff80},
    {"cvt.rn.f32.s32", "ww", {0xffffffff}, 0xbf800000},
    {"cvt.rn.f32.u32", "ww", {16777217}, 0x4b800000},
    {"cvt.rz.f32.u32", "ww", {0xffffffff}, 0x4f7fffff},
    {"cvt.rzi.s32.f32", "ww", {0xc0200000}, 0xfffffffe}, /* -2.5 */
    {"cvt.rni.s32.f32", "ww", {0xc0200000}, 0xfffffffe}, /* to even */
    {"cvt.rmi.s32.f32", "ww", {0xc0200000}, 0xfffffffd},
    {"cvt.rpi.s32.f32", "ww", {0xc0200000}, 0xfffffffe},
    {"cvt.rzi.s32.f32", "ww", {0x7f800000}, 0x7fffffff}, /* infinity */
    {"cvt.rzi.u32.f32", "ww", {0xbf800000}, 0},
    {"cvt.rni.s32.f32", "ww", {0x7fc00000}, 0},          /* NaN */
    {"cvt.rni.f32.f32", "ww", {0x3fc00000}, 0x40000000}, /* 1.5 -> 2 */
    {"cvt.rn.f16.f32", "hw", {0x3f801000}, 0x3c00},      /* 1 + 2^-11: tie to even */
    {"cvt.rn.f16.f32", "hw", {0x477fffff}, 0x7c00},      /* 65535.996 -> infinity */
    {"cvt.rn.bf16.f32", "hw", {0x3f808000}, 0x3f80},
    {"cvt.rn.bf16.f32", "hw", {0x3f818000}, 0x3f82},
    {"cvt.rn.bf16.f32", "hw", {0x7f800001}, 0x7fff}, /* NaN stays one */
    {"cvt.f32.f16", "wh", {0x0001}, 0x33800000},     /* 2^-24 */
    {"cvt.f32.bf16", "wh", {0xc040}, 0xc0400000},
    {"cvt.rn.f16x2.f32",
     "www",
     {0x3f800000, 0x40000000},
     0x3c004000}, /* the first is the high half */
    {"cvt.rn.bf16x2.f32", "www", {0x3f800000, 0x40000000}, 0x3f804000},
    {"cvt.rn.f32.f64", "wd", {0x3ff0000010000000}, 0x3f800000},
    {"cvt.f64.f32", "dw", {0x3fc00000}, 0x3ff8000000000000},
    {"add.f32", "www", {0x3f800000, 0x33800000}, 0x3f800000}, /* 1 + 2^-24: to even */
    {"fma.rn.f32",
     "wwww",
     {0x3f800001, 0x3f800001, 0xbf800002},
     0x28800000}, /* 2^-46: one rounding */
    {"fma.rz.f32", "wwww", {0x3f800000, 0x3f800000, 0xb1000000}, 0x3f7fffff},
    {"fma.rp.f32", "wwww", {0x3f800000, 0x3f800000, 0x31000000}, 0x3f800001},
    {"fma.rm.f32", "wwww", {0x3f800000, 0x3f800000, 0x31000000}, 0x3f800000},
    {"mul.f32", "www", {0x00800000, 0x3f000000}, 0x00400000}, /* a denormal */
    {"mul.ftz.f32", "www", {0x00800000, 0x3f000000}, 0},
    {"min.f32", "www", {0x7fc00000, 0x3f800000}, 0x3f800000},
    {"max.f32", "www", {0xbf800000, 0x3f800000}, 0x3f800000},
    {"neg.f32", "ww", {0}, 0x80000000},
    {"abs.f32", "ww", {0xbf800000}, 0x3f800000},
    {"copysign.f32", "www", {0x80000000, 0x3f800000}, 0xbf800000}, /* the sign of the first */
    {"ex2.approx.ftz.f32", "ww", {0x40400000}, 0x41000000},
    {"ex2.approx.f32", "ww", {0xff800000}, 0},
    {"lg2.approx.f32", "ww", {0x41000000}, 0x40400000},
    {"rcp.rn.f32", "ww", {0x40000000}, 0x3f000000},
    {"rsqrt.approx.f32", "ww", {0x40800000}, 0x3f000000},
    {"sqrt.rn.f32", "ww", {0x41100000}, 0x40400000},
    {"div.rn.f32", "www", {0x3f800000, 0x40400000}, 0x3eaaaaab},
    {"tanh.approx.f32", "ww", {0}, 0},
    {"add.f16x2", "www", {0x3c004000, 0x3c003c00}, 0x40004200},
    {"mul.bf16x2", "www", {0x40004040, 0x40003f80}, 0x40804040},
    {"fma.rn.f16", "hhhh", {0x3c01, 0x3c01, 0xbc02}, 0x0010}, /* 2^-20: one rounding */
    {"fma.rn.f16",
     "hhhh",
     {0x3e00, 0x3c01, 0x8001},
     0x3e01}, /* just below a tie: f32 would lose that */
    {"fma.rn.bf16", "hhhh", {0x3f81, 0x3f81, 0xbf82}, 0x3880}, /* 2^-14 */
    {"max.bf16x2", "www", {0xbf803f80, 0x3f80bf80}, 0x3f803f80},
    {"neg.f16x2", "ww", {0x3c00bc00}, 0xbc003c00},
    {"mov.u32", "ww", {5}, 5},
};

static void opcodes(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof sums / sizeof *sums; i++) {
        const struct sum *s = &sums[i];
        char body[600];
        int n = sprintf(body, ".reg .b16 %%xh<5>; .reg .b32 %%xw<5>; .reg .b64 %%xd<5>;\n");
        size_t operands = strlen(s->types) - 1;
        for (size_t j = 1; j <= operands; j++)
            n += sprintf(body + n, "mov.b%d %%x%c%zu, %llu;\n",
                         s->types[j] == 'h'   ? 16
                         : s->types[j] == 'w' ? 32
                                              : 64,
                         s->types[j], j, (unsigned long long)s->operands[j - 1]);
        n += sprintf(body + n, "%s %%x%c0", s->opcode, s->types[0]);
        for (size_t j = 1; j <= operands; j++)
            n += sprintf(body + n, ", %%x%c%zu", s->types[j], j);
        sprintf(body + n, ";\nst.global.u%d [%%out], %%x%c0;\n",
                s->types[0] == 'h'   ? 16
                : s->types[0] == 'w' ? 32
                                     : 64,
                s->types[0]);
        uint64_t out[16];
        check_run(body, (uint32_t *)out);
        uint64_t got = s->types[0] == 'h'   ? (uint16_t)out[0]
                       : s->types[0] == 'w' ? (uint32_t)out[0]
                                            : out[0];
        if (got != s->result)
            fail_msg("%s: %#llx, expected %#llx", s->opcode, (unsigned long long)got,
                     (unsigned long long)s->result);
    }
}

static void comparisons(void **state)
{
    (void)state;
    static const struct {
        const char *opcode;
        uint32_t a, b, result;
    } of[] = {
        {"lt.s32", 0xffffffff, 1, 1},
        {"lt.u32", 0xffffffff, 1, 0},
        {"lo.u32", 1, 2, 1},
        {"hs.u32", 1, 2, 0},
        {"eq.b32", 3, 3, 1},
        {"ne.s32", 3, 3, 0},
        {"lt.f32", 0x3f800000, 0x40000000, 1},
        {"eq.f32", 0x80000000, 0, 1},
        {"ne.f32", 0x7fc00000, 0, 0},
        {"neu.f32", 0x7fc00000, 0, 1},
        {"ge.f32", 0x7fc00000, 0, 0},
        {"geu.f32", 0x7fc00000, 0, 1},
        {"num.f32", 0x7fc00000, 0, 0},
        {"nan.f32", 0x7fc00000, 0, 1},
        {"leu.f32", 0x40000000, 0x3f800000, 0},
    };
    for (size_t i = 0; i < sizeof of / sizeof *of; i++) {
        char body[500];
        uint32_t out[32];
        sprintf(body,
                "mov.b32 %%r2, %u; mov.b32 %%r3, %u; mov.b32 %%f2, %%r2; mov.b32 %%f3, %%r3; "
                "setp.%s %%p1|%%p2, %%%c2, %%%c3; setp.eq.or.s32 %%p3, %%r0, %%r0, !%%p1; selp.u32 "
                "%%r1, 1, 0, %%p1; @!%%p2 add.s32 %%r1, %%r1, 2; @!%%p3 add.s32 %%r1, %%r1, 4;%s",
                (unsigned)of[i].a, (unsigned)of[i].b, of[i].opcode,
                strchr(of[i].opcode, 'f') ? 'f' : 'r', strchr(of[i].opcode, 'f') ? 'f' : 'r',
                STORE);
        check_run(body, out);
        /* The second predicate is the first's contrary; the third holds whatever it is joined to.
         */
        if (out[5] != (of[i].result ? 3u : 0u))
            fail_msg("setp.%s: %u", of[i].opcode, (unsigned)out[5]);
    }
}

static void packing(void **state)
{
    (void)state;
    uint32_t out[32];
    check_run("mov.b32 %r1, 0x12345678; mov.b32 {%h1, %h2}, %r1; mov.b32 %r1, {%h2, %h1};" STORE,
              out);
    assert_int_equal(out[3], 0x56781234);
    check_run("mov.u16 %h1, 7; mov.b32 %r1, {0, %h1};" STORE, out);
    assert_int_equal(out[3], 7 << 16);
    check_run("mov.b32 %r1, 1; mov.b32 %r2, 2; mov.b64 %rd5, {%r1, %r2}; shr.u64 %rd5, %rd5, 32; "
              "cvt.u32.u64 %r1, %rd5;" STORE,
              out);
    assert_int_equal(out[0], 2);
    check_run("{ .reg .b32 %r1; mov.b32 %r1, 9; } mov.b32 %r1, 4; { .reg .b32 %r1; mov.b32 %r1, 9; "
              "}" STORE,
              out);
    assert_int_equal(out[0], 4);
}

/* --- a warp's lanes --- */

static void divergence(void **state)
{
    (void)state;
    uint32_t out[32];
    /* Lane t takes t turns; then all are together again, or the shuffle would fault. */
    check_run("mov.u32 %r1, 0; mov.u32 %r2, 0;\nL: setp.ge.u32 %p1, %r2, %r0; @%p1 bra M; add.u32 "
              "%r2, %r2, 1; add.u32 %r1, %r1, %r2; bra.uni L;\n"
              "M: shfl.sync.idx.b32 %r3|%p2, %r1, 31, 31, -1; add.u32 %r1, %r1, %r3;" STORE,
              out);
    for (unsigned i = 0; i < 32; i++)
        assert_int_equal(out[i], i * (i + 1) / 2 + 31 * 32 / 2);
    /* Both ways of an if, and lanes that end early. */
    check_run("mov.u32 %r1, 77; and.b32 %r2, %r0, 1; setp.eq.u32 %p1, %r2, 1; @%p1 bra ODD; "
              "mov.u32 %r1, 10; setp.lt.u32 %p2, %r0, 8; @%p2 bra END; bra.uni MEET;\nODD: mov.u32 "
              "%r1, 20;\nMEET: add.u32 %r1, %r1, 1;\n" STORE "\nEND:",
              out);
    for (unsigned i = 0; i < 32; i++)
        assert_int_equal(out[i], i % 2 ? 21 : i < 8 ? 0xffffffff : 11);
}

static void collectives(void **state)
{
    (void)state;
    uint32_t out[32];
    static const struct {
        const char *opcode;
        int from[4]; /* of lanes 0, 5, 16, 31 */
    } shuffles[] = {{"bfly.b32 %r1|%p1, %r0, 3, 31, -1", {3, 6, 19, 28}},
                    {"up.b32 %r1|%p1, %r0, 2, 0, -1", {0, 3, 14, 29}},
                    {"down.b32 %r1, %r0, 4, 31, -1", {4, 9, 20, 31}},
                    {"idx.b32 %r1, %r0, 7, 31, -1", {7, 7, 7, 7}},
                    {"bfly.b32 %r1, %r0, 9, 0x181f, -1", {0, 5, 16, 22}},
                    {"idx.b32 %r1, %r0, 1, 0x181f, -1", {1, 1, 17, 25}}};
    for (size_t i = 0; i < sizeof shuffles / sizeof *shuffles; i++) {
        char body[300];
        const int lanes[4] = {0, 5, 16, 31};
        sprintf(body, "shfl.sync.%s;%s", shuffles[i].opcode, STORE);
        check_run(body, out);
        for (int j = 0; j < 4; j++)
            if (out[lanes[j]] != (uint32_t)shuffles[i].from[j])
                fail_msg("%s: lane %d has %u", shuffles[i].opcode, lanes[j],
                         (unsigned)out[lanes[j]]);
    }
    check_run("setp.lt.u32 %p1, %r0, 4; vote.sync.ballot.b32 %r1, %p1, -1; vote.sync.any.pred %p2, "
              "%p1, -1; vote.sync.all.pred %p3, %p1, -1; @%p2 add.u32 %r1, %r1, 100; @%p3 add.u32 "
              "%r1, %r1, 1000;" STORE,
              out);
    assert_int_equal(out[9], 115);
    check_run("redux.sync.add.u32 %r1, %r0, -1;" STORE, out);
    assert_int_equal(out[9], 496);
}

/* The manual's fragments: of a, registers 1 and 3 are rows 8 to 15, 2 and 3 columns 8 to 15; of b,
 * register 1 rows 8 to 15. */
static void products(void **state)
{
    (void)state;
    for (int type = 0; type < 2; type++) {
        float a[16][16], b[16][8];
        uint32_t in[32 * 6], out[32];
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 16; j++) {
                a[i][j] = (float)((i * 7 + j * 3) % 11 - 5);
                if (j < 8) b[i][j] = (float)((i * 5 + j * 2) % 7 - 3);
            }
        for (int lane = 0; lane < 32; lane++)
            for (int r = 0; r < 6; r++) {
                uint32_t word = 0;
                for (int half = 0; half < 2; half++) {
                    float v = r < 4 ? a[lane / 4 + (r & 1) * 8][lane % 4 * 2 + half + (r >> 1) * 8]
                                    : b[lane % 4 * 2 + half + (r - 4) * 8][lane / 4];
                    uint32_t bits;
                    memcpy(&bits, &v, 4);
                    /* Small whole numbers have the same digits in all three types. */
                    uint32_t f16 = v == 0 ? 0
                                          : (bits >> 16 & 0x8000) |
                                                (((bits >> 23 & 255) - 112) << 10) |
                                                (bits >> 13 & 0x3ff);
                    word |= (type ? bits >> 16 : f16) << (16 * half);
                }
                in[lane * 6 + r] = word;
            }
        char body[900];
        sprintf(body,
                "mul.wide.u32 %%rd1, %%r0, 24; add.s64 %%rd1, %%rd1, %%in; ld.global.v2.b32 "
                "{%%r10, %%r11}, [%%rd1]; ld.global.v2.b32 {%%r12, %%r13}, [%%rd1+8]; "
                "ld.global.v2.b32 {%%r14, %%r15}, [%%rd1+16];"
                "mov.f32 %%f0, 0f3F800000; mov.f32 %%f1, 0f3F800000; mov.f32 %%f2, 0f40000000; "
                "mov.f32 %%f3, 0f00000000;"
                "mma.sync.aligned.m16n8k16.row.col.f32.%s.%s.f32 {%%f0, %%f1, %%f2, %%f3}, {%%r10, "
                "%%r11, %%r12, %%r13}, {%%r14, %%r15}, {%%f0, %%f1, %%f2, %%f3};"
                "mul.wide.u32 %%rd2, %%r0, 16; add.s64 %%rd2, %%rd2, %%out; st.global.v4.f32 "
                "[%%rd2], {%%f0, %%f1, %%f2, %%f3};",
                type ? "bf16" : "f16", type ? "bf16" : "f16");
        uint64_t o = gmem_alloc(512, MEMORY), i = gmem_alloc(sizeof in, MEMORY);
        memcpy(gmem_at(i, sizeof in), in, sizeof in);
        if (run_blocks(body, 1, 32, o, i, 0)) fail_msg("%s %s", error, fault.text);
        const float *got = gmem_at(o, 512);
        for (int lane = 0; lane < 32; lane++)
            for (int r = 0; r < 4; r++) {
                int row = lane / 4 + r / 2 * 8, col = lane % 4 * 2 + r % 2;
                float want = r < 2 ? 1 : r == 2 ? 2 : 0;
                for (int k = 0; k < 16; k++)
                    want += a[row][k] * b[k][col];
                assert_float_equal(got[lane * 4 + r], want, 0);
            }
        assert_int_equal(counts.mma, 1);
        gmem_free(o);
        gmem_free(i);
        (void)out;
    }
}

#define SHARED16 ".shared .align 16 .b8 s[4096]; mov.u32 %r5, s; mad.lo.u32 %r6, %r0, 16, %r5;"

static void matrices(void **state)
{
    (void)state;
    uint32_t out[32];
    /* Lane t writes row t: 8 halves 8 t ... 8 t + 7. Then lane l has, of matrix m, elements 2 (l %
     * 4) and the next of row l / 4. */
    static const char rows[] =
        SHARED16 "mul.lo.u32 %r1, %r0, 8; mov.u32 %r7, 0;\nL: add.u32 %r8, %r1, %r7; shl.b32 %r9, "
                 "%r7, 1; add.u32 %r9, %r9, %r6; cvt.u16.u32 %h1, %r8; st.shared.u16 [%r9], %h1; "
                 "add.u32 %r7, %r7, 1; setp.lt.u32 %p1, %r7, 8; @%p1 bra L; bar.sync 0;\n";
    char body[1200];
    for (int m = 0; m < 4; m++) {
        sprintf(body,
                "%sldmatrix.sync.aligned.m8n8.x4.shared.b16 {%%r10, %%r11, %%r12, %%r13}, [%%r6]; "
                "mov.u32 %%r1, %%r1%d;%s",
                rows, m, STORE);
        check_run(body, out);
        for (unsigned l = 0; l < 32; l++) {
            unsigned first = ((unsigned)m * 8 + l / 4) * 8 + l % 4 * 2;
            assert_int_equal(out[l], first | (first + 1) << 16);
        }
    }
    sprintf(body,
            "%sldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%%r10, %%r11}, [%%r6]; mov.u32 "
            "%%r1, %%r11;%s",
            rows, STORE);
    check_run(body, out);
    for (unsigned l = 0; l < 32; l++) {
        unsigned row = 8 + l % 4 * 2, col = l / 4;
        assert_int_equal(out[l], (row * 8 + col) | ((row + 1) * 8 + col) << 16);
    }
    assert_int_equal(counts.ldmatrix_waves, 2);
    assert_int_equal(counts.ldmatrix_waves_least, 2);
}

#define COPY "mul.wide.u32 %rd1, %r0, 16; add.s64 %rd1, %rd1, %in; "

static void copies(void **state)
{
    (void)state;
    uint32_t in[128], out[32];
    for (uint32_t i = 0; i < 128; i++)
        in[i] = i;
    /* Twelve of sixteen bytes: the rest is zero. */
    assert_int_equal(
        run(SHARED16 COPY
            "cp.async.cg.shared.global [%r6], [%rd1], 16, 12; cp.async.commit_group; "
            "cp.async.wait_group 0; bar.sync 0; xor.b32 %r7, %r6, 16; ld.shared.v4.u32 {%r1, %r2, "
            "%r3, %r4}, [%r7]; mad.lo.u32 %r1, %r3, 100, %r4;" STORE,
            out, in, 128),
        0);
    for (uint32_t i = 0; i < 32; i++)
        assert_int_equal(out[i], ((i ^ 1) * 4 + 2) * 100);
    assert_int_equal(counts.copies, 32);
    assert_int_equal(counts.copies_nothing, 0);
    assert_int_equal(counts.copied_sectors, 16);
    /* Of two groups, wait_group 1 lands the first. */
    static const char two[] =
        "%s cp.async.ca.shared.global [%%r6], [%%rd1], 4; cp.async.commit_group; "
        "cp.async.ca.shared.global [%%r6+2048], [%%rd1], 4; cp.async.commit_group; "
        "cp.async.wait_group 1; ld.shared.u32 %%r1, [%%r6+%d];%s";
    char body[1200];
    sprintf(body, two, SHARED16 COPY, 0, STORE);
    assert_int_equal(run(body, out, in, 128), 0);
    assert_int_equal(out[7], 28);
    sprintf(body, two, SHARED16 COPY, 2048, STORE);
    assert_int_equal(run(body, out, in, 128), -1);
    assert_non_null(strstr(fault.text, "in flight"));
}

static void module_variables(void **state)
{
    (void)state;
    uint32_t out[32];
    check_run("ld.global.nc.u32 %r1, [table+8];" STORE, out);
    assert_int_equal(out[0], 9);
    check_run(
        ".local .align 16 .b8 d[16]; .reg .b64 %SP, %SPL; mov.u64 %SPL, d; cvta.local.u64 %SP, "
        "%SPL; add.u64 %rd5, %SPL, 4; st.local.u32 [%rd5], %r0; ld.u32 %r1, [%SP+4];" STORE,
        out);
    for (uint32_t i = 0; i < 32; i++)
        assert_int_equal(out[i], i);
    uint64_t o = gmem_alloc(4, MEMORY);
    assert_int_equal(
        run_blocks("atom.global.add.u32 %r1, [%out], %r0; red.global.max.u32 [%out], 9;", 3, 32, o,
                   o, 0),
        0);
    assert_int_equal(*(uint32_t *)gmem_at(o, 4), 0xffffffffu + 3 * 496);
    gmem_free(o);
}

/* --- what is counted --- */

static void traffic(void **state)
{
    (void)state;
    static const struct {
        const char *access;
        unsigned long waves, least, sectors;
    } of[] = {
        {"mul.lo.u32 %r6, %r0, 4; add.u32 %r6, %r6, %r5; st.shared.u32 [%r6], %r0;", 1, 1, 0},
        {"mul.lo.u32 %r6, %r0, 8; add.u32 %r6, %r6, %r5; st.shared.u32 [%r6], %r0;", 2, 1, 0},
        {"mul.lo.u32 %r6, %r0, 128; add.u32 %r6, %r6, %r5; st.shared.u32 [%r6], %r0;", 32, 1, 0},
        {"mul.lo.u32 %r6, %r0, 16; add.u32 %r6, %r6, %r5; st.shared.v4.u32 [%r6], {%r0, %r0, %r0, "
         "%r0};",
         4, 4, 0},
        {"mul.lo.u32 %r6, %r0, 32; add.u32 %r6, %r6, %r5; st.shared.v4.u32 [%r6], {%r0, %r0, %r0, "
         "%r0};",
         8, 4, 0},
        {"mul.wide.u32 %rd1, %r0, 4; add.s64 %rd1, %rd1, %out; st.global.u32 [%rd1], %r0;", 0, 0,
         4},
        {"mul.wide.u32 %rd1, %r0, 32; add.s64 %rd1, %rd1, %out; st.global.u32 [%rd1], %r0;", 0, 0,
         32},
        {"mul.wide.u32 %rd1, %r0, 16; add.s64 %rd1, %rd1, %out; st.global.v4.u32 [%rd1], {%r0, "
         "%r0, %r0, %r0};",
         0, 0, 16},
        {"mul.wide.u32 %rd1, %r0, 2; add.s64 %rd1, %rd1, %out; cvt.u16.u32 %h1, %r0; setp.lt.u32 "
         "%p1, %r0, 16; @%p1 st.global.u16 [%rd1], %h1;",
         0, 0, 1},
    };
    for (size_t i = 0; i < sizeof of / sizeof *of; i++) {
        char body[600];
        sprintf(body, ".shared .align 16 .b8 s[4096]; mov.u32 %%r5, s; %s", of[i].access);
        check_run(body, NULL);
        assert_int_equal(counts.shared_waves, of[i].waves);
        assert_int_equal(counts.shared_waves_least, of[i].least);
        assert_int_equal(counts.written_sectors, of[i].sectors);
    }
    check_run("bar.sync 0; ex2.approx.f32 %f1, 0f00000000; cvt.rn.f32.u32 %f2, %r0;", NULL);
    assert_int_equal(counts.barriers, 1);
    assert_int_equal(counts.special, 32);
    assert_int_equal(counts.conversions, 1);
    /* Two loads of parameters, the mov before the body, ret. */
    assert_int_equal(counts.instructions, 3 + 3 + 1);
}

/* --- what must be refused --- */

#define S ".shared .align 4 .b8 s[512]; mov.u32 %r5, s; mad.lo.u32 %r6, %r0, 4, %r5; "

static void faults(void **state)
{
    (void)state;
    static const struct {
        const char *body, *text;
        enum ptx_fault_kind kind;
    } of[] = {
        {"st.global.u32 [%out+4096], %r0;", "not within an allocation", PTX_ADDRESS},
        {"st.global.v2.u32 [%out+4092], {%r0, %r0};", "no multiple", PTX_MISALIGNED},
        {"ld.global.u32 %r1, [%out+-4];", "not within an allocation", PTX_ADDRESS},
        {"mov.u64 %rd1, 16; ld.global.u32 %r1, [%rd1];", "not within an allocation", PTX_ADDRESS},
        {S "st.shared.u32 [%r6+512], %r0;", "the block has 512 bytes", PTX_ADDRESS},
        {S "st.shared.u32 [%r6+388], %r0;", "the block has 512 bytes", PTX_ADDRESS},
        {"mov.u32 %r1, dynamic; st.shared.u32 [%r1], %r0;", "by its launch", PTX_ADDRESS},
        {S "ld.shared.u32 %r1, [%r6];", "nobody has written", PTX_UNSOUND},
        {S "st.shared.u32 [%r5], %r0;", "race", PTX_UNSOUND},
        {S "st.shared.u32 [%r6], %r0; ld.shared.u32 %r1, [%r5];", "race", PTX_UNSOUND},
        {S "st.shared.u32 [%r6], %r0; bar.sync 0; ld.shared.u32 %r1, [%r5]; st.shared.u32 [%r6], "
           "%r0;",
         "race", PTX_UNSOUND},
        {S COPY "cp.async.ca.shared.global [%r6], [%rd1], 4; ld.shared.u32 %r1, [%r6];",
         "in flight", PTX_UNSOUND},
        {S COPY
         "cp.async.ca.shared.global [%r6], [%rd1], 4; cp.async.ca.shared.global [%r6], [%rd1], 4;",
         "in flight", PTX_UNSOUND},
        {S COPY
         "cp.async.ca.shared.global [%r6], [%rd1], 4; cp.async.wait_all; ld.shared.u32 %r1, [%r5];",
         "race", PTX_UNSOUND},
        {S COPY "cp.async.ca.shared.global [%r6], [%rd1+4096], 4;", "not within an allocation",
         PTX_ADDRESS},
        {S COPY "cp.async.ca.shared.global [%r6], [%rd1+2], 4;", "not both multiples",
         PTX_MISALIGNED},
        {S "setp.lt.u32 %p1, %r0, 5; @%p1 bar.sync 0;", "at the barrier", PTX_UNSOUND},
        {"setp.lt.u32 %p1, %r0, 5; @%p1 shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;",
         "its mask names lanes", PTX_UNSOUND},
        {"shfl.sync.bfly.b32 %r1, %r0, 1, 31, 15;", "its mask names lanes", PTX_UNSOUND},
        {"L: bra.uni L;", "does not come to an end", PTX_UNSOUND},
    };
    for (size_t i = 0; i < sizeof of / sizeof *of; i++) {
        if (!run(of[i].body, NULL, NULL, 0)) fail_msg("not noticed: %s", of[i].body);
        if (fault.kind != of[i].kind || !strstr(fault.text, of[i].text))
            fail_msg("%s: %s %s", of[i].body, error, fault.text);
    }
}

/* The same accesses with what makes them sound. */
static void sound(void **state)
{
    (void)state;
    check_run(S "st.shared.u32 [%r6], %r0; bar.warp.sync -1; ld.shared.u32 %r1, [%r5]; "
                "bar.warp.sync -1; st.shared.u32 [%r6], %r1;",
              NULL);
    check_run(S "st.shared.u32 [%r6], %r0; bar.sync 0; ld.shared.u32 %r1, [%r5]; bar.sync 0; "
                "st.shared.u32 [%r6], %r0;",
              NULL);
    check_run(S COPY "cp.async.ca.shared.global [%r6], [%rd1], 4; cp.async.wait_all; bar.sync 0; "
                     "ld.shared.u32 %r1, [%r5];",
              NULL);
    check_run("mov.u64 %rd1, 16; setp.gt.u32 %p1, %r0, 99; @%p1 ld.global.u32 %r1, [%rd1];", NULL);
    uint64_t o = gmem_alloc(256, MEMORY);
    assert_int_equal(
        run_blocks("mov.u32 %r1, dynamic; mad.lo.u32 %r1, %r0, 4, %r1; st.shared.u32 [%r1], %r0;",
                   1, 64, o, o, 256),
        0);
    /* Two warps at one place. */
    assert_int_equal(
        run_blocks(S "and.b32 %r7, %r6, 127; st.shared.u32 [%r7], %r0;", 1, 64, o, o, 0), -1);
    assert_non_null(strstr(fault.text, "race"));
    assert_int_equal(
        run_blocks("setp.lt.u32 %p1, %r0, 32; @%p1 bra E; bar.sync 0;\nE:", 1, 64, o, o, 0), -1);
    assert_non_null(strstr(fault.text, "has ended while 1 warps wait"));
    gmem_free(o);
}

static void unknown(void **state)
{
    (void)state;
    static const char *const bodies[][2] = {
        {"mov.u64 %rd1, %clock64;", "%clock64"},
        {"nanosleep.u32 5;", "nanosleep.u32"},
        {"add.sat.s32 %r1, %r0, %r0;", "add.sat.s32"},
        {"add.s32 %r1, %r0, %rd1;", "add.s32"},
        {"add.s32 %r1, %r0;", "add.s32"},
        {"ld.global.L7.u32 %r1, [%out];", "ld.global.L7.u32"},
        {"ld.acquire.gpu.global.u32 %r1, [%out];", "ld.acquire.gpu.global.u32"},
        {"mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%f0, %f1, %f2, %f3}, {%r1, %r2}, "
         "{%r3}, {%f0, %f1, %f2, %f3};",
         "m16n8k8"},
        {"cp.async.cg.shared.global [%r1], [%out], 8;", "cp.async.cg.shared.global"},
        {"bar.sync 1;", "bar.sync"},
        {"cvt.rn.relu.bf16.f32 %h1, %f1;", "cvt.rn.relu.bf16.f32"},
        {"setp.lt.b8 %p1, %r1, %r2;", "setp.lt.b8"},
        {"wgmma.fence.sync.aligned;", "wgmma.fence.sync.aligned"},
    };
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        /* Even where it would not be reached. */
        char body[400];
        sprintf(body, "bra E; %s\nE:", bodies[i][0]);
        if (!run(body, NULL, NULL, 0) || fault.kind != PTX_UNKNOWN ||
            !strstr(fault.text, bodies[i][1]))
            fail_msg("%s: %s %s", bodies[i][0], error, fault.text);
    }
    static const char *const torn[] = {".shared .b8 s[4; ", "add.s32 %r1, %r0, ;", "bra",
                                       "@%zz bra L;\nL:",   ".surface x;",         "{ {",
                                       "ld.u32 %r1, [%out;"};
    for (size_t i = 0; i < sizeof torn / sizeof *torn; i++)
        if (!run(torn[i], NULL, NULL, 0) || !strstr(error, "PTX line"))
            fail_msg("%s: %s", torn[i], error);
}

static void memory(void **state)
{
    (void)state;
    uint64_t a = gmem_alloc(100, MEMORY), b = gmem_alloc(50, MEMORY);
    assert_int_equal(gmem_used(), 150);
    assert_int_equal(a % 256, 0);
    assert_non_null(gmem_at(a + 99, 1));
    assert_null(gmem_at(a + 99, 2));
    assert_null(gmem_at(a - 1, 1));
    assert_null(gmem_at(a, (size_t)-1));
    assert_int_equal(*(uint8_t *)gmem_at(b, 1), 0xff);
    assert_int_equal(gmem_free(a + 4), -1);
    assert_int_equal(gmem_free(a), 0);
    assert_int_equal(gmem_free(a), -1);
    assert_null(gmem_at(a, 1));
    assert_int_equal(gmem_alloc(MEMORY, MEMORY), 0);
    assert_int_equal(gmem_free(b), 0);
    assert_int_equal(gmem_count(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory),      cmocka_unit_test(opcodes),
        cmocka_unit_test(comparisons), cmocka_unit_test(packing),
        cmocka_unit_test(divergence),  cmocka_unit_test(collectives),
        cmocka_unit_test(products),    cmocka_unit_test(matrices),
        cmocka_unit_test(copies),      cmocka_unit_test(module_variables),
        cmocka_unit_test(traffic),     cmocka_unit_test(faults),
        cmocka_unit_test(sound),       cmocka_unit_test(unknown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
