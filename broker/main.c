// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "args.h"
#include "log.h"
#include "loop.h"

enum { HEARTBEAT_MS = 1000, LEASE_MS = 10000 };

struct broker_args {
    struct loop_options loop;
    char data[1024];
    int insecure;
};

static volatile sig_atomic_t stop;

static void on_signal(int number)
{
    (void)number;
    stop = 1;
}

static int set_clients(void *target, const char *value, struct steer_error *err)
{
    (void)err;
    ((struct broker_args *)target)->loop.clients = value;
    return 0;
}

static int set_workers(void *target, const char *value, struct steer_error *err)
{
    (void)err;
    ((struct broker_args *)target)->loop.workers = value;
    return 0;
}

static int set_data(void *target, const char *value, struct steer_error *err)
{
    struct broker_args *a = target;
    if (strlen(value) >= sizeof a->data)
        return steer_fail(err, STEER_BAD_VALUE, "a path longer than %zu bytes", sizeof a->data - 1);
    snprintf(a->data, sizeof a->data, "%s", value);
    return 0;
}

/* "90" (seconds), "30m", "12h", "7d" */
static int set_keep(void *target, const char *value, struct steer_error *err)
{
    static const struct {
        char unit;
        uint64_t seconds;
    } units[] = {{'s', 1}, {'m', 60}, {'h', 3600}, {'d', 86400}};
    char *end = NULL;
    unsigned long long number = strtoull(value, &end, 10);
    uint64_t seconds = *end ? 0 : 1;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (*end == units[i].unit && !end[1]) seconds = units[i].seconds;
    if (end == value || *value == '-' || !seconds || !number || number > 100000000)
        return steer_fail(err, STEER_BAD_VALUE,
                          "\"%s\": expected a time above 0 like 90s, 12h or 7d", value);
    ((struct broker_args *)target)->loop.route.keep_ms = number * seconds * 1000;
    return 0;
}

static int set_spool(void *target, const char *value, struct steer_error *err)
{
    return args_bytes(&((struct broker_args *)target)->loop.route.store.spool_bytes_max, value,
                      err);
}

static int set_insecure(void *target, const char *value, struct steer_error *err)
{
    (void)value;
    (void)err;
    ((struct broker_args *)target)->insecure = 1;
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

static const struct args_option options[] = {
    {"clients", "ENDPOINT", "where clients connect (default tcp://127.0.0.1:5555)", set_clients},
    {"workers", "ENDPOINT", "where workers connect (default tcp://127.0.0.1:5556)", set_workers},
    {"data", "DIR", "jobs and images that wait (default ~/.local/state/steerfarm)", set_data},
    {"keep", "TIME", "like 90s, 12h, 7d: ended jobs are forgotten after it (default 7d)", set_keep},
    {"spool-bytes", "BYTES", "of images nobody has fetched yet (default: the disk)", set_spool},
    {"insecure", NULL, "allow endpoints beyond this machine: there is no encryption yet",
     set_insecure},
    {"log-level", "LEVEL", "debug, info, warn or error (default info)", set_log_level},
    {NULL, NULL, NULL, NULL},
};

static int endpoint_check(const char *endpoint, int insecure, struct steer_error *err)
{
    static const char *const local[] = {"ipc://", "tcp://127.",
                                        "tcp://[::1]:", "tcp://localhost:", "inproc://"};
    for (size_t i = 0; i < sizeof local / sizeof *local; i++)
        if (strncmp(endpoint, local[i], strlen(local[i])) == 0) return 0;
    if (insecure) return 0;
    return steer_fail(
        err, STEER_INSECURE,
        "%s is reachable from other machines and there is no encryption yet: listen on "
        "127.0.0.1, or say --insecure if the network is trusted",
        endpoint);
}

static void data_default(struct broker_args *a)
{
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    if (*a->data) return;
    if (state && *state)
        snprintf(a->data, sizeof a->data, "%s/steerfarm", state);
    else
        snprintf(a->data, sizeof a->data, "%s/.local/state/steerfarm", home && *home ? home : ".");
}

/* A descriptor a client: the default of 1024 is for programs that still use select(). */
static void descriptors_raise(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_cur == limit.rlim_max) return;
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit))
        log_event(LOG_WARN, "broker.descriptors", "reason=%s", log_quote(strerror(errno)));
}

static int run(int argc, char **argv, struct steer_error *err)
{
    static struct broker_args a;
    int words, help;
    a.loop.clients = "tcp://127.0.0.1:5555";
    a.loop.workers = "tcp://127.0.0.1:5556";
    a.loop.stop = &stop;
    a.loop.route.heartbeat_ms = HEARTBEAT_MS;
    a.loop.route.lease_ms = LEASE_MS;
    a.loop.route.keep_ms = 7ull * 86400 * 1000;
    store_options_default(&a.loop.route.store);
    const struct args_group groups[] = {{"Broker", options, &a}, {NULL, NULL, NULL}};
    int code = args_parse(groups, argc, argv, &words, &help, err);
    if (code) return code;
    if (help) {
        printf("steer-broker %s: keeps a farm's jobs and hands them to workers\n", STEER_VERSION);
        args_help(stdout, groups);
        args_help_exits(stdout);
        return 0;
    }
    if (words) return steer_fail(err, STEER_USAGE, "unexpected \"%s\" (see --help)", argv[0]);
    if ((code = endpoint_check(a.loop.clients, a.insecure, err)) ||
        (code = endpoint_check(a.loop.workers, a.insecure, err)))
        return code;
    data_default(&a);
    a.loop.route.store.dir = a.data;
    descriptors_raise();
    struct sigaction act = {.sa_handler = on_signal};
    sigaction(SIGTERM, &act, NULL);
    sigaction(SIGINT, &act, NULL);
    return loop_run(&a.loop, err);
}

int main(int argc, char **argv)
{
    struct steer_error err = {0};
    if (argc == 2 && strcmp(argv[1], "--version") == 0) {
        printf("steer-broker %s\n", STEER_VERSION);
        return 0;
    }
    int code = run(argc - 1, argv + 1, &err);
    if (!code) return 0;
    log_event(LOG_ERROR, "broker.failed", "code=%s reason=%s", steer_code_name(code),
              log_quote(err.text));
    return steer_code_exit(code);
}
