/* stream.c - streams that do nothing until somebody waits.
 *
 * 1. What a stream is given stands in its queue. A wait for it, or a query, runs it; nothing else
 * does.
 * 2. Only what the wait needs runs: of other streams what events ask for. So work without an event
 * between is out of order as far as it can be.
 * 3. After an error that breaks the device, queues are emptied without running anything. */
#include "stream.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

static struct CUstream_st legacy;
static struct CUstream_st *all = &legacy;

struct CUstream_st *stream_of(cudaStream_t s)
{
    if (!s || s == cudaStreamLegacy) return &legacy;
    for (struct CUstream_st *i = all; i; i = i->next)
        if (i == s) return i;
    return NULL;
}

struct fake_work *steer_fake_work(cudaError_t (*run)(void *data), size_t data_bytes)
{
    struct fake_work *w = calloc(1, sizeof *w + data_bytes);
    if (w) *w = (struct fake_work){.run = run, .owners = 1};
    return w;
}

void fake_work_drop(struct fake_work *w)
{
    if (!w || --w->owners) return;
    if (w->drop) w->drop(w->data);
    free(w);
}

static void mark_drop(struct mark *m)
{
    if (m && !--m->owners) free(m);
}

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static void step(struct CUstream_st *s);

static void mark_reach(const struct mark *m)
{
    while (!m->done)
        step(m->stream);
}

/* Does the first thing in the queue. */
static void step(struct CUstream_st *s)
{
    struct entry *e = s->first;
    struct fake_device *d = fake_device();
    s->first = e->next;
    if (!s->first) s->last = NULL;
    if (e->kind == ENTRY_WORK && !d->sticky) d->sticky = e->work->run(e->work->data);
    if (e->kind == ENTRY_WAIT) mark_reach(e->mark);
    if (e->kind == ENTRY_RECORD) {
        e->mark->done = 1;
        e->mark->at_ms = now_ms();
    }
    fake_work_drop(e->work);
    mark_drop(e->mark);
    free(e);
}

static cudaError_t drain(struct CUstream_st *s)
{
    while (s->first)
        step(s);
    return fake_device()->sticky;
}

cudaError_t fake_drain(cudaStream_t s)
{
    return drain(stream_of(s));
}

cudaError_t fake_drain_all(void)
{
    for (struct CUstream_st *s = all; s; s = s->next)
        drain(s);
    return fake_device()->sticky;
}

/* Takes w; shares m. */
static cudaError_t append(struct CUstream_st *s, enum entry_kind kind, struct fake_work *w,
                          struct mark *m)
{
    struct entry *e = malloc(sizeof *e);
    if (!e) {
        fake_work_drop(w);
        return cudaErrorMemoryAllocation;
    }
    *e = (struct entry){NULL, kind, w, m};
    if (m) m->owners++;
    if (s->last)
        s->last->next = e;
    else
        s->first = e;
    s->last = e;
    return cudaSuccess;
}

static struct mark *record(struct CUstream_st *s)
{
    struct mark *m = calloc(1, sizeof *m);
    if (!m) return NULL;
    m->owners = 1;
    m->stream = s;
    if (!append(s, ENTRY_RECORD, NULL, m)) return m;
    free(m);
    return NULL;
}

static cudaError_t wait_for(struct CUstream_st *s, struct CUstream_st *other)
{
    if (!other->first) return cudaSuccess;
    struct mark *m = record(other);
    cudaError_t e = m ? append(s, ENTRY_WAIT, NULL, m) : cudaErrorMemoryAllocation;
    mark_drop(m);
    return e;
}

/* The legacy stream and blocking ones come after each other in the order of calls. */
static cudaError_t order(struct CUstream_st *s)
{
    if (s->flags & cudaStreamNonBlocking) return cudaSuccess;
    if (s != &legacy) return wait_for(s, &legacy);
    cudaError_t e = cudaSuccess;
    for (struct CUstream_st *i = all; i && !e; i = i->next) {
        if (i == &legacy || i->flags & cudaStreamNonBlocking) continue;
        e = i->capture ? capture_break(i, cudaErrorStreamCaptureImplicit) : wait_for(s, i);
    }
    return e;
}

int fake_stream_captures(cudaStream_t handle)
{
    struct CUstream_st *s = stream_of(handle);
    return s && s->capture;
}

cudaError_t steer_fake_enqueue(cudaStream_t handle, struct fake_work *w)
{
    struct CUstream_st *s = stream_of(handle);
    cudaError_t e = s ? cudaSuccess : cudaErrorInvalidResourceHandle;
    if (!e && s->capture) return capture_add(s, w);
    if (!e) e = order(s);
    if (!e) return append(s, ENTRY_WORK, w, NULL);
    fake_work_drop(w);
    return e;
}

void stream_leave(const struct capture *c)
{
    for (struct CUstream_st *s = all; s; s = s->next)
        if (s->capture == c) s->capture = NULL;
}

/* --- streams --- */

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *ret, unsigned flags, int priority)
{
    (void)priority;
    cudaError_t e = steer_fake_enter(FAKE_STREAM);
    if (!e && flags & ~(unsigned)cudaStreamNonBlocking) e = cudaErrorInvalidValue;
    struct CUstream_st *s = e ? NULL : calloc(1, sizeof *s);
    if (!e && !s) e = cudaErrorMemoryAllocation;
    if (!e) {
        s->flags = flags;
        s->next = all;
        all = s;
        *ret = s;
        steer_fake_count(FAKE_STREAMS, 1);
    }
    return steer_fake_leave(e);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *ret, unsigned flags)
{
    return cudaStreamCreateWithPriority(ret, flags, 0);
}

cudaError_t cudaStreamCreate(cudaStream_t *ret)
{
    return cudaStreamCreateWithPriority(ret, 0, 0);
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

/* What the stream still has to do is done, as the real one promises. */
cudaError_t cudaStreamDestroy(cudaStream_t handle)
{
    cudaError_t e = steer_fake_enter_plain();
    struct CUstream_st *s = stream_of(handle);
    if (!s || s == &legacy) return steer_fake_leave(cudaErrorInvalidResourceHandle);
    if (s->capture) e = capture_break(s, cudaErrorStreamCaptureUnsupported);
    drain(s);
    for (struct CUstream_st **i = &all; *i; i = &(*i)->next) {
        if (*i != s) continue;
        *i = s->next;
        break;
    }
    free(s->after.nodes);
    free(s);
    steer_fake_count(FAKE_STREAMS, -1);
    return steer_fake_leave(e);
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle)
{
    cudaError_t e = steer_fake_enter_plain();
    struct CUstream_st *s = stream_of(handle);
    if (!e && !s) e = cudaErrorInvalidResourceHandle;
    if (!e && s->capture) e = capture_break(s, cudaErrorStreamCaptureUnsupported);
    if (!e && s == &legacy) e = order(s);
    return steer_fake_leave(e ? e : drain(s));
}

cudaError_t cudaStreamQuery(cudaStream_t handle)
{
    cudaError_t e = steer_fake_enter_plain();
    struct CUstream_st *s = stream_of(handle);
    if (!e && !s) e = cudaErrorInvalidResourceHandle;
    if (!e && s->capture) e = capture_break(s, cudaErrorStreamCaptureUnsupported);
    if (!e && s->first) step(s);
    if (!e) e = fake_device()->sticky;
    return steer_fake_leave(e ? e : s->first ? cudaErrorNotReady : cudaSuccess);
}

cudaError_t cudaDeviceSynchronize(void)
{
    cudaError_t e = steer_fake_enter_plain();
    if (!e) e = fake_forbid_capture();
    return steer_fake_leave(e ? e : fake_drain_all());
}

struct host_call {
    cudaHostFn_t call;
    void *user;
};

static cudaError_t host_run(void *data)
{
    const struct host_call *h = data;
    h->call(h->user);
    return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t call, void *user)
{
    cudaError_t e = steer_fake_enter(FAKE_LAUNCH);
    struct fake_work *w = e ? NULL : steer_fake_work(host_run, sizeof(struct host_call));
    if (!e && !w) e = cudaErrorMemoryAllocation;
    if (!e) {
        *(struct host_call *)w->data = (struct host_call){call, user};
        e = steer_fake_enqueue(s, w);
    }
    return steer_fake_leave(e);
}

/* --- events --- */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *ret, unsigned flags)
{
    cudaError_t e = steer_fake_enter(FAKE_EVENT);
    struct CUevent_st *v = e ? NULL : calloc(1, sizeof *v);
    if (!e && !v) e = cudaErrorMemoryAllocation;
    if (!e) {
        v->flags = flags;
        *ret = v;
        steer_fake_count(FAKE_EVENTS, 1);
    }
    return steer_fake_leave(e);
}

cudaError_t cudaEventCreate(cudaEvent_t *ret)
{
    return cudaEventCreateWithFlags(ret, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t v)
{
    cudaError_t e = steer_fake_enter_plain();
    if (!v) return steer_fake_leave(cudaErrorInvalidResourceHandle);
    mark_drop(v->mark);
    free(v->after.nodes);
    free(v);
    steer_fake_count(FAKE_EVENTS, -1);
    return steer_fake_leave(e);
}

cudaError_t cudaEventRecord(cudaEvent_t v, cudaStream_t handle)
{
    cudaError_t e = steer_fake_enter(FAKE_EVENT);
    struct CUstream_st *s = stream_of(handle);
    if (!e && (!s || !v)) e = cudaErrorInvalidResourceHandle;
    if (e) return steer_fake_leave(e);
    if (s->capture) {
        v->captured = s->capture->id;
        v->after.n = 0;
        return steer_fake_leave(after_join(&v->after, &s->after) ? cudaErrorMemoryAllocation
                                                                 : cudaSuccess);
    }
    e = order(s);
    struct mark *m = e ? NULL : record(s);
    if (!e && !m) e = cudaErrorMemoryAllocation;
    if (!e) {
        mark_drop(v->mark);
        v->mark = m;
        v->captured = 0;
    }
    return steer_fake_leave(e);
}

static cudaError_t stream_wait(struct CUstream_st *s, struct CUevent_st *v)
{
    if (v->captured) {
        struct capture *c = capture_of(v->captured);
        if (!c) return cudaErrorCapturedEvent;
        if (s->capture && s->capture != c) return capture_break(s, cudaErrorStreamCaptureIsolation);
        if (s == &legacy) return capture_break(c->origin, cudaErrorStreamCaptureImplicit);
        /* A stream that waits for a captured event joins its capture. */
        if (!s->capture) s->after.n = 0;
        s->capture = c;
        return after_join(&s->after, &v->after) ? cudaErrorMemoryAllocation : cudaSuccess;
    }
    if (s->capture) return capture_break(s, cudaErrorStreamCaptureIsolation);
    /* An event that was never recorded holds nobody up. */
    return v->mark ? append(s, ENTRY_WAIT, NULL, v->mark) : cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t v, unsigned flags)
{
    cudaError_t e = steer_fake_enter(FAKE_EVENT);
    struct CUstream_st *s = stream_of(handle);
    if (!e && (!s || !v)) e = cudaErrorInvalidResourceHandle;
    if (!e && flags) e = cudaErrorInvalidValue;
    return steer_fake_leave(e ? e : stream_wait(s, v));
}

cudaError_t cudaEventSynchronize(cudaEvent_t v)
{
    cudaError_t e = steer_fake_enter_plain();
    if (!e && v->captured) e = cudaErrorCapturedEvent;
    if (!e && v->mark) mark_reach(v->mark);
    return steer_fake_leave(e ? e : fake_device()->sticky);
}

cudaError_t cudaEventQuery(cudaEvent_t v)
{
    cudaError_t e = steer_fake_enter_plain();
    if (!e && v->captured) e = cudaErrorCapturedEvent;
    if (!e && v->mark && !v->mark->done) step(v->mark->stream);
    if (!e) e = fake_device()->sticky;
    return steer_fake_leave(e ? e : v->mark && !v->mark->done ? cudaErrorNotReady : cudaSuccess);
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end)
{
    cudaError_t e = steer_fake_enter_plain();
    if (!e && (!start->mark || !end->mark || (start->flags | end->flags) & cudaEventDisableTiming))
        e = cudaErrorInvalidResourceHandle;
    if (!e && (!start->mark->done || !end->mark->done)) e = cudaErrorNotReady;
    if (!e) *ms = (float)(end->mark->at_ms - start->mark->at_ms);
    return steer_fake_leave(e);
}
