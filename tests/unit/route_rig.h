/* route_rig.h - the route with a transport that only writes down what was sent, a real store, and a
 * clock that the test moves: the whole conversation without a socket. Its functions fail the test
 * that called them. */
#ifndef TESTS_ROUTE_RIG_H
#define TESTS_ROUTE_RIG_H
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "limits.h"
#include "route.h"
#include "steer.pb-c.h"

#define TYPE(name) STEERFARM__MESSAGE_TYPE__##name

enum { KEEP_MS = 3600 * 1000 };

extern char dir[32]; /* the data directory */
extern struct route *route;
extern uint64_t now_ms;
extern const char *gone; /* a peer that cannot be reached; NULL: all can */
extern uint64_t spool_max;
extern const char *worker_numerics; /* of the workers that say HELLO */
extern int snapshot_type;           /* when this is sent, what is durable is copied */
extern _Atomic int disk_full;       /* the store's thread looks at it */

/* ---- a route's life ---- */

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
int set_up(void **state);
int tear_down(void **state);
void open_route(void);
/* As after kill -9: what was not committed is gone, the clock goes on. */
void restart(void);
/* As after kill -9 at the moment of the snapshot. */
void restart_from_snapshot(void);
/* A farm of one client "c" and one worker "w/1". */
void farm(void);
void turn(void);
/* Everything that was submitted to the store before has come back, and what followed from it: an
 * answer that goes the same way is last. */
void settle(void);

/* ---- what was sent ---- */

struct sent_message {
    char to[64];
    int type;
    ProtobufCMessage *body;
    uint8_t *payload;
    size_t payload_bytes;
    int seen;
};
/* The next message to that peer of that type; it is the rig's, until forget_sent. */
const void *expect_message(const char *to, int type, struct sent_message **ret);
#define EXPECT(to, Name, NAME) ((const Steerfarm__##Name *)expect_message(to, TYPE(NAME), NULL))
void expect_refused(const char *to, const char *code);
void expect_verdict(const char *worker, const char *verdict);
int count_sent(const char *to, int type);
void forget_sent(void);

/* ---- what is said ---- */

struct held_lease {
    uint64_t epoch, lease;
    char job[STEER_JOB_ID_BYTES_MAX];
    uint32_t index;
};

void say_raw(enum side side, const char *from, const struct wire_frame *frames, size_t count);
void say_client(const char *from, int type, const ProtobufCMessage *body);
void say_worker(const char *from, int type, const ProtobufCMessage *body);
char *text(const char *s);
Steerfarm__Lease lease_message(struct held_lease *l);

/* Clients */
void hello_client(const char *name);
void say_submit(const char *from, const char *key, const char *prompt, uint32_t images,
                uint64_t deadline_ms);
const char *submit(const char *from, const char *key, uint32_t images);
void fetch_range(const char *from, const char *job, uint32_t images, uint32_t first, uint32_t last);
void fetch(const char *from, const char *job, uint32_t images);
void ack(const char *from, const char *job, uint32_t index);
void watch(const char *from, const char *job);
void cancel(const char *from, const char *job, const char *key);
const Steerfarm__JobStatus *ask_job(const char *from, const char *job);

/* Workers. One "id/incarnation" offers model "m" with that hash, and says what it holds. */
void hello_worker_with(const char *name, uint64_t incarnation, const char *hash,
                       struct held_lease *held, size_t held_count);
void hello_worker(const char *name);
void credit(const char *name, uint32_t images, uint32_t batch);
struct held_lease take_assign(const char *worker);
void say_result(const char *worker, struct held_lease *l, const char *job, uint32_t index,
                const char *hash, const char *image, uint32_t crc32);
void result(const char *worker, struct held_lease *l, const char *image);
void fail_lease(const char *worker, struct held_lease *l, const char *code);
void renew(const char *worker, const struct held_lease *l, uint32_t step);

/* A job of that many images, rendered by "w/1" and spooled. */
void spool_images(const char *key, uint32_t images, char id[STEER_JOB_ID_BYTES_MAX]);

#endif
