// SPDX-License-Identifier: Apache-2.0
/* farm_load - load for a broker, and the same load for beanstalkd and redis.
 *
 * farm_load accept SECONDS CLIENTS WINDOW ENDPOINT
 *     SUBMIT to ACCEPTED, WINDOW of them under way per client
 * farm_load cycle SECONDS CLIENTS CLIENTS_AT WORKERS_AT
 *     accept, lease, result, acknowledge
 * farm_load fill JOBS IMAGES ENDPOINT
 *     so many distinct jobs, as fast as they are accepted
 * farm_load ended JOBS ENDPOINT
 *     the same with one image, each cancelled when it is accepted
 * farm_load half IMAGES CLIENTS_AT WORKERS_AT
 *     one job, every second image of which is rendered, fetched and acknowledged
 * farm_load first ENDPOINT
 *     a worker that waits for its first ASSIGN, also for a broker that is not up yet
 * farm_load beanstalkd|redis SECONDS CLIENTS PORT
 *     put, reserve, delete
 * farm_load fsync FILE
 *     median of 200 appends of 4 KiB with fsync
 *
 * One thread, one line of JSON. Every job has 1 KiB of text and a key of its own. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

#include "limits.h"
#include "steer.pb-c.h"
#include "wire.h"

enum { CLIENTS_MAX = 1024, TEXT_BYTES = 1024, IMAGE_BYTES = 1024 };
#define TYPE(name) STEERFARM__MESSAGE_TYPE__##name

static char text[TEXT_BYTES + 1];
static uint64_t serial;
static int welcome_ms = 10000; /* waited for a WELCOME */

static void die(const char *what)
{
    fprintf(stderr, "farm_load: %s\n", what);
    exit(1);
}

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- our side ---- */

static void *socket_open(void *context, const char *endpoint, const char *identity)
{
    void *s = zmq_socket(context, ZMQ_DEALER);
    int none = 0;
    if (identity) zmq_setsockopt(s, ZMQ_IDENTITY, identity, strlen(identity));
    zmq_setsockopt(s, ZMQ_LINGER, &none, sizeof none);
    zmq_setsockopt(s, ZMQ_SNDHWM, &none, sizeof none);
    zmq_setsockopt(s, ZMQ_RCVHWM, &none, sizeof none);
    if (zmq_connect(s, endpoint)) die("cannot connect");
    return s;
}

static void say(void *socket, int type, const ProtobufCMessage *body, const void *payload,
                size_t payload_bytes)
{
    uint8_t head[WIRE_HEAD_BYTES], *packed;
    size_t size;
    wire_head(head, type);
    if (wire_pack(body, &packed, &size)) die("out of memory");
    zmq_send(socket, head, sizeof head, ZMQ_SNDMORE);
    zmq_send(socket, packed, size, payload ? ZMQ_SNDMORE : 0);
    if (payload) zmq_send(socket, payload, payload_bytes, 0);
    free(packed);
}

/* 0: nothing there (or not in time). */
static int hear(void *socket, struct wire_message *ret, int timeout_ms)
{
    static zmq_msg_t frames[3];
    static int open;
    struct wire_frame views[3];
    struct steer_error err = {0};
    int count = 0, more = 1;
    size_t size = sizeof more;
    zmq_pollitem_t item = {socket, 0, ZMQ_POLLIN, 0};
    if (timeout_ms && zmq_poll(&item, 1, timeout_ms) <= 0) return 0;
    while (open)
        zmq_msg_close(frames + --open);
    for (; more; count++) {
        if (count == 3) die("a message of more than three frames");
        zmq_msg_init(frames + count);
        open = count + 1;
        if (zmq_msg_recv(frames + count, socket, ZMQ_DONTWAIT) < 0) return 0;
        views[count] =
            (struct wire_frame){zmq_msg_data(frames + count), zmq_msg_size(frames + count)};
        zmq_getsockopt(socket, ZMQ_RCVMORE, &more, &size);
    }
    if (wire_parse(ret, views, (size_t)count, &err)) die(err.text);
    if (ret->type == TYPE(REFUSED)) die(((const Steerfarm__Refused *)ret->body)->text);
    return 1;
}

static void hello(void *socket, const char *worker)
{
    struct wire_message m;
    Steerfarm__Hello h = STEERFARM__HELLO__INIT;
    Steerfarm__Model model = STEERFARM__MODEL__INIT, *models[1] = {&model};
    Steerfarm__Recipe recipe = STEERFARM__RECIPE__INIT, *recipes[1] = {&recipe};
    Steerfarm__Device device = STEERFARM__DEVICE__INIT;
    static char names[3][8] = {"load", "r", "hash"};
    h.version_min = h.version_max = STEER_WIRE_VERSION;
    h.role = worker ? STEERFARM__ROLE__WORKER : STEERFARM__ROLE__CLIENT;
    if (worker) {
        h.worker = (char *)(uintptr_t)worker;
        h.has_incarnation = 1;
        h.incarnation = 1;
        h.device = &device;
        recipe.name = names[1];
        model.name = names[0];
        model.hash = names[2];
        model.recipes = recipes;
        model.n_recipes = 1;
        model.has_width = model.has_height = 1;
        model.width = model.height = 64;
        h.models = models;
        h.n_models = 1;
    }
    say(socket, TYPE(HELLO), &h.base, NULL, 0);
    do {
        if (!hear(socket, &m, welcome_ms)) die("no WELCOME");
        int type = m.type;
        wire_free(&m);
        if (type == TYPE(WELCOME)) break;
    } while (1);
}

static void submit(void *socket, uint32_t images)
{
    char key[64];
    static char model[] = "load";
    Steerfarm__Submit s = STEERFARM__SUBMIT__INIT;
    Steerfarm__Job job = STEERFARM__JOB__INIT;
    snprintf(key, sizeof key, "load-%d-%" PRIu64, (int)getpid(), serial++);
    s.key = key;
    s.job = &job;
    job.model = model;
    job.prompt = text;
    job.has_images = 1;
    job.images = images;
    say(socket, TYPE(SUBMIT), &s.base, NULL, 0);
}

/* A worker must have offered the model once before anything is accepted for it. */
static void offer(void *context, const char *endpoint)
{
    void *s = socket_open(context, endpoint, "load-offer/1");
    hello(s, "load-offer");
    zmq_close(s);
}

static void accept_run(double seconds, int clients, int window, const char *endpoint)
{
    void *context = zmq_ctx_new(), *sockets[CLIENTS_MAX];
    zmq_pollitem_t items[CLIENTS_MAX];
    for (int i = 0; i < clients; i++) {
        sockets[i] = socket_open(context, endpoint, NULL);
        hello(sockets[i], NULL);
        items[i] = (zmq_pollitem_t){sockets[i], 0, ZMQ_POLLIN, 0};
        for (int k = 0; k < window; k++)
            submit(sockets[i], 1);
    }
    uint64_t accepted = 0;
    double begin = now_s(), end = begin + seconds;
    while (now_s() < end) {
        zmq_poll(items, clients, 100);
        for (int i = 0; i < clients; i++) {
            struct wire_message m;
            while ((items[i].revents & ZMQ_POLLIN) && hear(sockets[i], &m, 0)) {
                accepted += m.type == TYPE(ACCEPTED);
                if (m.type == TYPE(ACCEPTED)) submit(sockets[i], 1);
                wire_free(&m);
            }
        }
    }
    printf("{\"accepted_per_s\": %.0f}\n", (double)accepted / (now_s() - begin));
}

static void fill_run(uint64_t jobs, uint32_t images, const char *endpoint)
{
    enum { WINDOW = 512 };
    void *s = socket_open(zmq_ctx_new(), endpoint, NULL);
    struct wire_message m;
    uint64_t sent = 0, accepted = 0;
    double begin = now_s();
    hello(s, NULL);
    while (accepted < jobs) {
        for (; sent < jobs && sent < accepted + WINDOW; sent++)
            submit(s, images);
        if (!hear(s, &m, 30000)) die("no ACCEPTED in 30 s");
        accepted += m.type == TYPE(ACCEPTED);
        wire_free(&m);
    }
    printf("{\"jobs\": %" PRIu64 ", \"seconds\": %.1f}\n", jobs, now_s() - begin);
}

static void ended_run(uint64_t jobs, const char *endpoint)
{
    enum { WINDOW = 512 };
    void *s = socket_open(zmq_ctx_new(), endpoint, NULL);
    struct wire_message m;
    uint64_t sent = 0, ended = 0;
    double begin = now_s();
    hello(s, NULL);
    while (ended < jobs) {
        for (; sent < jobs && sent < ended + WINDOW; sent++)
            submit(s, 1);
        if (!hear(s, &m, 30000)) die("no answer in 30 s");
        if (m.type == TYPE(ACCEPTED)) {
            Steerfarm__Cancel c = STEERFARM__CANCEL__INIT;
            c.job = ((const Steerfarm__Accepted *)m.body)->job;
            say(s, TYPE(CANCEL), &c.base, NULL, 0);
        }
        ended += m.type == TYPE(REPLY);
        wire_free(&m);
    }
    printf("{\"jobs\": %" PRIu64 ", \"seconds\": %.1f}\n", jobs, now_s() - begin);
}

static void fetch(void *socket, const char *job, uint32_t window)
{
    Steerfarm__Fetch f = STEERFARM__FETCH__INIT;
    f.job = (char *)(uintptr_t)job;
    f.credit = window;
    say(socket, TYPE(FETCH), &f.base, NULL, 0);
}

static void acknowledge(void *socket, const Steerfarm__Result *r)
{
    Steerfarm__ResultAck a = STEERFARM__RESULT_ACK__INIT;
    Steerfarm__Range range = STEERFARM__RANGE__INIT, *list[1] = {&range};
    range.first = range.last = r->index;
    a.job = r->job;
    a.indices = list;
    a.n_indices = 1;
    say(socket, TYPE(RESULT_ACK), &a.base, NULL, 0);
}

static void render_one(void *socket, Steerfarm__Lease *lease)
{
    static char image[IMAGE_BYTES], hash[] = "hash";
    static uint32_t crc;
    Steerfarm__Result r = STEERFARM__RESULT__INIT;
    Steerfarm__Timing timing = STEERFARM__TIMING__INIT;
    if (!crc) crc = wire_crc32(image, sizeof image);
    r.lease = lease;
    r.job = lease->job;
    r.index = lease->index;
    r.bytes = sizeof image;
    r.crc32 = crc;
    r.model_hash = hash;
    r.timing = &timing;
    say(socket, TYPE(RESULT), &r.base, image, sizeof image);
}

/* Every image of an ASSIGN is done at once: what is measured is the broker. */
static void render(void *socket, const Steerfarm__Assign *a)
{
    for (size_t i = 0; i < a->n_images; i++)
        render_one(socket, a->images[i]->lease);
}

/* The worker gives no credit and renders what it likes: the first RESULT of an open image wins,
 * whatever its lease, and so the other half stays queued. */
static void half_run(uint32_t images, const char *clients_at, const char *workers_at)
{
    enum { WINDOW = 256 };
    void *context = zmq_ctx_new();
    void *client = socket_open(context, clients_at, NULL);
    void *worker = socket_open(context, workers_at, "load-half/1");
    char job[STEER_JOB_ID_BYTES_MAX] = "";
    uint32_t next = 0, kept = 0, acked = 0, wanted = images / 2;
    struct wire_message m;
    double begin = now_s();
    hello(worker, "load-half");
    hello(client, NULL);
    submit(client, images);
    while (!*job) {
        if (!hear(client, &m, 30000)) die("no ACCEPTED in 30 s");
        if (m.type == TYPE(ACCEPTED))
            snprintf(job, sizeof job, "%s", ((const Steerfarm__Accepted *)m.body)->job);
        wire_free(&m);
    }
    fetch(client, job, 64);
    zmq_pollitem_t items[] = {{client, 0, ZMQ_POLLIN, 0}, {worker, 0, ZMQ_POLLIN, 0}};
    while (acked < wanted) {
        for (; next < wanted && next < kept + WINDOW; next++) {
            Steerfarm__Lease lease = STEERFARM__LEASE__INIT;
            lease.job = job;
            lease.index = 2 * next;
            lease.lease = next;
            render_one(worker, &lease);
        }
        if (zmq_poll(items, 2, 30000) <= 0) die("nothing in 30 s");
        while (hear(worker, &m, 0)) {
            kept += m.type == TYPE(VERDICT);
            if (m.type == TYPE(PING)) {
                Steerfarm__Pong pong = STEERFARM__PONG__INIT;
                say(worker, TYPE(PONG), &pong.base, NULL, 0);
            }
            wire_free(&m);
        }
        while (hear(client, &m, 0)) {
            if (m.type == TYPE(RESULT)) {
                acknowledge(client, (const Steerfarm__Result *)m.body);
                acked++;
            }
            wire_free(&m);
        }
    }
    /* Its answer comes when the last acknowledgement is durable. */
    Steerfarm__ResultAck last = STEERFARM__RESULT_ACK__INIT;
    last.job = job;
    last.has_tag = 1;
    say(client, TYPE(RESULT_ACK), &last.base, NULL, 0);
    for (int type = 0; type != TYPE(REPLY); wire_free(&m)) {
        if (!hear(client, &m, 30000)) die("no REPLY in 30 s");
        type = m.type;
    }
    printf("{\"images\": %u, \"seconds\": %.1f}\n", images, now_s() - begin);
}

static void first_run(const char *endpoint)
{
    void *s = socket_open(zmq_ctx_new(), endpoint, "load-first/1");
    Steerfarm__Credit credit = STEERFARM__CREDIT__INIT;
    struct wire_message m;
    double begin = now_s();
    welcome_ms = 300000;
    hello(s, "load-first");
    double welcome = now_s();
    credit.images = 1;
    say(s, TYPE(CREDIT), &credit.base, NULL, 0);
    for (int type = 0; type != TYPE(ASSIGN); wire_free(&m)) {
        if (!hear(s, &m, 30000)) die("no ASSIGN in 30 s");
        type = m.type;
    }
    printf("{\"welcome_seconds\": %.3f, \"assign_seconds\": %.3f}\n", welcome - begin,
           now_s() - begin);
}

static void cycle_run(double seconds, int clients, const char *clients_at, const char *workers_at)
{
    void *context = zmq_ctx_new(), *sockets[CLIENTS_MAX + 1];
    zmq_pollitem_t items[CLIENTS_MAX + 1];
    void *worker = sockets[clients] = socket_open(context, workers_at, "load/1");
    Steerfarm__Credit credit = STEERFARM__CREDIT__INIT;
    hello(worker, "load");
    credit.images = STEER_LEASES_MAX;
    credit.has_batch = 1;
    credit.batch = 1;
    say(worker, TYPE(CREDIT), &credit.base, NULL, 0);
    for (int i = 0; i < clients; i++) {
        sockets[i] = socket_open(context, clients_at, NULL);
        hello(sockets[i], NULL);
        submit(sockets[i], 1);
    }
    for (int i = 0; i <= clients; i++)
        items[i] = (zmq_pollitem_t){sockets[i], 0, ZMQ_POLLIN, 0};
    uint64_t done = 0;
    double begin = now_s(), end = begin + seconds, renewed = begin;
    while (now_s() < end) {
        zmq_poll(items, clients + 1, 100);
        if (now_s() > renewed + 1) {
            Steerfarm__Renew renew = STEERFARM__RENEW__INIT;
            say(worker, TYPE(RENEW), &renew.base, NULL, 0);
            renewed = now_s();
        }
        for (int i = 0; i <= clients; i++) {
            struct wire_message m;
            while ((items[i].revents & ZMQ_POLLIN) && hear(sockets[i], &m, 0)) {
                if (m.type == TYPE(ASSIGN)) render(worker, (const Steerfarm__Assign *)m.body);
                if (m.type == TYPE(ACCEPTED))
                    fetch(sockets[i], ((const Steerfarm__Accepted *)m.body)->job, 1);
                if (m.type == TYPE(RESULT))
                    acknowledge(sockets[i], (const Steerfarm__Result *)m.body);
                if (m.type == TYPE(DONE)) {
                    done++;
                    submit(sockets[i], 1);
                }
                wire_free(&m);
            }
        }
    }
    printf("{\"cycles_per_s\": %.0f}\n", (double)done / (now_s() - begin));
}

/* ---- beanstalkd and redis, by their text protocols ---- */

enum step { STEP_PUT, STEP_RESERVE, STEP_DELETE };

struct line_client {
    int fd;
    enum step step;
    char in[8192];
    size_t have;
    char id[64];
};

static int port_open(int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof a)) die("cannot connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

static void line_send(struct line_client *c, const char *data, size_t size)
{
    while (size) {
        ssize_t n = write(c->fd, data, size);
        if (n <= 0) die("the peer is gone");
        data += n;
        size -= (size_t)n;
    }
}

static void beanstalkd_say(struct line_client *c)
{
    char out[TEXT_BYTES + 128];
    int n = 0;
    if (c->step == STEP_PUT)
        n = snprintf(out, sizeof out, "put 0 0 60 %d\r\n%s\r\n", TEXT_BYTES, text);
    if (c->step == STEP_RESERVE) n = snprintf(out, sizeof out, "reserve\r\n");
    if (c->step == STEP_DELETE) n = snprintf(out, sizeof out, "delete %s\r\n", c->id);
    line_send(c, out, (size_t)n);
}

/* A list as a reliable queue (redis.io's pattern): push, move to a list of what is worked on,
 * remove. */
static void redis_say(struct line_client *c)
{
    char out[2 * TEXT_BYTES];
    int n = 0;
    if (c->step == STEP_PUT)
        n = snprintf(out, sizeof out, "*3\r\n$5\r\nLPUSH\r\n$1\r\nq\r\n$%d\r\n%s\r\n", TEXT_BYTES,
                     text);
    if (c->step == STEP_RESERVE)
        n = snprintf(out, sizeof out, "*3\r\n$9\r\nRPOPLPUSH\r\n$1\r\nq\r\n$1\r\nw\r\n");
    if (c->step == STEP_DELETE)
        n = snprintf(out, sizeof out, "*4\r\n$4\r\nLREM\r\n$1\r\nw\r\n$1\r\n1\r\n$%d\r\n%s\r\n",
                     TEXT_BYTES, text);
    line_send(c, out, (size_t)n);
}

/* 1 when a whole answer is there; what follows its first line is a body on RESERVE. */
static int line_answer(struct line_client *c, int redis)
{
    char *end = memchr(c->in, '\n', c->have);
    if (!end) return 0;
    size_t line = (size_t)(end - c->in) + 1;
    if (c->step == STEP_RESERVE && c->have < line + TEXT_BYTES + 2) return 0;
    if (!redis && c->step == STEP_RESERVE && sscanf(c->in, "RESERVED %63s", c->id) != 1)
        die("beanstalkd: no RESERVED");
    if (c->in[0] == '-') die("redis refused");
    c->have = 0;
    return 1;
}

static void line_run(int redis, double seconds, int clients, int port)
{
    struct line_client *all = calloc((size_t)clients, sizeof *all);
    struct pollfd *polls = calloc((size_t)clients, sizeof *polls);
    if (!all || !polls) die("out of memory");
    for (int i = 0; i < clients; i++) {
        all[i].fd = port_open(port);
        polls[i] = (struct pollfd){all[i].fd, POLLIN, 0};
        (redis ? redis_say : beanstalkd_say)(all + i);
    }
    uint64_t done = 0, put = 0;
    double begin = now_s(), end = begin + seconds;
    while (now_s() < end) {
        poll(polls, (nfds_t)clients, 100);
        for (int i = 0; i < clients; i++) {
            struct line_client *c = all + i;
            if (!(polls[i].revents & POLLIN)) continue;
            ssize_t n = read(c->fd, c->in + c->have, sizeof c->in - c->have);
            if (n <= 0) die("the peer is gone");
            c->have += (size_t)n;
            if (!line_answer(c, redis)) continue;
            put += c->step == STEP_PUT;
            done += c->step == STEP_DELETE;
            c->step = c->step == STEP_DELETE ? STEP_PUT : c->step + 1;
            (redis ? redis_say : beanstalkd_say)(c);
        }
    }
    double took = now_s() - begin;
    printf("{\"cycles_per_s\": %.0f, \"puts_per_s\": %.0f}\n", (double)done / took,
           (double)put / took);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void fsync_run(const char *path)
{
    enum { RUNS = 200 };
    static char block[4096];
    double ms[RUNS];
    int fd = open(path, O_CREAT | O_WRONLY | O_APPEND, 0600);
    if (fd < 0) die("cannot write");
    for (int i = 0; i < RUNS; i++) {
        double begin = now_s();
        if (write(fd, block, sizeof block) != sizeof block || fsync(fd)) die("cannot write");
        ms[i] = 1e3 * (now_s() - begin);
    }
    unlink(path);
    qsort(ms, RUNS, sizeof *ms, by_value);
    printf("{\"fsync_ms\": %.3f}\n", ms[RUNS / 2]);
}

int main(int argc, char **argv)
{
    for (int i = 0; i < TEXT_BYTES; i++)
        text[i] = (char)('a' + i % 26);
    const char *kind = argc > 1 ? argv[1] : "";
    if (strcmp(kind, "accept") == 0 && argc == 6)
        accept_run(atof(argv[2]), atoi(argv[3]), atoi(argv[4]), argv[5]);
    else if (strcmp(kind, "cycle") == 0 && argc == 6)
        cycle_run(atof(argv[2]), atoi(argv[3]), argv[4], argv[5]);
    else if (strcmp(kind, "fill") == 0 && argc == 5)
        fill_run(strtoull(argv[2], NULL, 10), (uint32_t)strtoul(argv[3], NULL, 10), argv[4]);
    else if (strcmp(kind, "ended") == 0 && argc == 4)
        ended_run(strtoull(argv[2], NULL, 10), argv[3]);
    else if (strcmp(kind, "half") == 0 && argc == 5)
        half_run((uint32_t)strtoul(argv[2], NULL, 10), argv[3], argv[4]);
    else if (strcmp(kind, "first") == 0 && argc == 3)
        first_run(argv[2]);
    else if (strcmp(kind, "offer") == 0 && argc == 3)
        offer(zmq_ctx_new(), argv[2]);
    else if ((strcmp(kind, "beanstalkd") == 0 || strcmp(kind, "redis") == 0) && argc == 5)
        line_run(kind[0] == 'r', atof(argv[2]), atoi(argv[3]), atoi(argv[4]));
    else if (strcmp(kind, "fsync") == 0 && argc == 3)
        fsync_run(argv[2]);
    else
        die("see the head of tests/bench/farm_load.c");
    return 0;
}
