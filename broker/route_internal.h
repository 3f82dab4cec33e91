/* route_internal.h - what the parts of the route share.
 *
 * route.c has turns, opening and closing; route_client.c and route_worker.c one function a message;
 * route_done.c what follows when the store has answered; route_assign.c, route_job.c,
 * route_audience.c and route_age.c what their names say. */
#ifndef BROKER_ROUTE_INTERNAL_H
#define BROKER_ROUTE_INTERNAL_H
#include "catalog.h"
#include "deadline.h"
#include "queue.h"
#include "route.h"
#include "sched.h"

#define FETCH_CREDIT_MAX 64
#define FETCH_RANGES_MAX 64
#define RESEND_TRIES     9     /* of a RESULT that nobody acknowledges */
#define EXPIRE_LIMIT     10000 /* records forgotten in one batch */

struct peer {
    enum side side;
    uint8_t identity[SCHED_IDENTITY_MAX];
    size_t size;
};

/* Something that has said HELLO on the client side. */
struct client {
    struct client *next;
    struct peer peer;
    uint64_t heard_ms;
};

struct sent {
    uint32_t index;
    int reading, tries;
    uint64_t sent_ms;
};

/* Who wants to hear of a job: any number of watchers, one fetcher. */
struct audience {
    struct audience *next, **at; /* list of all, and what points here */
    struct job *job;
    struct peer *watchers;
    size_t watchers_count;
    int fetching, dirty;
    uint32_t step, steps; /* of the image that was last heard of */
    struct peer fetcher;
    uint32_t credit, sent_count, ranges_count;
    struct sent sent[FETCH_CREDIT_MAX];
    uint32_t ranges[FETCH_RANGES_MAX][2]; /* first and end of what is fetched; in order, apart */
    uint32_t pump_at;                     /* what is spooled and fetched before it has been sent */
    uint32_t open_at; /* nothing can come any more of what is fetched before it */
    int over;         /* of anything; its DONE waits for the store */
    uint64_t progress_ms;
};

/* What happens when a batch is durable. */
enum effect_kind {
    EFFECT_ACCEPTED,
    EFFECT_KEPT,
    EFFECT_ENDED,
    EFFECT_STATUS,
    EFFECT_CANCEL,
    EFFECT_TOMBSTONE,
    EFFECT_FETCHED,
};
struct effect {
    struct effect *next;
    enum effect_kind kind;
    int again; /* ACCEPTED: the key was known */
    struct peer to;
    int has_tag;
    uint64_t tag, job, epoch, lease;
    uint32_t index;
    char *key; /* CANCEL, TOMBSTONE, ACCEPTED again; owned */
};

/* A batch on its way, with its effects in order. */
struct turn {
    struct store_batch *batch;
    struct effect *effects, **effects_end;
    int grows;      /* adds work: may be answered DISK_FULL */
    int models;     /* has some */
    uint64_t bytes; /* of new jobs */
};

/* A question to the store. */
enum question_kind { ASK_STATUS, ASK_LIST, ASK_DONE, ASK_READ, ASK_RETRY, ASK_CANCEL };
struct question {
    enum question_kind kind;
    int request;                       /* the message that is answered */
    uint32_t limit;                    /* LIST */
    char state[16];                    /* LIST: only those; "": all */
    char key[STEER_KEY_BYTES_MAX + 1]; /* CANCEL */
    struct peer to;
    int has_tag;
    uint64_t tag, job;
    uint32_t index;
};

struct tombstone {
    struct tombstone *next;
    uint64_t made_ms; /* UTC */
    char key[];
};

#define CLIENT_BUCKETS    4096
#define TOMBSTONE_BUCKETS 65536

struct route {
    struct route_options options;
    struct transport transport;
    struct store *store;
    struct queue *queue;
    struct sched *sched;
    struct catalog *catalog;
    struct client *clients[CLIENT_BUCKETS];
    struct tombstone *tombstones[TOMBSTONE_BUCKETS];
    uint32_t clients_count, tombstones_count;
    struct deadlines deadlines; /* of jobs that have something queued or leased */
    struct audience *audiences;
    struct turn *grow, *shrink; /* of this turn; NULL: nothing yet */
    uint32_t waiting;           /* batches and questions that the store has */
    uint32_t questions, reads;  /* of them, what clients have asked, and images to be sent */
    uint64_t flight_bytes;      /* of jobs in batches that the store has, or will have */
    uint64_t salt;              /* of all hashes of what clients choose */
    uint64_t epoch, job_last, now_ms, swept_ms, expired_ms, full_told_ms, audiences_ms;
    int paused, no_room;
    int expire_again;                                 /* the last batch did not get to the end */
    int models_unstored;                              /* learnt while the disk was full */
    uint64_t accepted, results, duplicates, failures; /* counters for people */
    int broken;                                       /* the store failed */
    struct steer_error broken_error;
};

/* ---- route.c ---- */

uint64_t utc_now(const struct route *r);
void peer_of(struct peer *to, const struct worker *w);
int send_to(struct route *r, const struct peer *to, int type, const ProtobufCMessage *body);
void refuse(struct route *r, const struct peer *to, int code, const char *text, int request,
            int has_tag, uint64_t tag, const char *key, const char *job);
/* The batch of this turn; NULL: out of memory. */
struct turn *turn_grow(struct route *r);
struct turn *turn_shrink(struct route *r);
void turn_free(struct turn *t);
struct effect *effect_new(enum effect_kind kind, uint64_t job);
void effect_link(struct turn *t, struct effect *e);
struct effect *effect_add(struct turn *t, enum effect_kind kind, uint64_t job);

/* ---- route_done.c ---- */

void completions(struct route *r);

/* ---- route_assign.c ---- */

void assign_all(struct route *r);

/* ---- route_age.c ---- */

void timers(struct route *r);

/* ---- route_job.c ---- */

/* Somebody has made or asked for an image of it: it is not abandoned. */
void job_touch(struct route *r, struct job *j);
void job_touched_load(struct route *r, struct job *j, uint64_t put_ms);
/* What is stored as the job's chunks: the states of STATES_CHUNK images each, and when it was last
 * touched. */
#define CHUNK_TOUCHED UINT32_MAX
int job_chunk_load(struct route *r, struct job *j, const struct store_chunk *c) STEER_MUSTCHECK;
/* Writes the chunk that image lies in. */
void chunk_put(struct route *r, struct job *j, uint32_t index);
/* Ends the job when all its images have ended. */
void job_settle(struct route *r, struct job *j);
void job_forget(struct route *r, struct job *j);
/* Ends the job in time, if it has a deadline. */
void job_watch_deadline(struct route *r, struct job *j);
/* Back to the queue after a failed attempt; `counted` attempts are limited. */
void image_retry(struct route *r, struct job *j, uint32_t index, int code, const char *text,
                 const char *worker, int counted, int single);
void trouble_settle(struct job *j, struct trouble *t, uint32_t attempts, int code,
                    const char *text);
void image_fail(struct route *r, struct job *j, uint32_t index, int code, const char *text);
void lease_drop(struct route *r, struct lease *l); /* gives the reserved room back too */
void lease_expired(struct route *r, struct lease *l);
void revoke(struct route *r, const struct lease *l);
void worker_lost(struct route *r, struct worker *w, const char *why);
/* What has not been delivered becomes `to` (cancelled or expired), with what is spooled or without.
 */
void job_cancel(struct route *r, struct job *j, enum image_state to, int spooled);

/* ---- route_audience.c ---- */

struct audience *audience_of(struct route *r, struct job *j);
void audience_free(struct route *r, struct audience *a);
/* Nobody is left: it goes, and comes back when somebody asks. */
void audience_leave(struct route *r, struct audience *a);
/* Ranges as first and end, in order and apart, into as much room as there are of them; how many. */
size_t ranges_merge(uint32_t (*to)[2], Steerfarm__Range *const *from, size_t from_count,
                    uint32_t images, size_t *ret_bad);
/* Takes over what `m` asks for; 0, or why not. */
int audience_fetch(struct route *r, struct audience *a, const struct peer *from,
                   const Steerfarm__Fetch *m, const char **ret_why) STEER_MUSTCHECK;
/* Sends what is spooled and not under way, as far as the fetcher's credit goes. */
void audience_pump(struct route *r, struct job *j);
/* An image has come into the spool, has been acknowledged, or is open again. */
void audience_spooled(struct route *r, struct job *j, uint32_t index);
void audience_acked(struct job *j, uint32_t index);
void audience_reopened(struct job *j);
/* Tells the fetcher, once that is durable, when nothing of what it fetches can come any more. */
void audience_settle(struct route *r, struct job *j);
void fetched_now(struct route *r, const struct effect *e);
void audiences_sweep(struct route *r);
void image_send(struct route *r, struct question *q, struct store_completion *c);
struct status;
void done_send(struct route *r, struct audience *a, struct status *s);

/* ---- route_status.c ---- */

/* A JobStatus with everything it points at, in one place. */
#define STATUS_FAILURES_MAX 64
struct status {
    Steerfarm__JobStatus msg;
    Steerfarm__Counts counts;
    Steerfarm__Failure failures[STATUS_FAILURES_MAX], *failure_list[STATUS_FAILURES_MAX];
    char id[QUEUE_ID_BYTES];
    Steerfarm__Job *spec;
};
/* 0: the store may be asked one more question. */
int questions_full(const struct route *r);
/* Asks the store about a job; refuses in the name of `request` when it cannot. */
void ask_store(struct route *r, enum question_kind kind, int request, const struct peer *from,
               const char *job, const char *key, int has_tag, uint64_t tag);
void status_of_job(struct status *s, const struct job *j);
void status_of_stored(struct status *s, const struct route *r, const struct store_found *f);
void status_clear(struct status *s);
enum store_state job_end_state(const struct job *j);
void reply_status(struct route *r, const struct peer *to, int has_tag, uint64_t tag,
                  struct status *s);
void on_query(struct route *r, const struct peer *from, const Steerfarm__Query *q);
void answer_query(struct route *r, const struct question *q, const struct store_completion *c);

/* ---- route_client.c, route_worker.c ---- */

/* When the client last said something; 0: it is not known (any more). */
uint64_t client_heard_ms(struct route *r, const struct peer *p);
void client_message(struct route *r, const struct peer *from, const struct wire_message *m);
void worker_message(struct route *r, const struct peer *from, const struct wire_message *m,
                    struct store_payload *payload);
void tombstone_add(struct route *r, const char *key, uint64_t made_ms);
/* Forgets those made before that time. */
void tombstones_sweep(struct route *r, uint64_t before_ms);
void cancel_now(struct route *r, const struct effect *e);
void tombstone_now(struct route *r, const struct effect *e, int code);
/* Stores the whole catalogue again. */
void models_store(struct route *r);
void answer_cancel(struct route *r, const struct question *q, const struct store_completion *c);
int job_reopen(struct route *r, const struct store_found *f);

#endif
