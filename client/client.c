// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <zmq.h>

#include "error.h"
#include "job.h"
#include "limits.h"
#include "pb_json.h"
#include "steer.h"
#include "steer.pb-c.h"
#include "wire.h"

enum {
    HEARTBEAT_MS = 1000, /* until WELCOME says better */
    RESEND_MS = 3000,    /* a request without an answer */
    REMIND_MS = 5000,    /* WATCH and FETCH, which have none: said again so often */
    SILENT_BEATS = 5,    /* heartbeats without a word: the connection is made anew */
    FRAMES_MAX = 3,
    PENDING_MAX = 4096,
};

/* A request that has not been answered yet. */
struct pending {
    struct pending *next;
    uint64_t tag, due_ms; /* when to send it again */
    int type;
    uint8_t *body;
    size_t body_bytes;
};

/* A job whose images or progress are wanted. */
struct interest {
    struct interest *next;
    char job[STEER_JOB_ID_SIZE];
    int watching, done;
    uint32_t credit;        /* 0: not fetched */
    uint32_t first, last;   /* wanted images */
    uint8_t *shown, *acked; /* a bit an index */
    uint32_t room;          /* bits of them */
    uint64_t sent_ms;
};

struct steer_client {
    char endpoint[256];
    void *context, *socket;
    int welcomed;
    uint32_t heartbeat_ms;
    uint64_t heard_ms, hello_ms, pinged_ms, last_tag;
    struct pending *pending;
    int pending_count;
    struct interest *interests;
    /* What the last event points at. */
    struct wire_message message;
    zmq_msg_t parts[FRAMES_MAX];
    int parts_count;
    char *json;
};

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static int fault_of(struct steer_fault *fault, int code, const char *text)
{
    if (fault) {
        snprintf(fault->code, sizeof fault->code, "%s", steer_code_name(code));
        snprintf(fault->text, sizeof fault->text, "%s", text);
        fault->exit_code = steer_code_exit(code);
    }
    return code;
}

/* ---- the connection ---- */

static int send_raw(struct steer_client *c, int type, const uint8_t *body, size_t bytes)
{
    uint8_t head[WIRE_HEAD_BYTES];
    wire_head(head, type);
    if (zmq_send(c->socket, head, sizeof head, ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0) return -1;
    return zmq_send(c->socket, body, bytes, ZMQ_DONTWAIT) < 0 ? -1 : 0;
}

static int send_message(struct steer_client *c, int type, const ProtobufCMessage *m)
{
    uint8_t *body = NULL;
    size_t bytes = 0;
    if (wire_pack(m, &body, &bytes)) return -1;
    int code = send_raw(c, type, body, bytes);
    free(body);
    return code;
}

static void hello_send(struct steer_client *c)
{
    Steerfarm__Hello m = STEERFARM__HELLO__INIT;
    static char software[] = "libsteer " STEER_VERSION;
    m.version_min = STEER_WIRE_VERSION_MIN;
    m.version_max = STEER_WIRE_VERSION;
    m.role = STEERFARM__ROLE__CLIENT;
    m.software = software;
    int unsent = send_message(c, STEERFARM__MESSAGE_TYPE__HELLO, &m.base);
    c->hello_ms = now_ms() - (unsent ? HEARTBEAT_MS - 20 : 0); /* nobody there yet: soon again */
}

static int socket_open(struct steer_client *c)
{
    int linger = 200, one = 1;
    int64_t most = STEER_IMAGE_BYTES_MAX;
    if (c->socket) zmq_close(c->socket);
    c->welcomed = 0;
    c->heard_ms = now_ms();
    c->hello_ms = 0;
    if (!(c->socket = zmq_socket(c->context, ZMQ_DEALER))) return STEER_NO_MEMORY;
    zmq_setsockopt(c->socket, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(c->socket, ZMQ_IMMEDIATE, &one, sizeof one);
    zmq_setsockopt(c->socket, ZMQ_MAXMSGSIZE, &most, sizeof most);
    zmq_setsockopt(c->socket, ZMQ_TCP_KEEPALIVE, &one, sizeof one);
    return zmq_connect(c->socket, c->endpoint) ? STEER_BAD_VALUE : 0;
}

int steer_open(struct steer_client **ret, const char *endpoint, struct steer_fault *fault)
{
    const char *variable = getenv("STEER_BROKER");
    if (!endpoint) endpoint = variable && *variable ? variable : "tcp://127.0.0.1:5555";
    struct steer_client *c = calloc(1, sizeof *c);
    if (!c || strlen(endpoint) >= sizeof c->endpoint || !(c->context = zmq_ctx_new())) {
        free(c);
        return fault_of(fault, STEER_NO_MEMORY, "no room for a client");
    }
    snprintf(c->endpoint, sizeof c->endpoint, "%s", endpoint);
    c->heartbeat_ms = HEARTBEAT_MS;
    int code = socket_open(c);
    if (code) {
        char text[400];
        snprintf(text, sizeof text, "\"%s\" is no endpoint: expected tcp://HOST:PORT or ipc://PATH",
                 endpoint);
        steer_close(c);
        return fault_of(fault, code, text);
    }
    *ret = c;
    return 0;
}

static void event_clear(struct steer_client *c)
{
    wire_free(&c->message);
    for (int i = 0; i < c->parts_count; i++)
        zmq_msg_close(c->parts + i);
    c->parts_count = 0;
    free(c->json);
    c->json = NULL;
}

static void pending_free(struct pending *p)
{
    free(p->body);
    free(p);
}

void steer_close(struct steer_client *c)
{
    if (!c) return;
    event_clear(c);
    while (c->pending) {
        struct pending *p = c->pending;
        c->pending = p->next;
        pending_free(p);
    }
    while (c->interests) {
        struct interest *i = c->interests;
        c->interests = i->next;
        free(i->shown);
        free(i->acked);
        free(i);
    }
    if (c->socket) zmq_close(c->socket);
    if (c->context) zmq_ctx_term(c->context);
    free(c);
}

int steer_fd(const struct steer_client *c)
{
    int fd = -1;
    size_t size = sizeof fd;
    zmq_getsockopt(c->socket, ZMQ_FD, &fd, &size);
    return fd;
}

/* ---- requests ---- */

/* Keeps the request and sends it as soon as the broker has said WELCOME. */
static int request(struct steer_client *c, int type, const ProtobufCMessage *m, uint64_t tag)
{
    struct pending *p = c->pending_count < PENDING_MAX ? calloc(1, sizeof *p) : NULL;
    if (!p) return STEER_NO_MEMORY;
    if (wire_pack(m, &p->body, &p->body_bytes)) {
        free(p);
        return STEER_NO_MEMORY;
    }
    p->type = type;
    p->tag = tag;
    if (c->welcomed && !send_raw(c, type, p->body, p->body_bytes)) p->due_ms = now_ms() + RESEND_MS;
    struct pending **at = &c->pending;
    while (*at)
        at = &(*at)->next;
    *at = p;
    c->pending_count++;
    return 0;
}

static struct pending **pending_find(struct steer_client *c, uint64_t tag)
{
    struct pending **at = &c->pending;
    while (*at && (*at)->tag != tag)
        at = &(*at)->next;
    return at;
}

static void pending_drop(struct steer_client *c, uint64_t tag)
{
    struct pending **at = pending_find(c, tag), *p = *at;
    if (!p) return;
    *at = p->next;
    c->pending_count--;
    pending_free(p);
}

static void key_make(char key[STEER_KEY_SIZE])
{
    uint64_t random[2] = {0};
    if (getrandom(random, sizeof random, 0) != sizeof random) random[0] = now_ms();
    snprintf(key, STEER_KEY_SIZE, "%016" PRIx64 "%016" PRIx64, random[0], random[1]);
}

static int submit_message(struct steer_client *c, Steerfarm__Job *job, const char *key,
                          uint64_t *ret_tag, struct steer_fault *fault)
{
    struct steer_error err = {0};
    char made[STEER_KEY_SIZE];
    Steerfarm__Submit m = STEERFARM__SUBMIT__INIT;
    int code = job_check(job, &err);
    if (code) return fault_of(fault, code, err.text);
    if (!key) {
        key_make(made);
        key = made;
    }
    m.key = (char *)(uintptr_t)key;
    m.job = job;
    m.has_tag = 1;
    m.tag = ++c->last_tag;
    code = request(c, STEERFARM__MESSAGE_TYPE__SUBMIT, &m.base, m.tag);
    if (code) return fault_of(fault, code, "too many requests without an answer");
    *ret_tag = m.tag;
    return 0;
}

int steer_submit_start(struct steer_client *c, const char *json, const char *key, uint64_t *ret_tag,
                       struct steer_fault *fault)
{
    json_error_t where;
    struct steer_error err = {0};
    ProtobufCMessage *job = NULL;
    json_t *root = json_loads(json, JSON_REJECT_DUPLICATES, &where);
    if (!json_is_object(root)) {
        char text[300];
        snprintf(text, sizeof text, "not a JSON object: %s", root ? "another value" : where.text);
        json_decref(root);
        return fault_of(fault, STEER_BAD_VALUE, text);
    }
    int code = pb_from_json(&job, &steerfarm__job__descriptor, root, &err);
    json_decref(root);
    if (code) return fault_of(fault, code, err.text);
    code = submit_message(c, (Steerfarm__Job *)job, key, ret_tag, fault);
    protobuf_c_message_free_unpacked(job, NULL);
    return code;
}

static struct interest *interest_find(struct steer_client *c, const char *job, int make)
{
    struct interest *i = c->interests;
    while (i && strcmp(i->job, job) != 0)
        i = i->next;
    if (i || !make || strlen(job) >= STEER_JOB_ID_SIZE) return i;
    if (!(i = calloc(1, sizeof *i))) return NULL;
    snprintf(i->job, sizeof i->job, "%s", job);
    i->next = c->interests;
    return c->interests = i;
}

static void interest_send(struct steer_client *c, struct interest *i)
{
    i->sent_ms = now_ms();
    if (i->watching && !i->done) {
        Steerfarm__Watch m = STEERFARM__WATCH__INIT;
        m.job = i->job;
        (void)send_message(c, STEERFARM__MESSAGE_TYPE__WATCH, &m.base);
    }
    if (i->credit && !i->done) {
        Steerfarm__Fetch m = STEERFARM__FETCH__INIT;
        Steerfarm__Range range = STEERFARM__RANGE__INIT, *list[1] = {&range};
        range.first = i->first;
        range.last = i->last;
        m.job = i->job;
        m.credit = i->credit;
        m.indices = list;
        m.n_indices = 1;
        (void)send_message(c, STEERFARM__MESSAGE_TYPE__FETCH, &m.base);
    }
}

int steer_fetch(struct steer_client *c, const char *job, uint32_t credit)
{
    return steer_fetch_range(c, job, credit, 0, STEER_IMAGES_MAX - 1);
}

int steer_fetch_range(struct steer_client *c, const char *job, uint32_t credit, uint32_t first,
                      uint32_t last)
{
    struct interest *i = interest_find(c, job, 1);
    if (!i) return STEER_NO_MEMORY;
    i->credit = credit ? credit : 1;
    i->first = first;
    i->last = last;
    if (c->welcomed) interest_send(c, i);
    return 0;
}

int steer_watch(struct steer_client *c, const char *job)
{
    struct interest *i = interest_find(c, job, 1);
    if (!i) return STEER_NO_MEMORY;
    i->watching = 1;
    if (c->welcomed) interest_send(c, i);
    return 0;
}

/* ---- which images were shown ---- */

static int bit(const uint8_t *bits, uint32_t room, uint32_t i)
{
    return bits && i < room && bits[i / 8] >> (i % 8) & 1;
}

static int bit_set(struct interest *w, uint8_t *const *which, uint32_t i)
{
    if (i >= STEER_IMAGES_MAX) return STEER_BAD_VALUE;
    if (i >= w->room) {
        uint32_t room = (i + 1024) * 2 / 8 * 8;
        uint8_t *shown = realloc(w->shown, room / 8);
        if (shown) w->shown = shown;
        uint8_t *acked = realloc(w->acked, room / 8);
        if (acked) w->acked = acked;
        if (!shown || !acked) return STEER_NO_MEMORY;
        memset(shown + w->room / 8, 0, (room - w->room) / 8);
        memset(acked + w->room / 8, 0, (room - w->room) / 8);
        w->room = room;
    }
    (*which)[i / 8] = (uint8_t)((*which)[i / 8] | 1 << (i % 8));
    return 0;
}

static int ack_send(struct steer_client *c, const char *job, uint32_t index)
{
    Steerfarm__ResultAck m = STEERFARM__RESULT_ACK__INIT;
    Steerfarm__Range range = STEERFARM__RANGE__INIT, *list[1] = {&range};
    range.first = range.last = index;
    m.job = (char *)(uintptr_t)job;
    m.indices = list;
    m.n_indices = 1;
    return send_message(c, STEERFARM__MESSAGE_TYPE__RESULT_ACK, &m.base);
}

int steer_ack(struct steer_client *c, const char *job, uint32_t index)
{
    struct interest *i = interest_find(c, job, 1);
    if (!i || bit_set(i, &i->acked, index)) return STEER_NO_MEMORY;
    (void)ack_send(c, job, index); /* lost: the RESULT comes again, and then so does this */
    return 0;
}

/* ---- receiving ---- */

static const char *format_name(Steerfarm__Format format)
{
    return format == STEERFARM__FORMAT__PNG             ? "png"
           : format == STEERFARM__FORMAT__WEBP_LOSSLESS ? "lossless"
                                                        : "webp";
}

/* 1: show it. */
static int on_result(struct steer_client *c, struct steer_event *e)
{
    const Steerfarm__Result *m = (const Steerfarm__Result *)c->message.body;
    const struct wire_frame *p = &c->message.payload;
    struct interest *i = interest_find(c, m->job, 0);
    if (!i || m->index >= STEER_IMAGES_MAX) return 0;
    if (p->size != m->bytes || wire_crc32(p->data, p->size) != m->crc32)
        return 0; /* damaged: it comes again */
    if (bit(i->shown, i->room, m->index)) {
        if (bit(i->acked, i->room, m->index)) (void)ack_send(c, m->job, m->index);
        return 0;
    }
    if (bit_set(i, &i->shown, m->index)) return 0;
    e->kind = STEER_EVENT_RESULT;
    e->job = m->job;
    e->index = m->index;
    e->seed = m->seed;
    e->image = p->data;
    e->image_bytes = p->size;
    e->format = format_name(m->format);
    return 1;
}

static int on_refused(struct steer_client *c, struct steer_event *e)
{
    const Steerfarm__Refused *m = (const Steerfarm__Refused *)c->message.body;
    int code = steer_code_of(m->code);
    if (code == STEER_HELLO_REQUIRED) { /* the broker has restarted */
        c->welcomed = 0;
        c->hello_ms = 0;
        return 0;
    }
    if (m->has_tag && m->has_retry_after_ms) { /* asked again later, under the same key */
        struct pending *p = *pending_find(c, m->tag);
        if (p) p->due_ms = now_ms() + m->retry_after_ms;
        return 0;
    }
    if (m->has_tag) pending_drop(c, m->tag);
    e->kind = STEER_EVENT_REFUSED;
    e->tag = m->has_tag ? m->tag : 0;
    e->job = m->job;
    fault_of(&e->fault, code, m->text);
    snprintf(e->fault.code, sizeof e->fault.code, "%s", m->code);
    return 1;
}

static void on_welcome(struct steer_client *c, const Steerfarm__Welcome *m)
{
    c->welcomed = 1;
    c->heartbeat_ms =
        m->has_heartbeat_ms && m->heartbeat_ms >= 100 ? m->heartbeat_ms : HEARTBEAT_MS;
    for (struct pending *p = c->pending; p; p = p->next)
        p->due_ms = 0; /* all that was not answered goes again */
    for (struct interest *i = c->interests; i; i = i->next)
        interest_send(c, i);
}

/* 1: *e is filled. */
static int on_message(struct steer_client *c, struct steer_event *e)
{
    const ProtobufCMessage *body = c->message.body;
    switch (c->message.type) {
    case STEERFARM__MESSAGE_TYPE__WELCOME: on_welcome(c, (const void *)body); return 0;
    case STEERFARM__MESSAGE_TYPE__REFUSED: return on_refused(c, e);
    case STEERFARM__MESSAGE_TYPE__ACCEPTED: {
        const Steerfarm__Accepted *m = (const Steerfarm__Accepted *)body;
        if (!*pending_find(c, m->tag)) return 0; /* the second answer to a request sent twice */
        pending_drop(c, m->tag);
        e->kind = STEER_EVENT_ACCEPTED;
        e->tag = m->tag;
        e->job = m->job;
        return 1;
    }
    case STEERFARM__MESSAGE_TYPE__REPLY: {
        const Steerfarm__Reply *m = (const Steerfarm__Reply *)body;
        if (!*pending_find(c, m->tag)) return 0;
        pending_drop(c, m->tag);
        e->kind = STEER_EVENT_REPLY;
        e->tag = m->tag;
        return 1;
    }
    case STEERFARM__MESSAGE_TYPE__PROGRESS:
        e->kind = STEER_EVENT_PROGRESS;
        e->job = ((const Steerfarm__Progress *)body)->job;
        return 1;
    case STEERFARM__MESSAGE_TYPE__DONE: {
        struct interest *i = interest_find(c, ((const Steerfarm__Done *)body)->status->job, 0);
        if (!i || i->done) return 0;
        i->done = 1;
        e->kind = STEER_EVENT_DONE;
        e->job = i->job;
        return 1;
    }
    case STEERFARM__MESSAGE_TYPE__RESULT: return on_result(c, e);
    default: return 0;
    }
}

/* Reads one message into c->message; 0: there is none or it was nonsense. */
static int receive(struct steer_client *c, int *ret_more)
{
    struct wire_frame frames[FRAMES_MAX + 1];
    size_t count = 0;
    int more = 1;
    event_clear(c);
    *ret_more = 0;
    while (more) {
        zmq_msg_t part;
        zmq_msg_init(&part);
        if (zmq_msg_recv(&part, c->socket, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(&part);
            return 0;
        }
        *ret_more = 1;
        more = zmq_msg_more(&part);
        if (c->parts_count < FRAMES_MAX) {
            c->parts[c->parts_count] = part;
            frames[count].data = zmq_msg_data(c->parts + c->parts_count);
            frames[count].size = zmq_msg_size(c->parts + c->parts_count++);
        } else {
            zmq_msg_close(&part);
        }
        count++;
    }
    struct steer_error err = {0};
    if (count > FRAMES_MAX || wire_parse(&c->message, frames, count, &err)) return 0;
    c->heard_ms = now_ms();
    return 1;
}

/* What time asks for: HELLO, PING, sending again, a new connection. */
static void upkeep(struct steer_client *c)
{
    uint64_t now = now_ms();
    if (now > c->heard_ms + SILENT_BEATS * (uint64_t)c->heartbeat_ms && c->welcomed) {
        if (socket_open(c)) return;
    }
    if (!c->welcomed) {
        if (now >= c->hello_ms + HEARTBEAT_MS) hello_send(c);
        return;
    }
    if (now > c->heard_ms + c->heartbeat_ms && now > c->pinged_ms + c->heartbeat_ms) {
        Steerfarm__Ping ping = STEERFARM__PING__INIT;
        c->pinged_ms = now;
        (void)send_message(c, STEERFARM__MESSAGE_TYPE__PING, &ping.base);
    }
    for (struct pending *p = c->pending; p; p = p->next)
        if (now >= p->due_ms && !send_raw(c, p->type, p->body, p->body_bytes))
            p->due_ms = now + RESEND_MS;
    for (struct interest *i = c->interests; i; i = i->next)
        if (now >= i->sent_ms + REMIND_MS) interest_send(c, i);
}

int steer_next(struct steer_client *c, struct steer_event *ret, int timeout_ms,
               struct steer_fault *fault)
{
    uint64_t begun = now_ms();
    for (;;) {
        int more = 1;
        upkeep(c);
        while (more) {
            struct steer_event e = {0};
            if (!receive(c, &more) || !on_message(c, &e)) continue;
            json_t *json = pb_to_json(c->message.body);
            c->json = json ? json_dumps(json, JSON_COMPACT) : NULL;
            json_decref(json);
            if (!c->json) return fault_of(fault, STEER_NO_MEMORY, "out of memory");
            e.json = c->json;
            *ret = e;
            return 1;
        }
        uint64_t spent = now_ms() - begun;
        if (timeout_ms >= 0 && spent >= (uint64_t)timeout_ms) return 0;
        long wait = c->welcomed ? 100 : 20;
        if (timeout_ms >= 0 && (uint64_t)timeout_ms - spent < (uint64_t)wait)
            wait = (long)((uint64_t)timeout_ms - spent);
        zmq_pollitem_t item = {c->socket, 0, ZMQ_POLLIN, 0};
        if (zmq_poll(&item, 1, wait) < 0) {
            if (errno == EINTR) return 0; /* the caller's signal */
            return fault_of(fault, STEER_IO, zmq_strerror(errno));
        }
    }
}

/* ---- waiting for one answer ---- */

/* Until the answer to tag comes; results of other jobs that come meanwhile come again. */
static int await(struct steer_client *c, uint64_t tag, struct steer_event *e, int timeout_ms,
                 struct steer_fault *fault)
{
    uint64_t begun = now_ms();
    for (;;) {
        uint64_t spent = now_ms() - begun;
        if (timeout_ms >= 0 && spent >= (uint64_t)timeout_ms) break;
        int got = steer_next(c, e, timeout_ms < 0 ? 1000 : timeout_ms - (int)spent, fault);
        if (got < 0) return got;
        if (got && e->kind == STEER_EVENT_RESULT) { /* not shown to anybody: not seen */
            struct interest *i = interest_find(c, e->job, 0);
            if (i)
                i->shown[e->index / 8] = (uint8_t)(i->shown[e->index / 8] & ~(1 << (e->index % 8)));
        }
        if (got && e->kind == STEER_EVENT_DONE) interest_find(c, e->job, 0)->done = 0;
        if (!got || e->tag != tag) continue;
        if (e->kind != STEER_EVENT_REFUSED) return 0;
        if (fault) *fault = e->fault;
        return steer_code_of(e->fault.code);
    }
    pending_drop(c, tag);
    char text[400];
    snprintf(text, sizeof text,
             "no answer from the broker at %s within %d ms; is it running? "
             "(`steer up` starts one)",
             c->endpoint, timeout_ms);
    return fault_of(fault, STEER_TIMEOUT, text);
}

static int submit_wait(struct steer_client *c, uint64_t tag, char ret_id[STEER_JOB_ID_SIZE],
                       int timeout_ms, struct steer_fault *fault)
{
    struct steer_event e;
    int code = await(c, tag, &e, timeout_ms, fault);
    if (!code) snprintf(ret_id, STEER_JOB_ID_SIZE, "%s", e.job);
    return code;
}

int steer_submit_json(struct steer_client *c, const char *json, const char *key,
                      char ret_id[STEER_JOB_ID_SIZE], int timeout_ms, struct steer_fault *fault)
{
    uint64_t tag;
    int code = steer_submit_start(c, json, key, &tag, fault);
    return code ? code : submit_wait(c, tag, ret_id, timeout_ms, fault);
}

struct steer_job steer_job_default(void)
{
    return (struct steer_job){.alpha = NAN,
                              .phi = NAN,
                              .tau = NAN,
                              .beta = NAN,
                              .offset = NAN,
                              .guidance_scale = NAN,
                              .quality = -1};
}

static void guidance_fill(Steerfarm__Guidance *g, const struct steer_job *job)
{
#define NUMBER(field)                                                                              \
    g->has_##field = !isnan(job->field);                                                           \
    g->field = g->has_##field ? job->field : 0
    NUMBER(alpha);
    NUMBER(phi);
    NUMBER(tau);
    NUMBER(beta);
    NUMBER(offset);
    NUMBER(guidance_scale);
#undef NUMBER
}

/* A name out of an enum as pb_json reads it, or an error with the field's name. */
static int name_fill(int *ret, const char *field, const char *name, const char *const *names,
                     int count, struct steer_fault *fault)
{
    for (int i = 0; i < count; i++)
        if (strcmp(name, names[i]) == 0) {
            *ret = i;
            return 0;
        }
    char text[200];
    snprintf(text, sizeof text, "%s \"%.60s\" is unknown", field, name);
    return fault_of(fault, STEER_BAD_VALUE, text);
}

int steer_submit(struct steer_client *c, const struct steer_job *job,
                 char ret_id[STEER_JOB_ID_SIZE], int timeout_ms, struct steer_fault *fault)
{
    static const char *const precisions[] = {"auto", "f32", "bf16"};
    static const char *const formats[] = {"webp", "lossless", "png"};
    Steerfarm__Job m = STEERFARM__JOB__INIT;
    Steerfarm__Guidance guidance = STEERFARM__GUIDANCE__INIT;
    Steerfarm__Output output = STEERFARM__OUTPUT__INIT;
    int code, number;
    if (!job->model || !job->prompt)
        return fault_of(fault, STEER_BAD_VALUE, "a job needs a model and a prompt");
    m.model = (char *)(uintptr_t)job->model;
    m.prompt = (char *)(uintptr_t)job->prompt;
    m.negative_prompt = (char *)(uintptr_t)job->negative;
    m.recipe = (char *)(uintptr_t)job->recipe;
    guidance_fill(&guidance, job);
    if (job->guidance) {
        if ((number = job_method_of(job->guidance)) < 0)
            return fault_of(fault, STEER_BAD_VALUE,
                            "guidance: expected none, cfg, nasa, nag or vsf");
        guidance.has_method = 1;
        guidance.method = (Steerfarm__Method)number;
    }
    m.guidance = &guidance;
    m.output = &output;
    if (job->precision) {
        if ((code = name_fill(&number, "precision", job->precision, precisions, 3, fault)))
            return code;
        m.has_precision = 1;
        m.precision = (Steerfarm__Precision)number;
    }
    if (job->format) {
        if ((code = name_fill(&number, "format", job->format, formats, 3, fault))) return code;
        output.has_format = 1;
        output.format = (Steerfarm__Format)number;
    }
    output.has_quality = job->quality >= 0;
    output.quality = (uint32_t)(job->quality >= 0 ? job->quality : 0);
    m.has_width = (m.width = job->width) != 0;
    m.has_height = (m.height = job->height) != 0;
    m.has_steps = (m.steps = job->steps) != 0;
    m.has_images = (m.images = job->images) != 0;
    m.has_seed = job->has_seed;
    m.seed = job->seed;
    m.has_priority = (m.priority = job->priority) != 0;
    m.has_deadline_ms = (m.deadline_ms = job->deadline_ms) != 0;
    uint64_t tag;
    code = submit_message(c, &m, job->key, &tag, fault);
    return code ? code : submit_wait(c, tag, ret_id, timeout_ms, fault);
}

static int ask_wait(struct steer_client *c, int type, const ProtobufCMessage *m, uint64_t tag,
                    char **ret_json, int timeout_ms, struct steer_fault *fault)
{
    struct steer_event e;
    int code = request(c, type, m, tag);
    if (code) return fault_of(fault, code, "too many requests without an answer");
    if ((code = await(c, tag, &e, timeout_ms, fault))) return code;
    if (ret_json && !(*ret_json = strdup(e.json)))
        return fault_of(fault, STEER_NO_MEMORY, "out of memory");
    return 0;
}

int steer_cancel(struct steer_client *c, const char *job, const char *key, char **ret_json,
                 int timeout_ms, struct steer_fault *fault)
{
    Steerfarm__Cancel m = STEERFARM__CANCEL__INIT;
    m.job = (char *)(uintptr_t)job;
    m.key = (char *)(uintptr_t)key;
    m.has_tag = 1;
    m.tag = ++c->last_tag;
    return ask_wait(c, STEERFARM__MESSAGE_TYPE__CANCEL, &m.base, m.tag, ret_json, timeout_ms,
                    fault);
}

static int query_fill(Steerfarm__Query *m, const char *argument, json_t **ret_json,
                      Steerfarm__Label *label)
{
    json_t *json = *ret_json = json_loads(argument, 0, NULL);
    if (!json_is_object(json)) return STEER_BAD_VALUE;
    const json_t *l = json_object_get(json, "label"), *limit = json_object_get(json, "limit");
    m->state = (char *)(uintptr_t)json_string_value(json_object_get(json, "state"));
    m->has_limit = json_is_integer(limit);
    m->limit = (uint32_t)json_integer_value(limit);
    label->key = (char *)(uintptr_t)json_string_value(json_object_get(l, "key"));
    label->value = (char *)(uintptr_t)json_string_value(json_object_get(l, "value"));
    if (label->key && label->value) m->label = label;
    return 0;
}

int steer_ask(struct steer_client *c, enum steer_question question, const char *argument,
              char **ret_json, int timeout_ms, struct steer_fault *fault)
{
    uint64_t tag = ++c->last_tag;
    if (question >= STEER_DO_DRAIN) {
        Steerfarm__Admin m = STEERFARM__ADMIN__INIT;
        m.kind = (Steerfarm__AdminKind)(STEERFARM__ADMIN_KIND__ADMIN_DRAIN +
                                        (question - STEER_DO_DRAIN));
        if (question == STEER_DO_DRAIN) m.worker = (char *)(uintptr_t)argument;
        if (question == STEER_DO_RETRY) m.job = (char *)(uintptr_t)argument;
        m.has_tag = 1;
        m.tag = tag;
        return ask_wait(c, STEERFARM__MESSAGE_TYPE__ADMIN, &m.base, tag, ret_json, timeout_ms,
                        fault);
    }
    Steerfarm__Query m = STEERFARM__QUERY__INIT;
    Steerfarm__Label label = STEERFARM__LABEL__INIT;
    json_t *json = NULL;
    m.kind = (Steerfarm__QueryKind)(STEERFARM__QUERY_KIND__QUERY_JOB + (question - STEER_ASK_JOB));
    m.has_tag = 1;
    m.tag = tag;
    if (question == STEER_ASK_JOB) m.job = (char *)(uintptr_t)argument;
    if (question == STEER_ASK_JOBS && argument && query_fill(&m, argument, &json, &label)) {
        json_decref(json);
        return fault_of(fault, STEER_BAD_VALUE, "the argument is not a JSON object");
    }
    int code =
        ask_wait(c, STEERFARM__MESSAGE_TYPE__QUERY, &m.base, tag, ret_json, timeout_ms, fault);
    json_decref(json);
    return code;
}
