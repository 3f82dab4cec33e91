// SPDX-License-Identifier: Apache-2.0
/* Jobs as JSON objects, from flags, lines and images, and on to the broker. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "limits.h"
#include "pb_json.h"

int job_of_flags(json_t **ret, const struct job_args *j, struct steer_error *err)
{
    json_t *job = pb_to_json(&j->job.base);
    if (!job) return steer_fail(err, STEER_BAD_TEXT, "a text of the job is not UTF-8");
    *ret = job;
    return 0;
}

void job_overlay(json_t *under, const json_t *over)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)over, key, value)
    {
        json_t *old = json_object_get(under, key);
        int alone = strcmp(key, "guidance") == 0 && json_object_get(value, "method");
        if (json_is_object(old) && json_is_object(value) && !alone)
            json_object_update(old, value);
        else
            json_object_set_new(under, key, json_deep_copy(value));
    }
    /* "none" over a job with a negative prompt: that is no longer wanted either. */
    const json_t *guidance = json_object_get(over, "guidance");
    if (strcmp(json_text(guidance, "method"), "none") == 0 &&
        !json_object_get(guidance, "guidance_scale") && !json_object_get(over, "negative_prompt"))
        json_object_del(under, "negative_prompt");
}

/* The farm's only model, where none was named. */
static int model_default(struct steer_client *c, const struct cli *cli, json_t *job,
                         struct steer_error *err)
{
    char names[600] = "";
    json_t *reply = NULL;
    int code = cli_ask(c, cli, STEER_ASK_MODELS, NULL, cli_answer_ms(cli), &reply, err);
    if (code) return code;
    const json_t *models = json_object_get(reply, "models");
    size_t count = json_array_size(models);
    for (size_t i = 0; i < count; i++) {
        size_t used = strlen(names);
        snprintf(names + used, sizeof names - used, "%s%s", i ? ", " : "",
                 printable(json_text(json_array_get(models, i), "name")));
    }
    if (!count)
        code = steer_fail(err, STEER_UNKNOWN_MODEL, "no worker has offered a model yet");
    else if (count > 1)
        code = steer_fail(err, STEER_USAGE, "--model is needed; the farm has %s", names);
    else
        json_object_set(job, "model", json_object_get(json_array_get(models, 0), "name"));
    json_decref(reply);
    return code;
}

int job_send(struct steer_client *c, const struct cli *cli, json_t *job, const char *key,
             char id[STEER_JOB_ID_SIZE], struct steer_error *err)
{
    struct steer_fault fault;
    int code = 0;
    if (!json_object_get(job, "prompt"))
        return steer_fail(err, STEER_USAGE, "a prompt is needed (see --help)");
    if (!*json_text(job, "model")) code = model_default(c, cli, job, err);
    if (code) return code;
    char *text = json_dumps(job, JSON_COMPACT);
    if (!text) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    code = steer_submit_json(c, text, key, id, cli_answer_ms(cli), &fault);
    free(text);
    return code ? fault_error(err, &fault) : 0;
}

int job_end(const json_t *status, struct steer_error *err)
{
    const char *state = json_text(status, "state");
    const json_t *counts = json_object_get(status, "counts");
    const char *job = printable(json_text(status, "job"));
    long long failed = json_number(counts, "failed"), cancelled = json_number(counts, "cancelled"),
              expired = json_number(counts, "expired");
    if (strcmp(state, "cancelled") == 0 || cancelled)
        return steer_fail(err, STEER_CANCELLED, "job %s is cancelled: %lld images were not made",
                          job, cancelled);
    if (strcmp(state, "expired") == 0 || expired)
        return steer_fail(err, STEER_EXPIRED, "job %s has expired: %lld images are lost", job,
                          expired);
    if (strcmp(state, "failed") == 0 || failed)
        return steer_fail(err, STEER_RENDER_FAILED,
                          "job %s: %lld images failed (`steer show %s` says why)", job, failed,
                          job);
    return 0;
}
