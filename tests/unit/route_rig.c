// SPDX-License-Identifier: Apache-2.0
#include "route_rig.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "log.h"
#include "wire.h"

enum { SENT_MAX = 512 };

char dir[32];
struct route *route;
uint64_t now_ms;
static struct sent_message sent[SENT_MAX];
static int sent_count;
const char *gone;
uint64_t spool_max;
const char *worker_numerics;
int snapshot_type;
_Atomic int disk_full;

/* ---- the disk ---- */

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

void forget_sent(void)
{
    for (int i = 0; i < sent_count; i++) {
        protobuf_c_message_free_unpacked(sent[i].body, NULL);
        free(sent[i].payload);
    }
    sent_count = 0;
}

void turn(void)
{
    struct steer_error err = {0};
    if (route_turn(route, now_ms, &err)) fail_msg("%s", err.text);
}

/* The next message to that peer of that type. */
const void *expect_message(const char *to, int type, struct sent_message **ret)
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

void expect_refused(const char *to, const char *code)
{
    const Steerfarm__Refused *m = EXPECT(to, Refused, REFUSED);
    assert_string_equal(m->code, code);
    assert_true(strlen(m->text) > 10); /* a sentence */
}

int count_sent(const char *to, int type)
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

void say_raw(enum side side, const char *from, const struct wire_frame *frames, size_t count)
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

void say_client(const char *from, int type, const ProtobufCMessage *body)
{
    say(SIDE_CLIENTS, from, type, body, NULL);
}

void say_worker(const char *from, int type, const ProtobufCMessage *body)
{
    say(SIDE_WORKERS, from, type, body, NULL);
}

char *text(const char *s)
{
    return (char *)(uintptr_t)s;
}

/* Everything that was submitted to the store before has come back, and what followed from it: an
 * answer that goes the same way is last. */
void settle(void)
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

void hello_client(const char *name)
{
    Steerfarm__Hello h = STEERFARM__HELLO__INIT;
    h.version_min = h.version_max = 1;
    h.role = STEERFARM__ROLE__CLIENT;
    say_client(name, TYPE(HELLO), &h.base);
    (void)EXPECT(name, Welcome, WELCOME);
}

Steerfarm__Lease lease_message(struct held_lease *l)
{
    Steerfarm__Lease m = STEERFARM__LEASE__INIT;
    m.epoch = l->epoch;
    m.lease = l->lease;
    m.job = l->job;
    m.index = l->index;
    return m;
}

/* A worker "id/incarnation" that offers model "m" with that hash, and what it holds. */
void hello_worker_with(const char *name, uint64_t incarnation, const char *hash,
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

void credit(const char *name, uint32_t images, uint32_t batch)
{
    Steerfarm__Credit c = STEERFARM__CREDIT__INIT;
    c.images = images;
    c.has_batch = 1;
    c.batch = batch;
    say_worker(name, TYPE(CREDIT), &c.base);
}

void hello_worker(const char *name)
{
    hello_worker_with(name, 1, "hash1", NULL, 0);
    (void)EXPECT(name, Welcome, WELCOME);
    credit(name, 4, 1);
}

void say_submit(const char *from, const char *key, const char *prompt, uint32_t images,
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
const char *submit(const char *from, const char *key, uint32_t images)
{
    say_submit(from, key, "a cat", images, 0);
    const Steerfarm__Accepted *a = EXPECT(from, Accepted, ACCEPTED);
    assert_int_equal(a->tag, 77);
    snprintf(accepted_id, sizeof accepted_id, "%s", a->job);
    return accepted_id;
}

struct held_lease take_assign(const char *worker)
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

void say_result(const char *worker, struct held_lease *l, const char *job, uint32_t index,
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

void result(const char *worker, struct held_lease *l, const char *image)
{
    say_result(worker, l, l->job, l->index, "hash1", image, wire_crc32(image, strlen(image)));
}

void expect_verdict(const char *worker, const char *verdict)
{
    assert_string_equal(EXPECT(worker, Verdict, VERDICT)->verdict, verdict);
}

void fail_lease(const char *worker, struct held_lease *l, const char *code)
{
    Steerfarm__Fail f = STEERFARM__FAIL__INIT;
    Steerfarm__Lease lease = lease_message(l);
    f.lease = &lease;
    f.code = text(code);
    f.text = text("it did not work");
    f.retryable = 1;
    say_worker(worker, TYPE(FAIL), &f.base);
}

void renew(const char *worker, const struct held_lease *l, uint32_t step)
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

void fetch_range(const char *from, const char *job, uint32_t images, uint32_t first, uint32_t last)
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

void fetch(const char *from, const char *job, uint32_t images)
{
    fetch_range(from, job, images, 0, UINT32_MAX);
}

void ack(const char *from, const char *job, uint32_t index)
{
    Steerfarm__ResultAck a = STEERFARM__RESULT_ACK__INIT;
    Steerfarm__Range range = STEERFARM__RANGE__INIT, *list[1] = {&range};
    range.first = range.last = index;
    a.job = text(job);
    a.indices = list;
    a.n_indices = 1;
    say_client(from, TYPE(RESULT_ACK), &a.base);
}

void watch(const char *from, const char *job)
{
    Steerfarm__Watch w = STEERFARM__WATCH__INIT;
    w.job = text(job);
    say_client(from, TYPE(WATCH), &w.base);
}

void cancel(const char *from, const char *job, const char *key)
{
    Steerfarm__Cancel c = STEERFARM__CANCEL__INIT;
    c.job = text(job);
    c.key = text(key);
    c.has_tag = 1;
    c.tag = 5;
    say_client(from, TYPE(CANCEL), &c.base);
}

const Steerfarm__JobStatus *ask_job(const char *from, const char *job)
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

void open_route(void)
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

int set_up(void **state)
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

int tear_down(void **state)
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
void restart(void)
{
    route_close(route);
    forget_sent();
    now_ms += 3000;
    open_route();
}

/* As after kill -9 at the moment of the snapshot. */
void restart_from_snapshot(void)
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
void farm(void)
{
    hello_client("c");
    hello_worker("w/1");
}

void spool_images(const char *key, uint32_t images, char id[STEER_JOB_ID_BYTES_MAX])
{
    snprintf(id, STEER_JOB_ID_BYTES_MAX, "%s", submit("c", key, images));
    for (uint32_t i = 0; i < images; i++) {
        struct held_lease l = take_assign("w/1");
        result("w/1", &l, "image");
        expect_verdict("w/1", "kept");
    }
}
