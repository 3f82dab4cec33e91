// SPDX-License-Identifier: Apache-2.0
/* The connection to a broker, the jobs that are followed over it, and the events that come of them.
 *
 * 1. Every request is kept until it is answered, and every FETCH and WATCH until its job has ended:
 *    upkeep sends them again after a while, and all at once after a WELCOME.
 * 2. An event is shown once. What comes while a request is waited for is held, in order.
 * 3. The connection is silent only when a PING was asked, the socket was read empty, and nothing
 *    came: a caller that was away for a minute has not lost its broker. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

#include "client_internal.h"
#include "error.h"
#include "limits.h"
#include "pb_json.h"
#include "wire.h"

enum {
    HEARTBEAT_MS = 1000, /* until WELCOME says better */
    RESEND_MS = 3000,    /* a request without an answer */
    QUIET_MS = 5000,     /* a followed job without news */
    SILENT_BEATS = 5,    /* heartbeats without a word: the connection is made anew */
    FRAMES_MAX = 3,
    PENDING_MAX = 4096,
    HELD_RESULTS_MAX = 64, /* images held back; more of them come again later */
    HELD_MAX = 2 * PENDING_MAX,
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
    int watching;
    uint32_t credit;        /* 0: not fetched */
    uint32_t first, last;   /* wanted images */
    uint64_t news_ms;       /* when it was asked for, or last heard of */
    uint8_t *shown, *acked; /* a bit an index */
    uint32_t room;          /* bits of them */
};

/* A message with the event that shows it. */
struct delivery {
    struct delivery *next;
    struct steer_event event;
    struct wire_message message;
    zmq_msg_t parts[FRAMES_MAX];
    int parts_count;
    char *json;
};

struct steer_client {
    char endpoint[256];
    void *context, *socket;
    int epoll, wake, awake; /* wake makes epoll readable, whatever the socket's descriptor says */
    int welcomed;
    uint32_t heartbeat_ms;
    uint64_t heard_ms, hello_ms, pinged_ms, kept_ms, last_tag;
    uint64_t asked_ms; /* the first PING since the last word; 0: none */
    const volatile sig_atomic_t *stop;
    struct pending *pending;
    int pending_count;
    struct interest *interests;
    struct delivery *held, **held_end; /* events for steer_next, oldest first */
    int held_count, held_results;
    struct delivery *shown;     /* what the last event points at */
    struct steer_fault refusal; /* the last "not now", for whoever waits in vain */
    uint64_t refusal_tag;
};

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

int fault_of(struct steer_fault *fault, int code, const char *text)
{
    if (fault) {
        snprintf(fault->code, sizeof fault->code, "%s", steer_code_name(code));
        snprintf(fault->text, sizeof fault->text, "%s", text);
        fault->exit_code = steer_code_exit(code);
    }
    return code;
}

/* A caller that polls reads until there is nothing; only then the descriptor may sleep. Sending
 * takes the socket's own signal as well, so every call that touches it leaves this one on. */
static void awake(struct steer_client *c, int on)
{
    uint64_t one = 1;
    if (on == c->awake) return;
    c->awake = on;
    ssize_t moved = on ? write(c->wake, &one, sizeof one) : read(c->wake, &one, sizeof one);
    (void)moved;
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

/* Puts a new socket in the old one's place; on failure the old one stays. */
static int socket_open(struct steer_client *c)
{
    int linger = 200, one = 1, fd = -1;
    int64_t most = STEER_IMAGE_BYTES_MAX;
    size_t size = sizeof fd;
    struct epoll_event event = {.events = EPOLLIN};
    void *s = zmq_socket(c->context, ZMQ_DEALER);
    if (!s) return STEER_NO_MEMORY;
    zmq_setsockopt(s, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(s, ZMQ_IMMEDIATE, &one, sizeof one);
    zmq_setsockopt(s, ZMQ_MAXMSGSIZE, &most, sizeof most);
    zmq_setsockopt(s, ZMQ_TCP_KEEPALIVE, &one, sizeof one);
    zmq_getsockopt(s, ZMQ_FD, &fd, &size);
    if (zmq_connect(s, c->endpoint) || epoll_ctl(c->epoll, EPOLL_CTL_ADD, fd, &event)) {
        zmq_close(s);
        return STEER_BAD_VALUE;
    }
    if (c->socket) {
        if (!zmq_getsockopt(c->socket, ZMQ_FD, &fd, &size))
            epoll_ctl(c->epoll, EPOLL_CTL_DEL, fd, NULL);
        zmq_close(c->socket);
    }
    c->socket = s;
    c->welcomed = 0;
    c->heard_ms = now_ms();
    c->asked_ms = c->hello_ms = 0;
    return 0;
}

int steer_open(struct steer_client **ret, const char *endpoint, struct steer_fault *fault)
{
    const char *variable = getenv("STEER_BROKER");
    struct epoll_event event = {.events = EPOLLIN};
    char text[400];
    if (!endpoint) endpoint = variable && *variable ? variable : "tcp://127.0.0.1:5555";
    struct steer_client *c = calloc(1, sizeof *c);
    if (!c) return fault_of(fault, STEER_NO_MEMORY, "no room for a client");
    c->held_end = &c->held;
    c->heartbeat_ms = HEARTBEAT_MS;
    c->epoll = epoll_create1(EPOLL_CLOEXEC);
    c->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int fits = snprintf(c->endpoint, sizeof c->endpoint, "%s", endpoint) < (int)sizeof c->endpoint;
    if (c->epoll < 0 || c->wake < 0 || epoll_ctl(c->epoll, EPOLL_CTL_ADD, c->wake, &event) ||
        !(c->context = zmq_ctx_new())) {
        steer_close(c);
        return fault_of(fault, STEER_NO_MEMORY, "no room for a client");
    }
    int code = fits ? socket_open(c) : STEER_BAD_VALUE;
    if (code) {
        snprintf(text, sizeof text,
                 "\"%.200s\" is no endpoint: expected tcp://HOST:PORT or ipc://PATH", endpoint);
        steer_close(c);
        return fault_of(fault, code, text);
    }
    awake(c, 1); /* for the first HELLO */
    *ret = c;
    return 0;
}

void steer_stop_flag(struct steer_client *c, const volatile sig_atomic_t *flag)
{
    c->stop = flag;
}

int steer_fd(const struct steer_client *c)
{
    return c->epoll;
}

static void delivery_free(struct delivery *d)
{
    if (!d) return;
    wire_free(&d->message);
    for (int i = 0; i < d->parts_count; i++)
        zmq_msg_close(d->parts + i);
    free(d->json);
    free(d);
}

static void pending_free(struct pending *p)
{
    free(p->body);
    free(p);
}

static void interest_free(struct interest *i)
{
    free(i->shown);
    free(i->acked);
    free(i);
}

void steer_close(struct steer_client *c)
{
    if (!c) return;
    delivery_free(c->shown);
    while (c->held) {
        struct delivery *d = c->held;
        c->held = d->next;
        delivery_free(d);
    }
    while (c->pending) {
        struct pending *p = c->pending;
        c->pending = p->next;
        pending_free(p);
    }
    while (c->interests) {
        struct interest *i = c->interests;
        c->interests = i->next;
        interest_free(i);
    }
    if (c->socket) zmq_close(c->socket);
    if (c->context) zmq_ctx_term(c->context);
    if (c->wake >= 0) close(c->wake);
    if (c->epoll >= 0) close(c->epoll);
    free(c);
}

/* ---- requests ---- */

uint64_t client_tag(struct steer_client *c)
{
    return ++c->last_tag;
}

int client_request(struct steer_client *c, int type, const ProtobufCMessage *m, uint64_t tag)
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
    awake(c, 1);
    return 0;
}

static struct pending **pending_find(struct steer_client *c, uint64_t tag)
{
    struct pending **at = &c->pending;
    while (*at && (*at)->tag != tag)
        at = &(*at)->next;
    return at;
}

/* 1: it was there. The second answer to a request sent twice finds nothing. */
static int pending_drop(struct steer_client *c, uint64_t tag)
{
    struct pending **at = pending_find(c, tag), *p = *at;
    if (!p) return 0;
    *at = p->next;
    c->pending_count--;
    pending_free(p);
    return 1;
}

/* ---- jobs that are followed ---- */

static struct interest **interest_at(struct steer_client *c, const char *job)
{
    struct interest **at = &c->interests;
    while (*at && strcmp((*at)->job, job) != 0)
        at = &(*at)->next;
    return at;
}

static struct interest *interest_find(struct steer_client *c, const char *job)
{
    return job ? *interest_at(c, job) : NULL;
}

static void interest_drop(struct steer_client *c, const char *job)
{
    struct interest **at = interest_at(c, job), *i = *at;
    if (!i) return;
    *at = i->next;
    interest_free(i);
}

static int interest_make(struct steer_client *c, const char *job, struct interest **ret)
{
    if (!*job || strlen(job) >= STEER_JOB_ID_SIZE) return STEER_UNKNOWN_JOB;
    struct interest *i = interest_find(c, job);
    if (!i) {
        if (!(i = calloc(1, sizeof *i))) return STEER_NO_MEMORY;
        snprintf(i->job, sizeof i->job, "%s", job);
        i->next = c->interests;
        c->interests = i;
    }
    *ret = i;
    return 0;
}

static void interest_send(struct steer_client *c, struct interest *i)
{
    i->news_ms = now_ms();
    if (i->watching) {
        Steerfarm__Watch m = STEERFARM__WATCH__INIT;
        m.job = i->job;
        (void)send_message(c, STEERFARM__MESSAGE_TYPE__WATCH, &m.base);
    }
    if (i->credit) {
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
    struct interest *i = NULL;
    if (first > last) return STEER_BAD_VALUE;
    int code = interest_make(c, job, &i);
    if (code) return code;
    i->credit = credit ? credit : 1;
    i->first = first;
    i->last = last;
    if (c->welcomed) interest_send(c, i);
    awake(c, 1);
    return 0;
}

int steer_watch(struct steer_client *c, const char *job)
{
    struct interest *i = NULL;
    int code = interest_make(c, job, &i);
    if (code) return code;
    i->watching = 1;
    if (c->welcomed) interest_send(c, i);
    awake(c, 1);
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
    struct interest *i = interest_find(c, job);
    if (i && bit_set(i, &i->acked, index)) return STEER_NO_MEMORY;
    (void)ack_send(c, job, index); /* lost: the RESULT comes again, and then so does this */
    awake(c, 1);
    return 0;
}

/* ---- receiving: each returns 1 when the event is to be shown ---- */

static const char *format_name(Steerfarm__Format format)
{
    return format == STEERFARM__FORMAT__PNG             ? "png"
           : format == STEERFARM__FORMAT__WEBP_LOSSLESS ? "lossless"
                                                        : "webp";
}

static int on_result(struct steer_client *c, const struct wire_message *message,
                     struct steer_event *e)
{
    const Steerfarm__Result *m = (const Steerfarm__Result *)message->body;
    const struct wire_frame *p = &message->payload;
    struct interest *i = interest_find(c, m->job);
    if (!i || m->index >= STEER_IMAGES_MAX) return 0;
    i->news_ms = now_ms();
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

/* It will be shown by a later RESULT. */
static void result_unshow(struct steer_client *c, const struct steer_event *e)
{
    struct interest *i = interest_find(c, e->job);
    if (i && bit(i->shown, i->room, e->index))
        i->shown[e->index / 8] = (uint8_t)(i->shown[e->index / 8] & ~(1 << (e->index % 8)));
}

static int on_refused(struct steer_client *c, const Steerfarm__Refused *m, struct steer_event *e)
{
    int code = steer_code_of(m->code);
    uint64_t tag = m->has_tag ? m->tag : 0;
    if (code == STEER_HELLO_REQUIRED) { /* the broker has restarted */
        c->welcomed = 0;
        c->hello_ms = 0;
        return 0;
    }
    fault_of(&e->fault, code, m->text);
    snprintf(e->fault.code, sizeof e->fault.code, "%s", m->code);
    struct pending *p = *pending_find(c, tag);
    if (m->has_retry_after_ms) { /* asked again later, under the same key */
        if (p) p->due_ms = now_ms() + m->retry_after_ms;
        if (p || !tag) {
            c->refusal = e->fault;
            c->refusal_tag = tag;
        }
        return 0;
    }
    if (tag && !pending_drop(c, tag)) return 0;
    struct interest *i = tag ? NULL : interest_find(c, m->job);
    if (i && code == STEER_REPLACED)
        i->credit = 0; /* asking again would only take it away from the newer one */
    else if (i)
        interest_drop(c, m->job);
    e->kind = STEER_EVENT_REFUSED;
    e->tag = tag;
    e->job = m->job;
    return 1;
}

static void on_welcome(struct steer_client *c, const Steerfarm__Welcome *m)
{
    c->welcomed = 1;
    c->heartbeat_ms =
        m->has_heartbeat_ms && m->heartbeat_ms >= 100 ? m->heartbeat_ms : HEARTBEAT_MS;
    if (!c->refusal_tag) c->refusal.code[0] = 0;
    for (struct pending *p = c->pending; p; p = p->next)
        p->due_ms = 0; /* all that was not answered goes again */
    for (struct interest *i = c->interests; i; i = i->next)
        interest_send(c, i);
}

/* The end of a job, or only of what a FETCH of some of its images had to wait for. */
static int on_done(struct steer_client *c, const Steerfarm__JobStatus *status,
                   struct steer_event *e)
{
    struct interest *i = interest_find(c, status->job);
    if (!i || (!i->credit && !i->watching)) return 0;
    if (strcmp(status->state, "queued") != 0 && strcmp(status->state, "running") != 0)
        interest_drop(c, status->job);
    else if (i->credit)
        i->credit = 0;
    else
        return 0;
    e->kind = STEER_EVENT_DONE;
    e->job = status->job;
    return 1;
}

static int on_message(struct steer_client *c, const struct wire_message *message,
                      struct steer_event *e)
{
    const void *body = message->body;
    switch (message->type) {
    case STEERFARM__MESSAGE_TYPE__WELCOME: on_welcome(c, body); return 0;
    case STEERFARM__MESSAGE_TYPE__REFUSED: return on_refused(c, body, e);
    case STEERFARM__MESSAGE_TYPE__ACCEPTED: {
        const Steerfarm__Accepted *m = body;
        e->kind = STEER_EVENT_ACCEPTED;
        e->tag = m->tag;
        e->job = m->job;
        return pending_drop(c, m->tag);
    }
    case STEERFARM__MESSAGE_TYPE__REPLY:
        e->kind = STEER_EVENT_REPLY;
        e->tag = ((const Steerfarm__Reply *)body)->tag;
        return pending_drop(c, e->tag);
    case STEERFARM__MESSAGE_TYPE__PROGRESS: {
        struct interest *i = interest_find(c, ((const Steerfarm__Progress *)body)->job);
        if (!i || !i->watching) return 0;
        i->news_ms = now_ms();
        e->kind = STEER_EVENT_PROGRESS;
        e->job = ((const Steerfarm__Progress *)body)->job;
        return 1;
    }
    case STEERFARM__MESSAGE_TYPE__DONE:
        return on_done(c, ((const Steerfarm__Done *)body)->status, e);
    case STEERFARM__MESSAGE_TYPE__RESULT: return on_result(c, message, e);
    default: return 0;
    }
}

/* Reads one message; NULL with *ret_more: it was nonsense, or there is no memory for it now. */
static struct delivery *receive(struct steer_client *c, int *ret_more)
{
    struct wire_frame frames[FRAMES_MAX + 1];
    size_t count = 0;
    int more = 1;
    struct delivery *d = calloc(1, sizeof *d);
    *ret_more = 0;
    if (!d) return NULL; /* it stays in the socket */
    while (more) {
        zmq_msg_t spare, *part = count < FRAMES_MAX ? d->parts + count : &spare;
        zmq_msg_init(part);
        if (zmq_msg_recv(part, c->socket, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(part);
            delivery_free(d);
            return NULL;
        }
        *ret_more = 1;
        more = zmq_msg_more(part);
        if (part == &spare) {
            zmq_msg_close(part);
        } else {
            frames[count].data = zmq_msg_data(part);
            frames[count].size = zmq_msg_size(part);
            d->parts_count++;
        }
        if (count <= FRAMES_MAX) count++;
    }
    struct steer_error err = {0};
    json_t *json = NULL;
    if (count <= FRAMES_MAX && !wire_parse(&d->message, frames, count, &err) &&
        (json = pb_to_json(d->message.body)))
        d->event.json = d->json = json_dumps(json, JSON_COMPACT);
    json_decref(json);
    if (d->json) {
        c->heard_ms = now_ms();
        c->asked_ms = 0;
        return d;
    }
    delivery_free(d);
    return NULL;
}

/* The next message that is an event; NULL: the socket is empty. */
static struct delivery *event_receive(struct steer_client *c)
{
    int more = 1;
    while (more) {
        struct delivery *d = receive(c, &more);
        if (d && on_message(c, &d->message, &d->event)) return d;
        delivery_free(d);
    }
    return NULL;
}

/* What time asks for: HELLO, PING, sending again, a new connection. */
static void upkeep(struct steer_client *c, int drained)
{
    uint64_t now = now_ms(), beat = c->heartbeat_ms;
    if (now > c->kept_ms + beat) c->asked_ms = 0; /* the caller was away: judge anew */
    c->kept_ms = now;
    if (c->welcomed && drained && c->asked_ms && now > c->asked_ms + (SILENT_BEATS - 1) * beat)
        (void)socket_open(c);
    if (!c->welcomed) {
        if (now >= c->hello_ms + HEARTBEAT_MS) hello_send(c);
        return;
    }
    if (now > c->heard_ms + beat && now > c->pinged_ms + beat) {
        Steerfarm__Ping ping = STEERFARM__PING__INIT;
        c->pinged_ms = now;
        if (!c->asked_ms) c->asked_ms = now;
        (void)send_message(c, STEERFARM__MESSAGE_TYPE__PING, &ping.base);
    }
    for (struct pending *p = c->pending; p; p = p->next)
        if (now >= p->due_ms && !send_raw(c, p->type, p->body, p->body_bytes))
            p->due_ms = now + RESEND_MS;
    for (struct interest *i = c->interests; i; i = i->next)
        if (now > i->news_ms + QUIET_MS) interest_send(c, i);
}

/* One look at the socket and the clock; NULL: nothing now. */
static struct delivery *turn(struct steer_client *c)
{
    struct delivery *d = event_receive(c);
    upkeep(c, !d);
    /* Sending may have taken the descriptor's signal for something that has come since. */
    return d ? d : event_receive(c);
}

static int stopped(const struct steer_client *c)
{
    return c->stop && *c->stop;
}

/* Sleeps until something may have come. 0: look again, 1: the time is over or a signal came. */
static int rest(struct steer_client *c, uint64_t begun, int timeout_ms, struct steer_fault *fault)
{
    uint64_t spent = now_ms() - begun;
    long wait = c->welcomed ? 100 : 20;
    if (stopped(c) || (timeout_ms >= 0 && spent >= (uint64_t)timeout_ms)) return 1;
    if (timeout_ms >= 0 && (uint64_t)timeout_ms - spent < (uint64_t)wait)
        wait = (long)((uint64_t)timeout_ms - spent);
    zmq_pollitem_t item = {c->socket, 0, ZMQ_POLLIN, 0};
    if (zmq_poll(&item, 1, wait) >= 0) return 0;
    return errno == EINTR ? 1 : fault_of(fault, STEER_IO, zmq_strerror(errno));
}

/* ---- events ---- */

static struct delivery *held_take(struct steer_client *c)
{
    struct delivery *d = c->held;
    if (!d) return NULL;
    if (!(c->held = d->next)) c->held_end = &c->held;
    d->next = NULL;
    c->held_count--;
    c->held_results -= d->event.kind == STEER_EVENT_RESULT;
    return d;
}

/* Keeps an event for steer_next. Of a job's PROGRESS only the last matters, images are many; the
 * rest is bounded by the requests and jobs that are open, unless the broker has gone mad. */
static void held_put(struct steer_client *c, struct delivery *d)
{
    int image = d->event.kind == STEER_EVENT_RESULT;
    if (c->held_count == HELD_MAX || (image && c->held_results == HELD_RESULTS_MAX)) {
        if (image) result_unshow(c, &d->event);
        delivery_free(d);
        return;
    }
    for (struct delivery **at = &c->held; *at && d->event.kind == STEER_EVENT_PROGRESS;) {
        struct delivery *old = *at;
        if (old->event.kind != STEER_EVENT_PROGRESS || strcmp(old->event.job, d->event.job) != 0) {
            at = &old->next;
            continue;
        }
        *at = old->next;
        if (c->held_end == &old->next) c->held_end = at;
        delivery_free(old);
        c->held_count--;
    }
    c->held_count++;
    c->held_results += image;
    *c->held_end = d;
    c->held_end = &d->next;
}

static void show(struct steer_client *c, struct delivery *d, struct steer_event *ret)
{
    c->shown = d;
    *ret = d->event;
    awake(c, 1);
}

int steer_next(struct steer_client *c, struct steer_event *ret, int timeout_ms,
               struct steer_fault *fault)
{
    uint64_t begun = now_ms();
    delivery_free(c->shown);
    c->shown = NULL;
    for (;;) {
        struct delivery *d = held_take(c);
        if (!d) d = turn(c);
        if (d) {
            show(c, d, ret);
            return 1;
        }
        int over = rest(c, begun, timeout_ms, fault);
        if (over < 0) return over;
        if (!over) continue;
        awake(c, 0);
        return 0;
    }
}

/* A REFUSED whose request could not be read has no tag, but the request's type or HELLO's. */
static int is_answer(const struct delivery *d, int type, uint64_t tag)
{
    if (d->event.kind == STEER_EVENT_REFUSED && !d->event.tag) {
        const Steerfarm__Refused *m = (const Steerfarm__Refused *)d->message.body;
        return !m->has_request || (int)m->request == type ||
               m->request == STEERFARM__MESSAGE_TYPE__HELLO;
    }
    return d->event.tag == tag;
}

static int answer_missing(struct steer_client *c, uint64_t tag, int timeout_ms,
                          struct steer_fault *fault)
{
    char text[1024];
    pending_drop(c, tag);
    if (stopped(c))
        return fault_of(fault, STEER_INTERRUPTED, "interrupted before the broker had answered");
    if (c->refusal.code[0] && (!c->refusal_tag || c->refusal_tag == tag)) {
        snprintf(text, sizeof text, "%s: %.900s (still so after %d ms)", c->refusal.code,
                 c->refusal.text, timeout_ms);
        return fault_of(fault, steer_code_of(c->refusal.code), text);
    }
    snprintf(text, sizeof text,
             "no answer from the broker at %s within %d ms; is it running? "
             "(`steer up` starts one)",
             c->endpoint, timeout_ms);
    return fault_of(fault, STEER_TIMEOUT, text);
}

int client_await(struct steer_client *c, int type, uint64_t tag, struct steer_event *e,
                 int timeout_ms, struct steer_fault *fault)
{
    uint64_t begun = now_ms();
    delivery_free(c->shown);
    c->shown = NULL;
    for (;;) {
        struct delivery *d = turn(c);
        if (d && !is_answer(d, type, tag)) {
            held_put(c, d);
        } else if (d) {
            show(c, d, e);
            if (e->kind != STEER_EVENT_REFUSED) return 0;
            pending_drop(c, tag);
            if (fault) *fault = e->fault;
            return steer_code_of(e->fault.code);
        }
        int over = d ? stopped(c) : rest(c, begun, timeout_ms, fault);
        if (over < 0) return over;
        uint64_t spent = now_ms() - begun;
        /* A signal that is not the one to stop at changes nothing. */
        if (stopped(c) || (timeout_ms >= 0 && spent >= (uint64_t)timeout_ms)) break;
    }
    awake(c, 1);
    return answer_missing(c, tag, timeout_ms, fault);
}
