/* args.h - command lines: long options with a STEER_* variable each, from one table that --help
 * prints too. A flag wins: the variable of an option that was given is not even looked at, so that
 * what may be repeated is never a mixture of both. */
#ifndef PROTO_ARGS_H
#define PROTO_ARGS_H
#include <stdint.h>
#include <stdio.h>

#include "error.h"

/* Called once per use of the option. value is NULL for a switch, and lives as long as the program.
 * Fails with a sentence without the option's name, which args_parse puts before it. */
typedef int (*args_set)(void *target, const char *value, struct steer_error *err);

struct args_option {
    const char *name;  /* "guidance-scale": --guidance-scale, STEER_GUIDANCE_SCALE */
    const char *value; /* what --help calls its value; NULL: a switch (its variable: 1 or 0) */
    const char *help;
    args_set set;
};

/* A table that ends with a NULL name, and what its set functions write to. */
struct args_group {
    const char *title; /* over its part of --help */
    const struct args_option *options;
    void *target;
};

/* Parses argv[0..argc-1] (program and command already taken off) against groups, which end with
 * options == NULL. "--name value", "--name=value", "--" ends the options. Words that are no options
 * are left in argv[0..*ret_words-1]. STEER_USAGE or what a set function said. "--help" sets
 * *ret_help. */
int args_parse(const struct args_group *groups, int argc, char **argv, int *ret_words,
               int *ret_help, struct steer_error *err) STEER_MUSTCHECK;
void args_help(FILE *to, const struct args_group *groups);
/* "exit codes: ..." from the error list. */
void args_help_exits(FILE *to);

/* Numbers as people write them; the whole text must be one. */
int args_u64(uint64_t *ret, const char *text, uint64_t least, uint64_t most,
             struct steer_error *err) STEER_MUSTCHECK;
int args_double(double *ret, const char *text, struct steer_error *err) STEER_MUSTCHECK;
/* "64M", "2G", "1024": bytes, with K M G T as powers of 1024. */
int args_bytes(uint64_t *ret, const char *text, struct steer_error *err) STEER_MUSTCHECK;

#endif
