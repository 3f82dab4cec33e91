// SPDX-License-Identifier: Apache-2.0
/* A pickle is a program for a machine with a stack and a memo (pickletools.py of CPython describes
 * each opcode). What keeps this one safe:
 *
 *   1. Only opcodes of the table run, and only globals of the other table may be named.
 *   2. A value is a record of ours; calling a global makes another record, and runs no code.
 *   3. An opcode makes at most one value and one pair and pushes at most one entry, and a tuple
 *      takes what was pushed: no table outgrows the pickle's own bytes, so all are allocated once.
 *   4. Containers are read back without recursion, two levels deep. */
#include "torch_pickle.h"

#include <stdlib.h>
#include <string.h>

#include "file.h"

#define PICKLE_BYTES_MAX ((size_t)16 << 20) /* SD1.5's whole training state: 0.6 MB */
#define NONE             UINT32_MAX

enum kind {
    KIND_MARK,
    KIND_INERT, /* anything that no tensor needs: None, floats, lists, optimizers' things */
    KIND_WHOLE, /* number */
    KIND_TEXT,  /* count bytes of the pickle from `first` on */
    KIND_TUPLE, /* count items from `first` on */
    KIND_DICT,  /* pairs from `first` to `last` */
    KIND_GLOBAL,
    KIND_STORAGE, /* number elements under the key that the text `first` is */
    KIND_TENSOR,  /* the tuple `first` has its parts */
};

enum global {
    GLOBAL_INERT, /* calling it gives another inert value */
    GLOBAL_DICT,
    GLOBAL_TENSOR,    /* (storage, offset, shape, strides, ...) */
    GLOBAL_PARAMETER, /* (tensor, requires_grad, hooks) */
    GLOBAL_TYPED,     /* (GLOBAL_TENSOR, type, its arguments, attributes) */
    GLOBAL_SIZE,      /* (tuple,) */
    GLOBAL_STORAGE,   /* only in a persistent id; its dtype */
};

struct value {
    uint8_t kind, global, dtype;
    uint32_t first, last, count;
    int64_t number;
};

struct pair {
    uint32_t key, value, next;
};

struct pickle {
    const uint8_t *data;
    size_t size, at, opcode_at;
    const char *path;
    struct steer_error *err;
    struct value *values;
    uint32_t *stack, *memo, *items; /* of values; in the memo one more, 0: none */
    struct pair *pairs;
    uint32_t values_count, stack_count, memo_count, items_count, pairs_count;
    uint32_t root; /* what STOP leaves; NONE: it has not come */
};

/* What a pickle may name. torch.save of today and of before, and what published .ckpt files of
 * PyTorch Lightning hold beside their tensors; nothing of the latter is looked at. */
static const struct {
    const char *module, *name;
    enum global global;
    enum tensor_dtype dtype;
} globals[] = {
    {"collections", "OrderedDict", GLOBAL_DICT, 0},
    {"torch._utils", "_rebuild_tensor_v2", GLOBAL_TENSOR, 0},
    {"torch._utils", "_rebuild_tensor", GLOBAL_TENSOR, 0},
    {"torch._utils", "_rebuild_parameter", GLOBAL_PARAMETER, 0},
    {"torch._tensor", "_rebuild_from_type_v2", GLOBAL_TYPED, 0},
    {"torch", "Tensor", GLOBAL_INERT, 0}, /* a type */
    {"torch", "Size", GLOBAL_SIZE, 0},
    {"torch", "FloatStorage", GLOBAL_STORAGE, TENSOR_F32},
    {"torch", "HalfStorage", GLOBAL_STORAGE, TENSOR_F16},
    {"torch", "BFloat16Storage", GLOBAL_STORAGE, TENSOR_BF16},
    {"torch", "DoubleStorage", GLOBAL_STORAGE, TENSOR_F64},
    {"torch", "LongStorage", GLOBAL_STORAGE, TENSOR_I64},
    {"torch", "IntStorage", GLOBAL_STORAGE, TENSOR_I32},
    {"torch", "ShortStorage", GLOBAL_STORAGE, TENSOR_I16},
    {"torch", "CharStorage", GLOBAL_STORAGE, TENSOR_I8},
    {"torch", "ByteStorage", GLOBAL_STORAGE, TENSOR_U8},
    {"torch", "BoolStorage", GLOBAL_STORAGE, TENSOR_BOOL},
    {"torch", "float32", GLOBAL_INERT, 0},
    {"torch", "float16", GLOBAL_INERT, 0},
    {"torch", "bfloat16", GLOBAL_INERT, 0},
    {"torch", "device", GLOBAL_INERT, 0},
    {"collections", "Counter", GLOBAL_INERT, 0},
    {"collections", "defaultdict", GLOBAL_INERT, 0},
    {"__builtin__", "dict", GLOBAL_INERT, 0},
    {"__builtin__", "set", GLOBAL_INERT, 0},
    {"pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint", GLOBAL_INERT, 0},
    {"numpy", "dtype", GLOBAL_INERT, 0},
    {"numpy.core.multiarray", "scalar", GLOBAL_INERT, 0},
    {"numpy._core.multiarray", "scalar", GLOBAL_INERT, 0},
    {"_codecs", "encode", GLOBAL_INERT, 0},
};

/* ---- values and the stack ---- */

static int broken(struct pickle *p, const char *what)
{
    return steer_fail(p->err, STEER_BAD_MODEL, "%s: its pickle is broken at byte %zu: %s", p->path,
                      p->opcode_at, what);
}

static uint32_t value_new(struct pickle *p, struct value value)
{
    p->values[p->values_count] = value;
    return p->values_count++;
}

static int push(struct pickle *p, uint32_t value)
{
    p->stack[p->stack_count++] = value;
    return 0;
}

static int push_new(struct pickle *p, struct value value)
{
    return push(p, value_new(p, value));
}

/* The value `down` entries below the top; NULL and an error where the stack has not so many above
 * the last mark. */
static struct value *peek(struct pickle *p, uint32_t down)
{
    if (p->stack_count > down) {
        struct value *v = p->values + p->stack[p->stack_count - 1 - down];
        if (v->kind != KIND_MARK) return v;
    }
    (void)broken(p, "its stack is empty");
    return NULL;
}

static uint32_t top(const struct pickle *p)
{
    return p->stack[p->stack_count - 1];
}

/* The place above the last mark, which is NONE without one. */
static uint32_t mark_find(struct pickle *p)
{
    for (uint32_t i = p->stack_count; i > 0; i--)
        if (p->values[p->stack[i - 1]].kind == KIND_MARK) return i;
    (void)broken(p, "no mark on its stack");
    return NONE;
}

/* ---- opcodes: arg is the argument, n its bytes ---- */

static int run_ignore(struct pickle *p, const uint8_t *arg, size_t n)
{
    (void)p, (void)arg, (void)n;
    return 0;
}

static int run_stop(struct pickle *p, const uint8_t *arg, size_t n)
{
    (void)arg, (void)n;
    if (!peek(p, 0)) return STEER_BAD_MODEL;
    p->root = top(p);
    return 0;
}

static int run_mark(struct pickle *p, const uint8_t *arg, size_t n)
{
    (void)arg, (void)n;
    return push_new(p, (struct value){.kind = KIND_MARK});
}

static int run_pop(struct pickle *p, const uint8_t *arg, size_t n)
{
    (void)arg, (void)n;
    if (!p->stack_count) return broken(p, "its stack is empty");
    p->stack_count--;
    return 0;
}

static int run_inert(struct pickle *p, const uint8_t *arg, size_t n)
{
    (void)arg, (void)n;
    return push_new(p, (struct value){.kind = KIND_INERT});
}

static int run_whole(struct pickle *p, const uint8_t *arg, size_t n)
{
    uint64_t bits = little_endian(arg, n < 8 ? n : 8);
    if (n > 8) return run_inert(p, arg, n); /* no count of elements */
    /* BININT and LONG1 are signed; BININT1 and BININT2, one and two bytes long, are not. */
    int is_signed = p->data[p->opcode_at] == 'J' || p->data[p->opcode_at] == 0x8a;
    if (is_signed && n && n < 8 && bits >> (8 * n - 1)) bits |= UINT64_MAX << 8 * n;
    return push_new(p, (struct value){.kind = KIND_WHOLE, .number = (int64_t)bits});
}

static int run_text(struct pickle *p, const uint8_t *arg, size_t n)
{
    return push_new(p, (struct value){.kind = KIND_TEXT,
                                      .first = (uint32_t)(arg - p->data),
                                      .count = (uint32_t)n});
}

/* A tuple of the entries from `first` on, in place of them and, if so, of the mark below. */
static int tuple_make(struct pickle *p, uint32_t first, int marked)
{
    struct value tuple = {.kind = KIND_TUPLE, .first = p->items_count};
    tuple.count = p->stack_count - first;
    memcpy(p->items + p->items_count, p->stack + first, tuple.count * sizeof *p->items);
    p->items_count += tuple.count;
    p->stack_count = first - (uint32_t)marked;
    return push_new(p, tuple);
}

static int run_tuple(struct pickle *p, const uint8_t *arg, size_t n)
{
    (void)arg, (void)n;
    uint32_t first = mark_find(p);
    return first == NONE ? STEER_BAD_MODEL : tuple_make(p, first, 1);
}

/* EMPTY_TUPLE, TUPLE1, TUPLE2, TUPLE3 */
static int run_tuple_of(struct pickle *p, const uint8_t *arg, size_t n)
{
    (void)arg, (void)n;
    uint8_t code = p->data[p->opcode_at];
    uint32_t count = code == ')' ? 0 : code - UINT32_C(0x84);
    for (uint32_t i = 0; i < count; i++)
        if (!peek(p, i)) return STEER_BAD_MODEL;
    return tuple_make(p, p->stack_count - count, 0);
}

static int run_dict(struct pickle *p, const uint8_t *arg, size_t n)
{
    (void)arg, (void)n;
    return push_new(p, (struct value){.kind = KIND_DICT, .first = NONE, .last = NONE});
}

static void dict_add(struct pickle *p, struct value *dict, uint32_t key, uint32_t value)
{
    uint32_t pair = p->pairs_count++;
    p->pairs[pair] = (struct pair){key, value, NONE};
    if (dict->first == NONE)
        dict->first = pair;
    else
        p->pairs[dict->last].next = pair;
    dict->last = pair;
}

/* SETITEM, SETITEMS: the keys and values from entry `first` on go into the dict below them. */
static int items_set(struct pickle *p, uint32_t first, int marked)
{
    uint32_t end = p->stack_count;
    p->stack_count = first - (uint32_t)marked;
    struct value *dict = peek(p, 0);
    if (!dict) return STEER_BAD_MODEL;
    if ((end - first) % 2) return broken(p, "a key without a value");
    if (dict->kind == KIND_INERT) return 0; /* a Counter, say */
    if (dict->kind != KIND_DICT) return broken(p, "items for what is no dictionary");
    for (uint32_t i = first; i < end; i += 2)
        dict_add(p, dict, p->stack[i], p->stack[i + 1]);
    return 0;
}

static int run_setitem(struct pickle *p, const uint8_t *arg, size_t n)
{
    (void)arg, (void)n;
    if (!peek(p, 0) || !peek(p, 1)) return STEER_BAD_MODEL;
    return items_set(p, p->stack_count - 2, 0);
}

static int run_setitems(struct pickle *p, const uint8_t *arg, size_t n)
{
    (void)arg, (void)n;
    uint32_t first = mark_find(p);
    return first == NONE ? STEER_BAD_MODEL : items_set(p, first, 1);
}

/* APPEND, APPENDS, ADDITEMS: lists and sets are inert, so what goes into them is dropped. */
static int run_append(struct pickle *p, const uint8_t *arg, size_t n)
{
    (void)arg, (void)n;
    uint32_t first = p->stack_count ? p->stack_count - 1 : 0, marked = 0;
    if (p->data[p->opcode_at] != 'a') {
        if ((first = mark_find(p)) == NONE) return STEER_BAD_MODEL;
        marked = 1;
    }
    p->stack_count = first - marked;
    const struct value *list = peek(p, 0);
    if (!list) return STEER_BAD_MODEL;
    return list->kind == KIND_INERT ? 0 : broken(p, "items for what is no list");
}

/* BINPUT, LONG_BINPUT, MEMOIZE */
static int run_put(struct pickle *p, const uint8_t *arg, size_t n)
{
    uint64_t place = n ? little_endian(arg, n) : p->memo_count;
    if (!peek(p, 0)) return STEER_BAD_MODEL;
    if (place >= p->size) return broken(p, "a memo's number that is not possible");
    p->memo_count += !p->memo[place];
    p->memo[place] = top(p) + 1;
    return 0;
}

static int run_get(struct pickle *p, const uint8_t *arg, size_t n)
{
    uint64_t place = little_endian(arg, n);
    if (place >= p->size || !p->memo[place]) return broken(p, "a memo that was not put");
    return push(p, p->memo[place] - 1);
}

static int global_push(struct pickle *p, const char *module, size_t module_bytes, const char *name,
                       size_t name_bytes)
{
    for (size_t i = 0; i < sizeof globals / sizeof *globals; i++)
        if (strlen(globals[i].module) == module_bytes && strlen(globals[i].name) == name_bytes &&
            memcmp(globals[i].module, module, module_bytes) == 0 &&
            memcmp(globals[i].name, name, name_bytes) == 0)
            return push_new(p, (struct value){.kind = KIND_GLOBAL,
                                              .global = (uint8_t)globals[i].global,
                                              .dtype = (uint8_t)globals[i].dtype});
    return steer_fail(p->err, STEER_UNSUPPORTED,
                      "%s: forbidden global \"%.*s.%.*s\" at byte %zu of its pickle: expected only "
                      "what builds tensors and dictionaries",
                      p->path, module_bytes < 100 ? (int)module_bytes : 100, module,
                      name_bytes < 100 ? (int)name_bytes : 100, name, p->opcode_at);
}

/* "module\nname\n" */
static int run_global(struct pickle *p, const uint8_t *arg, size_t n)
{
    const char *module = (const char *)arg, *end = memchr(module, '\n', n);
    return global_push(p, module, (size_t)(end - module), end + 1, n - (size_t)(end - module) - 2);
}

static int run_stack_global(struct pickle *p, const uint8_t *arg, size_t n)
{
    (void)arg, (void)n;
    const struct value *name = peek(p, 0), *module = name ? peek(p, 1) : NULL;
    if (!module) return STEER_BAD_MODEL;
    if (name->kind != KIND_TEXT || module->kind != KIND_TEXT)
        return broken(p, "a global whose name is no text");
    p->stack_count -= 2;
    return global_push(p, (const char *)p->data + module->first, module->count,
                       (const char *)p->data + name->first, name->count);
}

/* Item i of a tuple; NULL when it has no such item or it is of another kind. */
static const struct value *item(const struct pickle *p, const struct value *tuple, uint32_t i,
                                enum kind kind)
{
    if (tuple->kind != KIND_TUPLE || i >= tuple->count) return NULL;
    const struct value *v = p->values + p->items[tuple->first + i];
    return v->kind == kind ? v : NULL;
}

/* ('storage', torch.FloatStorage, key, location, elements) */
static int run_persistent(struct pickle *p, const uint8_t *arg, size_t n)
{
    (void)arg, (void)n;
    const struct value *id = peek(p, 0);
    if (!id) return STEER_BAD_MODEL;
    const struct value *tag = item(p, id, 0, KIND_TEXT), *type = item(p, id, 1, KIND_GLOBAL),
                       *key = item(p, id, 2, KIND_TEXT), *elements = item(p, id, 4, KIND_WHOLE);
    if (!tag || tag->count != 7 || memcmp(p->data + tag->first, "storage", 7) || !type || !key ||
        !elements || type->global != GLOBAL_STORAGE || elements->number < 0)
        return broken(p, "a persistent id that is no storage");
    p->stack_count--;
    return push_new(p, (struct value){.kind = KIND_STORAGE,
                                      .dtype = type->dtype,
                                      .first = (uint32_t)(key - p->values),
                                      .number = elements->number});
}

static int run_reduce(struct pickle *p, const uint8_t *arg, size_t n)
{
    const struct value *args = peek(p, 0), *called = args ? peek(p, 1) : NULL;
    if (!called) return STEER_BAD_MODEL;
    if (called->kind != KIND_GLOBAL || args->kind != KIND_TUPLE)
        return broken(p, "a call of what is no global");
    uint32_t args_place = top(p);
    p->stack_count -= 2;
    switch ((enum global)called->global) {
    case GLOBAL_INERT: return run_inert(p, arg, n);
    case GLOBAL_DICT:
        return args->count ? broken(p, "an OrderedDict with arguments") : run_dict(p, arg, n);
    case GLOBAL_TENSOR:
        if (!item(p, args, 0, KIND_STORAGE)) return broken(p, "a tensor without a storage");
        return push_new(p, (struct value){.kind = KIND_TENSOR, .first = args_place});
    case GLOBAL_PARAMETER:
        if (!item(p, args, 0, KIND_TENSOR)) return broken(p, "a parameter that is no tensor");
        return push(p, p->items[args->first]);
    case GLOBAL_TYPED: {
        const struct value *function = item(p, args, 0, KIND_GLOBAL),
                           *own = item(p, args, 2, KIND_TUPLE);
        if (!function || function->global != GLOBAL_TENSOR || !own ||
            !item(p, own, 0, KIND_STORAGE))
            return broken(p, "a tensor with attributes that is none");
        return push_new(p, (struct value){.kind = KIND_TENSOR, .first = p->items[args->first + 2]});
    }
    case GLOBAL_SIZE:
        if (!item(p, args, 0, KIND_TUPLE)) return broken(p, "a torch.Size of what is no tuple");
        return push(p, p->items[args->first]);
    case GLOBAL_STORAGE: break;
    }
    return broken(p, "a storage that is called");
}

/* Attributes of dictionaries (a state_dict's _metadata) and of inert things are dropped. */
static int run_build(struct pickle *p, const uint8_t *arg, size_t n)
{
    (void)arg, (void)n;
    const struct value *object = peek(p, 0) ? peek(p, 1) : NULL;
    if (!object) return STEER_BAD_MODEL;
    if (object->kind != KIND_DICT && object->kind != KIND_INERT)
        return broken(p, "attributes for what has none");
    p->stack_count--;
    return 0;
}

/* ---- the machine ---- */

/* How long an opcode's argument is: this many bytes, or as its first 1, 4 or 8 bytes say, or two
 * lines. */
enum { LENGTH_1 = -1, LENGTH_4 = -4, LENGTH_8 = -8, LINES = -2 };

static const struct opcode {
    uint8_t code;
    int argument;
    const char *name;
    int (*run)(struct pickle *p, const uint8_t *arg, size_t n); /* NULL: forbidden */
} opcodes[] = {
    {0x80, 1, "PROTO", run_ignore},
    {0x95, 8, "FRAME", run_ignore},
    {'.', 0, "STOP", run_stop},
    {'(', 0, "MARK", run_mark},
    {'0', 0, "POP", run_pop},
    {'N', 0, "NONE", run_inert},
    {0x88, 0, "NEWTRUE", run_inert},
    {0x89, 0, "NEWFALSE", run_inert},
    {'G', 8, "BINFLOAT", run_inert},
    {'J', 4, "BININT", run_whole},
    {'K', 1, "BININT1", run_whole},
    {'M', 2, "BININT2", run_whole},
    {0x8a, LENGTH_1, "LONG1", run_whole},
    {'X', LENGTH_4, "BINUNICODE", run_text},
    {0x8c, LENGTH_1, "SHORT_BINUNICODE", run_text},
    {0x8d, LENGTH_8, "BINUNICODE8", run_text},
    {'T', LENGTH_4, "BINSTRING", run_text},
    {'U', LENGTH_1, "SHORT_BINSTRING", run_text},
    {'B', LENGTH_4, "BINBYTES", run_text},
    {'C', LENGTH_1, "SHORT_BINBYTES", run_text},
    {')', 0, "EMPTY_TUPLE", run_tuple_of},
    {0x85, 0, "TUPLE1", run_tuple_of},
    {0x86, 0, "TUPLE2", run_tuple_of},
    {0x87, 0, "TUPLE3", run_tuple_of},
    {'t', 0, "TUPLE", run_tuple},
    {'}', 0, "EMPTY_DICT", run_dict},
    {'s', 0, "SETITEM", run_setitem},
    {'u', 0, "SETITEMS", run_setitems},
    {']', 0, "EMPTY_LIST", run_inert},
    {0x8f, 0, "EMPTY_SET", run_inert},
    {'a', 0, "APPEND", run_append},
    {'e', 0, "APPENDS", run_append},
    {0x90, 0, "ADDITEMS", run_append},
    {'q', 1, "BINPUT", run_put},
    {'r', 4, "LONG_BINPUT", run_put},
    {0x94, 0, "MEMOIZE", run_put},
    {'h', 1, "BINGET", run_get},
    {'j', 4, "LONG_BINGET", run_get},
    {'c', LINES, "GLOBAL", run_global},
    {0x93, 0, "STACK_GLOBAL", run_stack_global},
    {'Q', 0, "BINPERSID", run_persistent},
    {'R', 0, "REDUCE", run_reduce},
    {'b', 0, "BUILD", run_build},
    /* These make objects of any class, or ask a registry for one. */
    {'i', 0, "INST", NULL},
    {'o', 0, "OBJ", NULL},
    {0x81, 0, "NEWOBJ", NULL},
    {0x92, 0, "NEWOBJ_EX", NULL},
    {0x82, 0, "EXT1", NULL},
    {0x83, 0, "EXT2", NULL},
    {0x84, 0, "EXT4", NULL},
    {'P', 0, "PERSID", NULL},
};

static int truncated(struct pickle *p)
{
    return steer_fail(p->err, STEER_BAD_MODEL,
                      "%s: its pickle ends in the middle of what begins at byte %zu (truncated?)",
                      p->path, p->opcode_at);
}

/* Finds the argument of op and steps over it. */
static int argument_read(struct pickle *p, const struct opcode *op, const uint8_t **ret,
                         size_t *ret_bytes)
{
    uint64_t n = op->argument > 0 ? (uint64_t)op->argument : 0;
    size_t left = p->size - p->at;
    if (op->argument == LINES) {
        const uint8_t *first = memchr(p->data + p->at, '\n', left), *second = NULL;
        if (first) second = memchr(first + 1, '\n', (size_t)(p->data + p->size - first - 1));
        if (!second) return truncated(p);
        n = (uint64_t)(second + 1 - (p->data + p->at));
    } else if (op->argument < 0) {
        size_t width = (size_t)-op->argument;
        if (left < width) return truncated(p);
        n = little_endian(p->data + p->at, width);
        p->at += width;
        left -= width;
    }
    if (n > left) return truncated(p);
    *ret = p->data + p->at;
    *ret_bytes = (size_t)n;
    p->at += (size_t)n;
    return 0;
}

static int step(struct pickle *p)
{
    p->opcode_at = p->at;
    if (p->at == p->size) return truncated(p);
    uint8_t code = p->data[p->at++];
    for (size_t i = 0; i < sizeof opcodes / sizeof *opcodes; i++) {
        const struct opcode *op = opcodes + i;
        if (op->code != code) continue;
        if (!op->run)
            return steer_fail(p->err, STEER_UNSUPPORTED,
                              "%s: forbidden opcode %s at byte %zu of its pickle: expected only "
                              "what builds tensors and dictionaries",
                              p->path, op->name, p->opcode_at);
        const uint8_t *arg = NULL;
        size_t n = 0;
        int failed = argument_read(p, op, &arg, &n);
        return failed ? failed : op->run(p, arg, n);
    }
    return steer_fail(p->err, STEER_UNSUPPORTED,
                      "%s: forbidden opcode 0x%02x at byte %zu of its pickle: expected only what "
                      "builds tensors and dictionaries",
                      p->path, code, p->opcode_at);
}

/* ---- what was built ---- */

static int text_is(const struct pickle *p, const struct value *v, const char *text)
{
    return v->kind == KIND_TEXT && v->count == strlen(text) &&
           memcmp(p->data + v->first, text, v->count) == 0;
}

/* The top dictionary, or the one under its "state_dict". */
static const struct value *tensors_dict(const struct pickle *p)
{
    const struct value *root = p->values + p->root;
    if (root->kind != KIND_DICT) return NULL;
    for (uint32_t i = root->first; i != NONE; i = p->pairs[i].next) {
        const struct value *value = p->values + p->pairs[i].value;
        if (value->kind == KIND_DICT && text_is(p, p->values + p->pairs[i].key, "state_dict"))
            return value;
    }
    return root;
}

static int tensor_parts(const struct pickle *p, const struct value *key, const struct value *value,
                        struct pickled_tensor *ret, struct steer_error *err)
{
    const struct value *parts = p->values + value->first;
    const struct value *storage = item(p, parts, 0, KIND_STORAGE),
                       *first = item(p, parts, 1, KIND_WHOLE),
                       *shape = item(p, parts, 2, KIND_TUPLE),
                       *strides = item(p, parts, 3, KIND_TUPLE);
    *ret = (struct pickled_tensor){.name = (const char *)p->data + key->first,
                                   .name_bytes = key->count};
    int shown = key->count < 200 ? (int)key->count : 200;
    const char *what = NULL;
    if (!first || !shape || !strides || first->number < 0 || shape->count != strides->count)
        what = "a shape, strides or a place that is not possible";
    else if (shape->count > TENSOR_RANK_MAX)
        what = "over 8 dimensions";
    for (uint32_t i = 0; !what && i < shape->count; i++) {
        const struct value *n = item(p, shape, i, KIND_WHOLE), *s = item(p, strides, i, KIND_WHOLE);
        if (!n || !s || n->number < 0 || s->number < 0) {
            what = "a shape or strides that are not possible";
            break;
        }
        ret->shape[i] = n->number;
        ret->stride[i] = s->number;
    }
    if (what)
        return steer_fail(err, STEER_BAD_MODEL, "%s: tensor \"%.*s\": %s", p->path, shown,
                          ret->name, what);
    const struct value *id = p->values + storage->first; /* run_persistent made it of a text */
    ret->rank = (int)shape->count;
    ret->dtype = (enum tensor_dtype)storage->dtype;
    ret->storage = (const char *)p->data + id->first;
    ret->storage_bytes = id->count;
    ret->storage_elements = storage->number;
    ret->first = first->number;
    return 0;
}

static int none_found(const struct pickle *p, const struct value *dict, struct steer_error *err)
{
    char keys[200] = "";
    size_t used = 0;
    for (uint32_t i = dict ? dict->first : NONE; i != NONE; i = p->pairs[i].next) {
        const struct value *key = p->values + p->pairs[i].key;
        if (key->kind != KIND_TEXT || key->count > sizeof keys - 3 - used) continue;
        if (used) used += (size_t)(stpcpy(keys + used, ", ") - (keys + used));
        memcpy(keys + used, p->data + key->first, key->count);
        used += key->count;
        keys[used] = 0;
    }
    return steer_fail(
        err, STEER_BAD_MODEL,
        "%s: expected a dictionary of tensors, or one under \"state_dict\"; it has %s", p->path,
        !dict  ? "no dictionary"
        : used ? keys
               : "nothing in it");
}

static int tensors_give(const struct pickle *p,
                        int (*add)(void *, const struct pickled_tensor *, struct steer_error *),
                        void *arg, struct steer_error *err)
{
    const struct value *dict = tensors_dict(p);
    int found = 0, code = 0;
    for (uint32_t i = dict ? dict->first : NONE; i != NONE && !code; i = p->pairs[i].next) {
        const struct value *key = p->values + p->pairs[i].key,
                           *value = p->values + p->pairs[i].value;
        struct pickled_tensor tensor;
        if (value->kind != KIND_TENSOR || key->kind != KIND_TEXT) continue;
        if (!(code = tensor_parts(p, key, value, &tensor, err))) code = add(arg, &tensor, err);
        found++;
    }
    return found ? code : none_found(p, dict, err);
}

int torch_pickle_read(const uint8_t *data, size_t size, const char *path,
                      int (*add)(void *arg, const struct pickled_tensor *tensor,
                                 struct steer_error *err),
                      void *arg, struct steer_error *err)
{
    struct pickle p = {.data = data, .size = size, .path = path, .err = err, .root = NONE};
    if (size > PICKLE_BYTES_MAX)
        return steer_fail(err, STEER_BAD_MODEL,
                          "%s: its pickle has %zu bytes: expected at most %zu", path, size,
                          PICKLE_BYTES_MAX);
    size_t most = size + 1; /* invariant 3 */
    p.values = malloc(most * sizeof *p.values);
    p.pairs = malloc(most * sizeof *p.pairs);
    p.stack = malloc(most * sizeof *p.stack);
    p.items = malloc(most * sizeof *p.items);
    p.memo = calloc(most, sizeof *p.memo);
    int code = 0;
    if (!p.values || !p.pairs || !p.stack || !p.items || !p.memo)
        code = steer_fail(err, STEER_NO_MEMORY, "out of memory");
    while (!code && p.root == NONE)
        code = step(&p);
    if (!code) code = tensors_give(&p, add, arg, err);
    free(p.values);
    free(p.pairs);
    free(p.stack);
    free(p.items);
    free(p.memo);
    return code;
}
