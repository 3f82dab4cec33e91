/* error.h - the one list of things that go wrong, and the detail that people read.
 *
 * Functions that can fail return 0 or one of these negative codes. Names travel on the wire
 * (REFUSED, FAIL), numbers do not. */
#ifndef PROTO_ERROR_H
#define PROTO_ERROR_H

#define STEER_MUSTCHECK __attribute__((warn_unused_result))

/* name, process exit code, what it means in general */
#define STEER_ERROR_LIST(X)                                                                        \
    X(INTERNAL, 70, "a bug in Steerfarm")                                                          \
    X(NO_MEMORY, 71, "out of memory")                                                              \
    X(IO, 74, "reading or writing failed")                                                         \
    X(NOT_FOUND, 66, "no such file, folder or image")                                              \
    X(USAGE, 64, "the command line is wrong")                                                      \
    X(BAD_VALUE, 64, "a value is out of its range")                                                \
    X(BAD_TEXT, 64, "a text is empty, too long or not UTF-8")                                      \
    X(BAD_SIZE, 64, "an image size that cannot be rendered")                                       \
    X(BAD_MODEL, 65, "a model folder that cannot be loaded")                                       \
    X(BAD_FRAME, 76, "a message that is not of this protocol")                                     \
    X(BAD_VERSION, 76, "no protocol version in common")                                            \
    X(HELLO_REQUIRED, 76, "HELLO must come first")                                                 \
    X(UNSUPPORTED, 69, "something this build or machine cannot do")                                \
    X(UNKNOWN_MODEL, 66, "no worker has ever offered this model")                                  \
    X(UNKNOWN_RECIPE, 66, "the model has no such recipe")                                          \
    X(UNKNOWN_JOB, 66, "no such job")                                                              \
    X(UNKNOWN_WORKER, 66, "no such worker")                                                        \
    X(KEY_CONFLICT, 65, "the idempotency key belongs to another job")                              \
    X(CANCELLED, 75, "cancelled")                                                                  \
    X(EXPIRED, 75, "past its deadline or its age limit")                                           \
    X(BUSY, 75, "at a limit; try again later")                                                     \
    X(DISK_FULL, 75, "no room on disk")                                                            \
    X(STORE, 74, "the job store failed")                                                           \
    X(REPLACED, 75, "a newer one has taken over")                                                  \
    X(TIMEOUT, 75, "no answer in time")                                                            \
    X(WORKER_LOST, 75, "the worker stopped answering")                                             \
    X(RENDER_FAILED, 70, "rendering failed")                                                       \
    X(INSECURE, 77, "refused without encryption")                                                  \
    X(INTERRUPTED, 130, "interrupted by Ctrl-C or SIGTERM")

enum steer_code {
    STEER_OK = 0,
    STEER_CODE_BASE = -1000,
#define X(name, exit_code, text) STEER_##name,
    STEER_ERROR_LIST(X)
#undef X
};

/* Filled where the fact is known: the thing, the value found, what was expected. */
struct steer_error {
    int code; /* 0 or an enum steer_code */
    char text[1024];
};

/* "UNKNOWN_MODEL"; "OK" for 0; "INTERNAL" for what is no code. */
const char *steer_code_name(int code);
const char *steer_code_text(int code);
int steer_code_exit(int code);
/* The code of a name, or STEER_INTERNAL when there is no such name. */
int steer_code_of(const char *name);

/* Fills *err (NULL is fine) and returns code, so that `return steer_fail(...)` reads well. */
int steer_fail(struct steer_error *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Puts "what: " before the text that *err holds and returns its code. */
int steer_fail_in(struct steer_error *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
