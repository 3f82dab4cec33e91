/* log.h - one event a line on stderr, logfmt: ts=... level=info ev=job.done job=... ms=812
 *
 * Programs log; libraries return errors. Values with spaces or quotes are quoted. */
#ifndef PROTO_LOG_H
#define PROTO_LOG_H

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };

/* Lines below `least` are dropped. Default LOG_INFO. */
void log_init(enum log_level least);
/* "debug" "info" "warn" "error"; -1 when it is none of them. */
int log_level_of(const char *name);
/* fields: printf format of `key=value key=value`; quote texts with %s of log_quote. */
void log_event(enum log_level level, const char *event, const char *fields, ...)
    __attribute__((format(printf, 3, 4)));

/* A value made fit for logfmt, in one of the calling thread's eight rotating buffers. */
const char *log_quote(const char *text);

#endif
