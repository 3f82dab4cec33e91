// SPDX-License-Identifier: Apache-2.0
#include "job_args.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "job.h"
#include "wire.h"

void job_args_init(struct job_args *a)
{
    memset(a, 0, sizeof *a);
    a->job = (Steerfarm__Job)STEERFARM__JOB__INIT;
    a->guidance = (Steerfarm__Guidance)STEERFARM__GUIDANCE__INIT;
    a->output = (Steerfarm__Output)STEERFARM__OUTPUT__INIT;
    a->job.labels = a->label_list;
}

/* protobuf-c has no const; the job only borrows. */
static char *borrow(const char *text)
{
    return (char *)(uintptr_t)text;
}

/* Texts travel as UTF-8 and are shown as JSON: what is neither is refused where it is given. */
int job_args_text(const char *text, struct steer_error *err)
{
    if (wire_utf8_valid(text, strlen(text))) return 0;
    return steer_fail(err, STEER_BAD_TEXT, "the text is not UTF-8");
}

#define TEXT_SETTER(name, field)                                                                   \
    static int set_##name(void *target, const char *value, struct steer_error *err)                \
    {                                                                                              \
        ((struct job_args *)target)->job.field = borrow(value);                                    \
        return job_args_text(value, err);                                                          \
    }
TEXT_SETTER(prompt, prompt)
TEXT_SETTER(negative, negative_prompt)
TEXT_SETTER(recipe, recipe)
TEXT_SETTER(traceparent, traceparent)
TEXT_SETTER(numerics, numerics)

static int set_u32(uint32_t *to, protobuf_c_boolean *has, const char *value, uint64_t least,
                   uint64_t most, struct steer_error *err)
{
    uint64_t number = 0;
    int code = args_u64(&number, value, least, most, err);
    if (code) return code;
    *to = (uint32_t)number;
    *has = 1;
    return 0;
}

static int set_size(void *target, const char *value, struct steer_error *err)
{
    Steerfarm__Job *job = &((struct job_args *)target)->job;
    char text[64];
    snprintf(text, sizeof text, "%s", value);
    char *x = strchr(text, 'x');
    if (x) *x = 0;
    if (!x || strlen(value) >= sizeof text ||
        set_u32(&job->width, &job->has_width, text, 0, UINT32_MAX, err) ||
        set_u32(&job->height, &job->has_height, x + 1, 0, UINT32_MAX, err))
        return steer_fail(err, STEER_BAD_SIZE,
                          "\"%s\": expected WIDTHxHEIGHT in pixels, like 512x768", value);
    return 0;
}

static int set_steps(void *target, const char *value, struct steer_error *err)
{
    Steerfarm__Job *job = &((struct job_args *)target)->job;
    return set_u32(&job->steps, &job->has_steps, value, 1, STEER_STEPS_MAX, err);
}

static int set_seed(void *target, const char *value, struct steer_error *err)
{
    Steerfarm__Job *job = &((struct job_args *)target)->job;
    int code = args_u64(&job->seed, value, 0, UINT64_MAX, err);
    job->has_seed = !code;
    return code;
}

static int set_images(void *target, const char *value, struct steer_error *err)
{
    Steerfarm__Job *job = &((struct job_args *)target)->job;
    return set_u32(&job->images, &job->has_images, value, 1, STEER_IMAGES_MAX, err);
}

static int set_precision(void *target, const char *value, struct steer_error *err)
{
    static const char *const names[] = {"auto", "f32", "bf16"};
    Steerfarm__Job *job = &((struct job_args *)target)->job;
    for (int i = 0; i < 3; i++)
        if (strcmp(value, names[i]) == 0) {
            job->has_precision = 1;
            job->precision = (Steerfarm__Precision)i;
            return 0;
        }
    return steer_fail(err, STEER_BAD_VALUE, "\"%s\": expected auto, f32 or bf16", value);
}

static int set_long_prompt(void *target, const char *value, struct steer_error *err)
{
    Steerfarm__Job *job = &((struct job_args *)target)->job;
    int choice = job_long_prompt_of(value);
    if (choice < 0) return steer_fail(err, STEER_BAD_VALUE, "\"%s\": expected cut or chunk", value);
    job->has_long_prompt = 1;
    job->long_prompt = (Steerfarm__LongPrompt)choice;
    return 0;
}

static int set_prompt_syntax(void *target, const char *value, struct steer_error *err)
{
    Steerfarm__Job *job = &((struct job_args *)target)->job;
    int choice = job_prompt_syntax_of(value);
    if (choice < 0)
        return steer_fail(err, STEER_BAD_VALUE, "\"%s\": expected plain or a1111", value);
    job->has_prompt_syntax = 1;
    job->prompt_syntax = (Steerfarm__PromptSyntax)choice;
    return 0;
}

static int set_format(void *target, const char *value, struct steer_error *err)
{
    static const char *const names[] = {"webp", "lossless", "png"};
    struct job_args *a = target;
    for (int i = 0; i < 3; i++)
        if (strcmp(value, names[i]) == 0) {
            a->output.has_format = 1;
            a->output.format = (Steerfarm__Format)i;
            a->job.output = &a->output;
            return 0;
        }
    return steer_fail(err, STEER_BAD_VALUE, "\"%s\": expected webp, lossless or png", value);
}

static int set_quality(void *target, const char *value, struct steer_error *err)
{
    struct job_args *a = target;
    a->job.output = &a->output;
    return set_u32(&a->output.quality, &a->output.has_quality, value, 0, 100, err);
}

static int set_guidance(void *target, const char *value, struct steer_error *err)
{
    struct job_args *a = target;
    int method = job_method_of(value);
    if (method < 0)
        return steer_fail(err, STEER_BAD_VALUE, "\"%s\": expected none, cfg, nasa, nag or vsf",
                          value);
    a->guidance.has_method = 1;
    a->guidance.method = (Steerfarm__Method)method;
    a->job.guidance = &a->guidance;
    return 0;
}

static int set_nasa_variant(void *target, const char *value, struct steer_error *err)
{
    struct job_args *a = target;
    int variant = job_variant_of(value);
    if (variant < 0)
        return steer_fail(err, STEER_BAD_VALUE, "\"%s\": expected text, mass or joint", value);
    a->guidance.has_nasa_variant = 1;
    a->guidance.nasa_variant = (Steerfarm__NasaVariant)variant;
    a->job.guidance = &a->guidance;
    return 0;
}

#define NUMBER_SETTER(name)                                                                        \
    static int set_##name(void *target, const char *value, struct steer_error *err)                \
    {                                                                                              \
        struct job_args *a = target;                                                               \
        int code = args_double(&a->guidance.name, value, err);                                     \
        a->guidance.has_##name = !code;                                                            \
        a->job.guidance = &a->guidance;                                                            \
        return code;                                                                               \
    }
NUMBER_SETTER(alpha)
NUMBER_SETTER(offset)
NUMBER_SETTER(phi)
NUMBER_SETTER(tau)
NUMBER_SETTER(beta)
NUMBER_SETTER(guidance_scale)

static int set_priority(void *target, const char *value, struct steer_error *err)
{
    Steerfarm__Job *job = &((struct job_args *)target)->job;
    char *end;
    long number = strtol(value, &end, 10);
    if (end == value || *end || number < -1000 || number > 1000)
        return steer_fail(err, STEER_BAD_VALUE, "\"%s\": expected -1000 to 1000", value);
    job->has_priority = 1;
    job->priority = (int32_t)number;
    return 0;
}

static int set_deadline(void *target, const char *value, struct steer_error *err)
{
    Steerfarm__Job *job = &((struct job_args *)target)->job;
    uint64_t seconds = 0;
    int code = args_u64(&seconds, value, 1, 366ull * 86400, err);
    if (code) return code;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    job->has_deadline_ms = 1;
    job->deadline_ms = ((uint64_t)now.tv_sec + seconds) * 1000;
    return 0;
}

static int set_label(void *target, const char *value, struct steer_error *err)
{
    struct job_args *a = target;
    const char *equals = strchr(value, '=');
    size_t length = equals ? (size_t)(equals - value) : 0;
    int code = job_args_text(value, err);
    if (code) return code;
    if (!length || length > STEER_NAME_BYTES_MAX)
        return steer_fail(err, STEER_BAD_VALUE, "\"%s\": expected KEY=VALUE", value);
    if (a->job.n_labels == STEER_LABELS_MAX)
        return steer_fail(err, STEER_BAD_VALUE, "more than %d labels", STEER_LABELS_MAX);
    size_t i = a->job.n_labels++;
    snprintf(a->label_keys[i], sizeof a->label_keys[i], "%.*s", (int)length, value);
    a->labels[i] = (Steerfarm__Label)STEERFARM__LABEL__INIT;
    a->labels[i].key = a->label_keys[i];
    a->labels[i].value = borrow(equals + 1);
    a->label_list[i] = a->labels + i;
    return 0;
}

const struct args_option job_args_image[] = {
    {"prompt", "TEXT", "what the picture shows", set_prompt},
    {"negative", "TEXT", "what it must not show", set_negative},
    {"prompt-syntax", "plain|a1111",
     "a1111: (word:1.2) weighs, BREAK begins a chunk (default plain)", set_prompt_syntax},
    {"long-prompt", "cut|chunk",
     "what the encoder cannot read at once: left out, and said, or encoded in chunks (default cut)",
     set_long_prompt},
    {"size", "WxH", "pixels, multiples of 8 (FLUX, PixArt: 16; default: the model's)", set_size},
    {"seed", "N", "image i is drawn from seed N + i (default: a random one, which the image tells)",
     set_seed},
    {"images", "N", "how many (default 1)", set_images},
    {"steps", "N", "denoising steps (default: the recipe's)", set_steps},
    {"recipe", "NAME|FILE",
     "how the checkpoint is sampled (default: the model's); a file for steer-worker only",
     set_recipe},
    {"precision", "auto|f32|bf16", "arithmetic (default auto)", set_precision},
    {"format", "webp|lossless|png", "of the file (default: by its name, else webp)", set_format},
    {"quality", "0..100", "of lossy WebP (default 90)", set_quality},
    {NULL, NULL, NULL, NULL},
};

const struct args_option job_args_guidance[] = {
    {"guidance", "METHOD", "none, cfg, nasa, nag or vsf (default: the recipe's)", set_guidance},
    {"alpha", "A", "NASA, VSF: how much of the negative is subtracted", set_alpha},
    {"nasa-variant", "text|mass|joint",
     "what NASA subtracts in joint attention (FLUX; default: the recipe's)", set_nasa_variant},
    {"offset", "O", "VSF: bias on the negative's logits is -O", set_offset},
    {"phi", "F", "NAG: extrapolation", set_phi},
    {"tau", "T", "NAG: greatest growth of the norm", set_tau},
    {"beta", "B", "NAG: mix with the unguided attention", set_beta},
    {"guidance-scale", "K", "CFG beside any method; 1 is off", set_guidance_scale},
    {NULL, NULL, NULL, NULL},
};

const struct args_option job_args_farm[] = {
    {"priority", "N", "higher first (default 0)", set_priority},
    {"deadline", "SECONDS", "from now; images not rendered by then expire", set_deadline},
    {"label", "KEY=VALUE", "to find the job by; may be repeated", set_label},
    {"numerics", "CLASS", "only workers of this numerics class", set_numerics},
    {"traceparent", "TEXT", "W3C trace context, handed through", set_traceparent},
    {NULL, NULL, NULL, NULL},
};
