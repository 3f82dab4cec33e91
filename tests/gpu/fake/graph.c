/* graph.c - captures of streams and the graphs they make.
 *
 * A node knows what it comes after and nothing else. A launch begins with the node that was
 * captured last: what that comes after runs first, and all the rest later, so two nodes without an
 * edge between do not keep the order in which they were written. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "stream.h"

static struct capture *captures;
static unsigned long captures_made;

int after_join(struct after *a, const struct after *b)
{
    size_t *nodes = realloc(a->nodes, (a->n + b->n + 1) * sizeof *nodes);
    if (!nodes) return -1;
    a->nodes = nodes;
    for (size_t i = 0; i < b->n; i++) {
        size_t j = 0;
        while (j < a->n && a->nodes[j] != b->nodes[i])
            j++;
        if (j == a->n) a->nodes[a->n++] = b->nodes[i];
    }
    return 0;
}

static void graph_drop(struct CUgraph_st *g)
{
    if (!g || --g->owners) return;
    for (size_t i = 0; i < g->n; i++) {
        fake_work_drop(g->nodes[i].work);
        free(g->nodes[i].after.nodes);
    }
    free(g->nodes);
    free(g);
}

struct capture *capture_of(unsigned long id)
{
    struct capture *c = captures;
    while (c && c->id != id)
        c = c->next;
    return c;
}

cudaError_t capture_break(struct CUstream_st *s, cudaError_t e)
{
    if (s->capture) s->capture->is_broken = 1;
    return e;
}

cudaError_t fake_forbid_capture(void)
{
    for (struct capture *c = captures; c; c = c->next) {
        if (c->mode == cudaStreamCaptureModeRelaxed ||
            (c->mode == cudaStreamCaptureModeThreadLocal &&
             c->thread != (unsigned long)pthread_self()))
            continue;
        c->is_broken = 1;
        return cudaErrorStreamCaptureUnsupported;
    }
    return cudaSuccess;
}

cudaError_t capture_add(struct CUstream_st *s, struct fake_work *w)
{
    struct CUgraph_st *g = s->capture->graph;
    struct node n = {.work = w};
    struct node *nodes =
        s->capture->is_broken ? NULL : realloc(g->nodes, (g->n + 1) * sizeof *nodes);
    if (nodes) g->nodes = nodes;
    if (!nodes || after_join(&n.after, &s->after)) {
        fake_work_drop(w);
        return s->capture->is_broken ? cudaErrorStreamCaptureInvalidated
                                     : cudaErrorMemoryAllocation;
    }
    s->after.nodes[0] = g->n;
    s->after.n = 1;
    g->nodes[g->n++] = n;
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, enum cudaStreamCaptureMode mode)
{
    cudaError_t e = steer_fake_enter(FAKE_CAPTURE);
    struct CUstream_st *s = stream_of(handle);
    if (!e && !s) e = cudaErrorInvalidResourceHandle;
    if (!e && s == stream_of(NULL)) e = cudaErrorStreamCaptureUnsupported;
    if (!e && s->capture) e = cudaErrorIllegalState;
    struct capture *c = e ? NULL : calloc(1, sizeof *c);
    struct CUgraph_st *g = c ? calloc(1, sizeof *g) : NULL;
    if (!e && (!g || after_join(&s->after, &(struct after){NULL, 0}))) {
        free(c);
        free(g);
        e = cudaErrorMemoryAllocation;
    }
    if (!e) {
        g->owners = 1;
        *c = (struct capture){captures, ++captures_made, g, s, mode, (unsigned long)pthread_self(),
                              0};
        captures = c;
        s->capture = c;
        s->after.n = 0;
    }
    return steer_fake_leave(e);
}

/* Whether every node is come after by the origin: nothing forked was forgotten. */
static int all_joined(const struct capture *c)
{
    const struct CUgraph_st *g = c->graph;
    char *reached = calloc(1, g->n + 1);
    if (!reached) return 0;
    for (size_t i = 0; i < c->origin->after.n; i++)
        reached[c->origin->after.nodes[i]] = 1;
    for (size_t i = g->n; i--;)
        for (size_t j = 0; reached[i] && j < g->nodes[i].after.n; j++)
            reached[g->nodes[i].after.nodes[j]] = 1;
    int joined = !memchr(reached, 0, g->n);
    free(reached);
    return joined;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *ret)
{
    cudaError_t e = steer_fake_enter(FAKE_CAPTURE);
    struct CUstream_st *s = stream_of(handle);
    struct capture *c = s ? s->capture : NULL;
    if (!c) return steer_fake_leave(e ? e : cudaErrorIllegalState);
    if (!e && c->origin != s) e = cudaErrorStreamCaptureUnmatched;
    if (!e && c->mode != cudaStreamCaptureModeRelaxed && c->thread != (unsigned long)pthread_self())
        return steer_fake_leave(cudaErrorStreamCaptureWrongThread);
    if (!e && c->is_broken) e = cudaErrorStreamCaptureInvalidated;
    if (!e && !all_joined(c)) e = cudaErrorStreamCaptureUnjoined;
    /* The capture ends in any case. */
    for (struct capture **i = &captures; *i; i = &(*i)->next) {
        if (*i != c) continue;
        *i = c->next;
        break;
    }
    stream_leave(c);
    if (e)
        graph_drop(c->graph);
    else
        steer_fake_count(FAKE_GRAPHS, 1);
    *ret = e ? NULL : c->graph;
    free(c);
    return steer_fake_leave(e);
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, enum cudaStreamCaptureStatus *ret)
{
    cudaError_t e = steer_fake_enter_plain();
    struct CUstream_st *s = stream_of(handle);
    if (!e && !s) e = cudaErrorInvalidResourceHandle;
    if (!e)
        *ret = !s->capture             ? cudaStreamCaptureStatusNone
               : s->capture->is_broken ? cudaStreamCaptureStatusInvalidated
                                       : cudaStreamCaptureStatusActive;
    return steer_fake_leave(e);
}

cudaError_t cudaGraphDestroy(cudaGraph_t g)
{
    cudaError_t e = steer_fake_enter_plain();
    graph_drop(g);
    steer_fake_count(FAKE_GRAPHS, -1);
    return steer_fake_leave(e);
}

cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *nodes, size_t *n)
{
    if (nodes) return cudaErrorNotSupported;
    *n = g->n;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *ret, cudaGraph_t g, unsigned long long flags)
{
    cudaError_t e = steer_fake_enter(FAKE_GRAPH);
    if (!e && flags) e = cudaErrorNotSupported;
    struct CUgraphExec_st *x = e ? NULL : calloc(1, sizeof *x);
    if (!e && !x) e = cudaErrorMemoryAllocation;
    if (!e) {
        x->graph = g;
        g->owners++;
        *ret = x;
        steer_fake_count(FAKE_EXECS, 1);
    }
    return steer_fake_leave(e);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x)
{
    cudaError_t e = steer_fake_enter_plain();
    graph_drop(x->graph);
    free(x);
    steer_fake_count(FAKE_EXECS, -1);
    return steer_fake_leave(e);
}

static int same_shape(const struct CUgraph_st *a, const struct CUgraph_st *b)
{
    if (a->n != b->n) return 0;
    for (size_t i = 0; i < a->n; i++) {
        const struct node *x = &a->nodes[i], *y = &b->nodes[i];
        if (x->work->run != y->work->run || x->work->kind != y->work->kind ||
            x->after.n != y->after.n)
            return 0;
        if (x->after.n &&
            memcmp(x->after.nodes, y->after.nodes, x->after.n * sizeof *x->after.nodes))
            return 0;
    }
    return 1;
}

/* Parameters may change, nodes, edges and kernels not. */
cudaError_t cudaGraphExecUpdate(cudaGraphExec_t x, cudaGraph_t g,
                                cudaGraphExecUpdateResultInfo *info)
{
    cudaError_t e = steer_fake_enter(FAKE_GRAPH);
    if (!e && info) *info = (cudaGraphExecUpdateResultInfo){.result = cudaGraphExecUpdateSuccess};
    if (!e && !same_shape(x->graph, g)) {
        e = cudaErrorGraphExecUpdateFailure;
        if (info) info->result = cudaGraphExecUpdateErrorTopologyChanged;
    }
    if (!e) {
        g->owners++;
        graph_drop(x->graph);
        x->graph = g;
    }
    return steer_fake_leave(e);
}

/* --- launches --- */

/* A node after all that it comes after, which stand before it. */
static cudaError_t node_run(const struct CUgraph_st *g, size_t i, char *done)
{
    const struct node *n = &g->nodes[i];
    cudaError_t e = cudaSuccess;
    if (done[i]) return cudaSuccess;
    for (size_t j = n->after.n; j-- && !e;)
        e = node_run(g, n->after.nodes[j], done);
    done[i] = 1;
    return e ? e : n->work->run(n->work->data);
}

static cudaError_t launch_run(void *data)
{
    const struct CUgraph_st *g = *(struct CUgraph_st **)data;
    char *done = calloc(1, g->n + 1);
    cudaError_t e = done ? cudaSuccess : cudaErrorLaunchFailure;
    for (size_t i = g->n; i-- && !e;)
        e = node_run(g, i, done);
    free(done);
    return e;
}

static void launch_drop(void *data)
{
    graph_drop(*(struct CUgraph_st **)data);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s)
{
    cudaError_t e = steer_fake_enter(FAKE_GRAPH);
    if (!e && fake_stream_captures(s)) e = cudaErrorNotSupported; /* graphs in graphs */
    struct fake_work *w = e ? NULL : steer_fake_work(launch_run, sizeof(struct CUgraph_st *));
    if (!e && !w) e = cudaErrorMemoryAllocation;
    if (!e) {
        *(struct CUgraph_st **)w->data = x->graph;
        x->graph->owners++;
        w->drop = launch_drop;
        e = steer_fake_enqueue(s, w);
    }
    return steer_fake_leave(e);
}

cudaError_t cudaGraphUpload(cudaGraphExec_t x, cudaStream_t s)
{
    (void)x;
    cudaError_t e = steer_fake_enter(FAKE_GRAPH);
    return steer_fake_leave(e ? e : stream_of(s) ? cudaSuccess : cudaErrorInvalidResourceHandle);
}
