// SPDX-License-Identifier: Apache-2.0
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "cpu/onednn.h"
#include "log.h"
#include "numerics.h"

/* ---- flags that every command has ---- */

void machine_args_init(struct machine_args *a)
{
    *a = (struct machine_args){.backend = "cpu"};
    a->precision = compute_bf16_native() ? PRECISION_BF16 : PRECISION_F32;
}

static int set_device(void *target, const char *value, struct steer_error *err)
{
    (void)target;
    if (strcmp(value, "cpu") == 0 || strcmp(value, "auto") == 0) return 0;
    return steer_fail(err, STEER_UNSUPPORTED,
                      "\"%s\": this build has no CUDA; expected cpu or auto", value);
}

static int set_tuning(void *target, const char *value, struct steer_error *err)
{
    (void)err;
    ((struct machine_args *)target)->tuning = value;
    return 0;
}

static int set_backend(void *target, const char *value, struct steer_error *err)
{
    struct machine_args *a = target;
    if (strcmp(value, "cpu") != 0 && strcmp(value, "ref") != 0)
        return steer_fail(err, STEER_BAD_VALUE, "\"%s\": expected cpu or ref", value);
    a->backend = value;
    if (strcmp(value, "ref") == 0) a->precision = PRECISION_F32;
    return 0;
}

static int set_threads(void *target, const char *value, struct steer_error *err)
{
    uint64_t n = 0;
    int code = args_u64(&n, value, 1, 1024, err);
    ((struct machine_args *)target)->threads = (int)n;
    return code;
}

static int set_memory(void *target, const char *value, struct steer_error *err)
{
    return args_bytes(&((struct machine_args *)target)->memory_bytes, value, err);
}

static int set_weights(void *target, const char *value, struct steer_error *err)
{
    struct machine_args *a = target;
    if (strcmp(value, "auto") != 0 && strcmp(value, "int8") != 0)
        return steer_fail(err, STEER_BAD_VALUE, "\"%s\": expected auto or int8", value);
    a->weights = strcmp(value, "int8") == 0 ? WEIGHTS_INT8 : WEIGHTS_AS_COMPUTED;
    return 0;
}

static int set_text_resident(void *target, const char *value, struct steer_error *err)
{
    if (strcmp(value, "yes") != 0 && strcmp(value, "no") != 0)
        return steer_fail(err, STEER_BAD_VALUE, "\"%s\": expected yes or no", value);
    ((struct machine_args *)target)->text_leaves = strcmp(value, "no") == 0;
    return 0;
}

static int set_log_level(void *target, const char *value, struct steer_error *err)
{
    (void)target;
    int level = log_level_of(value);
    if (level < 0)
        return steer_fail(err, STEER_BAD_VALUE, "\"%s\": expected debug, info, warn or error",
                          value);
    log_init((enum log_level)level);
    return 0;
}

const struct args_option machine_args_options[] = {
    {"threads", "N", "compute threads (default: what the cgroup and affinity allow)", set_threads},
    {"backend", "cpu|ref", "ref is slow plain C, for checking", set_backend},
    {"memory", "BYTES", "for weights and plans (default: serve takes three quarters)", set_memory},
    {"weights", "auto|int8",
     "how text encoders and denoiser are held: auto as they are multiplied, int8 in half of bf16",
     set_weights},
    {"tuning", "FILE", "algorithm table of `steer-worker tune`", set_tuning},
    {"device", "cpu|auto", "what to compute on (default auto)", set_device},
    {"log-level", "LEVEL", "debug, info, warn or error (default info)", set_log_level},
    {NULL, NULL, NULL, NULL},
};

const struct args_option residence_args_options[] = {
    {"text-resident", "yes|no",
     "no: text encoders leave memory when texts are encoded (default yes)", set_text_resident},
    {NULL, NULL, NULL, NULL},
};

enum compute_precision precision_of(const struct machine_args *a, Steerfarm__Precision asked)
{
    switch (asked) {
    case STEERFARM__PRECISION__F32: return PRECISION_F32;
    case STEERFARM__PRECISION__BF16: return PRECISION_BF16;
    default: return a->precision;
    }
}

int command_devices(int argc, char **argv, struct steer_error *err)
{
    const struct args_group groups[] = {{NULL, NULL, NULL}};
    int words, help;
    int code = args_parse(groups, argc, argv, &words, &help, err);
    if (code) return code;
    if (help) {
        printf("steer-worker devices\n\nA line a device: threads, bf16, numerics class.\n");
        args_help_exits(stdout);
        return 0;
    }
    if (words) return steer_fail(err, STEER_USAGE, "devices takes no arguments");
    struct compute *c;
    struct compute_options o = {.backend = "cpu", .salt = numerics_salt(NULL)};
    code = compute_open(&c, &o, err);
    if (code) return code;
    printf("cpu  threads=%d  bf16=%s  numerics=%s\n", compute_threads(c),
           compute_bf16_native() ? "native" : "no", compute_numerics(c));
    compute_close(c);
    return 0;
}

static const struct {
    const char *name, *help;
    int (*run)(int argc, char **argv, struct steer_error *err);
} commands[] = {
    {"serve", "render for a farm: connect to a broker and take its work", command_serve},
    {"render", "render one job here, without a broker", command_render},
    {"bench", "time the stages of a model", command_bench},
    {"tune", "measure algorithms on this machine and write a table", command_tune},
    {"check", "say what a model is, what it needs and what it lacks", command_check},
    {"devices", "what this machine can compute on", command_devices},
};

static void usage(FILE *to)
{
    fprintf(to, "steer-worker %s: renders images with one-step diffusion models\n\n",
            STEER_VERSION);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(to, "  steer-worker %-8s %s\n", commands[i].name, commands[i].help);
    fprintf(to, "\n`steer-worker COMMAND --help` lists a command's options. Without a command it "
                "serves.\n");
    args_help_exits(to);
}

int main(int argc, char **argv)
{
    struct steer_error err = {0};
    const char *models = getenv("STEER_MODELS");
    const char *first = argc > 1 ? argv[1] : models && *models ? "--" : "";
    if (!*first || strcmp(first, "--help") == 0 || strcmp(first, "-h") == 0) {
        usage(*first ? stdout : stderr);
        return *first ? 0 : steer_code_exit(STEER_USAGE);
    }
    if (strcmp(first, "--version") == 0) {
        printf("steer-worker %s\n", STEER_VERSION);
        return 0;
    }
    /* `steer-worker --models DIR` serves, and so does `steer-worker` where a variable says it. */
    int bare = strncmp(first, "--", 2) == 0, taken = bare ? 1 : 2;
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        const char *name = commands[i].name;
        if (!bare && strcmp(first, name) != 0) continue;
        int code = commands[i].run(argc - taken, argv + taken, &err);
        if (code) fprintf(stderr, "steer-worker %s: %s\n", name, err.text);
        return code ? steer_code_exit(code) : 0;
    }
    fprintf(stderr, "steer-worker: unknown command \"%s\" (see --help)\n", first);
    return steer_code_exit(STEER_USAGE);
}
