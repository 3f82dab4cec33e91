/* graph.h - the recorded operations, as backends read them. Models do not include this. */
#ifndef KERNELS_GRAPH_H
#define KERNELS_GRAPH_H
#include "compute.h"

enum op_kind {
    OP_LINEAR,
    OP_CONV,
    OP_GROUP_NORM,
    OP_LAYER_NORM,
    OP_RMS_NORM,
    OP_MODULATE,
    OP_GATED_ADD,
    OP_ROPE,
    OP_ATTENTION,
    OP_GUIDED_ATTENTION,
    OP_ACTIVATION,
    OP_ADD,
    OP_MULTIPLY,
    OP_AFFINE,
    OP_GEGLU,
    OP_CONCAT,
    OP_RESIZE,
    OP_PATCHES,
    OP_UNPATCHES,
    OP_EMBEDDING,
    OP_SINUSOID,
    OP_SOFT_CLAMP,
    OP_TO_U8,
    OP_KINDS
};
const char *op_name(enum op_kind kind);

#define OP_INPUTS_MAX 11
/* Meaning of in[]: ATTENTION q k v mask bias; GUIDED_ATTENTION q, then k v mask of the positive,
 * the negative and the shared keys, params; CONV x per_image; all others in the order of compute.h.
 * -1: absent. */
enum {
    IN_POSITIVE = 1, /* where k v mask of each begin */
    IN_NEGATIVE = 4,
    IN_SHARED = 7,
    IN_BIAS = 4, /* ATTENTION's */
    IN_PARAMS = 10
};
struct op {
    enum op_kind kind;
    int in[OP_INPUTS_MAX];
    int out;
    struct weight *w, *positions;
    enum activation act;
    enum guidance_method method;
    enum guidance_variant variant;
    enum patch_order order;
    int stride, padding, groups, heads, causal, flip, patch;
    double eps, scale, shift;
};

enum tensor_role { ROLE_INNER, ROLE_INPUT, ROLE_CONSTANT, ROLE_BOUND, ROLE_VIEW };

struct tensor_info {
    struct shape shape;
    enum tensor_role role;
    enum compute_type
        type;      /* of inputs, constants, u8 outputs; else f32 and the backend's choice */
    int parent;    /* ROLE_VIEW: the tensor viewed, never itself a view */
    int channel;   /* ROLE_VIEW: first channel in the parent */
    int output;    /* 0; 1: f32 or u8; 2: as computed; of ROLE_BOUND: as made */
    void *data;    /* ROLE_CONSTANT: owned by the graph, NULL in plans */
    char name[48]; /* of inputs, constants and outputs */
};

struct graph {
    struct op *ops;
    struct tensor_info *tensors;
    int ops_count, ops_room, tensors_count, tensors_room;
    struct steer_error error; /* the first mistake; code 0: none */
};

#endif
