/* net.h - a model's parameters by name, and the layers that a forward is written in.
 *
 * A forward names its parameters where it uses them, as the paper's reference code does:
 *
 *     struct tensor h = net_group_norm(n, x, groups, 1e-5, ACT_SILU, "%s.norm1", path);
 *     h = net_conv(n, h, channels, 3, 1, temb, ACT_NONE, "%s.conv1", path);
 *
 * The first recording binds each name in the tensor files with the exact shape that the layer needs
 * and makes a weight of it; later recordings (another size, another guidance) find it again. The
 * first mistake (a missing tensor, a wrong shape) is remembered in the params and reported once. */
#ifndef WORKER_NET_H
#define WORKER_NET_H
#include "compute.h"
#include "error.h"

struct tensors; /* tensors.h */
struct loras;   /* lora.h */
struct params;

/* Takes files; they stay mapped until params_free. */
int params_new(struct params **ret, struct compute *c, struct tensors **files) STEER_MUSTCHECK;
void params_free(struct params *p); /* NULL is fine; no plan may use its weights any more */
const struct tensors *params_files(const struct params *p);
/* Before anything is recorded: what LoRAs (bound to these files) change of them as target, which is
 * an enum lora_target. Borrowed. */
void params_loras(struct params *p, const struct loras *loras, int target);
/* Before anything is recorded: matrices are held as int8 (weight_hold_int8). */
void params_hold_int8(struct params *p);
/* Gives back all that plans had packed; none may use it any more, the next packs it again. */
void params_unpack(struct params *p);
/* The first mistake of all recordings so far, or that the files have changed since; 0 and *err
 * untouched when there is none. One for want of memory is told once: the next recording may have
 * more luck. */
int params_error(struct params *p, struct steer_error *err) STEER_MUSTCHECK;
/* 1 when a tensor of that name is in the files. */
int params_has(const struct params *p, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

struct net {
    struct params *params;
    struct graph *graph;
};

#define NET_NAME(n) __attribute__((format(printf, n, n + 1)))

/* `path`.weight [out, C of x] and, when bias, `path`.bias. */
struct tensor net_linear(struct net *n, struct tensor x, int out, int bias, enum activation act,
                         const char *path, ...) NET_NAME(6);
/* Several matrices of one input as one multiplication: `path`.`names[i]`.weight, each of height
 * out; the result is [.., count * out]. */
struct tensor net_linear_stack(struct net *n, struct tensor x, int out, int bias, int count,
                               const char *const *names, const char *path, ...) NET_NAME(7);
/* A square kernel of that size, zero padding size / 2. */
struct tensor net_conv(struct net *n, struct tensor x, int out, int size, int stride, int bias,
                       struct tensor per_image, enum activation act, const char *path, ...)
    NET_NAME(9);
struct tensor net_group_norm(struct net *n, struct tensor x, int groups, double eps,
                             enum activation act, const char *path, ...) NET_NAME(6);
struct tensor net_layer_norm(struct net *n, struct tensor x, double eps, const char *path, ...)
    NET_NAME(4);
/* An RMS norm over each of `heads` equal parts of the channels, scaled by `path`.weight. */
struct tensor net_rms_norm(struct net *n, struct tensor x, int heads, double eps, const char *path,
                           ...) NET_NAME(5);
/* Squares of size x size pixels through one matrix: a convolution of that size and stride, with
 * bias. */
struct tensor net_patches(struct net *n, struct tensor x, int out, int size, const char *path, ...)
    NET_NAME(5);
/* The parameter `path` [rows, channels] itself: [1, 1, 1, rows * channels]. */
struct tensor net_constant(struct net *n, int rows, int channels, const char *path, ...)
    NET_NAME(4);
/* tokens.weight [rows, channels] looked up at ids, plus positions.weight [positions, channels]
 * (positions_path NULL: none). */
struct tensor net_embedding(struct net *n, struct tensor ids, int rows, int positions, int channels,
                            const char *tokens_path, const char *positions_path);

#endif
