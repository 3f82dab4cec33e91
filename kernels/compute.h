/* compute.h - what a model sees of a device: operations on tensor handles.
 *
 * A model's forward is a straight function that records operations into a graph, once per (model,
 * size, guidance). compute_plan hands the graph to the backend, whose passes choose types and
 * layouts, fuse, and place every activation in one allocation. plan_run executes the flat list as
 * often as wanted; nothing is allocated in a step. What differs by job (noise, timesteps, alphas,
 * keys and values of the texts) is written into input tensors, never recorded.
 *
 * Every tensor has four logical dimensions [B, H, W, C], channels last in the reader's mind
 * whatever the backend does. A sequence [B, S, C] is [B, 1, S, C]; a vector [B, C] is [B, 1, 1, C].
 * Each image of a batch is computed by itself with the single image's shapes and algorithms, so
 * that company never changes a byte.
 *
 * One thread uses a compute and all that belongs to it. */
#ifndef KERNELS_COMPUTE_H
#define KERNELS_COMPUTE_H
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "activation.h"
#include "error.h"
#include "guidance.h"

struct compute; /* a backend opened on a device */
struct weight;  /* a parameter of a model */
struct graph;   /* operations being recorded */
struct plan;    /* a graph made ready to run */

enum compute_type { TYPE_F32, TYPE_BF16, TYPE_F16, TYPE_I32, TYPE_U8 };
size_t compute_type_bytes(enum compute_type type);
const char *compute_type_name(enum compute_type type); /* "f32" */

/* ---- devices ---- */

enum compute_precision { PRECISION_F32, PRECISION_BF16 };
/* How packed matrices are held, which is another question than how they are multiplied. INT8: those
 * of weight_hold_int8, whose callers ask compute_weights what their owner wants. */
enum compute_weights { WEIGHTS_AS_COMPUTED, WEIGHTS_INT8 };

/* What the computes of one program share with their owner. Zeroed, there is no limit. */
struct compute_host {
    size_t bytes, bytes_max; /* of packed weights and plans: held, and allowed (0: no limit) */
    size_t bytes_most;       /* ever held at once: what was staged while packing is in it */
    /* Plans are made to be counted and cannot run: what one would take is taken from the budget as
     * always, but no weight is read and no memory allocated for it. */
    int counting;
    /* Grows while an operation or a packing goes on, so that another thread can tell long work
     * from a hang. */
    _Atomic uint64_t beats;
};

struct compute_options {
    const char *backend; /* "ref" or "cpu" */
    enum compute_precision precision;
    enum compute_weights weights;
    int threads;        /* 0: as many as the cgroup's quota and affinity allow */
    const char *tuning; /* file of algorithm choices by `steer-worker tune`; NULL: our own rule */
    struct compute_host *host; /* borrowed; NULL: one of its own */
    uint32_t salt;             /* hash of what else decides the bytes of an image; in numerics */
    /* For tests: our own kernels for "avx512_bf16", "avx512", "avx2" or "sse2" instead of the best
     * that the processor has. */
    const char *isa;
};

/* STEER_UNSUPPORTED with one sentence when the machine cannot do what is asked (bf16 without
 * AVX-512). The caller frees with compute_close after everything that belongs to it. */
int compute_open(struct compute **ret, const struct compute_options *options,
                 struct steer_error *err) STEER_MUSTCHECK;
void compute_close(struct compute *c); /* NULL is fine */

/* 1 when the cpu backend runs bf16 natively here, so that `auto` may pick it. */
int compute_bf16_native(void);

/* Images are equal to the byte between two computes with the same class, e.g.
 * "cpu-avx512_core_bf16+avx512_bf16-bf16-t2-onednn2.6.3-steer0.1.0-1a2b3c4d": oneDNN's and our own
 * kernels' instruction sets, precision ("bf16-int8" with weights in int8), threads, versions, and a
 * hash of tuning table and salt.
 * Lives as long as c. */
const char *compute_numerics(const struct compute *c);
int compute_threads(const struct compute *c);
enum compute_weights compute_weights(const struct compute *c);
/* GFLOP/s that this machine reaches at best, measured now (about a second); zeros for "ref". The
 * ceilings that a share of the peak is a share of: a loop of multiply-adds, and oneDNN's 2048^3
 * matrix product. */
struct compute_peak {
    double fma_f32, gemm_f32, gemm_bf16;
};
struct compute_peak compute_peak(struct compute *c);
/* Counted in c's host; a model's loading may beat too. */
void compute_beat(struct compute *c);
/* What this process may use: the machine's memory, or the cgroup's limit where that is less. */
size_t compute_memory_allowed(void);

/* ---- weights ---- */

struct low_rank;

/* A stored tensor, borrowed; it must stay mapped until the weight is freed. */
struct stored {
    const void *data;
    enum compute_type type; /* f32, f16 or bf16 */
    int mapped; /* an untouched mapping of a file: pages that were read may be dropped */
    const struct low_rank *added; /* LoRAs of a matrix or a kernel; NULL: none */
};

/* scale * up @ down, added in f32 to a stored matrix [out, in * size * size] whenever it is packed.
 * Borrowed like the matrix. */
struct low_rank {
    const struct low_rank *next; /* of the same matrix; NULL: the last */
    struct stored up, down;      /* [out, rank], [rank, in * size * size] */
    int rank;
    float scale;
};

/* Converts count stored values from element `first` on. */
void stored_to_f32(float *out, struct stored s, size_t first, size_t count);

/* All create functions copy nothing at first: a plan packs the weight into the layout it wants and
 * lets the file's pages go. Shapes are those of torch. */

/* [out, in] and bias [out] (data NULL: none). parts > 1 stacks several matrices of the same `in`
 * along `out` (q, k, v as one multiplication); out[i] are their heights. */
int weight_linear(struct weight **ret, struct compute *c, int parts, const struct stored *matrices,
                  const struct stored *biases, const int *out, int in) STEER_MUSTCHECK;
/* [out, in, kernel, kernel] and bias [out] (data NULL: none). */
int weight_conv(struct weight **ret, struct compute *c, struct stored kernel, struct stored bias,
                int out, int in, int size) STEER_MUSTCHECK;
/* The scale and shift of a norm, [channels] each. shift.data NULL: none. */
int weight_norm(struct weight **ret, struct compute *c, struct stored scale, struct stored shift,
                int channels) STEER_MUSTCHECK;
/* An embedding table [rows, channels]. */
int weight_table(struct weight **ret, struct compute *c, struct stored table, int rows,
                 int channels) STEER_MUSTCHECK;
/* Before any plan takes it: the matrix of a linear or a convolution is held as int8 per output
 * channel, symmetric, scale = max|w| / 127 with its LoRAs in w, and multiplied in the compute's
 * precision, which has whole numbers up to 127 exactly. What has fewer than 16 channels on a side,
 * or an odd number of inputs, stays as it is computed: it is small and stands at a model's ends,
 * where errors show most. Nothing happens to norms and tables. */
void weight_hold_int8(struct weight *w);
/* Gives back all that was packed; no plan may use it any more, the next one packs it again. */
void weight_unpack(struct weight *w);
void weight_free(struct weight *w); /* NULL is fine; no plan may use it any more */

/* ---- recording ---- */

struct tensor {
    int id; /* of its graph; -1: none */
};
#define TENSOR_NONE ((struct tensor){-1})

struct shape {
    int b, h, w, c;
};

/* Out of memory or a wrong shape while recording is remembered; compute_plan reports the first one,
 * so a forward needs no check per line. */
struct graph *graph_new(void); /* NULL: out of memory */
void graph_free(struct graph *g);
struct shape graph_shape(const struct graph *g, struct tensor t);

/* A tensor that the caller fills before each run (plan_data or plan_bind). f32, i32 or, bound
 * only, the type of another plan's output. */
struct tensor graph_input(struct graph *g, const char *name, struct shape shape,
                          enum compute_type type);
/* Like graph_input, but each image's data is at an address given by plan_bind, dense [H, W, C] as
 * another plan's graph_output of the same as_computed made it. */
struct tensor graph_bound(struct graph *g, const char *name, struct shape shape, int as_computed);
/* A tensor of the model itself (position embeddings, rotary tables): its data, dense [B, H, W, C],
 * is copied here and from here into the plan, so both may go. b = 1 is read by every image of the
 * batch where an operation's comment allows it. */
struct tensor graph_constant(struct graph *g, const char *name, struct shape shape,
                             const float *data);
/* The same in i32, for op_embedding. */
struct tensor graph_constant_ids(struct graph *g, const char *name, struct shape shape,
                                 const int32_t *ids);
/* Keeps t readable after a run, dense [B, H, W, C] (plan_data). as_computed: in the precision that
 * consumers would read (bf16 or f32, see plan_type); otherwise f32, or u8 after op_to_u8. */
void graph_output(struct graph *g, struct tensor t, const char *name, int as_computed);

/* The same data with H and W regrouped; h * w must stay. */
struct tensor op_reshape(struct graph *g, struct tensor t, int h, int w);
/* Channels first .. first + count - 1, as a view. */
struct tensor op_channels(struct graph *g, struct tensor t, int first, int count);

/* x W^T + bias, then the activation. x [B, H, W, in] -> [B, H, W, out]. */
struct tensor op_linear(struct graph *g, struct tensor x, struct weight *w, enum activation act);
/* Cross-correlation with zero padding on every side, then the activation. per_image [B, 1, 1, out]
 * is added to every pixel before it (TENSOR_NONE: nothing). */
struct tensor op_conv(struct graph *g, struct tensor x, struct weight *w, int stride, int padding,
                      struct tensor per_image, enum activation act);
/* Over groups of channels and all pixels; act is ACT_NONE or ACT_SILU. */
struct tensor op_group_norm(struct graph *g, struct tensor x, struct weight *w, int groups,
                            double eps, enum activation act);
/* Over the channels of each pixel. w NULL: neither scale nor shift (elementwise_affine=False). */
struct tensor op_layer_norm(struct graph *g, struct tensor x, struct weight *w, double eps);
/* x / sqrt(mean(x^2) + eps) over each of `heads` equal parts of the channels (1: all of them),
 * times w [C / heads], a weight_norm without shift. */
struct tensor op_rms_norm(struct graph *g, struct tensor x, struct weight *w, int heads,
                          double eps);
/* x * (1 + scale) + shift; both [B or 1, 1, 1, C], often channels of one linear's result. */
struct tensor op_modulate(struct graph *g, struct tensor x, struct tensor shift,
                          struct tensor scale);
/* residual + gate * x; gate [B or 1, 1, 1, C]. */
struct tensor op_gated_add(struct graph *g, struct tensor residual, struct tensor gate,
                           struct tensor x);

/* Rotary positions: the pairs (2i, 2i + 1) of every head turned by the angle i of the pixel, as
 * diffusers' apply_rotary_emb does with use_real and use_real_unbind_dim=-1. x [B, H, W, heads *
 * D]; table [B or 1, H, W, D]: D / 2 cosines, then D / 2 sines. */
struct tensor op_rope(struct graph *g, struct tensor x, struct tensor table, int heads);

/* softmax(scale Q K^T + mask + bias) V per head. q [B, 1, L, heads * D], k and v [B, 1, S, heads *
 * D]. causal: query i sees keys 0..i. mask: TENSOR_NONE or [B, 1, 1, S], added to the logits of
 * every query; a query whose keys are all masked (-INFINITY) gives 0. bias: TENSOR_NONE or [B or 1,
 * L, S, heads], added to the logits (T5's relative positions). */
struct tensor op_attention(struct graph *g, struct tensor q, struct tensor k, struct tensor v,
                           int heads, double scale, int causal, struct tensor mask,
                           struct tensor bias);

/* One text's keys, or in joint attention the image's. */
struct text_keys {
    struct tensor k, v; /* [B, 1, S, heads * D]; TENSOR_NONE: empty */
    struct tensor mask; /* TENSOR_NONE or [B, 1, 1, S], added to the logits */
};
#define TEXT_KEYS_NONE ((struct text_keys){TENSOR_NONE, TENSOR_NONE, TENSOR_NONE})
/* The attention's output before the output projection. shared: the image's keys of joint attention,
 * in one softmax with the texts' and read once; TEXT_KEYS_NONE: cross-attention. An empty or fully
 * masked negative counts as 0.
 * GUIDANCE_NONE: one softmax over shared and positive keys, for the rows of a text and for images
 * without guidance; negative is TEXT_KEYS_NONE and params TENSOR_NONE then. It wants shared keys:
 * without any it is op_attention. */
struct tensor op_guided_attention(struct graph *g, struct tensor q, struct text_keys positive,
                                  struct text_keys negative, struct text_keys shared, int heads,
                                  double scale, enum guidance_method method,
                                  enum guidance_variant variant, struct tensor params);

struct tensor op_activation(struct graph *g, struct tensor x, enum activation act);
/* b has a's shape, or that of one image of it. */
struct tensor op_add(struct graph *g, struct tensor a, struct tensor b);
struct tensor op_multiply(struct graph *g, struct tensor a, struct tensor b); /* the same */
/* x * scale + shift, constants of the model. */
struct tensor op_affine(struct graph *g, struct tensor x, double scale, double shift);
/* [.., 2C] -> [.., C]: first half * gelu(second half), erf (diffusers' GEGLU). */
struct tensor op_geglu(struct graph *g, struct tensor x);
/* Along channels. */
struct tensor op_concat(struct graph *g, struct tensor a, struct tensor b);
/* Nearest neighbour to h x w, source = floor(i * in / out), as torch's interpolate. */
struct tensor op_resize(struct graph *g, struct tensor x, int h, int w);
/* The channels of a patch: (c, row, column), as FLUX packs its latents and as a convolution's
 * weight [out, C, p, p] is stored; or (row, column, c), as PixArt's proj_out gives them. */
enum patch_order { PATCH_CHANNEL_FIRST, PATCH_CHANNEL_LAST };
/* Squares of p x p pixels: [B, H, W, C] -> [B, H / p, W / p, p * p * C]. p divides H and W. */
struct tensor op_patches(struct graph *g, struct tensor x, int p, enum patch_order order);
/* The inverse: [B, H, W, p * p * C] -> [B, H * p, W * p, C]. */
struct tensor op_unpatches(struct graph *g, struct tensor x, int p, enum patch_order order);
/* ids [B, H, W, 1] i32 -> [B, H, W, C]: table[id] + positions[0 .. H * W - 1] (positions NULL:
 * none). Ids outside the table are checked by the caller. */
struct tensor op_embedding(struct graph *g, struct tensor ids, struct weight *table,
                           struct weight *positions);
/* t [B, 1, 1, 1] -> [B, 1, 1, channels], diffusers' get_timestep_embedding: frequencies
 * 10000^(-i / (half - shift)), sin first, or cos first when flip. */
struct tensor op_sinusoid(struct graph *g, struct tensor t, int channels, int flip, double shift);
/* 3 tanh(x / 3), AutoencoderTiny's clamp. */
struct tensor op_soft_clamp(struct graph *g, struct tensor x);
/* round(clamp(x / 2 + 1/2, 0, 1) * 255), ties to even as numpy rounds; u8. */
struct tensor op_to_u8(struct graph *g, struct tensor x);

/* ---- plans ---- */

/* The graph may be freed afterwards; the weights must outlive the plan. STEER_NO_MEMORY when it
 * does not fit into the host's limit, with the numbers, before anything of it is allocated. */
int compute_plan(struct plan **ret, struct compute *c, const struct graph *g,
                 struct steer_error *err) STEER_MUSTCHECK;
void plan_free(struct plan *p); /* NULL is fine */
size_t plan_bytes(const struct plan *p);

/* Where an input is written or an output read: dense [B, H, W, C]. */
void *plan_data(struct plan *p, struct tensor t);
enum compute_type plan_type(const struct plan *p, struct tensor t);
/* Points image b of a graph_bound tensor at data of its plan_type. */
void plan_bind(struct plan *p, struct tensor t, int b, const void *data);
/* The type of as_computed outputs and bound tensors. */
enum compute_type compute_bound_type(const struct compute *c);

/* tick is called after each operation (NULL: not); non-zero stops with STEER_CANCELLED. */
struct plan_watch {
    int (*tick)(void *data, int done, int operations);
    void *data;
};
int plan_run(struct plan *p, const struct plan_watch *watch,
             struct steer_error *err) STEER_MUSTCHECK;

/* What each operation is and costs: the mean over the runs since the last plan_profile(p, 1). */
struct op_report {
    const char *op;        /* "conv" */
    const char *primitive; /* "jit_wino_4x3:avx512_core", "ours:avx512" */
    const char *type;      /* "bf16>f32" */
    const char *layout;    /* "nhwc" */
    struct shape out;
    double gflop; /* multiply-adds counted as 2, direct algorithm */
    double ms;
};
void plan_profile(struct plan *p, int on);
int plan_operations(const struct plan *p);
struct op_report plan_report(const struct plan *p, int i);

/* What the attention kernels touched since the plan was made; tests hold guided attention to one
 * read of Q and of each shared key (counted for every query and head), and one store per row. */
struct plan_counters {
    uint64_t q_rows_read, out_rows_stored, shared_keys_read;
};
struct plan_counters plan_counters(const struct plan *p);

#endif
