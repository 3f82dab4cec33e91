// SPDX-License-Identifier: Apache-2.0
/* steer up: a farm on this machine. Two children, started again when they crash, ended together.
 *
 * The broker's log comes through a pipe: its line "broker.ready" is the only sign that it is ours
 * that listens and not one that was there before. No worker is started until then. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli.h"

enum {
    BACK_OFF_MS_MAX = 10000,
    STEADY_MS = 60000, /* a child that ran so long begins anew with its back-off */
    READY_MS = 60000,
    LEAVE_MS = 60000,
    STEP_MS = 50,
    ASK_MS = 500,
    FOLDERS_MAX = 16,
    ARGS_MAX = 2 * FOLDERS_MAX + 16,
};

struct up_args {
    const char *models[FOLDERS_MAX], *data, *threads, *clients, *workers;
    int folders;
};

#define TEXT_SETTER(field)                                                                         \
    static int set_##field(void *target, const char *value, struct steer_error *err)               \
    {                                                                                              \
        (void)err;                                                                                 \
        ((struct up_args *)target)->field = value;                                                 \
        return 0;                                                                                  \
    }
TEXT_SETTER(data)
TEXT_SETTER(threads)
TEXT_SETTER(clients)
TEXT_SETTER(workers)

static int set_models(void *target, const char *value, struct steer_error *err)
{
    struct up_args *a = target;
    if (a->folders == FOLDERS_MAX)
        return steer_fail(err, STEER_BAD_VALUE, "more than %d folders", FOLDERS_MAX);
    a->models[a->folders++] = value;
    return 0;
}

static const struct args_option options[] = {
    {"models", "DIR",
     "a folder of model folders and model files; may be repeated (default: the demo model's)",
     set_models},
    {"data", "DIR", "where the broker keeps jobs (default ~/.local/state/steerfarm)", set_data},
    {"threads", "N", "compute threads of the worker", set_threads},
    {"clients", "ENDPOINT", "for clients (default tcp://127.0.0.1:5555)", set_clients},
    {"workers", "ENDPOINT", "for workers (default tcp://127.0.0.1:5556)", set_workers},
    {NULL, NULL, NULL, NULL},
};

/* A child's log on its way to ours, line by line. */
struct log {
    int fd; /* -1: the child has our stderr */
    char line[5000];
    size_t used;
    int ready;         /* "broker.ready" was read */
    char reason[1024]; /* of "broker.failed" */
};

struct child {
    const char *name;
    const char *argv[ARGS_MAX];
    int argc;
    pid_t pid;
    int gone; /* it left by itself and is not wanted back */
    int64_t back_off_ms, restart_at_ms, started_ms;
    struct log *log; /* NULL: none */
};

static void argument(struct child *c, const char *name, const char *value)
{
    c->argv[c->argc++] = name;
    if (value) c->argv[c->argc++] = value;
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

/* ---- the broker's log ---- */

/* The text of reason="...", with its quotes and backslashes. */
static void reason_read(char *to, size_t size, const char *line)
{
    const char *from = strstr(line, "reason=\"");
    size_t n = 0;
    for (from = from ? from + 8 : ""; *from && *from != '"' && n + 1 < size; from++) {
        if (*from == '\\' && from[1]) from++;
        to[n++] = *from;
    }
    to[n] = 0;
}

/* It is asked for at level info for our sake; what the user wants to see of it is less, maybe. */
static int line_wanted(const char *line)
{
    const char *level = getenv("STEER_LOG_LEVEL");
    int errors = level && strcmp(level, "error") == 0;
    if (!errors && (!level || strcmp(level, "warn") != 0)) return 1;
    return !strstr(line, " level=info ") && !(errors && strstr(line, " level=warn "));
}

static void log_line(struct log *l)
{
    l->line[l->used] = 0;
    if (strstr(l->line, " ev=broker.ready ")) l->ready = 1;
    if (strstr(l->line, " ev=broker.failed ")) reason_read(l->reason, sizeof l->reason, l->line);
    if (line_wanted(l->line)) fprintf(stderr, "%s\n", l->line);
    l->used = 0;
}

/* Moves what there is, after waiting for it a little. */
static void log_move(struct log *l, int wait_ms)
{
    struct pollfd p = {l->fd, POLLIN, 0};
    char piece[4096];
    ssize_t got = -1;
    (void)poll(&p, 1, wait_ms); /* fd -1: sleeps */
    while (l->fd >= 0 && (got = read(l->fd, piece, sizeof piece)) > 0)
        for (ssize_t i = 0; i < got; i++) {
            if (piece[i] != '\n') l->line[l->used++] = piece[i];
            if (piece[i] == '\n' || l->used + 1 == sizeof l->line) log_line(l);
        }
    if (l->fd >= 0 && got == 0) { /* its last writer has gone */
        close(l->fd);
        l->fd = -1;
    }
}

/* ---- children ---- */

static int child_start(struct child *c, struct steer_error *err)
{
    pid_t parent = getpid();
    int ends[2] = {-1, -1};
    if (c->log && pipe2(ends, O_CLOEXEC))
        return steer_fail(err, STEER_IO, "no pipe: %s", strerror(errno));
    c->started_ms = now_ms();
    c->pid = fork();
    if (c->pid == 0) {
        /* Ctrl-C goes to the whole group; only we act on it, and they never outlive us. */
        setpgid(0, 0);
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        if (getppid() != parent) _exit(1);
        if (c->log) dup2(ends[1], STDERR_FILENO);
        execvp(c->argv[0], (char **)(uintptr_t)c->argv);
        fprintf(stderr, "steer up: %s: %s\n", c->argv[0], strerror(errno));
        _exit(127);
    }
    int why = errno;
    if (c->log) {
        close(ends[1]);
        if (c->log->fd >= 0) close(c->log->fd);
        fcntl(ends[0], F_SETFL, O_NONBLOCK);
        *c->log = (struct log){.fd = ends[0]};
    }
    return c->pid < 0 ? steer_fail(err, STEER_NO_MEMORY, "no process: %s", strerror(why)) : 0;
}

/* A child that ended: 0 when it comes back or is not wanted back, else the code to end with. */
static int child_ended(struct child *c, int status, int ready, struct steer_error *err)
{
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    if (c->log) log_move(c->log, 0); /* its last words */
    c->pid = 0;
    if (c->log && !ready && *c->log->reason)
        return steer_fail(err,
                          code == 75   ? STEER_BUSY
                          : code == 74 ? STEER_IO
                          : code == 77 ? STEER_INSECURE
                                       : STEER_USAGE,
                          "%s", c->log->reason);
    if (code == 127 || (code >= 64 && code <= 69) || code == 77 || (c->log && !ready))
        return steer_fail(err, STEER_USAGE, "%s ended with %d", c->name, code);
    /* A worker that was drained, or that another one of its id has replaced. */
    if (!c->log && (code == 0 || code == 75)) {
        c->gone = 1;
        fprintf(stderr, "steer up: %s has left; it is not started again\n", c->name);
        return 0;
    }
    if (now_ms() > c->started_ms + STEADY_MS) c->back_off_ms = 0;
    c->back_off_ms = c->back_off_ms > 0 ? 2 * c->back_off_ms : 500;
    if (c->back_off_ms > BACK_OFF_MS_MAX) c->back_off_ms = BACK_OFF_MS_MAX;
    c->restart_at_ms = now_ms() + c->back_off_ms;
    fprintf(stderr, "steer up: %s ended; starting it again in %.1f s\n", c->name,
            1e-3 * (double)c->back_off_ms);
    return 0;
}

static int child_look(struct child *c, int ready, struct steer_error *err)
{
    int status;
    if (c->pid > 0 && waitpid(c->pid, &status, WNOHANG) == c->pid) {
        int code = child_ended(c, status, ready, err);
        if (code) return code;
    }
    if (!c->pid && !c->gone && now_ms() >= c->restart_at_ms) return child_start(c, err);
    return 0;
}

/* A second Ctrl-C does not wait for it. */
static void child_stop(struct child *c, struct log *log)
{
    if (c->pid <= 0) return;
    kill(c->pid, SIGTERM);
    for (int64_t begun = now_ms(); waitpid(c->pid, NULL, WNOHANG) != c->pid;) {
        if (now_ms() > begun + LEAVE_MS || interrupted > 1) kill(c->pid, SIGKILL);
        log_move(log, STEP_MS);
    }
    log_move(log, 0);
    c->pid = 0;
}

/* ---- the farm ---- */

static int worker_there(struct steer_client *c)
{
    struct steer_fault fault;
    char *text;
    if (steer_ask(c, STEER_ASK_WORKERS, NULL, &text, ASK_MS, &fault)) return 0;
    json_t *reply = json_loads(text, 0, NULL);
    int there = json_array_size(json_object_get(reply, "workers")) > 0;
    json_decref(reply);
    free(text);
    return there;
}

static int run(struct child *broker, struct child *worker, struct steer_client *c,
               const char *clients, struct steer_error *err)
{
    int64_t up_at = 0, ask_at = 0; /* a large store may take the broker long: only then we count */
    int up = 0, ready = 0;         /* the broker, the farm as a whole */
    int code = child_start(broker, err);
    while (!interrupted && !code) {
        log_move(broker->log, STEP_MS);
        if (!up && broker->log->ready) {
            up = 1;
            up_at = now_ms();
        }
        code = child_look(broker, up, err);
        if (!code && up) code = child_look(worker, ready, err); /* its first look starts it */
        if (!code && up && !ready && now_ms() >= ask_at) {
            ask_at = now_ms() + ASK_MS / 2;
            ready = worker_there(c);
            if (ready) printf("farm ready at %s; Ctrl-C ends it\n", clients);
            fflush(stdout);
        }
        if (!code && up && !ready && now_ms() > up_at + READY_MS)
            code = steer_fail(err, STEER_TIMEOUT, "no worker came up in %d s", READY_MS / 1000);
    }
    return code;
}

int command_up(int argc, char **argv, struct steer_error *err)
{
    struct up_args a = {.clients = "tcp://127.0.0.1:5555", .workers = "tcp://127.0.0.1:5556"};
    struct log log = {.fd = -1};
    struct child broker = {.name = "steer-broker", .log = &log}, worker = {.name = "steer-worker"};
    struct steer_client *c = NULL;
    struct cli cli;
    char broker_path[1200], worker_path[1200];
    int words;
    const struct args_group groups[] = {{"Farm", options, &a}, {NULL, NULL, NULL}};
    int code = cli_parse(&cli, groups,
                         "steer up [--models DIR] [options]\n\n"
                         "Prints \"farm ready\" once a worker is there. Ctrl-C ends both.\n",
                         argc, argv, &words, err);
    if (code) return code == 1 ? 0 : code;
    if (words) return steer_fail(err, STEER_USAGE, "unexpected \"%s\" (see --help)", argv[0]);
    if (!a.folders && (a.models[0] = models_default())) a.folders = 1;
    if (!a.folders)
        return steer_fail(err, STEER_USAGE, "--models DIR is needed: the demo model is not here");
    const char *level = getenv("STEER_LOG_LEVEL");
    program_path(broker_path, sizeof broker_path, "steer-broker");
    program_path(worker_path, sizeof worker_path, "steer-worker");
    argument(&broker, broker_path, NULL);
    argument(&broker, "--clients", a.clients);
    argument(&broker, "--workers", a.workers);
    argument(&broker, "--log-level", level && strcmp(level, "debug") == 0 ? level : "info");
    if (a.data) argument(&broker, "--data", a.data);
    argument(&worker, worker_path, "serve");
    argument(&worker, "--broker", a.workers);
    for (int i = 0; i < a.folders; i++)
        argument(&worker, "--models", a.models[i]);
    if (a.threads) argument(&worker, "--threads", a.threads);
    cli.broker = a.clients;
    code = cli_open(&c, &cli, err);
    if (!code) code = run(&broker, &worker, c, a.clients, err);
    child_stop(&worker, &log); /* it drains into the broker, so it goes first */
    child_stop(&broker, &log);
    if (log.fd >= 0) close(log.fd);
    steer_close(c);
    return code;
}
