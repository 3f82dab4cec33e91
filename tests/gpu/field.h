/* field.h - what tests of CUDA kernels on the SIMT model share: tensors as ref reads them (dense,
 * f32) and as kernels do (any type, pitches, an address an image), and a launch that is watched,
 * repeated under another schedule and with one image, all of them to the bit. */
#ifndef TEST_GPU_FIELD_H
#define TEST_GPU_FIELD_H
#include "../kernel/rig.h"

#include "cuda/pointwise.h"
#include "simt.h"

/* How a tensor lies in memory. PITCHED: a view of a wider one, 16-byte aligned. ODD: one that is
 * not. APART: each image at an address of its own, in another order. */
enum lie { DENSE, PITCHED, ODD, APART };

struct field {
    struct shape s;
    float *dense; /* [B, H, W, C]; of outputs: what was read back */
    char *device;
    size_t bytes, image_bytes;
    const void *table[2];
    struct cuda_tensor arg;
};

static const char *const type_names[] = {"bf16", "f16", "f32", "u8"};

static inline int bytes_of(enum cuda_element type)
{
    return type == CUDA_F32 ? 4 : type == CUDA_U8 ? 1 : 2;
}

static inline size_t field_count(const struct field *f)
{
    return (size_t)f->s.b * (size_t)f->s.h * (size_t)f->s.w * (size_t)f->s.c;
}

/* Value i of the dense order, in the device's memory. */
static inline char *field_at(const struct field *f, size_t i)
{
    size_t c = (size_t)f->s.c, pixels = (size_t)f->s.h * (size_t)f->s.w, pixel = i / c;
    char *image = f->arg.rows.table
                      ? (char *)(uintptr_t)f->table[pixel / pixels]
                      : (char *)(uintptr_t)f->arg.rows.base + pixel / pixels * f->image_bytes;
    size_t stride = f->arg.rows.row_stride ? (size_t)f->arg.rows.row_stride : c;
    return image + (pixel % pixels * stride + i % c) * (size_t)bytes_of(f->arg.type);
}

static inline void put(char *at, enum cuda_element type, float x)
{
    uint16_t narrow = simt_round(x, type == CUDA_F16);
    if (type == CUDA_F32)
        memcpy(at, &x, sizeof x);
    else
        memcpy(at, &narrow, sizeof narrow);
}

static inline float get(const char *at, enum cuda_element type)
{
    float x;
    uint16_t narrow;
    if (type == CUDA_U8) return *(const uint8_t *)at;
    if (type == CUDA_F32) {
        memcpy(&x, at, sizeof x);
        return x;
    }
    memcpy(&narrow, at, sizeof narrow);
    return simt_widen(narrow, type == CUDA_F16);
}

/* All NaN. */
static inline struct field field_new(struct shape s, enum cuda_element type, enum lie lie)
{
    int channels = s.c + (lie == PITCHED ? 16 : lie == ODD ? 3 : 0), rows = s.h * s.w;
    struct field f = {.s = s, .image_bytes = (size_t)(rows * channels * bytes_of(type))};
    if (lie == APART) f.image_bytes = (f.image_bytes + 15) / 16 * 16;
    f.bytes = (size_t)s.b * f.image_bytes + 16;
    f.dense = malloc(field_count(&f) * sizeof(float));
    f.device = aligned_alloc(256, (f.bytes + 511) / 256 * 256);
    assert_non_null(f.dense);
    assert_non_null(f.device);
    memset(f.device, 0xff, f.bytes);
    f.arg = (struct cuda_tensor){{.row_stride = channels, .image_stride = rows * channels}, type};
    f.arg.rows.base = f.device + (lie == PITCHED ? 16 : lie == ODD ? bytes_of(type) : 0);
    if (s.b == 1) f.arg.rows.image_stride = 0;
    for (int b = 0; lie == APART && b < s.b; b++)
        f.table[b] = f.device + (size_t)(s.b - 1 - b) * f.image_bytes;
    return f;
}

/* Values of offset - scale .. offset + scale, rounded to the type. */
static inline struct field field_random(struct shape s, enum cuda_element type, enum lie lie,
                                        float scale, float offset)
{
    struct field f = field_new(s, type, lie);
    if (lie == APART) f.arg.rows.table = f.table; /* for field_at; f moves, so field_name sets it */
    for (size_t i = 0; i < field_count(&f); i++) {
        char *at = field_at(&f, i);
        put(at, type, offset + uniform() * scale);
        f.dense[i] = get(at, type);
    }
    f.arg.rows.table = NULL;
    return f;
}

/* [B or 1, 1, 1, C], read by every pixel. */
static inline struct field field_vector(int b, int c, enum cuda_element type, float scale,
                                        float offset)
{
    struct field f = field_random((struct shape){b, 1, 1, c}, type, DENSE, scale, offset);
    f.arg.rows.row_stride = 0;
    return f;
}

static inline void field_free(struct field *f)
{
    free(f->dense);
    free(f->device);
    *f = (struct field){0};
}

/* ---- a case ---- */

enum { FIELDS_MAX = 8 };
struct cuda_case {
    struct field in[FIELDS_MAX], out;
    int inputs;
    void *scratch; /* NULL: none */
    size_t scratch_bytes;
    int (*launch)(struct cuda_case *k, int batch);
    const void *what; /* of the launch */
};

/* An input for ref's graph. */
static inline struct tensor case_input(struct rig *r, struct cuda_case *k, int i)
{
    return input(r, k->in[i].s, k->in[i].dense);
}

static inline void field_name(struct field *f, int filled, int write)
{
    if (f->table[0]) {
        f->arg.rows.table = f->table;
        simt_memory(f->table, sizeof f->table, 1, 0);
    }
    if (bytes_of(f->arg.type) < 4)
        simt_memory_bytes(f->device, f->bytes, filled, write);
    else
        simt_memory(f->device, f->bytes, filled, write);
}

static inline void case_run(struct cuda_case *k, uint64_t seed, int batch)
{
    simt_reset(seed);
    for (int i = 0; i < k->inputs; i++)
        field_name(k->in + i, 1, 0);
    if (k->scratch) simt_memory(k->scratch, k->scratch_bytes, 0, 1);
    memset(k->out.device, 0xff, k->out.bytes);
    field_name(&k->out, 0, 1);
    assert_int_equal(k->launch(k, batch), 0);
    if (simt_counts().errors) fail_msg("%s", simt_error());
}

/* The distance of ref's output from the kernel's, which is the same under two schedules and for the
 * first image alone, and writes its values and nothing between. Frees all but the counts. */
static inline double case_error(struct cuda_case *k, recipe make)
{
    struct field *out = &k->out;
    size_t count = field_count(out), wanted, one = count / (size_t)out->s.b, untouched = 0;
    int bytes = bytes_of(out->arg.type);
    char *first = malloc(out->bytes);
    assert_non_null(first);
    case_run(k, 1, out->s.b);
    memcpy(first, out->device, out->bytes);
    case_run(k, 2, 1);
    for (size_t i = 0; i < count; i++)
        for (int j = 0; j < bytes; j++) {
            const char *at = field_at(out, i) + j;
            if (i < one && *at != first[at - out->device])
                fail_msg("value %zu is another alone", i);
            if (i >= one && *at != (char)0xff) fail_msg("an image that is not there is written");
        }
    case_run(k, 3, out->s.b);
    assert_memory_equal(first, out->device, out->bytes);
    for (size_t i = 0; i < out->bytes; i++)
        untouched += first[i] != (char)0xff;
    for (size_t i = 0; i < count; i++) {
        out->dense[i] = get(field_at(out, i), out->arg.type);
        for (int j = 0; j < bytes; j++) /* a value's own bytes may be 0xff */
            untouched -= field_at(out, i)[j] != (char)0xff;
    }
    assert_int_equal(untouched, 0);
    float *want = evaluate(ref, make, k, &wanted);
    assert_int_equal(wanted, count);
    double e = distance(out->dense, want, count);
    free(want);
    free(first);
    return e;
}

static inline void case_free(struct cuda_case *k)
{
    for (int i = 0; i < k->inputs; i++)
        field_free(k->in + i);
    field_free(&k->out);
    free(k->scratch);
    k->scratch = NULL;
}

/* ---- figures ---- */

/* Bytes of an image's values, once. */
static inline double field_least(const struct field *f)
{
    return (double)field_count(f) * bytes_of(f->arg.type);
}

static inline double store_percent(struct simt_counts c)
{
    return 100 * (double)c.store_bytes / (32 * (double)c.store_sectors);
}

/* ---- the worst of a table, by the type written ---- */

struct by_type {
    double worst[3];
};

static inline void by_type_hold(const struct by_type *w, const char *name, const double limit[3])
{
    for (int t = 0; t < 3; t++) {
        char line[64];
        snprintf(line, sizeof line, "%s %s", name, type_names[t]);
        hold(line, w->worst[t], limit[t]);
    }
}

static inline int ref_open(void **unused)
{
    (void)unused;
    struct compute_options o = {.backend = "ref", .threads = 1};
    return compute_open(&ref, &o, NULL);
}

static inline int ref_close(void **unused)
{
    (void)unused;
    compute_close(ref);
    return 0;
}

#endif
