// SPDX-License-Identifier: Apache-2.0
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli.h"

volatile sig_atomic_t interrupted;

/* ---- what the commands share ---- */

static int set_broker(void *target, const char *value, struct steer_error *err)
{
    (void)err;
    ((struct cli *)target)->broker = value;
    return 0;
}

static int set_json(void *target, const char *value, struct steer_error *err)
{
    (void)value;
    (void)err;
    ((struct cli *)target)->json = 1;
    return 0;
}

static int set_quiet(void *target, const char *value, struct steer_error *err)
{
    (void)value;
    (void)err;
    ((struct cli *)target)->quiet = 1;
    return 0;
}

static int set_timeout(void *target, const char *value, struct steer_error *err)
{
    uint64_t seconds = 0;
    int code = args_u64(&seconds, value, 0, 2000000, err);
    ((struct cli *)target)->timeout_ms = (int)seconds * 1000;
    return code;
}

const struct args_option cli_options[] = {
    {"broker", "ENDPOINT", "the broker's client port (default tcp://127.0.0.1:5555)", set_broker},
    {"timeout", "SECONDS", "give up after it (default: never; 10 s for an answer at once)",
     set_timeout},
    {"json", NULL, "answers as JSON, one object a line", set_json},
    {"quiet", NULL, "nothing but results and errors", set_quiet},
    {NULL, NULL, NULL, NULL},
};

static void on_signal(int number)
{
    (void)number;
    interrupted++;
}

void cli_signals(void)
{
    struct sigaction act = {.sa_handler = on_signal}; /* no SA_RESTART: a read ends as well */
    sigaction(SIGINT, &act, NULL);
    sigaction(SIGTERM, &act, NULL);
}

int cli_parse(struct cli *cli, const struct args_group *groups, const char *usage, int argc,
              char **argv, int *words, struct steer_error *err)
{
    int help;
    *cli = (struct cli){.timeout_ms = -1, .begun_ms = now_ms()};
    int code = args_parse(groups, argc, argv, words, &help, err);
    if (code) return code;
    cli_signals();
    if (!help) return 0;
    fputs(usage, stdout);
    args_help(stdout, groups);
    args_help_exits(stdout);
    return 1;
}

int fault_error(struct steer_error *err, const struct steer_fault *fault)
{
    return steer_fail(err, steer_code_of(fault->code), "%s", printable(fault->text));
}

int cli_open(struct steer_client **ret, const struct cli *cli, struct steer_error *err)
{
    struct steer_fault fault;
    if (steer_open(ret, cli->broker, &fault)) return fault_error(err, &fault);
    steer_stop_flag(*ret, &interrupted);
    return 0;
}

int cli_left_ms(const struct cli *cli)
{
    int64_t left = cli->timeout_ms - (now_ms() - cli->begun_ms);
    return cli->timeout_ms < 0 ? -1 : left < 0 ? 0 : (int)left;
}

int cli_answer_ms(const struct cli *cli)
{
    return cli->timeout_ms >= 0 ? cli_left_ms(cli) : 10000;
}

int cli_ask(struct steer_client *c, const struct cli *cli, enum steer_question question,
            const char *argument, int left_ms, json_t **ret, struct steer_error *err)
{
    struct steer_fault fault;
    char *text = NULL;
    int code = steer_ask(c, question, argument, &text, left_ms < 0 ? 3000 : left_ms, &fault);
    if (left_ms < 0 && (code == STEER_TIMEOUT || code == STEER_BUSY)) {
        if (!cli->quiet)
            fprintf(stderr, "steer: %s; waiting for it\n",
                    code == STEER_BUSY ? printable(fault.text) : "the broker does not answer");
        code = steer_ask(c, question, argument, &text, -1, &fault);
    }
    if (code == STEER_UNKNOWN_JOB || code == STEER_UNKNOWN_WORKER)
        return steer_fail(err, code, "%s \"%s\"", printable(fault.text), printable(argument));
    if (code) return fault_error(err, &fault);
    *ret = json_loads(text, 0, NULL);
    free(text);
    return *ret ? 0 : steer_fail(err, STEER_BAD_FRAME, "the broker's answer is no JSON");
}

int cli_job_id(const char *job, struct steer_error *err)
{
    if (*job && strlen(job) < STEER_JOB_ID_SIZE) return 0;
    return steer_fail(err, STEER_UNKNOWN_JOB, "no such job \"%s\"", printable(job));
}

void program_path(char *to, size_t size, const char *name)
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

int64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

int64_t now_ms(void)
{
    return now_us() / 1000;
}

const char *printable(const char *text)
{
    static char buffers[8][1200];
    static int turn;
    char *to = buffers[turn = (turn + 1) % 8];
    size_t n = 0;
    for (; text && text[n] && n + 1 < sizeof buffers[0]; n++) {
        unsigned char c = (unsigned char)text[n];
        to[n] = c < 0x20 || c == 0x7f ? '?' : (char)c;
    }
    to[n] = 0;
    return to;
}

const char *json_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

int64_t json_number(const json_t *object, const char *key)
{
    return json_integer_value(json_object_get(object, key));
}

void line_json(const json_t *json)
{
    json_dumpf(json, stdout, JSON_COMPACT);
    putchar('\n');
    fflush(stdout);
}

/* ---- commands ---- */

static const struct {
    const char *name, *help;
    int (*run)(int argc, char **argv, struct steer_error *err);
} commands[] = {
    {"up", "broker and worker on this machine, until Ctrl-C", command_up},
    {"render", "submit a job, show its progress, write its images", command_render},
    {"submit", "submit jobs and print their ids", command_submit},
    {"fetch", "wait for a job's images and write them", command_fetch},
    {"watch", "show a job's progress until it ends", command_watch},
    {"wait", "wait until a job has ended", command_wait},
    {"show", "what a job is and where it stands", command_show},
    {"cancel", "cancel a job, or a key not yet submitted", command_cancel},
    {"retry", "queue a job's failed images again", command_retry},
    {"jobs", "list jobs", command_jobs},
    {"workers", "list workers", command_workers},
    {"models", "list models; `models check DIR` says what a folder is", command_models},
    {"status", "the broker's counters", command_status},
    {"drain", "let a worker finish and leave", command_drain},
    {"pause", "assign nothing more", command_pause},
    {"resume", "assign again", command_resume},
    {"doctor", "what this machine can do and what is missing", command_doctor},
};

static void usage(FILE *to)
{
    fprintf(to, "steer %s: renders images on a Steerfarm\n\n", STEER_VERSION);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(to, "  steer %-8s %s\n", commands[i].name, commands[i].help);
    fprintf(to, "\n`steer COMMAND --help` lists a command's options.\n");
    args_help_exits(to);
}

int main(int argc, char **argv)
{
    struct steer_error err = {0};
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        usage(argc < 2 ? stderr : stdout);
        return argc < 2 ? steer_code_exit(STEER_USAGE) : 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("steer %s\n", STEER_VERSION);
        return 0;
    }
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        if (strcmp(argv[1], commands[i].name) != 0) continue;
        int code = commands[i].run(argc - 2, argv + 2, &err);
        if (code && *err.text) fprintf(stderr, "steer %s: %s\n", argv[1], err.text);
        return code ? steer_code_exit(code) : 0;
    }
    fprintf(stderr, "steer: unknown command \"%s\" (see --help)\n", printable(argv[1]));
    return steer_code_exit(STEER_USAGE);
}
