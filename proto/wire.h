/* wire.h - frames: what every program does to the bytes before and after protobuf.
 *
 *     [identity, ROUTERs only] ['S' 'F' version type] [protobuf body] [payload, RESULT only]
 *
 * Bytes from a socket are hostile: count and size of frames are checked first, then the body is
 * unpacked with an allocator that cannot exceed STEER_UNPACK_BYTES_MAX, then every text is checked
 * to be UTF-8 without NUL. Nothing here knows what a message means. */
#ifndef PROTO_WIRE_H
#define PROTO_WIRE_H
#include <protobuf-c/protobuf-c.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

#define WIRE_HEAD_BYTES 4

struct wire_frame {
    const void *data;
    size_t size;
};

/* A parsed message. body is owned: wire_free. payload borrows from the frames given. */
struct wire_message {
    int type; /* Steerfarm__MessageType */
    ProtobufCMessage *body;
    struct wire_frame payload;
};

/* The descriptor of a type byte's body, or NULL for an unknown type. */
const ProtobufCMessageDescriptor *wire_descriptor(int type);
/* "SUBMIT"; "?" for an unknown type. */
const char *wire_type_name(int type);

/* Parses frames without the identity. STEER_BAD_FRAME, STEER_BAD_VERSION, STEER_BAD_TEXT or
 * STEER_NO_MEMORY, with the reason in *err; *ret is written only on success. */
int wire_parse(struct wire_message *ret, const struct wire_frame *frames, size_t count,
               struct steer_error *err) STEER_MUSTCHECK;
void wire_free(struct wire_message *m);

void wire_head(uint8_t head[WIRE_HEAD_BYTES], int type);
/* Packs body into a malloc'ed buffer. */
int wire_pack(const ProtobufCMessage *body, uint8_t **ret_data, size_t *ret_size) STEER_MUSTCHECK;

/* 1 when text is UTF-8 (no surrogates, no overlong forms, <= U+10FFFF). */
int wire_utf8_valid(const char *text, size_t size);

/* CRC-32 (IEEE 802.3, as zlib's) of size bytes. */
uint32_t wire_crc32(const void *data, size_t size);

#endif
