/* stream.h - streams, events and captures; the libcudart's own. */
#ifndef GPU_STREAM_H
#define GPU_STREAM_H
#include "fake.h"

/* One recording of an event: done when its stream comes to it. */
struct mark {
    unsigned owners;
    int done;
    double at_ms;
    struct CUstream_st *stream;
};

enum entry_kind { ENTRY_WORK, ENTRY_RECORD, ENTRY_WAIT };

struct entry {
    struct entry *next;
    enum entry_kind kind;
    struct fake_work *work;
    struct mark *mark;
};

/* Which nodes of a graph something comes after. */
struct after {
    size_t *nodes;
    size_t n;
};

struct node {
    struct fake_work *work;
    struct after after;
};

/* Does not change after its capture, so a launch holds it and may outlive its handles. */
struct CUgraph_st {
    unsigned owners;
    struct node *nodes;
    size_t n;
};

struct CUgraphExec_st {
    struct CUgraph_st *graph;
};

struct capture {
    struct capture *next;
    unsigned long id;
    struct CUgraph_st *graph;
    struct CUstream_st *origin;
    enum cudaStreamCaptureMode mode;
    unsigned long thread;
    int is_broken;
};

struct CUstream_st {
    struct CUstream_st *next; /* of all */
    struct entry *first, *last;
    unsigned flags;
    struct capture *capture; /* or NULL */
    struct after after;      /* in the capture's graph */
};

struct CUevent_st {
    unsigned flags;
    struct mark *mark;      /* of the last recording, or NULL */
    unsigned long captured; /* the capture that it was last recorded in, or 0 */
    struct after after;
};

struct CUstream_st *
stream_of(cudaStream_t s); /* the legacy stream for its two names; NULL for what is no stream */
void stream_leave(const struct capture *c);             /* no stream captures for it any more */
int after_join(struct after *a, const struct after *b); /* -1 without memory */
struct capture *capture_of(unsigned long id);           /* NULL where it has ended */
cudaError_t capture_add(struct CUstream_st *s, struct fake_work *w);
cudaError_t capture_break(struct CUstream_st *s,
                          cudaError_t e); /* where s captures, that is lost; returns e */
#endif
