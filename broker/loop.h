/* loop.h - sockets and clock around the route: receive all, one turn, wait. */
#ifndef BROKER_LOOP_H
#define BROKER_LOOP_H
#include <signal.h>

#include "route.h"

struct loop_options {
    const char *clients, *workers; /* endpoints; a tcp port may be * */
    struct route_options route;
    const volatile sig_atomic_t *stop;
};

/* Runs until *stop (0) or a failure. */
int loop_run(const struct loop_options *options, struct steer_error *err) STEER_MUSTCHECK;

#endif
