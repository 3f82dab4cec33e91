/* cli.h - what the commands of `steer` share. */
#ifndef CLI_H
#define CLI_H
#include <jansson.h>
#include <signal.h>

#include "args.h"
#include "steer.h"
#include "steer.pb-c.h"

/* Flags that every command has. */
struct cli {
    const char *broker; /* NULL: libsteer's default */
    int json, quiet;
    int timeout_ms; /* -1: for ever */
};
extern const struct args_option cli_options[];

/* Ctrl-C, counted. */
extern volatile sig_atomic_t interrupted;

int fault_error(struct steer_error *err, const struct steer_fault *fault);
int cli_open(struct steer_client **ret, const struct cli *cli,
             struct steer_error *err) STEER_MUSTCHECK;
/* For an answer that should come at once: the timeout given, or 10 s. */
int cli_answer_ms(const struct cli *cli);
/* Text from the farm made fit for a terminal: control characters become '?'. One of eight buffers.
 */
const char *printable(const char *text);
const char *json_text(const json_t *object, const char *key); /* "" where there is none */

/* ---- from.c ---- */

/* The job that an image says it was made of, a new reference. */
int job_of_image(json_t **ret, const char *path, struct steer_error *err) STEER_MUSTCHECK;

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
