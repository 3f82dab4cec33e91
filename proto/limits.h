/* limits.h - every maximum that programs on both sides of the wire must agree on.
 *
 * A size is checked against these before anything is parsed, allocated or rendered. */
#ifndef PROTO_LIMITS_H
#define PROTO_LIMITS_H

#define STEER_WIRE_VERSION     1
#define STEER_WIRE_VERSION_MIN 1

#define STEER_BODY_BYTES_MAX   (4u << 20)   /* a protobuf body */
#define STEER_IMAGE_BYTES_MAX  (256u << 20) /* a RESULT's payload */
#define STEER_UNPACK_BYTES_MAX (16u << 20)  /* what unpacking one body may allocate */

#define STEER_SPEC_BYTES_MAX (64u << 10) /* a resolved Job, with fields of a newer release */

#define STEER_PROMPT_BYTES_MAX      16384
#define STEER_PROMPT_CHUNKS_MAX     8   /* of one text under --long-prompt chunk */
#define STEER_PROMPT_WEIGHT_MAX     100 /* of one word under --prompt-syntax a1111, either sign */
#define STEER_NAME_BYTES_MAX        128 /* model, recipe, worker, label key, numerics class */
#define STEER_KEY_BYTES_MAX         128 /* idempotency key */
#define STEER_JOB_ID_BYTES_MAX      40
#define STEER_LABEL_VALUE_BYTES_MAX 256
#define STEER_LABELS_MAX            16
#define STEER_TEXT_BYTES_MAX        1024 /* an error's text */

#define STEER_IMAGES_MAX 1000000 /* of one job */
#define STEER_STEPS_MAX  1000
#define STEER_SIDE_MIN   8 /* pixels */
#define STEER_SIDE_MAX   4096
#define STEER_PIXELS_MAX (2048ull * 2048)
#define STEER_BATCH_MAX  16

#define STEER_MODELS_MAX   256 /* of one worker */
#define STEER_RECIPES_MAX  32
#define STEER_LEASES_MAX   1024 /* of one worker */
#define STEER_RANGES_MAX   4096
#define STEER_ATTEMPTS_MAX 5

#endif
