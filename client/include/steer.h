/* steer.h - libsteer, the C client of a Steerfarm broker.
 *
 *     struct steer_client *c;
 *     struct steer_fault why;
 *     steer_open(&c, NULL, &why);
 *     struct steer_job job = steer_job_default();
 *     job.model = "demo";
 *     job.prompt = "a red apple";
 *     char id[STEER_JOB_ID_SIZE];
 *     steer_submit(c, &job, id, 10000, &why);
 *     steer_fetch(c, id, 4);
 *     struct steer_event e;
 *     while (steer_next(c, &e, -1, &why) == 1 && e.kind != STEER_EVENT_DONE)
 *         if (e.kind == STEER_EVENT_RESULT) {
 *             save(e.image, e.image_bytes);
 *             steer_ack(c, e.job, e.index);
 *         }
 *
 * A client reconnects by itself and sends again what was not answered, under the same idempotency
 * key, so nothing is submitted twice. The broker repeats an image until it is acknowledged; the
 * library shows each (job, index) once. One client, one thread; several clients are fine.
 *
 * Functions return 0 (or what they say) or a negative number, and fill *fault (NULL is fine). */
#ifndef STEER_H
#define STEER_H
#include <signal.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define STEER_API __attribute__((visibility("default")))
#else
#define STEER_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define STEER_JOB_ID_SIZE 41
#define STEER_KEY_SIZE    129

struct steer_client;

struct steer_fault {
    char code[32];   /* "UNKNOWN_MODEL"; docs/protocol.md lists them */
    char text[1024]; /* one sentence */
    int exit_code;   /* what a program may end with (sysexits.h) */
};

/* endpoint NULL: $STEER_BROKER, else tcp://127.0.0.1:5555. Does not wait for the broker. */
STEER_API int steer_open(struct steer_client **ret, const char *endpoint,
                         struct steer_fault *fault);
STEER_API void steer_close(struct steer_client *c); /* NULL is fine */
/* Calls that wait return within 100 ms when *flag is not zero, as a signal handler makes it: those
 * for an answer with code "INTERRUPTED", steer_next with 0. NULL: none. */
STEER_API void steer_stop_flag(struct steer_client *c, const volatile sig_atomic_t *flag);

struct steer_label {
    const char *key, *value;
};

/* What to render. Texts are borrowed during the call; NULL, 0 and NAN mean the model's default. */
struct steer_job {
    const char *model, *prompt, *negative, *recipe;
    const char *guidance;      /* "none", "cfg", "nasa", "nag", "vsf" */
    const char *nasa_variant;  /* "text", "mass", "joint"; of models with joint attention */
    const char *precision;     /* "auto", "f32", "bf16" */
    const char *format;        /* "webp", "lossless", "png" */
    const char *long_prompt;   /* "cut", "chunk" */
    const char *prompt_syntax; /* "plain", "a1111" */
    double alpha, phi, tau, beta, offset, guidance_scale;
    uint32_t width, height, steps, images;
    int quality; /* -1: default */
    int has_seed;
    uint64_t seed;
    int priority;
    uint64_t deadline_ms;             /* UTC since 1970; 0: none */
    const char *key;                  /* idempotency key; NULL: one is made */
    const struct steer_label *labels; /* at most 16, to find the job by */
    size_t labels_count;
};
STEER_API struct steer_job steer_job_default(void);
/* A key that nobody has: with it a job can be cancelled whose SUBMIT was not answered. */
STEER_API void steer_key_make(char key[STEER_KEY_SIZE]);

/* Submits and waits for the answer; ret_id gets the job's id. timeout_ms < 0: for ever. */
STEER_API int steer_submit(struct steer_client *c, const struct steer_job *job,
                           char ret_id[STEER_JOB_ID_SIZE], int timeout_ms,
                           struct steer_fault *fault);
/* The same of a JSON object with the field names of message Job in steer.proto. key NULL: made. */
STEER_API int steer_submit_json(struct steer_client *c, const char *json, const char *key,
                                char ret_id[STEER_JOB_ID_SIZE], int timeout_ms,
                                struct steer_fault *fault);
/* Sends without waiting: an ACCEPTED or REFUSED event with *ret_tag will come. */
STEER_API int steer_submit_start(struct steer_client *c, const char *json, const char *key,
                                 uint64_t *ret_tag, struct steer_fault *fault);

/* Asks for a job's images: RESULT events, at most `credit` (1..64) unacknowledged ones, then DONE.
 */
STEER_API int steer_fetch(struct steer_client *c, const char *job, uint32_t credit);
/* Only images first..last of it: DONE comes when none of them can come any more, though the job's
 * state may still be "running". */
STEER_API int steer_fetch_range(struct steer_client *c, const char *job, uint32_t credit,
                                uint32_t first, uint32_t last);
/* PROGRESS events now and then, and DONE. */
STEER_API int steer_watch(struct steer_client *c, const char *job);
/* The image is safe: the farm may forget it. */
STEER_API int steer_ack(struct steer_client *c, const char *job, uint32_t index);
/* By job or by key (the other NULL). *ret_json (NULL: not wanted) is the job's status, freed by
 * free(). */
STEER_API int steer_cancel(struct steer_client *c, const char *job, const char *key,
                           char **ret_json, int timeout_ms, struct steer_fault *fault);

enum steer_question {
    STEER_ASK_JOB,  /* argument: its id */
    STEER_ASK_JOBS, /* argument: NULL or JSON {"state", "limit", "label": {"key", "value"}} */
    STEER_ASK_WORKERS,
    STEER_ASK_MODELS,
    STEER_ASK_STATUS,
    STEER_DO_DRAIN, /* argument: a worker's id */
    STEER_DO_PAUSE,
    STEER_DO_RESUME,
    STEER_DO_RETRY, /* argument: a job's id; its failed images are queued again */
};
/* *ret_json: message Reply of steer.proto as a JSON object, freed by free(). */
STEER_API int steer_ask(struct steer_client *c, enum steer_question question, const char *argument,
                        char **ret_json, int timeout_ms, struct steer_fault *fault);

enum steer_event_kind {
    STEER_EVENT_ACCEPTED,
    STEER_EVENT_REFUSED,
    STEER_EVENT_PROGRESS,
    STEER_EVENT_RESULT,
    STEER_EVENT_DONE,
    STEER_EVENT_REPLY,
};
/* Pointers are good until the next call with this client. */
struct steer_event {
    enum steer_event_kind kind;
    uint64_t tag; /* of the request that is answered */
    const char *job;
    const char *json; /* the whole message, field names of steer.proto */
    uint32_t index;
    uint64_t seed;
    const void *image; /* RESULT */
    size_t image_bytes;
    const char *format;       /* RESULT: "webp", "lossless", "png" */
    struct steer_fault fault; /* REFUSED */
};
/* 1: an event, 0: none within timeout_ms (< 0: for ever), or a signal came. Events that came while
 * another call waited for its answer are shown first. */
STEER_API int steer_next(struct steer_client *c, struct steer_event *ret, int timeout_ms,
                         struct steer_fault *fault);
/* For poll or epoll, and the same until steer_close, whatever happens to the connection. Readable
 * when steer_next may have something; call it with timeout 0 until it returns 0, and at least twice
 * a second, as resending is its business too. */
STEER_API int steer_fd(const struct steer_client *c);

#ifdef __cplusplus
}
#endif
#endif
