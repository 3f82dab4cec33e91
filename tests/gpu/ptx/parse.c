/* parse.c - PTX text to decoded instructions. What it does not know it names; nothing is skipped
 * but comments, debugging directives and hints of performance. */
#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gmem.h"
#include "machine.h"

enum symbol_kind { SYMBOL_REG, SYMBOL_REGS, SYMBOL_VALUE, SYMBOL_LABEL };

struct symbol {
    const char *name; /* in the text, not terminated */
    size_t length;
    enum symbol_kind kind;
    uint8_t bytes;  /* of registers */
    uint32_t count; /* of SYMBOL_REGS: %r<count> */
    uint64_t value; /* place of the (first) register; address; instruction */
};

struct pending { /* a branch to a label that may come later */
    size_t insn;
    const char *name;
    size_t length;
};

struct parser {
    const char *at, *end;
    uint32_t line;
    char *error;
    size_t error_size, most;
    struct ptx_module *m;
    struct symbol *symbols;
    size_t n_symbols, n_module; /* the module's come first */
    struct pending *pending;
    size_t n_pending;
    struct kernel *k;
    size_t scopes[32];
    int depth;
    int failed;
};

static void __attribute__((format(printf, 2, 3))) fail(struct parser *p, const char *format, ...)
{
    if (p->failed) return;
    p->failed = 1;
    int n = snprintf(p->error, p->error_size, "PTX line %u: ", (unsigned)p->line);
    va_list list;
    va_start(list, format);
    if (n > 0 && (size_t)n < p->error_size)
        vsnprintf(p->error + n, p->error_size - (size_t)n, format, list);
    va_end(list);
}

/* Room for one more, doubling; the interpreter is a test's: out of memory ends it. */
static void *grown(void *old, size_t n, size_t size)
{
    if (n & (n - 1)) return old;
    void *p = realloc(old, (n ? 2 * n : 1) * size);
    if (!p) abort();
    return p;
}

static char *copied(const char *s, size_t n)
{
    char *p = strndup(s, n);
    if (!p) abort();
    return p;
}

/* --- tokens --- */

static void blank(struct parser *p)
{
    while (p->at < p->end) {
        if (*p->at == '\n') p->line++;
        if (isspace((unsigned char)*p->at)) {
            p->at++;
        } else if (p->end - p->at > 1 && p->at[0] == '/' && p->at[1] == '/') {
            while (p->at < p->end && *p->at != '\n')
                p->at++;
        } else {
            return;
        }
    }
}

static int accept(struct parser *p, char c)
{
    blank(p);
    if (p->at == p->end || *p->at != c) return 0;
    p->at++;
    return 1;
}

static void expect(struct parser *p, char c)
{
    if (!accept(p, c))
        fail(p, "expected `%c`, found `%.20s`", c, p->at < p->end ? p->at : "the end");
}

static int is_name(char c)
{
    return isalnum((unsigned char)c) || c == '_' || c == '$' || c == '%' || c == '.' || c == ':';
}

struct word {
    const char *s;
    size_t n;
};

/* A name, a directive, an opcode with its modifiers or a number. ':' belongs to it only as in
 * .L2::128B. */
static struct word word(struct parser *p)
{
    blank(p);
    struct word w = {p->at, 0};
    while (p->at < p->end && is_name(*p->at)) {
        if (*p->at == ':' && (p->end - p->at < 2 || p->at[1] != ':')) break;
        p->at += *p->at == ':' ? 2 : 1;
    }
    w.n = (size_t)(p->at - w.s);
    return w;
}

static int is(struct word w, const char *s)
{
    return w.n == strlen(s) && !memcmp(w.s, s, w.n);
}

static int begins(struct word w, const char *s)
{
    return w.n >= strlen(s) && !memcmp(w.s, s, strlen(s));
}

static void skip_to(struct parser *p, char c)
{
    while (p->at < p->end && *p->at != c)
        if (*p->at++ == '\n') p->line++;
    if (p->at < p->end) p->at++;
}

/* An integer, 0fXXXXXXXX or 0dXXXXXXXXXXXXXXXX, negative ones with a sign. */
static int number(struct parser *p, uint64_t *ret, int *is_float)
{
    blank(p);
    int negative = accept(p, '-');
    struct word w = word(p);
    char text[32], *rest;
    if (!w.n || w.n >= sizeof text || !isdigit((unsigned char)w.s[0])) return -1;
    memcpy(text, w.s, w.n);
    text[w.n] = 0;
    *is_float =
        text[0] == '0' && (text[1] == 'f' || text[1] == 'F' || text[1] == 'd' || text[1] == 'D');
    if (*is_float && negative) return -1;
    *ret = *is_float ? strtoull(text + 2, &rest, 16) : strtoull(text, &rest, 0);
    if (*rest == 'U') rest++;
    if (negative) *ret = 0 - *ret;
    return *rest ? -1 : 0;
}

static uint64_t plain_number(struct parser *p)
{
    uint64_t v = 0;
    int is_float;
    if (number(p, &v, &is_float) || is_float) fail(p, "expected a number");
    return v;
}

/* --- symbols and places --- */

static struct symbol *symbol_add(struct parser *p, struct word name, enum symbol_kind kind)
{
    p->symbols = grown(p->symbols, p->n_symbols, sizeof *p->symbols);
    struct symbol *s = &p->symbols[p->n_symbols++];
    *s = (struct symbol){.name = name.s, .length = name.n, .kind = kind};
    return s;
}

static int symbol_find(struct parser *p, struct word name, struct symbol *ret)
{
    size_t digits = 0;
    while (digits < name.n && digits < 9 && isdigit((unsigned char)name.s[name.n - 1 - digits]))
        digits++;
    uint32_t index = 0;
    for (size_t i = name.n - digits; i < name.n; i++)
        index = index * 10 + (uint32_t)(name.s[i] - '0');
    for (size_t i = p->n_symbols; i--;) {
        const struct symbol *s = &p->symbols[i];
        if (s->kind == SYMBOL_REGS ? digits && s->length == name.n - digits && index < s->count &&
                                         !memcmp(s->name, name.s, s->length)
                                   : s->length == name.n && !memcmp(s->name, name.s, name.n)) {
            *ret = *s;
            if (s->kind == SYMBOL_REGS)
                ret->value += (uint64_t)index * (s->bytes == 1 ? 4 : s->bytes * LANES);
            return 0;
        }
    }
    return -1;
}

static uint32_t places(struct parser *p, uint8_t bytes, size_t count)
{
    size_t at = p->k->file_bytes, one = bytes == 1 ? 4 : (size_t)bytes * LANES;
    if (one > 4) at = (at + 63) & ~(size_t)63;
    p->k->file_bytes = at + one * count;
    if (p->k->file_bytes > (size_t)1 << 28) fail(p, "too many registers");
    return (uint32_t)at;
}

uint32_t parser_scratch(struct parser *p, uint8_t bytes)
{
    return places(p, bytes, 1);
}

uint32_t parser_constant(struct parser *p, uint64_t value, uint8_t bytes)
{
    struct kernel *k = p->k;
    if (bytes == 2) value &= 0xffff;
    if (bytes == 4) value &= 0xffffffff;
    for (size_t i = 0; i < k->n_constants; i++)
        if (k->constants[i].value == value && k->constants[i].bytes == bytes)
            return k->constants[i].at;
    uint32_t at = places(p, bytes, 1);
    k->constants = grown(k->constants, k->n_constants, sizeof *k->constants);
    k->constants[k->n_constants++] = (struct constant){at, bytes, value};
    return at;
}

/* Of .u32, .pred and their like; 0 where it is no type. */
static uint8_t type_bytes(struct word w)
{
    static const struct {
        const char *name;
        uint8_t bytes;
    } types[] = {{".pred", 1}, {".b8", 1},  {".u8", 1},  {".s8", 1},    {".b16", 2},
                 {".u16", 2},  {".s16", 2}, {".f16", 2}, {".bf16", 2},  {".b32", 4},
                 {".u32", 4},  {".s32", 4}, {".f32", 4}, {".f16x2", 4}, {".bf16x2", 4},
                 {".b64", 8},  {".u64", 8}, {".s64", 8}, {".f64", 8}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (is(w, types[i].name)) return types[i].bytes;
    return 0;
}

/* --- declarations --- */

struct declared {
    struct word name;
    size_t align, element, size;
};

/* [.align n] .type name[count] ; ret->size 0: name[] */
static void declaration(struct parser *p, struct declared *ret)
{
    *ret = (struct declared){.align = 1};
    struct word w = word(p);
    if (is(w, ".align")) {
        ret->align = plain_number(p);
        w = word(p);
    }
    /* Which memory a parameter points at is a hint. */
    ret->element = type_bytes(w);
    if (!ret->element || is(w, ".pred"))
        fail(p, "`%.*s` is not a type of variables", (int)w.n, w.s);
    w = word(p);
    while (is(w, ".ptr") || is(w, ".global") || is(w, ".align")) {
        if (is(w, ".align")) plain_number(p);
        w = word(p);
    }
    ret->name = w;
    if (ret->align < ret->element) ret->align = ret->element;
    ret->size = ret->element;
    while (accept(p, '[')) {
        if (accept(p, ']')) {
            ret->size = 0;
        } else {
            uint64_t n = plain_number(p);
            if (n > (uint64_t)1 << 32 || __builtin_mul_overflow(ret->size, n, &ret->size))
                fail(p, "a variable too large");
            expect(p, ']');
        }
    }
    if (ret->align & (ret->align - 1) || ret->align > 4096 || !ret->name.n)
        fail(p, "a declaration without name or with odd alignment");
}

static void registers(struct parser *p)
{
    struct word type = word(p);
    uint8_t bytes = type_bytes(type);
    if (!bytes || (bytes == 1 && !is(type, ".pred")))
        fail(p, "registers of type `%.*s` are not modelled", (int)type.n, type.s);
    do {
        struct word name = word(p);
        struct symbol *s = symbol_add(p, name, SYMBOL_REG);
        s->bytes = bytes;
        s->count = 1;
        if (accept(p, '<')) {
            s->kind = SYMBOL_REGS;
            s->count = (uint32_t)plain_number(p);
            expect(p, '>');
        }
        if (s->count > 1 << 20) fail(p, "too many registers");
        if (!p->failed) s->value = places(p, bytes, s->count);
    } while (!p->failed && accept(p, ','));
    expect(p, ';');
}

/* A variable of the kernel in shared or local memory. */
static void kernel_variable(struct parser *p, size_t *total)
{
    struct declared d;
    declaration(p, &d);
    *total = (*total + d.align - 1) / d.align * d.align;
    symbol_add(p, d.name, SYMBOL_VALUE)->value = *total;
    *total += d.size;
    if (*total > 1 << 24) fail(p, "a kernel's variables are too large");
    expect(p, ';');
}

/* A variable of the module: on the device, zero unless it has initial values. */
static void module_variable(struct parser *p)
{
    struct declared d;
    declaration(p, &d);
    if (p->failed || !d.size) {
        fail(p, "a variable without size");
        return;
    }
    uint64_t address = gmem_alloc(d.size, p->most);
    if (!address) {
        fail(p, "no device memory for `%.*s`", (int)d.name.n, d.name.s);
        return;
    }
    symbol_add(p, d.name, SYMBOL_VALUE)->value = address;
    struct ptx_module *m = p->m;
    m->variables = grown(m->variables, m->n_variables, sizeof *m->variables);
    m->variables[m->n_variables++] =
        (struct ptx_variable){copied(d.name.s, d.name.n), address, d.size};
    uint8_t *bytes = gmem_at(address, d.size);
    memset(bytes, 0, d.size);
    if (accept(p, '=')) {
        int list = accept(p, '{');
        size_t at = 0;
        do {
            uint64_t v = 0;
            int is_float;
            if (number(p, &v, &is_float) || at + d.element > d.size) {
                fail(p, "initial values that are not modelled");
                return;
            }
            memcpy(bytes + at, &v, d.element);
            at += d.element;
        } while (list && accept(p, ','));
        if (list) expect(p, '}');
    }
    expect(p, ';');
}

/* --- instructions --- */

/* The first thing of a kernel that is not modelled; its launch says so. */
static void __attribute__((format(printf, 2, 3)))
unknown_set(struct parser *p, const char *format, ...)
{
    char *text = NULL;
    va_list list;
    va_start(list, format);
    if (!p->k->pub.unknown && vasprintf(&text, format, list) < 0) abort();
    va_end(list);
    if (text) p->k->pub.unknown = text;
}

static int special_register(struct parser *p, struct word w, struct operand *o)
{
    static const char *const names[SPECIALS] = {
        "%tid.x",   "%tid.y",   "%tid.z",    "%ntid.x",   "%ntid.y",   "%ntid.z", "%ctaid.x",
        "%ctaid.y", "%ctaid.z", "%nctaid.x", "%nctaid.y", "%nctaid.z", "%laneid", "%warpid"};
    for (int i = 0; i < SPECIALS; i++) {
        if (!is(w, names[i])) continue;
        if (!p->k->special[i]) p->k->special[i] = places(p, 4, 1);
        *o = (struct operand){.kind = OPERAND_REG, .bytes = 4, .at = p->k->special[i]};
        return 0;
    }
    return -1;
}

static void operand(struct parser *p, struct operand *o)
{
    memset(o, 0, sizeof *o);
    int negated = accept(p, '!');
    blank(p);
    if (p->at < p->end && (*p->at == '-' || isdigit((unsigned char)*p->at))) {
        int is_float;
        o->kind = OPERAND_VALUE;
        if (number(p, &o->value, &is_float)) fail(p, "a number that is not modelled");
        o->is_float = (uint8_t)is_float;
        return;
    }
    struct word w = word(p);
    struct symbol s;
    if (is(w, "_")) {
        o->sink = 1;
    } else if (!special_register(p, w, o)) {
    } else if (w.n && symbol_find(p, w, &s) && w.s[0] == '%') {
        unknown_set(p, "PTX line %u: register `%.*s` is not modelled", (unsigned)p->line, (int)w.n,
                    w.s);
    } else if (w.n && symbol_find(p, w, &s)) {
        /* A label that comes later. */
        o->kind = OPERAND_LABEL;
        p->pending = grown(p->pending, p->n_pending, sizeof *p->pending);
        p->pending[p->n_pending++] = (struct pending){p->k->n_code, w.s, w.n};
    } else if (w.n && s.kind == SYMBOL_LABEL) {
        o->kind = OPERAND_LABEL;
        o->value = s.value;
    } else if (w.n && s.kind == SYMBOL_VALUE) {
        o->kind = OPERAND_VALUE;
        o->value = s.value;
    } else if (w.n) {
        o->kind = OPERAND_REG;
        o->bytes = s.bytes;
        o->at = (uint32_t)s.value;
    } else {
        fail(p, "an operand that is not modelled");
    }
    o->negated = (uint8_t)negated;
}

static void address(struct parser *p, struct operand *o)
{
    operand(p, o);
    if (accept(p, '+')) {
        uint64_t v = plain_number(p);
        o->offset = (int64_t)v;
    }
    o->address = 1;
    expect(p, ']');
}

static void instruction(struct parser *p, struct word opcode, struct word guard, int guard_flip)
{
    struct operand o[OPERANDS_MAX + 4];
    size_t n = 0;
    uint8_t group = 0;
    struct insn i = {.line = p->line, .name = copied(opcode.s, opcode.n)};
    if (guard.n) {
        struct symbol s;
        if (symbol_find(p, guard, &s) || s.bytes != 1)
            fail(p, "`%.*s` is no predicate", (int)guard.n, guard.s);
        else
            i.guard = (uint32_t)s.value;
        i.guard_flip = guard_flip ? ~0u : 0;
    }
    if (!accept(p, ';')) {
        do {
            int close = 0;
            if (accept(p, '{'))
                close = '}';
            else if (accept(p, '['))
                close = ']';
            do {
                if (n == sizeof o / sizeof *o) {
                    fail(p, "too many operands");
                    return;
                }
                if (close == ']')
                    address(p, &o[n]);
                else
                    operand(p, &o[n]);
                o[n++].group = group;
                /* Two results: a|b. */
            } while (!p->failed && (close == '}' ? accept(p, ',') : !close && accept(p, '|')));
            if (close == '}') expect(p, '}');
            group++;
        } while (!p->failed && accept(p, ','));
        expect(p, ';');
    }
    if (p->failed) {
        free((char *)i.name);
        return;
    }
    const char *unknown = n > OPERANDS_MAX ? "too many operands" : decode(p, &i, o, n);
    struct kernel *k = p->k;
    if (unknown) unknown_set(p, "PTX line %u: `%s`: %s", (unsigned)i.line, i.name, unknown);
    k->code = grown(k->code, k->n_code, sizeof *k->code);
    k->code[k->n_code++] = i;
}

static void statement(struct parser *p)
{
    static const char *const hints[] = {".pragma", ".loc"};
    if (accept(p, '{')) {
        if (p->depth == 31) {
            fail(p, "blocks too deep");
            return;
        }
        p->scopes[++p->depth] = p->n_symbols;
        return;
    }
    if (accept(p, '}')) {
        /* Labels are seen outside of their block; nvcc gives them unique names. */
        size_t kept = p->scopes[p->depth--];
        for (size_t i = kept; i < p->n_symbols; i++)
            if (p->symbols[i].kind == SYMBOL_LABEL) p->symbols[kept++] = p->symbols[i];
        p->n_symbols = kept;
        return;
    }
    struct word guard = {NULL, 0};
    int flip = 0;
    if (accept(p, '@')) {
        flip = accept(p, '!');
        guard = word(p);
    }
    struct word w = word(p);
    for (size_t i = 0; i < sizeof hints / sizeof *hints; i++) {
        if (!is(w, hints[i])) continue;
        /* .loc ends at its line's end, .pragma with ';'. */
        skip_to(p, is(w, ".loc") ? '\n' : ';');
        if (is(w, ".loc")) p->line++;
        return;
    }
    if (is(w, ".reg")) {
        registers(p);
        return;
    }
    if (is(w, ".shared")) {
        kernel_variable(p, &p->k->pub.shared_bytes);
        return;
    }
    if (is(w, ".local")) {
        kernel_variable(p, &p->k->pub.local_bytes);
        return;
    }
    if (!w.n || w.s[0] == '.') {
        fail(p, "`%.*s` is not modelled", (int)(w.n ? w.n : 1), w.s);
        return;
    }
    if (!guard.n && accept(p, ':')) {
        symbol_add(p, w, SYMBOL_LABEL)->value = p->k->n_code;
        return;
    }
    instruction(p, w, guard, flip);
}

static void parameters(struct parser *p)
{
    struct kernel *k = p->k;
    size_t *offsets = NULL, *sizes = NULL, n = 0;
    if (accept(p, ')')) return;
    do {
        struct word w = word(p);
        struct declared d;
        if (!is(w, ".param")) {
            fail(p, "expected .param");
            return;
        }
        declaration(p, &d);
        size_t at = (k->pub.param_bytes + d.align - 1) / d.align * d.align;
        symbol_add(p, d.name, SYMBOL_VALUE)->value = at;
        offsets = grown(offsets, n, sizeof *offsets);
        sizes = grown(sizes, n, sizeof *sizes);
        offsets[n] = at;
        sizes[n++] = d.size;
        k->pub.param_bytes = at + d.size;
    } while (!p->failed && accept(p, ','));
    k->pub.params = n;
    k->pub.param_offsets = offsets;
    k->pub.param_sizes = sizes;
    if (k->pub.param_bytes > 32764) fail(p, "more than 32764 bytes of parameters");
    expect(p, ')');
}

static void entry(struct parser *p)
{
    struct kernel *k = calloc(1, sizeof *k);
    if (!k) abort();
    p->k = k;
    k->file_bytes = 64; /* place 0 */
    k->pub.threads_max = 1024;
    p->m->kernels = grown(p->m->kernels, p->m->n_kernels, sizeof *p->m->kernels);
    p->m->kernels[p->m->n_kernels++] = &k->pub;
    p->n_module = p->n_symbols;
    p->n_pending = 0;
    struct word name = word(p);
    k->pub.name = copied(name.s, name.n);
    if (accept(p, '(')) parameters(p);
    /* .minnctapersm and .maxnreg speak to ptxas; .maxntid bounds launches too. */
    while (!p->failed && !accept(p, '{')) {
        struct word w = word(p);
        size_t product = 1;
        if (!begins(w, ".maxn") && !begins(w, ".minn")) {
            fail(p, "`%.*s` is not modelled", (int)w.n, w.s);
            return;
        }
        do
            product *= plain_number(p);
        while (!p->failed && accept(p, ','));
        if (is(w, ".maxntid")) k->pub.threads_max = product;
    }
    p->scopes[p->depth = 1] = p->n_symbols;
    while (!p->failed && p->depth) {
        blank(p);
        if (p->at == p->end) {
            fail(p, "a kernel without end");
            return;
        }
        if (p->depth == 1 && accept(p, '}')) break;
        statement(p);
    }
    /* The end of the body is one too. */
    k->code = grown(k->code, k->n_code, sizeof *k->code);
    k->code[k->n_code++] =
        (struct insn){.control = CONTROL_EXIT, .line = p->line, .name = copied("}", 1)};
    for (size_t i = 0; i < p->n_pending && !p->failed; i++) {
        struct symbol s;
        struct pending *b = &p->pending[i];
        if (symbol_find(p, (struct word){b->name, b->length}, &s) || s.kind != SYMBOL_LABEL ||
            k->code[b->insn].control != CONTROL_BRANCH)
            fail(p, "`%.*s` is unknown", (int)b->length, b->name);
        else
            k->code[b->insn].target = (uint32_t)s.value;
    }
    p->n_symbols = p->n_module;
}

/* extern __shared__ has addresses of its own, far above the kernel's variables: the launch tells
 * its size. */
static void top(struct parser *p)
{
    struct word w = word(p);
    while (is(w, ".visible") || is(w, ".extern") || is(w, ".weak"))
        w = word(p);
    if (is(w, ".version") || is(w, ".target") || is(w, ".address_size")) {
        skip_to(p, '\n');
        p->line++;
    } else if (is(w, ".global") || is(w, ".const")) {
        module_variable(p);
    } else if (is(w, ".shared")) {
        struct declared d;
        declaration(p, &d);
        if (d.size) fail(p, "shared variables of a module are not modelled, but extern ones");
        symbol_add(p, d.name, SYMBOL_VALUE)->value = SHARED_DYNAMIC;
        expect(p, ';');
    } else if (is(w, ".entry")) {
        entry(p);
    } else {
        fail(p, "`%.*s` is not modelled", (int)(w.n ? w.n : 1), w.s);
    }
}

int ptx_parse(struct ptx_module **ret_module, const char *text, size_t size, size_t most,
              char *error, size_t error_size)
{
    struct parser p = {.at = text,
                       .end = text + size,
                       .line = 1,
                       .error = error,
                       .error_size = error_size,
                       .most = most};
    p.m = calloc(1, sizeof *p.m);
    if (!p.m) abort();
    for (blank(&p); p.at < p.end && !p.failed; blank(&p))
        top(&p);
    free(p.symbols);
    free(p.pending);
    if (p.failed) {
        ptx_free(p.m);
        return -1;
    }
    *ret_module = p.m;
    return 0;
}

void ptx_free(struct ptx_module *m)
{
    if (!m) return;
    for (size_t i = 0; i < m->n_variables; i++) {
        gmem_free(m->variables[i].address);
        free(m->variables[i].name);
    }
    for (size_t i = 0; i < m->n_kernels; i++) {
        struct kernel *k = (struct kernel *)m->kernels[i];
        for (size_t j = 0; j < k->n_code; j++)
            free((char *)k->code[j].name);
        free(k->code);
        free(k->constants);
        free(k->pub.name);
        free((void *)k->pub.param_offsets);
        free((void *)k->pub.param_sizes);
        free((char *)k->pub.unknown);
        free(k);
    }
    free(m->kernels);
    free(m->variables);
    free(m);
}

const struct ptx_kernel *ptx_kernel_find(const struct ptx_module *m, const char *name)
{
    for (size_t i = 0; i < m->n_kernels; i++)
        if (!strcmp(m->kernels[i]->name, name)) return m->kernels[i];
    return NULL;
}
