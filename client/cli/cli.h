/* cli.h - what the commands of `steer` share. */
#ifndef CLI_H
#define CLI_H
#include <jansson.h>
#include <signal.h>

#include "args.h"
#include "job_args.h"
#include "steer.h"
#include "steer.pb-c.h"

/* Flags that every command has. */
struct cli {
    const char *broker; /* NULL: libsteer's default */
    int json, quiet;
    int timeout_ms; /* of the whole command; -1: for ever */
    int64_t begun_ms;
};
extern const struct args_option cli_options[];

/* Ctrl-C and SIGTERM, counted. */
extern volatile sig_atomic_t interrupted;

/* Parses a command's flags, of which one group is cli_options with target cli, and takes over
 * Ctrl-C. 1: help was asked for and printed. */
int cli_parse(struct cli *cli, const struct args_group *groups, const char *usage, int argc,
              char **argv, int *words, struct steer_error *err) STEER_MUSTCHECK;
void cli_signals(void);
int fault_error(struct steer_error *err, const struct steer_fault *fault);
int cli_open(struct steer_client **ret, const struct cli *cli,
             struct steer_error *err) STEER_MUSTCHECK;
/* What --timeout leaves; -1: no limit. */
int cli_left_ms(const struct cli *cli);
/* For an answer that should come at once: what --timeout leaves, or 10 s. */
int cli_answer_ms(const struct cli *cli);
/* steer_ask with its answer as JSON, owned by the caller. left_ms -1: waits, and says so once. */
int cli_ask(struct steer_client *c, const struct cli *cli, enum steer_question question,
            const char *argument, int left_ms, json_t **ret,
            struct steer_error *err) STEER_MUSTCHECK;
/* STEER_UNKNOWN_JOB for what cannot be a job's id. */
int cli_job_id(const char *job, struct steer_error *err) STEER_MUSTCHECK;

/* Where another program of ours is: beside this one, else by PATH. */
void program_path(char *to, size_t size, const char *name);

/* Monotonic. */
int64_t now_us(void);
int64_t now_ms(void);
/* Text from the farm made fit for a terminal: control characters become '?'. One of eight buffers.
 */
const char *printable(const char *text);
const char *json_text(const json_t *object, const char *key); /* "" where there is none */
int64_t json_number(const json_t *object, const char *key);   /* 0 where there is none */
void line_json(const json_t *json);                           /* and flushes */

/* ---- from.c ---- */

/* The job that an image says it was made of, a new reference. */
int job_of_image(json_t **ret, const char *path, struct steer_error *err) STEER_MUSTCHECK;

/* ---- job_json.c: jobs as JSON objects with the names of message Job ---- */

/* What the flags say, a new reference. */
int job_of_flags(json_t **ret, const struct job_args *j, struct steer_error *err) STEER_MUSTCHECK;
/* What `over` says wins, field by field; a guidance method that it names stands alone. */
void job_overlay(json_t *under, const json_t *over);
/* Submits; without a model the farm's only one is taken. Waits at most cli_answer_ms. */
int job_send(struct steer_client *c, const struct cli *cli, json_t *job, const char *key,
             char id[STEER_JOB_ID_SIZE], struct steer_error *err) STEER_MUSTCHECK;
/* 0 for "done"; else the code of a job's end, with a sentence. */
int job_end(const json_t *status, struct steer_error *err) STEER_MUSTCHECK;

/* ---- transfer.c: images as they arrive ---- */

struct transfer {
    const struct cli *cli;
    struct steer_client *client;
    const char *output; /* NULL: {job}.webp or {job}.png */
    int overwrite;
    uint32_t first, last; /* first > last: all */
    char job[STEER_JOB_ID_SIZE];
};
/* Until all images are written and acknowledged, or will not come. STEER_INTERRUPTED leaves the job
 * as it is. */
int transfer_run(const struct transfer *t, struct steer_error *err) STEER_MUSTCHECK;

/* ---- commands: argv without program and command ---- */

int command_render(int argc, char **argv, struct steer_error *err) STEER_MUSTCHECK;
int command_submit(int argc, char **argv, struct steer_error *err) STEER_MUSTCHECK;
int command_fetch(int argc, char **argv, struct steer_error *err) STEER_MUSTCHECK;
int command_watch(int argc, char **argv, struct steer_error *err) STEER_MUSTCHECK;
int command_wait(int argc, char **argv, struct steer_error *err) STEER_MUSTCHECK;
int command_show(int argc, char **argv, struct steer_error *err) STEER_MUSTCHECK;
int command_cancel(int argc, char **argv, struct steer_error *err) STEER_MUSTCHECK;
int command_retry(int argc, char **argv, struct steer_error *err) STEER_MUSTCHECK;
int command_jobs(int argc, char **argv, struct steer_error *err) STEER_MUSTCHECK;
int command_workers(int argc, char **argv, struct steer_error *err) STEER_MUSTCHECK;
int command_models(int argc, char **argv, struct steer_error *err) STEER_MUSTCHECK;
int command_status(int argc, char **argv, struct steer_error *err) STEER_MUSTCHECK;
int command_drain(int argc, char **argv, struct steer_error *err) STEER_MUSTCHECK;
int command_pause(int argc, char **argv, struct steer_error *err) STEER_MUSTCHECK;
int command_resume(int argc, char **argv, struct steer_error *err) STEER_MUSTCHECK;
int command_up(int argc, char **argv, struct steer_error *err) STEER_MUSTCHECK;
int command_doctor(int argc, char **argv, struct steer_error *err) STEER_MUSTCHECK;

#endif
