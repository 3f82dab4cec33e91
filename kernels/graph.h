/* graph.h - the recorded operations, as backends read them. Models do not include this. */
#ifndef KERNELS_GRAPH_H
#define KERNELS_GRAPH_H
#include "compute.h"

enum op_kind {
    OP_LINEAR,
    OP_CONV,
    OP_GROUP_NORM,
    OP_LAYER_NORM,
    OP_ATTENTION,
    OP_GUIDED_ATTENTION,
    OP_ACTIVATION,
    OP_ADD,
    OP_AFFINE,
    OP_GEGLU,
    OP_CONCAT,
    OP_RESIZE,
    OP_EMBEDDING,
    OP_SINUSOID,
    OP_SOFT_CLAMP,
    OP_TO_U8,
    OP_KINDS
};
const char *op_name(enum op_kind kind);

#define OP_INPUTS_MAX 8
/* Meaning of in[]: ATTENTION q k v mask; GUIDED_ATTENTION q k+ v+ mask+ k- v- mask- params; CONV x
 * per_image; all others in the order of compute.h. -1: absent. */
struct op {
    enum op_kind kind;
    int in[OP_INPUTS_MAX];
    int out;
    struct weight *w, *positions;
    enum activation act;
    enum guidance_method method;
    int stride, padding, groups, heads, causal, flip;
    double eps, scale, shift;
};

enum tensor_role { ROLE_INNER, ROLE_INPUT, ROLE_BOUND, ROLE_VIEW };

struct tensor_info {
    struct shape shape;
    enum tensor_role role;
    enum compute_type type; /* of inputs, and u8 outputs; otherwise f32 and the backend's choice */
    int parent;             /* ROLE_VIEW: the tensor viewed, never itself a view */
    int channel;            /* ROLE_VIEW: first channel in the parent */
    int output;             /* 0; 1: f32 or u8; 2: as computed; of ROLE_BOUND: as made */
    char name[48];          /* of inputs and outputs */
};

struct graph {
    struct op *ops;
    struct tensor_info *tensors;
    int ops_count, ops_room, tensors_count, tensors_room;
    struct steer_error error; /* the first mistake; code 0: none */
};

#endif
