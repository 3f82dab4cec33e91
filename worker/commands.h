/* commands.h - what `steer-worker` does, one file a command; main.c only chooses. */
#ifndef WORKER_COMMANDS_H
#define WORKER_COMMANDS_H
#include "args.h"
#include "compute.h"
#include "error.h"
#include "steer.pb-c.h"

/* Flags that every command has. */
struct machine_args {
    const char *tuning, *backend;
    int threads;
    uint64_t memory_bytes;            /* for packed weights and plans; 0: the command's default */
    enum compute_precision precision; /* what AUTO means here: bf16 where it is native */
    enum compute_weights weights;
    int text_leaves; /* text encoders' weights go when texts are encoded */
};
void machine_args_init(struct machine_args *a);
extern const struct args_option machine_args_options[];
/* Of the same struct, for commands that hold no plan of a text from one image to the next. */
extern const struct args_option residence_args_options[];

/* AUTO resolved on this machine. */
enum compute_precision precision_of(const struct machine_args *a, Steerfarm__Precision asked);

/* argv without program and command; 0 or a code, *err says why. */
int command_serve(int argc, char **argv, struct steer_error *err) STEER_MUSTCHECK;
int command_render(int argc, char **argv, struct steer_error *err) STEER_MUSTCHECK;
int command_bench(int argc, char **argv, struct steer_error *err) STEER_MUSTCHECK;
int command_tune(int argc, char **argv, struct steer_error *err) STEER_MUSTCHECK;
int command_check(int argc, char **argv, struct steer_error *err) STEER_MUSTCHECK;
int command_devices(int argc, char **argv, struct steer_error *err) STEER_MUSTCHECK;

#endif
