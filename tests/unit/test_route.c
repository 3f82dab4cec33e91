// SPDX-License-Identifier: Apache-2.0
/* The route with a transport that only writes down what was sent, a real store, and a clock that
 * the test moves: the whole conversation without a socket. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cmocka.h>
#include <poll.h>

#include "limits.h"
#include "log.h"
#include "route.h"
#include "steer.pb-c.h"

#define TYPE(name) STEERFARM__MESSAGE_TYPE__##name

enum { SENT_MAX = 512, KEEP_MS = 3600 * 1000 };

struct sent_message {
    char to[64];
    int type;
    ProtobufCMessage *body;
    uint8_t *payload;
    size_t payload_bytes;
    int seen;
};

static char dir[32];
static struct route *route;
static uint64_t now_ms;
static struct sent_message sent[SENT_MAX];
static int sent_count;
static const char *gone; /* a peer that cannot be reached */
static uint64_t spool_max;
static const char *worker_numerics; /* of the workers that say HELLO */
static int snapshot_type;           /* when this is sent, what is durable is copied to <dir>.copy */

/* ---- the disk ---- */

static _Atomic int disk_full; /* the store's thread looks at it */

int __real_statvfs(const char *path, struct statvfs *v);
int __wrap_statvfs(const char *path, struct statvfs *v);
int __wrap_statvfs(const char *path, struct statvfs *v)
{
    int code = __real_statvfs(path, v);
    if (!code && disk_full) v->f_bavail = 0;
    return code;
}

/* ---- the transport ---- */

static int transport_send(void *data, enum side side, const uint8_t *identity, size_t identity_size,
                          int type, const ProtobufCMessage *body, uint8_t *payload,
                          size_t payload_bytes)
{
    (void)data;
    (void)side;
    if (gone && identity_size == strlen(gone) && !memcmp(identity, gone, identity_size)) {
        free(payload);
        return -1;
    }
    if (type == snapshot_type) {
        char command[256];
        snprintf(command, sizeof command, "rm -rf '%s.copy' && cp -r '%s' '%s.copy'", dir, dir,
                 dir);
        assert_int_equal(system(command), 0);
        snapshot_type = 0;
    }
    assert_true(sent_count < SENT_MAX);
    struct sent_message *m = sent + sent_count++;
    m->seen = 0;
    uint8_t *packed;
    size_t size;
    assert_int_equal(wire_pack(body, &packed, &size), 0);
    snprintf(m->to, sizeof m->to, "%.*s", (int)identity_size, (const char *)identity);
    m->type = type;
    m->body = protobuf_c_message_unpack(body->descriptor, NULL, size, packed);
    m->payload = payload;
    m->payload_bytes = payload_bytes;
    free(packed);
    assert_non_null(m->body);
    return 0;
}

static void forget_sent(void)
{
    for (int i = 0; i < sent_count; i++) {
        protobuf_c_message_free_unpacked(sent[i].body, NULL);
        free(sent[i].payload);
    }
    sent_count = 0;
}

static void turn(void)
{
    struct steer_error err = {0};
    if (route_turn(route, now_ms, &err)) fail_msg("%s", err.text);
}

/* The next message to that peer of that type. */
static const void *expect_message(const char *to, int type, struct sent_message **ret)
{
    for (int tries = 0; tries < 400; tries++) {
        for (struct sent_message *m = sent; m < sent + sent_count; m++) {
            if (m->seen || m->type != type || strcmp(m->to, to) != 0) continue;
            m->seen = 1;
            if (ret) *ret = m;
            return m->body;
        }
        struct pollfd p = {route_fd(route), POLLIN, 0};
        int before = sent_count;
        turn();
        if (sent_count == before) (void)poll(&p, 1, 5);
    }
    fail_msg("no %s to %s", wire_type_name(type), to);
    return NULL;
}

#define EXPECT(to, Name, NAME) ((const Steerfarm__##Name *)expect_message(to, TYPE(NAME), NULL))

static void expect_refused(const char *to, const char *code)
{
    const Steerfarm__Refused *m = EXPECT(to, Refused, REFUSED);
    assert_string_equal(m->code, code);
    assert_true(strlen(m->text) > 10); /* a sentence */
}

static int count_sent(const char *to, int type)
{
    int count = 0;
    for (int i = 0; i < sent_count; i++)
        count += sent[i].type == type && strcmp(sent[i].to, to) == 0;
    return count;
}

/* ---- what is said ---- */

static int released;
static void payload_release(void *owner)
{
    free(owner);
    released++;
}

static void say_raw(enum side side, const char *from, const struct wire_frame *frames, size_t count)
{
    route_receive(route, side, (const uint8_t *)from, strlen(from), frames, count, NULL, now_ms);
}

static void say(enum side side, const char *from, int type, const ProtobufCMessage *body,
                const char *payload)
{
    uint8_t head[WIRE_HEAD_BYTES], *packed;
    size_t size;
    wire_head(head, type);
    assert_int_equal(wire_pack(body, &packed, &size), 0);
    struct store_payload p = {0};
    struct wire_frame frames[3] = {{head, sizeof head}, {packed, size}};
    if (payload) {
        char *copy = strdup(payload);
        p = (struct store_payload){copy, strlen(copy), payload_release, copy};
        frames[2] = (struct wire_frame){copy, strlen(copy)};
    }
    route_receive(route, side, (const uint8_t *)from, strlen(from), frames, payload ? 3 : 2,
                  payload ? &p : NULL, now_ms);
    free(packed);
}

static void say_client(const char *from, int type, const ProtobufCMessage *body)
{
    say(SIDE_CLIENTS, from, type, body, NULL);
}

static void say_worker(const char *from, int type, const ProtobufCMessage *body)
{
    say(SIDE_WORKERS, from, type, body, NULL);
}

static char *text(const char *s)
{
    return (char *)(uintptr_t)s;
}

/* Everything that was submitted to the store before has come back, and what followed from it: an
 * answer that goes the same way is last. */
static void settle(void)
{
    for (int twice = 0; twice < 3; twice++) {
        Steerfarm__Query q = STEERFARM__QUERY__INIT;
        q.kind = STEERFARM__QUERY_KIND__QUERY_JOB;
        q.job = text("0-zzzzzz");
        int before = count_sent("settler", TYPE(REFUSED));
        say_client("settler", TYPE(QUERY), &q.base);
        turn();
        for (int tries = 0; count_sent("settler", TYPE(REFUSED)) == before; tries++) {
            struct pollfd p = {route_fd(route), POLLIN, 0};
            assert_true(tries < 1000);
            (void)poll(&p, 1, 10);
            turn();
        }
    }
}

static void hello_client(const char *name)
{
    Steerfarm__Hello h = STEERFARM__HELLO__INIT;
    h.version_min = h.version_max = 1;
    h.role = STEERFARM__ROLE__CLIENT;
    say_client(name, TYPE(HELLO), &h.base);
    (void)EXPECT(name, Welcome, WELCOME);
}

struct held_lease {
    uint64_t epoch, lease;
    char job[STEER_JOB_ID_BYTES_MAX];
    uint32_t index;
};

static Steerfarm__Lease lease_message(struct held_lease *l)
{
    Steerfarm__Lease m = STEERFARM__LEASE__INIT;
    m.epoch = l->epoch;
    m.lease = l->lease;
    m.job = l->job;
    m.index = l->index;
    return m;
}

/* A worker "id/incarnation" that offers model "m" with that hash, and what it holds. */
static void hello_worker_with(const char *name, uint64_t incarnation, const char *hash,
                              struct held_lease *held, size_t held_count)
{
    char id[64];
    Steerfarm__Hello h = STEERFARM__HELLO__INIT;
    Steerfarm__Model model = STEERFARM__MODEL__INIT, *models[1] = {&model};
    Steerfarm__Recipe recipe = STEERFARM__RECIPE__INIT, *recipes[1] = {&recipe};
    Steerfarm__Device device = STEERFARM__DEVICE__INIT;
    Steerfarm__Lease leases[8], *list[8];
    snprintf(id, sizeof id, "%.*s", (int)strcspn(name, "/"), name);
    for (size_t i = 0; i < held_count; i++) {
        leases[i] = lease_message(held + i);
        list[i] = leases + i;
    }
    recipe.name = text("r");
    model.name = text("m");
    model.hash = text(hash);
    model.recipes = recipes;
    model.n_recipes = 1;
    model.has_width = model.has_height = 1;
    model.width = model.height = 64;
    h.version_min = h.version_max = 1;
    h.role = STEERFARM__ROLE__WORKER;
    h.worker = id;
    h.has_incarnation = 1;
    h.incarnation = incarnation;
    h.models = models;
    h.n_models = 1;
    device.numerics = text(worker_numerics);
    h.device = &device;
    h.held = list;
    h.n_held = held_count;
    say_worker(name, TYPE(HELLO), &h.base);
}

static void credit(const char *name, uint32_t images, uint32_t batch)
{
    Steerfarm__Credit c = STEERFARM__CREDIT__INIT;
    c.images = images;
    c.has_batch = 1;
    c.batch = batch;
    say_worker(name, TYPE(CREDIT), &c.base);
}

static void hello_worker(const char *name)
{
    hello_worker_with(name, 1, "hash1", NULL, 0);
    (void)EXPECT(name, Welcome, WELCOME);
    credit(name, 4, 1);
}

static void say_submit(const char *from, const char *key, const char *prompt, uint32_t images,
                       uint64_t deadline_ms)
{
    Steerfarm__Submit s = STEERFARM__SUBMIT__INIT;
    Steerfarm__Job job = STEERFARM__JOB__INIT;
    s.key = text(key);
    s.job = &job;
    s.has_tag = 1;
    s.tag = 77;
    job.model = text("m");
    job.prompt = text(prompt);
    job.has_images = 1;
    job.images = images;
    job.has_deadline_ms = deadline_ms > 0;
    job.deadline_ms = deadline_ms;
    say_client(from, TYPE(SUBMIT), &s.base);
}

static char accepted_id[STEER_JOB_ID_BYTES_MAX];
static const char *submit(const char *from, const char *key, uint32_t images)
{
    say_submit(from, key, "a cat", images, 0);
    const Steerfarm__Accepted *a = EXPECT(from, Accepted, ACCEPTED);
    assert_int_equal(a->tag, 77);
    snprintf(accepted_id, sizeof accepted_id, "%s", a->job);
    return accepted_id;
}

static struct held_lease take_assign(const char *worker)
{
    struct held_lease l = {0};
    const Steerfarm__Assign *a = EXPECT(worker, Assign, ASSIGN);
    assert_int_equal(a->n_images, 1);
    l.epoch = a->images[0]->lease->epoch;
    l.lease = a->images[0]->lease->lease;
    l.index = a->images[0]->lease->index;
    snprintf(l.job, sizeof l.job, "%s", a->images[0]->lease->job);
    assert_string_equal(a->images[0]->job->model_hash, "hash1");
    return l;
}

static void say_result(const char *worker, struct held_lease *l, const char *job, uint32_t index,
                       const char *hash, const char *image, uint32_t crc32)
{
    Steerfarm__Result m = STEERFARM__RESULT__INIT;
    Steerfarm__Lease lease = lease_message(l);
    m.job = text(job);
    m.index = index;
    m.lease = &lease;
    m.bytes = strlen(image);
    m.crc32 = crc32;
    m.model_hash = text(hash);
    say(SIDE_WORKERS, worker, TYPE(RESULT), &m.base, image);
}

static void result(const char *worker, struct held_lease *l, const char *image)
{
    say_result(worker, l, l->job, l->index, "hash1", image, wire_crc32(image, strlen(image)));
}

static void expect_verdict(const char *worker, const char *verdict)
{
    assert_string_equal(EXPECT(worker, Verdict, VERDICT)->verdict, verdict);
}

static void fail_lease(const char *worker, struct held_lease *l, const char *code)
{
    Steerfarm__Fail f = STEERFARM__FAIL__INIT;
    Steerfarm__Lease lease = lease_message(l);
    f.lease = &lease;
    f.code = text(code);
    f.text = text("it did not work");
    f.retryable = 1;
    say_worker(worker, TYPE(FAIL), &f.base);
}

static void renew(const char *worker, const struct held_lease *l, uint32_t step)
{
    Steerfarm__Renew m = STEERFARM__RENEW__INIT;
    Steerfarm__LeaseProgress p = STEERFARM__LEASE_PROGRESS__INIT, *list[1] = {&p};
    p.epoch = l->epoch;
    p.lease = l->lease;
    p.has_step = p.has_steps = 1;
    p.step = step;
    p.steps = 9;
    m.leases = list;
    m.n_leases = 1;
    say_worker(worker, TYPE(RENEW), &m.base);
}

static void fetch_range(const char *from, const char *job, uint32_t images, uint32_t first,
                        uint32_t last)
{
    Steerfarm__Fetch f = STEERFARM__FETCH__INIT;
    Steerfarm__Range range = STEERFARM__RANGE__INIT, *list[1] = {&range};
    range.first = first;
    range.last = last;
    f.job = text(job);
    f.credit = images;
    f.indices = list;
    f.n_indices = 1;
    say_client(from, TYPE(FETCH), &f.base);
}

static void fetch(const char *from, const char *job, uint32_t images)
{
    fetch_range(from, job, images, 0, UINT32_MAX);
}

static void ack(const char *from, const char *job, uint32_t index)
{
    Steerfarm__ResultAck a = STEERFARM__RESULT_ACK__INIT;
    Steerfarm__Range range = STEERFARM__RANGE__INIT, *list[1] = {&range};
    range.first = range.last = index;
    a.job = text(job);
    a.indices = list;
    a.n_indices = 1;
    say_client(from, TYPE(RESULT_ACK), &a.base);
}

static void watch(const char *from, const char *job)
{
    Steerfarm__Watch w = STEERFARM__WATCH__INIT;
    w.job = text(job);
    say_client(from, TYPE(WATCH), &w.base);
}

static void cancel(const char *from, const char *job, const char *key)
{
    Steerfarm__Cancel c = STEERFARM__CANCEL__INIT;
    c.job = text(job);
    c.key = text(key);
    c.has_tag = 1;
    c.tag = 5;
    say_client(from, TYPE(CANCEL), &c.base);
}

static const Steerfarm__JobStatus *ask_job(const char *from, const char *job)
{
    Steerfarm__Query q = STEERFARM__QUERY__INIT;
    q.kind = STEERFARM__QUERY_KIND__QUERY_JOB;
    q.job = text(job);
    say_client(from, TYPE(QUERY), &q.base);
    const Steerfarm__Reply *r = EXPECT(from, Reply, REPLY);
    assert_int_equal(r->n_jobs, 1);
    return r->jobs[0];
}

/* ---- a route's life ---- */

static void open_route(void)
{
    struct transport transport = {transport_send, NULL};
    struct route_options o = {.keep_ms = KEEP_MS,
                              .utc_offset_ms = UINT64_C(1700000000000),
                              .heartbeat_ms = 1000,
                              .lease_ms = 10000};
    struct steer_error err = {0};
    store_options_default(&o.store);
    o.store.dir = dir;
    o.store.spool_bytes_max = spool_max;
    o.store.free_bytes_min = 1;
    o.store.reserve_bytes = 0;
    if (route_open(&route, &o, &transport, now_ms, &err)) fail_msg("%s", err.text);
    hello_client("settler");
}

static int set_up(void **state)
{
    (void)state;
    log_init(LOG_ERROR + 1);
    strcpy(dir, "route-XXXXXX");
    now_ms = 1000000;
    gone = NULL;
    spool_max = 0;
    snapshot_type = 0;
    worker_numerics = NULL;
    disk_full = 0;
    if (!mkdtemp(dir)) return -1;
    open_route();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    char command[128];
    route_close(route);
    route = NULL;
    forget_sent();
    snprintf(command, sizeof command, "rm -rf '%s' '%s.copy'", dir, dir);
    return system(command);
}

/* As after kill -9: what was not committed is gone, the clock goes on. */
static void restart(void)
{
    route_close(route);
    forget_sent();
    now_ms += 3000;
    open_route();
}

/* As after kill -9 at the moment of the snapshot. */
static void restart_from_snapshot(void)
{
    char command[256];
    route_close(route);
    forget_sent();
    snprintf(command, sizeof command, "rm -rf '%s' && mv '%s.copy' '%s'", dir, dir, dir);
    assert_int_equal(system(command), 0);
    now_ms += 3000;
    open_route();
}

/* A farm of one client and one worker. */
static void farm(void)
{
    hello_client("c");
    hello_worker("w/1");
}

/* ---- the straight way ---- */

static void test_whole_life(void **state)
{
    (void)state;
    struct sent_message *m;
    farm();
    const char *job = submit("c", "k", 2);
    watch("c", job);
    fetch("c", job, 8);
    for (int i = 0; i < 2; i++) {
        struct held_lease l = take_assign("w/1");
        char image[16];
        snprintf(image, sizeof image, "image %u", l.index);
        result("w/1", &l, image);
        expect_verdict("w/1", "kept");
    }
    for (int i = 0; i < 2; i++) {
        const Steerfarm__Result *r = expect_message("c", TYPE(RESULT), &m);
        char image[16];
        snprintf(image, sizeof image, "image %u", r->index);
        assert_int_equal(m->payload_bytes, strlen(image));
        assert_memory_equal(m->payload, image, strlen(image));
        assert_null(r->lease); /* a matter between broker and worker */
        ack("c", job, r->index);
    }
    const Steerfarm__Done *d = EXPECT("c", Done, DONE);
    assert_string_equal(d->status->state, "done");
    assert_int_equal(d->status->counts->acked, 2);
    assert_true(count_sent("c", TYPE(PROGRESS)) >= 1);
    /* It has ended: asked again, the store answers at once. */
    fetch("c", job, 8);
    d = EXPECT("c", Done, DONE);
    assert_string_equal(d->status->job, job);
    watch("c", job);
    (void)EXPECT("c", Done, DONE);
}

static void test_keys(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    farm();
    snprintf(id, sizeof id, "%s", submit("c", "k", 1));
    assert_true(id[0] == '0' && id[1] == '-');       /* the shard goes first */
    say_submit("c", "k", "a cat", 1, 5000000000000); /* the deadline is not part of the hash */
    const Steerfarm__Accepted *a = EXPECT("c", Accepted, ACCEPTED);
    assert_string_equal(a->job, id);
    assert_true(a->again);
    say_submit("c", "k", "a dog", 1, 0);
    expect_refused("c", "KEY_CONFLICT");
    /* The same after the job's end and a restart, when only the store knows. */
    struct held_lease l = take_assign("w/1");
    result("w/1", &l, "x");
    expect_verdict("w/1", "kept");
    ack("c", id, 0);
    settle();
    restart();
    farm();
    assert_string_equal(submit("c", "k", 1), id);
    say_submit("c", "k", "a dog", 1, 0);
    expect_refused("c", "KEY_CONFLICT");
}

static void test_refusals(void **state)
{
    (void)state;
    watch("stranger", "0-1");
    expect_refused("stranger", "HELLO_REQUIRED");
    hello_client("c");
    say_submit("c", "k", "a cat", 1, 0);
    const Steerfarm__Refused *m = EXPECT("c", Refused, REFUSED);
    assert_string_equal(m->code, "UNKNOWN_MODEL");
    assert_int_equal(m->tag, 77);
    assert_string_equal(m->key, "k");
    hello_worker("w/1");
    cancel("c", NULL, NULL);
    m = EXPECT("c", Refused, REFUSED);
    assert_int_equal(m->request, TYPE(CANCEL)); /* what was refused is named */
    fetch("c", "nonsense", 1);
    m = EXPECT("c", Refused, REFUSED);
    assert_string_equal(m->code, "UNKNOWN_JOB");
    assert_int_equal(m->request, TYPE(FETCH));
    fetch("c", "0-77", 1); /* asked of the store */
    m = EXPECT("c", Refused, REFUSED);
    assert_string_equal(m->code, "UNKNOWN_JOB");
    assert_int_equal(m->request, TYPE(FETCH));
    Steerfarm__Admin admin = STEERFARM__ADMIN__INIT;
    admin.kind = STEERFARM__ADMIN_KIND__ADMIN_RETRY_FAILED;
    say_client("c", TYPE(ADMIN), &admin.base);
    m = EXPECT("c", Refused, REFUSED);
    assert_int_equal(m->request, TYPE(ADMIN));
}

static void test_bad_frames(void **state)
{
    (void)state;
    farm();
    uint8_t ping[4] = {'S', 'F', 1, TYPE(PING)}, newer[4] = {'S', 'F', 9, TYPE(PING)};
    uint8_t result_head[4] = {'S', 'F', 1, TYPE(RESULT)};
    const struct wire_frame short_head[] = {{"SF", 2}, {"", 0}};
    const struct wire_frame one[] = {{ping, 4}};
    const struct wire_frame many[] = {{ping, 4}, {"", 0}, {"", 0}};
    const struct wire_frame version[] = {{newer, 4}, {"", 0}};
    const struct wire_frame junk[] = {{ping, 4}, {"\xff\xff\xff", 3}};
    const struct wire_frame bare[] = {{result_head, 4}, {"", 0}};
    say_raw(SIDE_CLIENTS, "c", short_head, 2);
    expect_refused("c", "BAD_FRAME");
    say_raw(SIDE_CLIENTS, "c", one, 1);
    expect_refused("c", "BAD_FRAME");
    say_raw(SIDE_CLIENTS, "c", many, 3);
    expect_refused("c", "BAD_FRAME");
    say_raw(SIDE_CLIENTS, "c", version, 2);
    expect_refused("c", "BAD_VERSION");
    say_raw(SIDE_CLIENTS, "c", junk, 2);
    const Steerfarm__Refused *m = EXPECT("c", Refused, REFUSED);
    assert_string_equal(m->code, "BAD_FRAME");
    assert_int_equal(m->request, TYPE(PING)); /* what it was said to be */
    say_raw(SIDE_WORKERS, "w/1", bare, 2);
    expect_refused("w/1", "BAD_FRAME");
    say_raw(SIDE_CLIENTS, "c", NULL, 0);
    expect_refused("c", "BAD_FRAME");
    submit("c", "after nonsense", 1); /* everything goes on */
    (void)take_assign("w/1");
}

static void test_cancel(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    farm();
    cancel("c", NULL, "never");
    assert_int_equal(EXPECT("c", Reply, REPLY)->tag, 5);
    say_submit("c", "never", "a cat", 1, 0);
    expect_refused("c", "CANCELLED");
    restart(); /* the tombstone is durable */
    farm();
    say_submit("c", "never", "a cat", 1, 0);
    expect_refused("c", "CANCELLED");

    snprintf(id, sizeof id, "%s", submit("c", "k", 3));
    struct held_lease l = take_assign("w/1");
    watch("c", id);
    cancel("c", id, NULL);
    (void)EXPECT("w/1", Revoke, REVOKE);
    const Steerfarm__Done *d = EXPECT("c", Done, DONE);
    assert_string_equal(d->status->state, "cancelled");
    assert_int_equal(d->status->counts->cancelled, 3);
    result("w/1", &l, "late");
    const char *verdict = EXPECT("w/1", Verdict, VERDICT)->verdict;
    assert_true(!strcmp(verdict, "cancelled") || !strcmp(verdict, "unknown"));

    /* The key of a job that has ended is known: no tombstone, the job answers. */
    forget_sent();
    cancel("c", NULL, "k");
    const Steerfarm__Reply *r = EXPECT("c", Reply, REPLY);
    assert_int_equal(r->n_jobs, 1);
    assert_string_equal(r->jobs[0]->job, id);
    say_submit("c", "k", "a cat", 3, 0);
    assert_string_equal(EXPECT("c", Accepted, ACCEPTED)->job, id);
}

/* CANCEL right behind its SUBMIT, in the same turn. */
static void test_cancel_at_once(void **state)
{
    (void)state;
    farm();
    say_submit("c", "k", "a cat", 1, 0);
    cancel("c", NULL, "k");
    (void)EXPECT("c", Accepted, ACCEPTED);
    const Steerfarm__Reply *r = EXPECT("c", Reply, REPLY);
    assert_int_equal(r->tag, 5);
    settle();
    assert_string_equal(ask_job("c", "0-1")->state, "cancelled");
    assert_int_equal(count_sent("w/1", TYPE(ASSIGN)), 0);
}

/* What was cancelled while its image was on its way to the store is cancelled once that is said. */
static void test_cancel_while_stored(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    farm();
    snprintf(id, sizeof id, "%s", submit("c", "k", 1));
    struct held_lease l = take_assign("w/1");
    result("w/1", &l, "too late");
    snapshot_type = TYPE(REPLY);
    cancel("c", id, NULL);
    turn();
    (void)usleep(200000); /* both batches are durable before their answers are read */
    expect_verdict("w/1", "cancelled");
    (void)EXPECT("c", Reply, REPLY);
    restart_from_snapshot();
    farm();
    assert_string_equal(ask_job("c", id)->state, "cancelled");
    settle();
    assert_int_equal(count_sent("w/1", TYPE(ASSIGN)), 0);
}

/* A full disk refuses the job and, for the key's sake, its CANCEL: neither is lost in silence. */
static void test_cancel_on_full_disk(void **state)
{
    (void)state;
    farm();
    submit("c", "older", 2);
    disk_full = 1;
    say_submit("c", "k", "a cat", 1, 0);
    cancel("c", NULL, "k");
    say_submit("c", "older", "a cat", 2,
               0); /* is durable already, whatever happens to the others */
    for (int i = 0; i < 2; i++) {
        const Steerfarm__Refused *m = EXPECT("c", Refused, REFUSED);
        assert_string_equal(m->code, "DISK_FULL");
        assert_string_equal(m->key, "k");
        assert_int_equal(m->request, i ? TYPE(CANCEL) : TYPE(SUBMIT));
        assert_true(m->retry_after_ms > 0);
    }
    const Steerfarm__Accepted *a = EXPECT("c", Accepted, ACCEPTED);
    assert_true(a->again);
    assert_int_equal(ask_job("c", a->job)->counts->queued + ask_job("c", a->job)->counts->leased,
                     2);
    for (int i = 0; i < 10; i++) { /* no number of keys eats the space kept for acks */
        char key[8];
        snprintf(key, sizeof key, "n%d", i);
        cancel("c", NULL, key);
        expect_refused("c", "DISK_FULL");
    }
    disk_full = 0;
    (void)usleep(1200000); /* the store looks again every second */
    cancel("c", NULL, "k");
    (void)EXPECT("c", Reply, REPLY);
    restart();
    farm();
    say_submit("c", "k", "a cat", 1, 0);
    expect_refused("c", "CANCELLED");
    submit("c", "n1", 1);
}

/* A model met while the disk is full is stored later. */
static void test_model_on_full_disk(void **state)
{
    (void)state;
    disk_full = 1;
    settle();
    farm();
    settle();
    disk_full = 0;
    (void)usleep(1200000);
    now_ms += 1000;
    settle();
    restart();
    hello_client("c");
    submit("c", "k", 1); /* no worker has come yet */
}

/* ---- restarts, leases, verdicts ---- */

static void test_adopted_lease(void **state)
{
    (void)state;
    farm();
    submit("c", "k", 1);
    struct held_lease l = take_assign("w/1");
    restart();
    hello_client("c");
    hello_worker_with("w/1", 1, "hash1", &l, 1);
    const Steerfarm__Welcome *w = EXPECT("w/1", Welcome, WELCOME);
    assert_true(w->epoch > l.epoch);
    credit("w/1", 4, 1);
    settle();
    assert_int_equal(count_sent("w/1", TYPE(ASSIGN)), 0); /* it has it already */
    result("w/1", &l, "adopted");
    expect_verdict("w/1", "kept");
    result("w/1", &l, "adopted");
    expect_verdict("w/1", "duplicate");
}

static void test_spooled_survives(void **state)
{
    (void)state;
    struct sent_message *m;
    char id[STEER_JOB_ID_BYTES_MAX];
    farm();
    snprintf(id, sizeof id, "%s", submit("c", "k", 1));
    struct held_lease l = take_assign("w/1");
    result("w/1", &l, "spooled");
    expect_verdict("w/1", "kept");
    restart();
    hello_client("c");
    fetch("c", id, 1);
    (void)expect_message("c", TYPE(RESULT), &m);
    assert_memory_equal(m->payload, "spooled", 7);
    ack("c", id, 0);
    (void)EXPECT("c", Done, DONE);
}

/* A lease that runs out goes to another; the first valid RESULT wins, whoever sends it. */
static void test_first_result_wins(void **state)
{
    (void)state;
    farm();
    submit("c", "k", 1);
    struct held_lease a = take_assign("w/1");
    hello_worker("v/1");
    now_ms += 10001;
    Steerfarm__Pong pong = STEERFARM__PONG__INIT;
    say_worker("w/1", TYPE(PONG), &pong.base); /* both are alive, one engine hangs */
    say_worker("v/1", TYPE(PONG), &pong.base);
    turn();
    now_ms += 2000; /* the back-off */
    struct held_lease b = take_assign("v/1");
    assert_true(a.lease != b.lease);
    result("w/1", &a, "first");
    expect_verdict("w/1", "kept");
    assert_true(count_sent("v/1", TYPE(REVOKE)) == 1);
    result("v/1", &b, "second");
    expect_verdict("v/1", "duplicate");
}

/* A worker whose lease ran out gets nothing new before its engine shows life. */
static void test_stalled_worker(void **state)
{
    (void)state;
    farm();
    submit("c", "k", 1);
    struct held_lease a = take_assign("w/1");
    Steerfarm__Pong pong = STEERFARM__PONG__INIT;
    for (int i = 0; i < 10; i++) {
        now_ms += 5000;
        say_worker("w/1", TYPE(PONG), &pong.base);
        credit("w/1", 4, 1);
        settle();
    }
    assert_int_equal(count_sent("w/1", TYPE(ASSIGN)), 1);
    renew("w/1", &a, 1); /* life: what it lost is taken off it, and it may work again */
    const Steerfarm__Revoke *m = EXPECT("w/1", Revoke, REVOKE);
    assert_int_equal(m->leases[0]->lease, a.lease);
    struct held_lease b = take_assign("w/1");
    result("w/1", &b, "x");
    expect_verdict("w/1", "kept");
}

/* A RESULT under the lease of another image, or of another model's hash, leaves no image behind. */
static void test_odd_results(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    farm();
    snprintf(id, sizeof id, "%s", submit("c", "k", 2));
    struct held_lease a = take_assign("w/1"), b = take_assign("w/1");
    say_result("w/1", &a, id, b.index, "hash1", "x", wire_crc32("x", 1));
    expect_refused("w/1", "BAD_FRAME");
    say_result("w/1", &a, id, a.index, "other", "x", wire_crc32("x", 1));
    expect_verdict("w/1", "unknown");
    settle();
    now_ms += 20000;
    hello_worker("w/1");
    forget_sent();
    /* Both come again and can be finished. */
    for (int i = 0; i < 2; i++) {
        struct held_lease l = take_assign("w/1");
        result("w/1", &l, "good");
        expect_verdict("w/1", "kept");
    }
    assert_int_equal(ask_job("c", id)->counts->spooled, 2);
}

/* A RESULT on its way to the store may be repeated and its lease renewed: only its VERDICT says
 * that the worker may forget the image. */
static void test_renew_while_stored(void **state)
{
    (void)state;
    farm();
    submit("c", "k", 1);
    struct held_lease l = take_assign("w/1");
    result("w/1", &l, "x");
    renew("w/1", &l, 1);
    result("w/1", &l, "x");
    expect_verdict("w/1", "kept");
    settle();
    assert_int_equal(count_sent("w/1", TYPE(VERDICT)), 1);
    assert_int_equal(count_sent("w/1", TYPE(REVOKE)), 0);
    renew("w/1", &l, 1); /* now it is over */
    assert_int_equal(EXPECT("w/1", Revoke, REVOKE)->leases[0]->lease, l.lease);
}

static void test_renew_of_many(void **state)
{
    (void)state;
    static Steerfarm__LeaseProgress p[STEER_LEASES_MAX + 1], *list[STEER_LEASES_MAX + 1];
    Steerfarm__Renew m = STEERFARM__RENEW__INIT;
    farm();
    for (size_t i = 0; i <= STEER_LEASES_MAX; i++) {
        p[i] = (Steerfarm__LeaseProgress)STEERFARM__LEASE_PROGRESS__INIT;
        p[i].epoch = 99;
        p[i].lease = i;
        list[i] = p + i;
    }
    m.leases = list;
    m.n_leases = STEER_LEASES_MAX + 1;
    say_worker("w/1", TYPE(RENEW), &m.base);
    expect_refused("w/1", "BAD_VALUE");
    m.n_leases = 3;
    say_worker("w/1", TYPE(RENEW), &m.base);
    assert_int_equal(EXPECT("w/1", Revoke, REVOKE)->n_leases, 3); /* in one message */
}

/* A RESULT has to say what it was made with, and a pinned numerics class is looked at. */
static void test_unsaid_results(void **state)
{
    (void)state;
    farm();
    submit("c", "k", 1);
    struct held_lease l = take_assign("w/1");
    say_result("w/1", &l, l.job, l.index, NULL, "x", wire_crc32("x", 1));
    expect_verdict("w/1", "unknown");
    settle();
    Steerfarm__Submit s = STEERFARM__SUBMIT__INIT;
    Steerfarm__Job job = STEERFARM__JOB__INIT;
    s.key = text("pinned");
    s.job = &job;
    job.model = text("m");
    job.prompt = text("a cat");
    job.numerics = text("cpu-x");
    job.has_priority = 1;
    job.priority = 1;
    say_client("c", TYPE(SUBMIT), &s.base);
    (void)EXPECT("c", Accepted, ACCEPTED);
    worker_numerics = "cpu-x";
    hello_worker("v/1");
    l = take_assign("v/1");
    result("v/1", &l, "x"); /* without its class */
    expect_verdict("v/1", "unknown");
}

static void test_damaged_results(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    farm();
    snprintf(id, sizeof id, "%s", submit("c", "k", 1));
    for (int attempt = 0; attempt < STEER_ATTEMPTS_MAX; attempt++) {
        struct held_lease l = take_assign("w/1");
        for (int i = 0; i < 2; i++) {
            say_result("w/1", &l, l.job, l.index, "hash1", "x", 12345);
            expect_verdict("w/1", "retry");
        }
        say_result("w/1", &l, l.job, l.index, "hash1", "x", 12345); /* not for ever */
        expect_verdict("w/1", "unknown");
        now_ms += 60000;
        hello_worker("w/1");
    }
    settle();
    assert_string_equal(ask_job("c", id)->state, "failed");
}

/* A hash as long as limits.h allows is compared whole; a longer one is refused, not cut. */
static void test_long_hash(void **state)
{
    (void)state;
    char hash[STEER_NAME_BYTES_MAX + 2] = {0};
    memset(hash, 'a', STEER_NAME_BYTES_MAX);
    hello_client("c");
    hello_worker_with("w/1", 1, hash, NULL, 0);
    (void)EXPECT("w/1", Welcome, WELCOME);
    credit("w/1", 1, 1);
    submit("c", "k", 1);
    assert_string_equal(EXPECT("w/1", Assign, ASSIGN)->images[0]->job->model_hash, hash);
    hash[STEER_NAME_BYTES_MAX] = 'a';
    hello_worker_with("v/1", 1, hash, NULL, 0);
    expect_refused("v/1", "BAD_VALUE");
}

/* ---- retries ---- */

static void test_attempts(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    farm();
    snprintf(id, sizeof id, "%s", submit("c", "k", 1));
    for (int attempt = 1; attempt <= 3; attempt++) {
        struct held_lease l = take_assign("w/1");
        fail_lease("w/1", &l, "RENDER_FAILED");
        settle();
        assert_int_equal(ask_job("c", id)->counts->queued, 1);
        now_ms += 9000;
        hello_worker("w/1");
    }
    settle();
    restart(); /* attempts are remembered; the restart itself is none */
    farm();
    for (int attempt = 4; attempt <= 5; attempt++) {
        struct held_lease l = take_assign("w/1");
        fail_lease("w/1", &l, "RENDER_FAILED");
        settle();
        now_ms += 9000;
        hello_worker("w/1");
    }
    const Steerfarm__JobStatus *s = ask_job("c", id);
    assert_string_equal(s->state, "failed");
    assert_int_equal(s->n_failures, 1);
    assert_int_equal(s->failures[0]->attempts, 5);

    /* retry --failed begins anew. */
    Steerfarm__Admin admin = STEERFARM__ADMIN__INIT;
    admin.kind = STEERFARM__ADMIN_KIND__ADMIN_RETRY_FAILED;
    admin.job = id;
    say_client("c", TYPE(ADMIN), &admin.base);
    (void)EXPECT("c", Reply, REPLY);
    struct held_lease l = take_assign("w/1");
    result("w/1", &l, "at last");
    expect_verdict("w/1", "kept");
    ack("c", id, 0);
    settle();
    s = ask_job("c", id);
    assert_string_equal(s->state, "done");
    assert_int_equal(s->n_failures, 0);
}

/* A reason that is cut is still a text: a DONE with half a character could not be read. */
static void test_long_reasons(void **state)
{
    (void)state;
    static char reason[3001];
    char id[STEER_JOB_ID_BYTES_MAX];
    farm();
    for (int shift = 0; shift < 2; shift++) {
        Steerfarm__Fail f = STEERFARM__FAIL__INIT;
        memset(reason, 'x', sizeof reason - 1);
        for (size_t i = (size_t)shift; i + 2 < sizeof reason; i += 2)
            memcpy(reason + i, "\xc3\xa4", 2);
        snprintf(id, sizeof id, "%s", submit("c", shift ? "odd" : "even", 1));
        watch("c", id);
        struct held_lease l = take_assign("w/1");
        Steerfarm__Lease lease = lease_message(&l);
        f.lease = &lease;
        f.code = text("RENDER_FAILED");
        f.text = reason;
        say_worker("w/1", TYPE(FAIL), &f.base);
        const char *shown = EXPECT("c", Done, DONE)->status->failures[0]->text;
        assert_true(wire_utf8_valid(shown, strlen(shown)));
        shown = ask_job("c", id)->failures[0]->text; /* as the store has it */
        assert_true(wire_utf8_valid(shown, strlen(shown)));
    }
}

/* A batch that fails together says nothing about its images: each is tried alone, and that counts.
 */
static void test_failed_batch(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    hello_client("c");
    hello_worker_with("w/1", 1, "hash1", NULL, 0);
    (void)EXPECT("w/1", Welcome, WELCOME);
    credit("w/1", 3, 3);
    snprintf(id, sizeof id, "%s", submit("c", "k", 3));
    const Steerfarm__Assign *a = EXPECT("w/1", Assign, ASSIGN);
    assert_int_equal(a->n_images, 3);
    for (size_t i = 0; i < 3; i++) {
        Steerfarm__Fail f = STEERFARM__FAIL__INIT;
        f.lease = a->images[i]->lease;
        f.code = text("NO_MEMORY");
        f.text = text("too many at once");
        f.retryable = 1;
        say_worker("w/1", TYPE(FAIL), &f.base);
    }
    settle();
    for (int i = 0; i < 3; i++) {
        struct held_lease l = take_assign("w/1"); /* one image each */
        if (!i) {
            fail_lease("w/1", &l, "NO_MEMORY");
        } else {
            result("w/1", &l, "x");
            expect_verdict("w/1", "kept");
        }
    }
    now_ms += 6000;
    hello_worker("w/1");
    struct held_lease l = take_assign("w/1");
    result("w/1", &l, "x");
    expect_verdict("w/1", "kept");
    fetch("c", id, 8);
    for (uint32_t i = 0; i < 3; i++) {
        (void)EXPECT("c", Result, RESULT);
        ack("c", id, i);
    }
    (void)EXPECT("c", Done, DONE);
    assert_int_equal(ask_job("c", id)->n_failures, 0); /* of what went well in the end */
}

/* What a drained worker gives back was no attempt. */
static void test_drain_is_no_attempt(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    farm();
    snprintf(id, sizeof id, "%s", submit("c", "k", 1));
    for (int i = 0; i < 2 * STEER_ATTEMPTS_MAX; i++) {
        struct held_lease l = take_assign("w/1");
        Steerfarm__Drain drain = STEERFARM__DRAIN__INIT;
        say_worker("w/1", TYPE(DRAIN), &drain.base);
        fail_lease("w/1", &l, "CANCELLED");
        int before = count_sent("w/1", TYPE(ASSIGN));
        settle();
        assert_int_equal(count_sent("w/1", TYPE(ASSIGN)), before); /* it is leaving */
        hello_worker("w/1");
    }
    assert_string_equal(ask_job("c", id)->state, "queued");
}

/* An image goes to another worker than the one that failed it; three such and that one is out. */
static void test_quarantine(void **state)
{
    (void)state;
    farm();
    for (int i = 0; i < 3; i++) {
        char key[8];
        snprintf(key, sizeof key, "k%d", i);
        submit("c", key, 1);
        struct held_lease l = take_assign("w/1");
        fail_lease("w/1", &l, "RENDER_FAILED");
        if (!i) hello_worker("v/1");
        credit("w/1", 4, 1);
        credit("v/1", 4, 1);
        settle();
        now_ms += 3000; /* back-off, and patience for the worker that has the model loaded */
        l = take_assign("v/1");
        credit("v/1", 0, 1); /* the next job is the other's again */
        result("v/1", &l, "good");
        expect_verdict("v/1", "kept");
    }
    Steerfarm__Query q = STEERFARM__QUERY__INIT;
    q.kind = STEERFARM__QUERY_KIND__QUERY_WORKERS;
    say_client("c", TYPE(QUERY), &q.base);
    const Steerfarm__Reply *r = EXPECT("c", Reply, REPLY);
    assert_int_equal(r->n_workers, 2);
    for (size_t i = 0; i < 2; i++)
        assert_string_equal(r->workers[i]->state,
                            strcmp(r->workers[i]->worker, "w") ? "ready" : "quarantined");
    submit("c", "more", 1);
    credit("v/1", 4, 1);
    (void)take_assign("v/1");
}

/* A job is for the model's hash it was accepted with. */
static void test_pinned_hash(void **state)
{
    (void)state;
    farm();
    credit("w/1", 0, 1);
    submit("c", "k", 1);
    hello_worker_with("v/1", 1, "hash2", NULL, 0); /* the same name, other bytes */
    (void)EXPECT("v/1", Welcome, WELCOME);
    credit("v/1", 4, 1);
    now_ms += 5000;
    settle();
    assert_int_equal(count_sent("v/1", TYPE(ASSIGN)), 0);
    hello_worker("w/1");
    (void)take_assign("w/1");
}

static void test_replaced(void **state)
{
    (void)state;
    farm();
    hello_worker_with("w/2", 2, "hash1", NULL, 0);
    (void)EXPECT("w/1", Replaced, REPLACED); /* the older one leaves */
    (void)EXPECT("w/2", Welcome, WELCOME);
    hello_worker_with("w/0", 0, "hash1", NULL, 0);
    (void)EXPECT("w/0", Replaced, REPLACED);
}

/* ---- fetching ---- */

static void spool_images(const char *key, uint32_t images, char id[STEER_JOB_ID_BYTES_MAX])
{
    snprintf(id, STEER_JOB_ID_BYTES_MAX, "%s", submit("c", key, images));
    for (uint32_t i = 0; i < images; i++) {
        struct held_lease l = take_assign("w/1");
        result("w/1", &l, "image");
        expect_verdict("w/1", "kept");
    }
}

static void test_fetch_credit_and_range(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    farm();
    spool_images("k", 6, id);
    fetch_range("c", id, 2, 2, 4);
    settle();
    assert_int_equal(count_sent("c", TYPE(RESULT)), 2); /* the credit */
    ack("c", id, 2);
    ack("c", id, 3);
    settle();
    assert_int_equal(count_sent("c", TYPE(RESULT)), 3); /* the range */
    hello_client("d");
    fetch("d", id, 8);
    const Steerfarm__Refused *m = EXPECT("c", Refused, REFUSED);
    assert_string_equal(m->code, "REPLACED");
    assert_string_equal(m->job, id);
    settle();
    assert_int_equal(count_sent("d", TYPE(RESULT)), 4);
}

/* When nothing of what is fetched can come any more, its fetcher is told, though the job goes on.
 */
static void test_fetch_of_a_part(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    farm();
    credit("w/1", 3, 1);
    snprintf(id, sizeof id, "%s", submit("c", "k", 6));
    fetch_range("c", id, 8, 6, 9);
    expect_refused("c", "BAD_VALUE");
    fetch_range("c", id, 8, 2, 1);
    expect_refused("c", "BAD_VALUE");
    fetch_range("c", id, 8, 0, 2);
    for (uint32_t i = 0; i < 3; i++) {
        struct held_lease l = take_assign("w/1");
        if (i == 2) credit("w/1", 0, 1);
        if (l.index == 1) {
            Steerfarm__Fail f = STEERFARM__FAIL__INIT;
            Steerfarm__Lease lease = lease_message(&l);
            f.lease = &lease;
            f.code = f.text = text("RENDER_FAILED");
            say_worker("w/1", TYPE(FAIL), &f.base);
            continue;
        }
        result("w/1", &l, "x");
        expect_verdict("w/1", "kept");
        (void)EXPECT("c", Result, RESULT);
        settle();
        assert_int_equal(count_sent("c", TYPE(DONE)), 0);
        ack("c", id, l.index);
    }
    const Steerfarm__Done *d = EXPECT("c", Done, DONE);
    assert_string_equal(d->status->state, "running");
    assert_int_equal(d->status->counts->acked, 2);
    settle();
    assert_int_equal(count_sent("c", TYPE(DONE)), 1);
    fetch_range("c", id, 8, 0, 0); /* was acknowledged long ago */
    (void)EXPECT("c", Done, DONE);
    fetch_range("c", id, 8, 1, 1); /* has failed */
    (void)EXPECT("c", Done, DONE);
    fetch_range("c", id, 8, 3, 3); /* may come */
    settle();
    assert_int_equal(count_sent("c", TYPE(DONE)), 3);
    cancel("c", id, NULL);
    assert_string_equal(EXPECT("c", Done, DONE)->status->state, "cancelled");
}

/* To a client that says nothing two copies of a RESULT are sent, not nine. */
static void test_silent_client(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    Steerfarm__Ping ping = STEERFARM__PING__INIT;
    farm();
    spool_images("k", 1, id);
    fetch("c", id, 4);
    settle();
    for (int i = 0; i < 20; i++) {
        now_ms += 10000;
        settle();
    }
    assert_int_equal(count_sent("c", TYPE(RESULT)), 2);
    say_client("c", TYPE(PING), &ping.base);
    now_ms += 100;
    settle();
    assert_int_equal(count_sent("c", TYPE(RESULT)), 3);
}

/* A RESULT is repeated until it is acknowledged, more and more slowly, and not for ever. */
static void test_client_that_never_reads(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    farm();
    spool_images("k", 1, id);
    fetch("c", id, 4);
    settle();
    assert_int_equal(count_sent("c", TYPE(RESULT)), 1);
    now_ms += 2500;
    settle();
    assert_int_equal(count_sent("c", TYPE(RESULT)), 2);
    for (int i = 0; i < 60; i++) {
        Steerfarm__Ping ping = STEERFARM__PING__INIT;
        now_ms += 10000;
        say_client("c", TYPE(PING), &ping.base); /* alive, but the images are left lying */
        settle();
        forget_sent();
    }
    now_ms += 600000;
    hello_client("settler");
    settle();
    forget_sent();
    now_ms += 600000;
    hello_client("settler");
    settle();
    assert_int_equal(count_sent("c", TYPE(RESULT)), 0);
    hello_client("c");
    fetch("c", id, 4); /* it is back */
    (void)EXPECT("c", Result, RESULT);
}

/* A broker out of descriptors keeps its images and its life. */
static void test_no_descriptors(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    struct rlimit before, none;
    farm();
    spool_images("k", 1, id);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    none = before;
    none.rlim_cur = 3;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    fetch("c", id, 4);
    submit("c", "another", 1);
    struct held_lease l = take_assign("w/1");
    result("w/1", &l, "x");
    expect_verdict("w/1", "unknown"); /* it is rendered again */
    settle();
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_int_equal(ask_job("c", id)->counts->spooled, 1);
    now_ms += 2500;
    (void)EXPECT("c", Result, RESULT);
    l = take_assign("w/1");
    result("w/1", &l, "x");
    expect_verdict("w/1", "kept");
}

/* A client that is gone is not read for at full speed. */
static void test_client_that_is_gone(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    farm();
    spool_images("k", 1, id);
    gone = "c";
    fetch("c", id, 4);
    settle();
    int fd_busy = 0;
    for (int i = 0; i < 20; i++) {
        struct pollfd p = {route_fd(route), POLLIN, 0};
        turn();
        fd_busy += poll(&p, 1, 5) > 0;
    }
    assert_true(fd_busy <= 1);
    gone = NULL;
    fetch("c", id, 4);
    now_ms += 5000;
    (void)EXPECT("c", Result, RESULT);
}

static void test_dead_watchers_make_room(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX], name[16];
    farm();
    credit("w/1", 0, 1);
    snprintf(id, sizeof id, "%s", submit("c", "k", 1));
    for (int i = 0; i < 1024; i++) {
        snprintf(name, sizeof name, "dead%d", i);
        Steerfarm__Hello h = STEERFARM__HELLO__INIT;
        h.version_min = h.version_max = 1;
        h.role = STEERFARM__ROLE__CLIENT;
        gone = name;
        say_client(name, TYPE(HELLO), &h.base);
        watch(name, id);
        now_ms += 300;
        turn(); /* its PROGRESS cannot be delivered */
    }
    gone = NULL;
    watch("c", id);
    now_ms += 300;
    (void)EXPECT("c", Progress, PROGRESS);
}

static void test_progress_steps(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    farm();
    snprintf(id, sizeof id, "%s", submit("c", "k", 1));
    struct held_lease l = take_assign("w/1");
    watch("c", id);
    renew("w/1", &l, 3);
    now_ms += 300;
    const Steerfarm__Progress *p = EXPECT("c", Progress, PROGRESS);
    assert_int_equal(p->counts->leased, 1);
    assert_int_equal(p->step, 3);
    assert_int_equal(p->steps, 9);
    for (int i = 0; i < 10; i++) { /* at most five a second */
        renew("w/1", &l, 4);
        now_ms += 10;
        turn();
    }
    assert_true(count_sent("c", TYPE(PROGRESS)) <= 2);
}

/* ---- age ---- */

static void test_deadline(void **state)
{
    (void)state;
    farm();
    credit("w/1", 0, 1);
    say_submit("c", "k", "a cat", 2, UINT64_C(1700000000000) + now_ms + 5000);
    (void)EXPECT("c", Accepted, ACCEPTED);
    watch("c", "0-1");
    now_ms += 4000;
    settle();
    assert_int_equal(count_sent("c", TYPE(DONE)), 0);
    now_ms += 2000;
    const Steerfarm__Done *d = EXPECT("c", Done, DONE);
    assert_string_equal(d->status->state, "expired");
    assert_int_equal(d->status->counts->expired, 2);
}

/* A deadline outlives restarts and holds for what retry --failed queues again. */
static void test_deadline_after_retry(void **state)
{
    (void)state;
    uint64_t deadline_ms = UINT64_C(1700000000000) + now_ms + 60000;
    farm();
    for (int i = 0; i < 2; i++) {
        say_submit("c", i ? "retried" : "other", "a cat", 1, deadline_ms);
        (void)EXPECT("c", Accepted, ACCEPTED);
        struct held_lease l = take_assign("w/1");
        Steerfarm__Fail f = STEERFARM__FAIL__INIT;
        Steerfarm__Lease lease = lease_message(&l);
        f.lease = &lease;
        f.code = f.text = text("RENDER_FAILED");
        say_worker("w/1", TYPE(FAIL), &f.base);
    }
    settle();
    credit("w/1", 0, 1);
    Steerfarm__Admin admin = STEERFARM__ADMIN__INIT;
    admin.kind = STEERFARM__ADMIN_KIND__ADMIN_RETRY_FAILED;
    admin.job = text("0-2");
    say_client("c", TYPE(ADMIN), &admin.base);
    (void)EXPECT("c", Reply, REPLY);
    restart();
    hello_client("c");
    assert_string_equal(ask_job("c", "0-2")->state, "queued");
    now_ms += 70000;
    settle();
    assert_string_equal(ask_job("c", "0-2")->state, "expired");
    assert_string_equal(ask_job("c", "0-1")->state, "failed");
}

/* Images that nobody fetches for --keep end as expired; so do tombstones, and ended jobs. */
static void test_age(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    farm();
    spool_images("k", 2, id);
    cancel("c", NULL, "never");
    (void)EXPECT("c", Reply, REPLY);
    now_ms += KEEP_MS / 2;
    hello_client("settler");
    hello_client("c");
    settle();
    assert_int_equal(ask_job("c", id)->counts->spooled, 2);
    now_ms += KEEP_MS / 2 + 120000;
    hello_client("settler");
    hello_client("c");
    settle();
    assert_string_equal(ask_job("c", id)->state, "expired");
    hello_worker("w/1");
    submit("c", "never", 1); /* its tombstone has gone */
    now_ms += KEEP_MS + 120000;
    hello_client("settler");
    hello_client("c");
    settle();
    forget_sent();
    watch("c", id);
    expect_refused("c", "UNKNOWN_JOB");
}

/* However many jobs have passed their age, they go in seconds, a batch at a time. */
static void test_age_of_many(void **state)
{
    (void)state;
    enum { JOBS = 25000 };
    struct store_options o;
    struct store_opened opened;
    struct store_completion c;
    struct steer_error err;
    struct store *s;
    struct store_batch *b = store_batch_new();
    route_close(route);
    forget_sent();
    store_options_default(&o);
    o.dir = dir;
    assert_int_equal(store_open(&s, &o, NULL, &opened, &err), 0);
    for (uint64_t id = 1; id <= JOBS; id++) {
        char key[32];
        snprintf(key, sizeof key, "k%d", (int)id);
        struct store_job j = {.id = id,
                              .tenant = "default",
                              .key = key,
                              .spec = "",
                              .accepted_ms = UINT64_C(1700000000000)};
        assert_int_equal(store_batch_job_put(b, &j), 0);
        assert_int_equal(
            store_batch_job_end(b, id, STORE_DONE, UINT64_C(1700000000000) + id, NULL, 0), 0);
    }
    store_submit(s, &b, NULL);
    struct pollfd p = {store_fd(s), POLLIN, 0};
    while (store_next(s, &c) != 1)
        (void)poll(&p, 1, 100);
    assert_int_equal(c.code, 0);
    store_completion_clear(&c);
    store_close(s);
    now_ms += KEEP_MS + 60000;
    open_route();
    hello_client("c");
    for (int i = 0; i < 6; i++) {
        settle();
        now_ms += 500;
    }
    forget_sent();
    watch("c", "0-rd8"); /* the last of them */
    expect_refused("c", "UNKNOWN_JOB");
}

/* A large job that nobody fetches fills the spool, and after --keep makes room for others. */
static void test_abandoned_job(void **state)
{
    (void)state;
    char id[STEER_JOB_ID_BYTES_MAX];
    route_close(route);
    forget_sent();
    spool_max = 77850; /* one image of 64x64 at the worst */
    open_route();
    farm();
    snprintf(id, sizeof id, "%s", submit("c", "abandoned", 1000));
    struct held_lease l = take_assign("w/1");
    result("w/1", &l, "taking up the room of all others");
    expect_verdict("w/1", "kept");
    settle();
    assert_int_equal(count_sent("w/1", TYPE(ASSIGN)), 1);
    now_ms += KEEP_MS + 120000;
    hello_client("settler");
    hello_client("c");
    hello_worker("w/1");
    settle();
    const Steerfarm__JobStatus *s = ask_job("c", id);
    assert_string_equal(s->state, "expired");
    assert_int_equal(s->counts->expired, 1000);
    submit("c", "next", 1);
    (void)take_assign("w/1");
}

/* A restart is no sign of interest; a FETCH is one, and outlives it. */
static void test_age_over_restarts(void **state)
{
    (void)state;
    char old[STEER_JOB_ID_BYTES_MAX], asked[STEER_JOB_ID_BYTES_MAX];
    farm();
    spool_images("old", 1, old);
    spool_images("asked", 1, asked);
    now_ms += KEEP_MS / 2;
    hello_client("settler");
    hello_client("c");
    fetch("c", asked, 1);
    (void)EXPECT("c", Result, RESULT);
    settle();
    restart();
    now_ms += KEEP_MS / 2 + KEEP_MS / 8;
    hello_client("settler");
    hello_client("c");
    settle();
    assert_string_equal(ask_job("c", old)->state, "expired");
    assert_int_equal(ask_job("c", asked)->counts->spooled, 1);
}

static void test_too_big_for_the_spool(void **state)
{
    (void)state;
    route_close(route);
    forget_sent();
    spool_max = 50000; /* less than an image of 64x64 may need */
    open_route();
    farm();
    say_submit("c", "k", "a cat", 1, 0);
    expect_refused("c", "BAD_SIZE");
}

/* A batch that does not fit the spool whole goes out as far as it fits. */
static void test_batch_and_small_spool(void **state)
{
    (void)state;
    route_close(route);
    forget_sent();
    spool_max = 200000; /* two images of 64x64 at the worst, not four */
    open_route();
    hello_client("c");
    hello_worker_with("w/1", 1, "hash1", NULL, 0);
    (void)EXPECT("w/1", Welcome, WELCOME);
    credit("w/1", 4, 4);
    submit("c", "k", 4);
    const Steerfarm__Assign *a = EXPECT("w/1", Assign, ASSIGN);
    assert_int_equal(a->n_images, 2);
    settle();
    assert_int_equal(count_sent("w/1", TYPE(ASSIGN)), 1);
    struct held_lease l = {.epoch = a->images[0]->lease->epoch,
                           .lease = a->images[0]->lease->lease,
                           .index = a->images[0]->lease->index};
    snprintf(l.job, sizeof l.job, "%s", a->images[0]->lease->job);
    result("w/1", &l, "small"); /* takes less than was set aside: there is room again */
    expect_verdict("w/1", "kept");
    a = EXPECT("w/1", Assign, ASSIGN);
    assert_int_equal(a->n_images, 1);
}

/* Room given back by an image counts only together with the room that the image takes. */
static void test_spool_is_not_overcommitted(void **state)
{
    (void)state;
    static char big[70001];
    memset(big, 'x', sizeof big - 1);
    route_close(route);
    forget_sent();
    spool_max = 200000; /* two images of 64x64 at the worst */
    open_route();
    farm();
    submit("c", "k", 4);
    struct held_lease l = take_assign("w/1");
    (void)take_assign("w/1");
    result("w/1", &l, big);
    settle();
    assert_int_equal(count_sent("w/1", TYPE(ASSIGN)), 2);
}

static void test_many_acks(void **state)
{
    (void)state;
    farm();
    submit("c", "k", 1);
    Steerfarm__ResultAck a = STEERFARM__RESULT_ACK__INIT;
    Steerfarm__Range range = STEERFARM__RANGE__INIT;
    static Steerfarm__Range *list[STEER_RANGES_MAX + 1];
    for (int i = 0; i <= STEER_RANGES_MAX; i++)
        list[i] = &range;
    a.job = accepted_id;
    a.indices = list;
    a.n_indices = STEER_RANGES_MAX + 1;
    say_client("c", TYPE(RESULT_ACK), &a.base);
    expect_refused("c", "BAD_VALUE");
    a.n_indices = 1;
    a.has_tag = 1;
    a.tag = 9;
    say_client("c", TYPE(RESULT_ACK), &a.base); /* with a tag it is answered, once durable */
    assert_int_equal(EXPECT("c", Reply, REPLY)->tag, 9);
}

/* The list comes in pages, none of which is larger than a message may be. */
static void test_pages(void **state)
{
    (void)state;
    static char prompt[STEER_PROMPT_BYTES_MAX + 1];
    char before[STEER_JOB_ID_BYTES_MAX] = "";
    enum { JOBS = 300 };
    farm();
    credit("w/1", 0, 1);
    memset(prompt, 'x', sizeof prompt - 1);
    for (int i = 0; i < JOBS; i++) {
        char key[16];
        snprintf(key, sizeof key, "k%d", i);
        say_submit("c", key, prompt, 1, 0);
        if (i % 50 < 49) continue; /* fifty in one commit */
        for (int k = 0; k < 50; k++)
            (void)EXPECT("c", Accepted, ACCEPTED);
        forget_sent();
    }
    size_t seen = 0, pages = 0;
    for (int more = 1; more; pages++) {
        Steerfarm__Query q = STEERFARM__QUERY__INIT;
        q.kind = STEERFARM__QUERY_KIND__QUERY_JOBS;
        q.has_limit = 1;
        q.limit = 1000;
        q.before = *before ? before : NULL;
        say_client("c", TYPE(QUERY), &q.base);
        const Steerfarm__Reply *m = EXPECT("c", Reply, REPLY);
        assert_true(steerfarm__reply__get_packed_size(m) < STEER_BODY_BYTES_MAX);
        seen += m->n_jobs;
        more = m->more;
        assert_true(!more == !m->next);
        if (more) snprintf(before, sizeof before, "%s", m->next);
    }
    assert_int_equal(seen, JOBS);
    assert_int_equal(pages, 3);
}

/* What a newer release adds to a job is kept, as far as there is an end to it. */
static void test_large_job(void **state)
{
    (void)state;
    static uint8_t unknown[STEER_SPEC_BYTES_MAX];
    Steerfarm__Submit s = STEERFARM__SUBMIT__INIT;
    Steerfarm__Job job = STEERFARM__JOB__INIT;
    ProtobufCMessageUnknownField field = {100, PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED, sizeof unknown,
                                          unknown};
    farm();
    unknown[0] = 0xfd, unknown[1] = 0xff, unknown[2] = 0x03; /* 65533 bytes follow */
    s.key = text("k");
    s.job = &job;
    job.model = text("m");
    job.prompt = text("a cat");
    job.base.n_unknown_fields = 1;
    job.base.unknown_fields = &field;
    say_client("c", TYPE(SUBMIT), &s.base);
    expect_refused("c", "BAD_VALUE");
    field.len = 3;
    unknown[0] = 2;
    say_client("c", TYPE(SUBMIT), &s.base);
    (void)EXPECT("c", Accepted, ACCEPTED);
}

/* Ranges come in any order, overlap, and may name what is not there. */
static void test_ack_ranges(void **state)
{
    (void)state;
    static const uint32_t given[][2] = {{5, 5}, {0, 1}, {1, 2}, {9, 9}, {4, 3}, {0, 0}};
    char id[STEER_JOB_ID_BYTES_MAX];
    Steerfarm__ResultAck a = STEERFARM__RESULT_ACK__INIT;
    Steerfarm__Range ranges[6], *list[6];
    farm();
    spool_images("k", 6, id);
    for (int i = 0; i < 6; i++) {
        ranges[i] = (Steerfarm__Range)STEERFARM__RANGE__INIT;
        ranges[i].first = given[i][0];
        ranges[i].last = given[i][1];
        list[i] = ranges + i;
    }
    a.job = id;
    a.indices = list;
    a.n_indices = 6;
    a.has_tag = 1;
    say_client("c", TYPE(RESULT_ACK), &a.base);
    (void)EXPECT("c", Reply, REPLY);
    assert_int_equal(ask_job("c", id)->counts->acked, 4);
    restart();
    hello_client("c");
    fetch("c", id, 8);
    settle();
    assert_int_equal(count_sent("c", TYPE(RESULT)), 2);
}

static void test_jobs_by_state(void **state)
{
    (void)state;
    farm();
    credit("w/1", 1, 1);
    submit("c", "running", 1);
    (void)take_assign("w/1");
    submit("c", "waiting", 1);
    const char *const states[] = {"running", "queued"}, *const keys[] = {"running", "waiting"};
    for (int i = 0; i < 2; i++) {
        Steerfarm__Query q = STEERFARM__QUERY__INIT;
        q.kind = STEERFARM__QUERY_KIND__QUERY_JOBS;
        q.state = text(states[i]);
        say_client("c", TYPE(QUERY), &q.base);
        const Steerfarm__Reply *r = EXPECT("c", Reply, REPLY);
        assert_int_equal(r->n_jobs, 1);
        assert_string_equal(r->jobs[0]->key, keys[i]);
    }
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_whole_life),
        TEST(test_keys),
        TEST(test_refusals),
        TEST(test_bad_frames),
        TEST(test_cancel),
        TEST(test_cancel_at_once),
        TEST(test_cancel_while_stored),
        TEST(test_cancel_on_full_disk),
        TEST(test_model_on_full_disk),
        TEST(test_adopted_lease),
        TEST(test_spooled_survives),
        TEST(test_first_result_wins),
        TEST(test_stalled_worker),
        TEST(test_odd_results),
        TEST(test_renew_while_stored),
        TEST(test_renew_of_many),
        TEST(test_unsaid_results),
        TEST(test_damaged_results),
        TEST(test_long_hash),
        TEST(test_long_reasons),
        TEST(test_attempts),
        TEST(test_failed_batch),
        TEST(test_drain_is_no_attempt),
        TEST(test_quarantine),
        TEST(test_pinned_hash),
        TEST(test_replaced),
        TEST(test_fetch_credit_and_range),
        TEST(test_fetch_of_a_part),
        TEST(test_silent_client),
        TEST(test_client_that_never_reads),
        TEST(test_no_descriptors),
        TEST(test_client_that_is_gone),
        TEST(test_dead_watchers_make_room),
        TEST(test_progress_steps),
        TEST(test_deadline),
        TEST(test_deadline_after_retry),
        TEST(test_age),
        TEST(test_age_of_many),
        TEST(test_abandoned_job),
        TEST(test_age_over_restarts),
        TEST(test_too_big_for_the_spool),
        TEST(test_batch_and_small_spool),
        TEST(test_spool_is_not_overcommitted),
        TEST(test_many_acks),
        TEST(test_ack_ranges),
        TEST(test_jobs_by_state),
        TEST(test_pages),
        TEST(test_large_job),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
