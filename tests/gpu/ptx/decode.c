/* decode.c - instructions by their spelling. */
#include <stdlib.h>
#include <string.h>

#include "ops.h"

/* All tables' rows by name. */
static const struct op **sorted;
static size_t n_sorted;

static int by_name(const void *a, const void *b)
{
    return strcmp((*(const struct op *const *)a)->name, (*(const struct op *const *)b)->name);
}

static void ops_sort(void)
{
    const struct op *const tables[] = {arithmetic_ops, predicate_ops, warp_ops};
    const size_t sizes[] = {n_arithmetic_ops, n_predicate_ops, n_warp_ops};
    sorted = malloc((n_arithmetic_ops + n_predicate_ops + n_warp_ops) * sizeof *sorted);
    if (!sorted) abort();
    for (int i = 0; i < 3; i++)
        for (size_t j = 0; j < sizes[i]; j++)
            sorted[n_sorted++] = &tables[i][j];
    qsort(sorted, n_sorted, sizeof *sorted, by_name);
}

static const struct op *op_find(const char *name)
{
    if (!sorted) ops_sort();
    const struct op key = {.name = name}, *wanted = &key;
    const struct op **found = bsearch(&wanted, sorted, n_sorted, sizeof *sorted, by_name);
    return found ? *found : NULL;
}

int spelling_take(const char **s, const char *word)
{
    size_t n = strlen(word);
    if (**s != '.' || strncmp(*s + 1, word, n) || ((*s)[1 + n] && (*s)[1 + n] != '.')) return 0;
    *s += 1 + n;
    return 1;
}

/* Binds operands to a signature; a predicate result that is absent goes to a place of no use. */
const char *bind(struct parser *p, struct insn *n, struct operand *o, size_t count, const char *sig)
{
    size_t wanted = strlen(sig);
    if (count != wanted) return "it has another number of operands here";
    for (size_t i = 0; i < count; i++) {
        uint8_t bytes = sig[i] == 'p'                    ? 1
                        : sig[i] == 'h'                  ? 2
                        : sig[i] == 'w' || sig[i] == 'W' ? 4
                                                         : 8;
        if (o[i].address) return "an operand in brackets";
        if (o[i].sink) {
            n->at[i] = parser_scratch(p, bytes);
        } else if (o[i].kind == OPERAND_VALUE && (i || sig[0] == 'W')) {
            /* Half constants are written as their bits. */
            if (o[i].is_float && bytes == 2) return "a half in f32's or f64's bits";
            n->at[i] = parser_constant(p, o[i].value, bytes);
        } else if (o[i].kind == OPERAND_REG && o[i].bytes == bytes) {
            n->at[i] = o[i].at;
            if (o[i].negated && bytes == 1)
                n->flip |= 1u << i;
            else if (o[i].negated)
                return "a negated operand";
        } else {
            return "an operand of another kind or width than modelled";
        }
    }
    return NULL;
}

static const char *decode_control(struct insn *n, struct operand *o, size_t count)
{
    if (!strcmp(n->name, "bra") || !strcmp(n->name, "bra.uni")) {
        if (count != 1 || o[0].kind != OPERAND_LABEL) return "a branch to no label";
        n->control = CONTROL_BRANCH;
        n->class = CLASS_BRANCH;
        n->target = (uint32_t)o[0].value;
    } else if (!strcmp(n->name, "ret") || !strcmp(n->name, "exit")) {
        n->control = CONTROL_EXIT;
        if (count) return "an operand";
    } else if (!strcmp(n->name, "bar.sync") || !strcmp(n->name, "barrier.sync") ||
               !strcmp(n->name, "barrier.sync.aligned")) {
        n->control = CONTROL_BARRIER;
        n->class = CLASS_BARRIER;
        if (count != 1 || o[0].kind != OPERAND_VALUE || o[0].value)
            return "a barrier other than number 0 of all threads";
    } else {
        return "";
    }
    return NULL;
}

static uint8_t class_of(const struct insn *n)
{
    static const char *const special[] = {"ex2", "lg2", "rcp",  "sqrt",     "rsqrt",
                                          "sin", "cos", "tanh", "div.full", "div.approx"};
    if (!strncmp(n->name, "cvt.", 4)) return CLASS_CONVERSION;
    for (size_t i = 0; i < sizeof special / sizeof *special; i++)
        if (!strncmp(n->name, special[i], strlen(special[i])) && n->name[strlen(special[i])] == '.')
            return CLASS_SPECIAL;
    return CLASS_OTHER;
}

const char *decode(struct parser *p, struct insn *n, struct operand *o, size_t count)
{
    const char *unknown = decode_control(n, o, count);
    if (!unknown || *unknown) return unknown;
    unknown = decode_memory(p, n, o, count);
    if (!unknown || *unknown) return unknown;
    if (!strncmp(n->name, "mov.b", 5) && count > 2) return decode_pack(p, n, o, count);
    n->class = class_of(n);
    if (!strncmp(n->name, "setp.", 5)) return decode_setp(p, n, o, count);
    const struct op *op = op_find(n->name);
    if (op) {
        struct operand wider[6];
        if (op->run == run_shfl && count == 5 && o[1].group) {
            /* d instead of d|p. */
            memcpy(wider, o, sizeof *o);
            wider[1] = (struct operand){.sink = 1};
            memcpy(wider + 2, o + 1, 4 * sizeof *o);
            o = wider;
            count = 6;
        }
        n->run = op->run;
        n->mode = op->mode;
        if (op->class) n->class = op->class;
        unknown = bind(p, n, o, count, op->sig);
        if (!unknown || strncmp(n->name, "cvt.", 4)) return unknown;
    }
    if (!strncmp(n->name, "cvt.", 4)) {
        n->mode = 0;
        return decode_cvt(n, o, count);
    }
    return "not modelled";
}
