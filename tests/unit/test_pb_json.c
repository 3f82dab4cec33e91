// SPDX-License-Identifier: Apache-2.0
/* Messages as JSON and back: nothing is lost on the way, or it is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "pb_json.h"
#include "steer.pb-c.h"

static int read_job(Steerfarm__Job **ret, const char *text, struct steer_error *err)
{
    ProtobufCMessage *m = NULL;
    json_t *json = pb_json_read(text, NULL);
    assert_non_null(json);
    int code = pb_from_json(&m, &steerfarm__job__descriptor, json, err);
    json_decref(json);
    *ret = (Steerfarm__Job *)m;
    return code;
}

static void test_seeds(void **state)
{
    static const struct {
        const char *text;
        uint64_t seed;
        const char *back;
    } good[] = {
        {"7", 7, "7"},
        {"9223372036854775807", INT64_MAX, "9223372036854775807"},
        {"9223372036854775813", 9223372036854775813u, "\"9223372036854775813\""},
        {"\"18446744073709551615\"", UINT64_MAX, "\"18446744073709551615\""},
    };
    static const char *const bad[] = {"-1",    "-9223372036854775803",     "1.5",  "\"-1\"",
                                      "\"x\"", "\"18446744073709551616\"", "\"\"", "true"};
    Steerfarm__Job *job;
    struct steer_error err = {0};
    char text[200];
    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        snprintf(text, sizeof text,
                 "{\"model\": \"m\", \"prompt\": \"9223372036854775813 \\\"\", "
                 "\"seed\": %s}",
                 good[i].text);
        assert_int_equal(read_job(&job, text, &err), 0);
        assert_true(job->seed == good[i].seed);
        assert_string_equal(job->prompt, "9223372036854775813 \"");
        json_t *json = pb_to_json(&job->base);
        char *back = json_dumps(json_object_get(json, "seed"), JSON_ENCODE_ANY);
        assert_string_equal(back, good[i].back);
        free(back);
        json_decref(json);
        protobuf_c_message_free_unpacked(&job->base, NULL);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        snprintf(text, sizeof text, "{\"model\": \"m\", \"prompt\": \"p\", \"seed\": %s}", bad[i]);
        assert_int_equal(read_job(&job, text, &err), STEER_BAD_VALUE);
        assert_non_null(strstr(err.text, "\"seed\""));
    }
}

static void test_not_utf8(void **state)
{
    Steerfarm__Job job = STEERFARM__JOB__INIT;
    Steerfarm__Label label = STEERFARM__LABEL__INIT, *list[] = {&label};
    char good[] = "x", bad[] = "\xff\xfe";
    (void)state;
    job.model = job.prompt = good;
    job.negative_prompt = bad;
    assert_null(pb_to_json(&job.base));
    job.negative_prompt = NULL;
    label.key = good;
    label.value = bad;
    job.labels = list;
    job.n_labels = 1;
    assert_null(pb_to_json(&job.base));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_seeds),
                                       cmocka_unit_test(test_not_utf8)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
