// SPDX-License-Identifier: Apache-2.0
/* steer-worker serve: offers the models of a folder to a broker and renders what it assigns. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "commands.h"
#include "cpu/onednn.h"
#include "link.h"
#include "log.h"
#include "numerics.h"
#include "offer.h"

enum { FOLDERS_MAX = 16 };

struct serve_args {
    const char *broker, *worker, *models[FOLDERS_MAX];
    int folders;
    uint64_t batch_max;
};

static int set_broker(void *target, const char *value, struct steer_error *err)
{
    (void)err;
    ((struct serve_args *)target)->broker = value;
    return 0;
}

static int set_worker(void *target, const char *value, struct steer_error *err)
{
    if (!*value || strlen(value) > STEER_NAME_BYTES_MAX || strchr(value, '/'))
        return steer_fail(err, STEER_BAD_VALUE, "\"%s\": expected 1 to %d bytes without '/'", value,
                          STEER_NAME_BYTES_MAX);
    ((struct serve_args *)target)->worker = value;
    return 0;
}

static int set_models(void *target, const char *value, struct steer_error *err)
{
    struct serve_args *a = target;
    if (a->folders == FOLDERS_MAX)
        return steer_fail(err, STEER_BAD_VALUE, "more than %d folders", FOLDERS_MAX);
    a->models[a->folders++] = value;
    return 0;
}

static int set_batch(void *target, const char *value, struct steer_error *err)
{
    return args_u64(&((struct serve_args *)target)->batch_max, value, 1, STEER_BATCH_MAX, err);
}

static const struct args_option options[] = {
    {"models", "DIR", "a folder of model folders and model files, named by them; may be repeated",
     set_models},
    {"broker", "ENDPOINT", "the broker's worker port (default tcp://127.0.0.1:5556)", set_broker},
    {"worker", "ID", "this worker's name (default: the host's)", set_worker},
    {"batch", "N", "images of one forward pass (default 4)", set_batch},
    {NULL, NULL, NULL, NULL},
};

static volatile sig_atomic_t drain;

static void on_signal(int number)
{
    (void)number;
    drain++;
}

static const char *path_of(void *data, const char *name)
{
    return offers_path(data, name);
}

static int serve(const struct serve_args *a, const struct machine_args *m, struct offers *offers,
                 struct steer_error *err)
{
    int wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (wake < 0) return steer_fail(err, STEER_IO, "no eventfd");
    struct engine *e;
    struct engine_options o = {.compute = {.backend = m->backend,
                                           .precision = m->precision,
                                           .weights = m->weights,
                                           .threads = m->threads,
                                           .tuning = m->tuning,
                                           .salt = numerics_salt(NULL)},
                               .memory_bytes = m->memory_bytes,
                               .text_leaves = m->text_leaves,
                               .wake = wake,
                               .model_path = path_of,
                               .data = offers};
    int code = engine_start(&e, &o, err);
    if (!code) {
        static char kind[] = "cpu";
        char name[128];
        Steerfarm__Device device = STEERFARM__DEVICE__INIT;
        snprintf(name, sizeof name, "%s", onednn_isa());
        device.kind = kind;
        device.name = name;
        device.numerics = (char *)(uintptr_t)engine_numerics(e);
        device.has_memory_bytes = 1;
        device.memory_bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
        struct link_options link = {.broker = a->broker,
                                    .worker = a->worker,
                                    .ahead = 1,
                                    .batch_max = (int)a->batch_max,
                                    .models = offers->models,
                                    .models_count = offers->count,
                                    .device = &device,
                                    .engine_wake = wake,
                                    .drain = &drain};
        log_event(LOG_INFO, "worker.start", "worker=%s broker=%s models=%zu numerics=%s",
                  log_quote(a->worker), a->broker, offers->count, engine_numerics(e));
        code = link_run(e, &link, err);
        log_event(LOG_INFO, "worker.stop", "reason=%s", log_quote(code ? err->text : "drained"));
        engine_stop(e);
    }
    close(wake);
    return code;
}

int command_serve(int argc, char **argv, struct steer_error *err)
{
    static char host[STEER_NAME_BYTES_MAX + 1];
    struct serve_args a = {.broker = "tcp://127.0.0.1:5556", .worker = host, .batch_max = 4};
    struct machine_args m;
    struct offers offers = {0};
    int words, help;
    machine_args_init(&m);
    if (gethostname(host, sizeof host - 1) || !*host) snprintf(host, sizeof host, "worker");
    const struct args_group groups[] = {{"Farm", options, &a},
                                        {"Machine", machine_args_options, &m},
                                        {"Memory", residence_args_options, &m},
                                        {NULL, NULL, NULL}};
    int code = args_parse(groups, argc, argv, &words, &help, err);
    if (code) return code;
    if (help) {
        printf("steer-worker serve --models DIR [--broker ENDPOINT] [options]\n");
        args_help(stdout, groups);
        args_help_exits(stdout);
        return 0;
    }
    if (words) return steer_fail(err, STEER_USAGE, "unexpected \"%s\" (see --help)", argv[0]);
    if (!a.folders) return steer_fail(err, STEER_USAGE, "--models DIR is needed (see --help)");
    struct sigaction act = {.sa_handler = on_signal};
    sigaction(SIGTERM, &act, NULL);
    sigaction(SIGINT, &act, NULL);
    offers.weights = m.weights;
    for (int i = 0; i < a.folders && !code; i++)
        code = offers_scan(&offers, a.models[i], err);
    if (!code) code = serve(&a, &m, &offers, err);
    offers_free(&offers);
    return code;
}
