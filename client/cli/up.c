// SPDX-License-Identifier: Apache-2.0
/* steer up: a farm on this machine. Two children, started again when they crash, ended together. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cli.h"

enum { BACK_OFF_MS_MAX = 10000, READY_MS = 60000, LEAVE_MS = 60000, STEP_MS = 50 };

struct up_args {
    const char *models, *data, *threads, *clients, *workers;
};

#define TEXT_SETTER(field)                                                                         \
    static int set_##field(void *target, const char *value, struct steer_error *err)               \
    {                                                                                              \
        (void)err;                                                                                 \
        ((struct up_args *)target)->field = value;                                                 \
        return 0;                                                                                  \
    }
TEXT_SETTER(models)
TEXT_SETTER(data)
TEXT_SETTER(threads)
TEXT_SETTER(clients)
TEXT_SETTER(workers)

static const struct args_option options[] = {
    {"models", "DIR", "a folder of model folders (default: the demo model's)", set_models},
    {"data", "DIR", "where the broker keeps jobs (default ~/.local/state/steerfarm)", set_data},
    {"threads", "N", "compute threads of the worker", set_threads},
    {"clients", "ENDPOINT", "for clients (default tcp://127.0.0.1:5555)", set_clients},
    {"workers", "ENDPOINT", "for workers (default tcp://127.0.0.1:5556)", set_workers},
    {NULL, NULL, NULL, NULL},
};

struct child {
    const char *argv[16];
    pid_t pid;
    long back_off_ms, restart_at_ms;
};

static long now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void on_signal(int number)
{
    (void)number;
    interrupted++;
}

/* Beside this program, else by PATH. */
static void program_path(char *to, size_t size, const char *name)
{
    char self[1024];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length > 0) {
        self[length] = 0;
        char *slash = strrchr(self, '/');
        if (slash) *slash = 0;
        snprintf(to, size, "%s/%s", self, name);
        if (access(to, X_OK) == 0) return;
    }
    snprintf(to, size, "%s", name);
}

/* The demo model: share/steerfarm/models beside bin, or models/ of the source tree. */
static const char *models_default(void)
{
    static char path[1200];
    static const char *const places[] = {"../share/steerfarm/models", "../../models"};
    char self[1024];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length <= 0) return NULL;
    self[length] = 0;
    char *slash = strrchr(self, '/');
    if (slash) *slash = 0;
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        char index[1300];
        snprintf(path, sizeof path, "%s/%s", self, places[i]);
        snprintf(index, sizeof index, "%s/demo/model_index.json", path);
        if (access(index, R_OK) == 0) return path;
    }
    return NULL;
}

static int child_start(struct child *c, struct steer_error *err)
{
    pid_t parent = getpid();
    c->pid = fork();
    if (c->pid < 0) return steer_fail(err, STEER_NO_MEMORY, "no process: %s", strerror(errno));
    if (c->pid) return 0;
    /* Ctrl-C goes to the whole group; only we act on it, and they never outlive us. */
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(1);
    execvp(c->argv[0], (char **)(uintptr_t)c->argv);
    fprintf(stderr, "steer up: %s: %s\n", c->argv[0], strerror(errno));
    _exit(127);
}

/* Reaps a child that ended and starts it again, ever later; 127 and usage errors are for good. */
static int child_look(struct child *c, struct steer_error *err)
{
    int status;
    if (c->pid > 0 && waitpid(c->pid, &status, WNOHANG) == c->pid) {
        c->pid = 0;
        int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
        if (code == 127 || (code >= 64 && code <= 69) || code == 77)
            return steer_fail(err, STEER_USAGE, "%s ended with %d", c->argv[0], code);
        c->back_off_ms = c->back_off_ms ? 2 * c->back_off_ms : 500;
        if (c->back_off_ms > BACK_OFF_MS_MAX) c->back_off_ms = BACK_OFF_MS_MAX;
        c->restart_at_ms = now_ms() + c->back_off_ms;
        fprintf(stderr, "steer up: %s ended; starting it again in %.1f s\n", c->argv[0],
                (double)c->back_off_ms / 1e3);
    }
    if (!c->pid && now_ms() >= c->restart_at_ms) return child_start(c, err);
    return 0;
}

static void child_stop(struct child *c)
{
    if (c->pid <= 0) return;
    kill(c->pid, SIGTERM);
    for (long begun = now_ms(); waitpid(c->pid, NULL, WNOHANG) != c->pid;) {
        struct timespec step = {0, STEP_MS * 1000000L};
        if (now_ms() > begun + LEAVE_MS) kill(c->pid, SIGKILL);
        nanosleep(&step, NULL);
    }
    c->pid = 0;
}

static int worker_there(struct steer_client *c)
{
    struct steer_fault fault;
    char *text;
    if (steer_ask(c, STEER_ASK_WORKERS, NULL, &text, 500, &fault)) return 0;
    json_t *reply = json_loads(text, 0, NULL);
    int there = json_array_size(json_object_get(reply, "workers")) > 0;
    json_decref(reply);
    free(text);
    return there;
}

static int run(struct child *broker, struct child *worker, const struct up_args *a,
               struct steer_error *err)
{
    struct steer_client *c;
    struct steer_fault fault;
    long begun = now_ms();
    int code = child_start(broker, err), ready = 0;
    if (!code) code = child_start(worker, err);
    if (!code && steer_open(&c, a->clients, &fault)) code = fault_error(err, &fault);
    if (code) return code;
    while (!interrupted && !code) {
        code = child_look(broker, err);
        if (!code) code = child_look(worker, err);
        if (!ready && !code && worker_there(c)) {
            ready = 1;
            printf("farm ready at %s; Ctrl-C ends it\n", a->clients);
            fflush(stdout);
        }
        if (!ready && now_ms() > begun + READY_MS)
            code = steer_fail(err, STEER_TIMEOUT, "no worker came up in %d s", READY_MS / 1000);
        struct timespec step = {0, STEP_MS * 1000000L};
        if (ready) nanosleep(&step, NULL);
    }
    steer_close(c);
    return code;
}

int command_up(int argc, char **argv, struct steer_error *err)
{
    struct up_args a = {.clients = "tcp://127.0.0.1:5555", .workers = "tcp://127.0.0.1:5556"};
    struct child broker = {0}, worker = {0};
    char broker_path[1200], worker_path[1200];
    int words, help;
    const struct args_group groups[] = {{"Farm", options, &a}, {NULL, NULL, NULL}};
    int code = args_parse(groups, argc, argv, &words, &help, err);
    if (code) return code;
    if (help) {
        printf("steer up [--models DIR] [options]\n");
        args_help(stdout, groups);
        args_help_exits(stdout);
        return 0;
    }
    if (words) return steer_fail(err, STEER_USAGE, "unexpected \"%s\" (see --help)", argv[0]);
    if (!a.models && !(a.models = models_default()))
        return steer_fail(err, STEER_USAGE, "--models DIR is needed: the demo model is not here");
    program_path(broker_path, sizeof broker_path, "steer-broker");
    program_path(worker_path, sizeof worker_path, "steer-worker");
    int n = 0;
    const char *b[] = {broker_path, "--clients", a.clients, "--workers", a.workers};
    for (; n < 5; n++)
        broker.argv[n] = b[n];
    if (a.data) broker.argv[n++] = "--data", broker.argv[n] = a.data;
    const char *w[] = {worker_path, "serve", "--broker", a.workers, "--models", a.models};
    for (n = 0; n < 6; n++)
        worker.argv[n] = w[n];
    if (a.threads) worker.argv[n++] = "--threads", worker.argv[n] = a.threads;
    struct sigaction act = {.sa_handler = on_signal};
    sigaction(SIGINT, &act, NULL);
    sigaction(SIGTERM, &act, NULL);
    code = run(&broker, &worker, &a, err);
    child_stop(&worker); /* it drains into the broker, so it goes first */
    child_stop(&broker);
    return code;
}
