// SPDX-License-Identifier: Apache-2.0
/* Requests that are waited for: jobs in, questions and orders. */
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "client_internal.h"
#include "error.h"
#include "job.h"
#include "limits.h"
#include "pb_json.h"
#include "wire.h"

void steer_key_make(char key[STEER_KEY_SIZE])
{
    uint64_t random[2] = {0};
    if (getrandom(random, sizeof random, 0) != sizeof random) random[0] = (uint64_t)time(NULL);
    snprintf(key, STEER_KEY_SIZE, "%016" PRIx64 "%016" PRIx64, random[0], random[1]);
}

static int submit_message(struct steer_client *c, Steerfarm__Job *job, const char *key,
                          uint64_t *ret_tag, struct steer_fault *fault)
{
    struct steer_error err = {0};
    char made[STEER_KEY_SIZE];
    Steerfarm__Submit m = STEERFARM__SUBMIT__INIT;
    int code = job_check(job, &err);
    if (code) return fault_of(fault, code, err.text);
    if (!key) {
        steer_key_make(made);
        key = made;
    } else if (!*key || strlen(key) > STEER_KEY_BYTES_MAX || !wire_utf8_valid(key, strlen(key))) {
        return fault_of(fault, STEER_BAD_TEXT,
                        "the idempotency key: expected 1 to 128 bytes UTF-8");
    }
    m.key = (char *)(uintptr_t)key;
    m.job = job;
    m.has_tag = 1;
    m.tag = client_tag(c);
    code = client_request(c, STEERFARM__MESSAGE_TYPE__SUBMIT, &m.base, m.tag);
    if (code) return fault_of(fault, code, "too many requests without an answer");
    *ret_tag = m.tag;
    return 0;
}

int steer_submit_start(struct steer_client *c, const char *json, const char *key, uint64_t *ret_tag,
                       struct steer_fault *fault)
{
    json_error_t where;
    struct steer_error err = {0};
    ProtobufCMessage *job = NULL;
    json_t *root = pb_json_read(json, &where);
    if (!json_is_object(root)) {
        char text[300];
        snprintf(text, sizeof text, "not a JSON object: %s", root ? "another value" : where.text);
        json_decref(root);
        return fault_of(fault, STEER_BAD_VALUE, text);
    }
    int code = pb_from_json(&job, &steerfarm__job__descriptor, root, &err);
    json_decref(root);
    if (code) return fault_of(fault, code, err.text);
    code = submit_message(c, (Steerfarm__Job *)job, key, ret_tag, fault);
    protobuf_c_message_free_unpacked(job, NULL);
    return code;
}

static int submit_wait(struct steer_client *c, uint64_t tag, char ret_id[STEER_JOB_ID_SIZE],
                       int timeout_ms, struct steer_fault *fault)
{
    struct steer_event e;
    int code = client_await(c, STEERFARM__MESSAGE_TYPE__SUBMIT, tag, &e, timeout_ms, fault);
    if (!code) snprintf(ret_id, STEER_JOB_ID_SIZE, "%s", e.job);
    return code;
}

int steer_submit_json(struct steer_client *c, const char *json, const char *key,
                      char ret_id[STEER_JOB_ID_SIZE], int timeout_ms, struct steer_fault *fault)
{
    uint64_t tag;
    int code = steer_submit_start(c, json, key, &tag, fault);
    return code ? code : submit_wait(c, tag, ret_id, timeout_ms, fault);
}

struct steer_job steer_job_default(void)
{
    return (struct steer_job){.alpha = NAN,
                              .phi = NAN,
                              .tau = NAN,
                              .beta = NAN,
                              .offset = NAN,
                              .guidance_scale = NAN,
                              .quality = -1};
}

/* 1: something is given. An empty submessage would make it another job to the broker. */
static int guidance_fill(Steerfarm__Guidance *g, const struct steer_job *job)
{
#define NUMBER(field)                                                                              \
    g->has_##field = !isnan(job->field);                                                           \
    g->field = g->has_##field ? job->field : 0
    NUMBER(alpha);
    NUMBER(phi);
    NUMBER(tau);
    NUMBER(beta);
    NUMBER(offset);
    NUMBER(guidance_scale);
#undef NUMBER
    return g->has_alpha || g->has_phi || g->has_tau || g->has_beta || g->has_offset ||
           g->has_guidance_scale;
}

/* A name out of an enum as pb_json reads it, or an error with the field's name. */
static int name_fill(int *ret, const char *field, const char *name, const char *const *names,
                     int count, struct steer_fault *fault)
{
    for (int i = 0; i < count; i++)
        if (strcmp(name, names[i]) == 0) {
            *ret = i;
            return 0;
        }
    char text[200];
    snprintf(text, sizeof text, "%s \"%.60s\" is unknown", field, name);
    return fault_of(fault, STEER_BAD_VALUE, text);
}

int steer_submit(struct steer_client *c, const struct steer_job *job,
                 char ret_id[STEER_JOB_ID_SIZE], int timeout_ms, struct steer_fault *fault)
{
    static const char *const precisions[] = {"auto", "f32", "bf16"};
    static const char *const formats[] = {"webp", "lossless", "png"};
    Steerfarm__Job m = STEERFARM__JOB__INIT;
    Steerfarm__Guidance guidance = STEERFARM__GUIDANCE__INIT;
    Steerfarm__Output output = STEERFARM__OUTPUT__INIT;
    Steerfarm__Label labels[STEER_LABELS_MAX], *label_list[STEER_LABELS_MAX];
    int code, number;
    if (!job->model || !job->prompt)
        return fault_of(fault, STEER_BAD_VALUE, "a job needs a model and a prompt");
    m.model = (char *)(uintptr_t)job->model;
    m.prompt = (char *)(uintptr_t)job->prompt;
    m.negative_prompt = (char *)(uintptr_t)job->negative;
    m.recipe = (char *)(uintptr_t)job->recipe;
    if (guidance_fill(&guidance, job)) m.guidance = &guidance;
    if (job->guidance) {
        if ((number = job_method_of(job->guidance)) < 0)
            return fault_of(fault, STEER_BAD_VALUE,
                            "guidance: expected none, cfg, nasa, nag or vsf");
        guidance.has_method = 1;
        guidance.method = (Steerfarm__Method)number;
        m.guidance = &guidance;
    }
    if (job->nasa_variant) {
        if ((number = job_variant_of(job->nasa_variant)) < 0)
            return fault_of(fault, STEER_BAD_VALUE, "nasa_variant: expected text, mass or joint");
        guidance.has_nasa_variant = 1;
        guidance.nasa_variant = (Steerfarm__NasaVariant)number;
        m.guidance = &guidance;
    }
    if (job->precision) {
        if ((code = name_fill(&number, "precision", job->precision, precisions, 3, fault)))
            return code;
        m.has_precision = 1;
        m.precision = (Steerfarm__Precision)number;
    }
    if (job->long_prompt) {
        if ((number = job_long_prompt_of(job->long_prompt)) < 0)
            return fault_of(fault, STEER_BAD_VALUE, "long_prompt: expected cut or chunk");
        m.has_long_prompt = 1;
        m.long_prompt = (Steerfarm__LongPrompt)number;
    }
    if (job->prompt_syntax) {
        if ((number = job_prompt_syntax_of(job->prompt_syntax)) < 0)
            return fault_of(fault, STEER_BAD_VALUE, "prompt_syntax: expected plain or a1111");
        m.has_prompt_syntax = 1;
        m.prompt_syntax = (Steerfarm__PromptSyntax)number;
    }
    if (job->format) {
        if ((code = name_fill(&number, "format", job->format, formats, 3, fault))) return code;
        output.has_format = 1;
        output.format = (Steerfarm__Format)number;
    }
    output.has_quality = job->quality >= 0;
    output.quality = (uint32_t)(job->quality >= 0 ? job->quality : 0);
    if (output.has_format || output.has_quality) m.output = &output;
    if (job->labels_count > STEER_LABELS_MAX)
        return fault_of(fault, STEER_BAD_VALUE, "more than 16 labels");
    for (size_t i = 0; i < job->labels_count; i++) {
        labels[i] = (Steerfarm__Label)STEERFARM__LABEL__INIT;
        labels[i].key = (char *)(uintptr_t)job->labels[i].key;
        labels[i].value = (char *)(uintptr_t)job->labels[i].value;
        label_list[m.n_labels++] = labels + i;
    }
    m.labels = label_list;
    m.has_width = (m.width = job->width) != 0;
    m.has_height = (m.height = job->height) != 0;
    m.has_steps = (m.steps = job->steps) != 0;
    m.has_images = (m.images = job->images) != 0;
    m.has_seed = job->has_seed;
    m.seed = job->seed;
    m.has_priority = (m.priority = job->priority) != 0;
    m.has_deadline_ms = (m.deadline_ms = job->deadline_ms) != 0;
    uint64_t tag;
    code = submit_message(c, &m, job->key, &tag, fault);
    return code ? code : submit_wait(c, tag, ret_id, timeout_ms, fault);
}

static int ask_wait(struct steer_client *c, int type, const ProtobufCMessage *m, uint64_t tag,
                    char **ret_json, int timeout_ms, struct steer_fault *fault)
{
    struct steer_event e;
    int code = client_request(c, type, m, tag);
    if (code) return fault_of(fault, code, "too many requests without an answer");
    if ((code = client_await(c, type, tag, &e, timeout_ms, fault))) return code;
    if (ret_json && !(*ret_json = strdup(e.json)))
        return fault_of(fault, STEER_NO_MEMORY, "out of memory");
    return 0;
}

int steer_cancel(struct steer_client *c, const char *job, const char *key, char **ret_json,
                 int timeout_ms, struct steer_fault *fault)
{
    Steerfarm__Cancel m = STEERFARM__CANCEL__INIT;
    m.job = (char *)(uintptr_t)job;
    m.key = (char *)(uintptr_t)key;
    m.has_tag = 1;
    m.tag = client_tag(c);
    return ask_wait(c, STEERFARM__MESSAGE_TYPE__CANCEL, &m.base, m.tag, ret_json, timeout_ms,
                    fault);
}

static int query_fill(Steerfarm__Query *m, const char *argument, json_t **ret_json,
                      Steerfarm__Label *label)
{
    json_t *json = *ret_json = json_loads(argument, 0, NULL);
    if (!json_is_object(json)) return STEER_BAD_VALUE;
    const json_t *l = json_object_get(json, "label"), *limit = json_object_get(json, "limit");
    m->state = (char *)(uintptr_t)json_string_value(json_object_get(json, "state"));
    m->has_limit = json_is_integer(limit);
    m->limit = (uint32_t)json_integer_value(limit);
    label->key = (char *)(uintptr_t)json_string_value(json_object_get(l, "key"));
    label->value = (char *)(uintptr_t)json_string_value(json_object_get(l, "value"));
    if (label->key && label->value) m->label = label;
    return 0;
}

int steer_ask(struct steer_client *c, enum steer_question question, const char *argument,
              char **ret_json, int timeout_ms, struct steer_fault *fault)
{
    uint64_t tag = client_tag(c);
    if (question >= STEER_DO_DRAIN) {
        Steerfarm__Admin m = STEERFARM__ADMIN__INIT;
        m.kind = (Steerfarm__AdminKind)(STEERFARM__ADMIN_KIND__ADMIN_DRAIN +
                                        (question - STEER_DO_DRAIN));
        if (question == STEER_DO_DRAIN) m.worker = (char *)(uintptr_t)argument;
        if (question == STEER_DO_RETRY) m.job = (char *)(uintptr_t)argument;
        m.has_tag = 1;
        m.tag = tag;
        return ask_wait(c, STEERFARM__MESSAGE_TYPE__ADMIN, &m.base, tag, ret_json, timeout_ms,
                        fault);
    }
    Steerfarm__Query m = STEERFARM__QUERY__INIT;
    Steerfarm__Label label = STEERFARM__LABEL__INIT;
    json_t *json = NULL;
    m.kind = (Steerfarm__QueryKind)(STEERFARM__QUERY_KIND__QUERY_JOB + (question - STEER_ASK_JOB));
    m.has_tag = 1;
    m.tag = tag;
    if (question == STEER_ASK_JOB) m.job = (char *)(uintptr_t)argument;
    if (question == STEER_ASK_JOBS && argument && query_fill(&m, argument, &json, &label)) {
        json_decref(json);
        return fault_of(fault, STEER_BAD_VALUE, "the argument is not a JSON object");
    }
    int code =
        ask_wait(c, STEERFARM__MESSAGE_TYPE__QUERY, &m.base, tag, ret_json, timeout_ms, fault);
    json_decref(json);
    return code;
}
