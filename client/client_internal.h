/* client_internal.h - what client.c (the connection, jobs that are followed, events) and requests.c
 * (requests that are waited for) share. */
#ifndef CLIENT_INTERNAL_H
#define CLIENT_INTERNAL_H
#include "steer.h"
#include "steer.pb-c.h"

int fault_of(struct steer_fault *fault, int code, const char *text);
/* Keeps the request and sends it as soon as the broker has said WELCOME, again and again until it
 * is answered. STEER_NO_MEMORY: too many are open. */
int client_request(struct steer_client *c, int type, const ProtobufCMessage *m, uint64_t tag);
uint64_t client_tag(struct steer_client *c);
/* Until the answer to tag comes; a refusal is its code. Events that are no answer are kept for
 * steer_next. *e is good until the next call with this client. */
int client_await(struct steer_client *c, int type, uint64_t tag, struct steer_event *e,
                 int timeout_ms, struct steer_fault *fault);

#endif
