/* pb_json.h - messages of steer.proto as JSON objects with the same field names, and back.
 *
 * Enums are written in lower case ("nasa", "bf16"); the formats as people say them ("webp",
 * "lossless", "png"). */
#ifndef CLIENT_PB_JSON_H
#define CLIENT_PB_JSON_H
#include <jansson.h>
#include <protobuf-c/protobuf-c.h>

#include "error.h"

/* NULL: out of memory, or a text in m is not UTF-8. Numbers beyond 2^63 - 1, which Jansson cannot
 * hold, become texts of digits; pb_from_json takes those back. */
json_t *pb_to_json(const ProtobufCMessage *m);
/* A message of that type, freed by protobuf_c_message_free_unpacked. An unknown field, a wrong type
 * or a missing required field is STEER_BAD_VALUE with a sentence that names it. */
int pb_from_json(ProtobufCMessage **ret, const ProtobufCMessageDescriptor *type, const json_t *json,
                 struct steer_error *err) STEER_MUSTCHECK;
/* json_loads that refuses doubled names and takes whole numbers of 19 and 20 digits, which it would
 * refuse from 2^63 on, as such texts. */
json_t *pb_json_read(const char *text, json_error_t *where);

#endif
