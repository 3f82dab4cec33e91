// SPDX-License-Identifier: Apache-2.0
#include "wire.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "limits.h"
#include "steer.pb-c.h"

#define TYPES(X)                                                                                   \
    X(HELLO, hello)                                                                                \
    X(WELCOME, welcome)                                                                            \
    X(REFUSED, refused)                                                                            \
    X(PING, ping)                                                                                  \
    X(PONG, pong)                                                                                  \
    X(SUBMIT, submit)                                                                              \
    X(CANCEL, cancel)                                                                              \
    X(WATCH, watch)                                                                                \
    X(FETCH, fetch)                                                                                \
    X(QUERY, query)                                                                                \
    X(RESULT_ACK, result_ack)                                                                      \
    X(ADMIN, admin)                                                                                \
    X(ACCEPTED, accepted)                                                                          \
    X(PROGRESS, progress)                                                                          \
    X(RESULT, result)                                                                              \
    X(DONE, done)                                                                                  \
    X(REPLY, reply)                                                                                \
    X(CREDIT, credit)                                                                              \
    X(RENEW, renew)                                                                                \
    X(FAIL, fail)                                                                                  \
    X(DRAIN, drain)                                                                                \
    X(ASSIGN, assign)                                                                              \
    X(REVOKE, revoke)                                                                              \
    X(VERDICT, verdict)                                                                            \
    X(REPLACED, replaced)

const ProtobufCMessageDescriptor *wire_descriptor(int type)
{
    switch (type) {
#define X(upper, lower)                                                                            \
    case STEERFARM__MESSAGE_TYPE__##upper: return &steerfarm__##lower##__descriptor;
        TYPES(X)
#undef X
    default: return NULL;
    }
}

const char *wire_type_name(int type)
{
    switch (type) {
#define X(upper, lower)                                                                            \
    case STEERFARM__MESSAGE_TYPE__##upper: return #upper;
        TYPES(X)
#undef X
    default: return "?";
    }
}

/* protobuf-c's allocator with a budget. Freed bytes are not given back: a message is unpacked once
 * and freed once, so the budget bounds its peak. */
struct budget {
    size_t left;
    int exceeded;
};

static void *budget_alloc(void *data, size_t size)
{
    struct budget *b = data;
    if (size > b->left) {
        b->exceeded = 1;
        return NULL;
    }
    b->left -= size;
    return malloc(size);
}

static void budget_free(void *data, void *p)
{
    (void)data;
    free(p);
}

int wire_utf8_valid(const char *text, size_t size)
{
    const uint8_t *p = (const uint8_t *)text, *end = p + size;
    while (p < end) {
        uint32_t c = *p++;
        if (c < 0x80) continue;
        int more = c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : 1;
        if (c < 0xc2 || c > 0xf4 || end - p < more) return 0;
        c &= 0x3fu >> more;
        for (int i = 0; i < more; i++, p++) {
            if ((*p & 0xc0) != 0x80) return 0;
            c = c << 6 | (*p & 0x3f);
        }
        static const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
        if (c < least[more] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) return 0;
    }
    return 1;
}

/* Every string of a message and of the messages in it. No message type contains itself, so the
 * depth is bounded by the schema. NULs were refused on the packed bytes by wire_format_valid. */
static int texts_valid(const ProtobufCMessage *m)
{
    const ProtobufCMessageDescriptor *d = m->descriptor;
    for (unsigned i = 0; i < d->n_fields; i++) {
        const ProtobufCFieldDescriptor *f = d->fields + i;
        const char *at = (const char *)m + f->offset;
        if (f->type != PROTOBUF_C_TYPE_STRING && f->type != PROTOBUF_C_TYPE_MESSAGE) continue;
        size_t count = 1;
        const void *const *items = (const void *const *)(const void *)at;
        if (f->label == PROTOBUF_C_LABEL_REPEATED) {
            count = *(const size_t *)(const void *)((const char *)m + f->quantifier_offset);
            items = *(const void *const *const *)(const void *)at;
        }
        for (size_t k = 0; k < count; k++) {
            if (!items[k]) continue;
            if (f->type == PROTOBUF_C_TYPE_STRING) {
                const char *text = items[k];
                if (!wire_utf8_valid(text, strlen(text))) return 0;
            } else if (!texts_valid(items[k])) {
                return 0;
            }
        }
    }
    return 1;
}

/* Fields have numbers, lengths fit and no string has a NUL in it: a NUL is invisible after
 * unpacking (strlen stops at it). Packing again gives fewer bytes for such a message, but also for
 * one with redundant varints, so this walks the wire format itself: descriptor beside bytes. */
static int wire_format_valid(const ProtobufCMessageDescriptor *d, const uint8_t *p,
                             const uint8_t *end)
{
    while (p < end) {
        uint64_t key = 0, value = 0;
        for (int shift = 0, more = 1; more; shift += 7) {
            if (p == end || shift > 63) return 0;
            key |= (uint64_t)(*p & 0x7f) << shift;
            more = *p++ & 0x80;
        }
        if (key < 8) return 0; /* no field has number 0 */
        switch (key & 7) {
        case 0:
            for (int more = 1; more; p++) {
                if (p == end) return 0;
                more = *p & 0x80;
            }
            break;
        case 1:
            if (end - p < 8) return 0;
            p += 8;
            break;
        case 5:
            if (end - p < 4) return 0;
            p += 4;
            break;
        case 2: {
            for (int shift = 0, more = 1; more; shift += 7) {
                if (p == end || shift > 63) return 0;
                value |= (uint64_t)(*p & 0x7f) << shift;
                more = *p++ & 0x80;
            }
            if (value > (uint64_t)(end - p)) return 0;
            const ProtobufCFieldDescriptor *f =
                protobuf_c_message_descriptor_get_field(d, (unsigned)(key >> 3));
            if (f && f->type == PROTOBUF_C_TYPE_STRING && memchr(p, 0, value)) return 0;
            if (f && f->type == PROTOBUF_C_TYPE_MESSAGE &&
                !wire_format_valid(f->descriptor, p, p + value))
                return 0;
            p += value;
            break;
        }
        default: return 0;
        }
    }
    return 1;
}

int wire_parse(struct wire_message *ret, const struct wire_frame *frames, size_t count,
               struct steer_error *err)
{
    if (count < 2 || count > 3)
        return steer_fail(err, STEER_BAD_FRAME,
                          "%zu frames: expected a head, a body and, for RESULT, a payload", count);
    const uint8_t *head = frames[0].data;
    if (frames[0].size != WIRE_HEAD_BYTES || head[0] != 'S' || head[1] != 'F')
        return steer_fail(err, STEER_BAD_FRAME, "the first frame is not 'S' 'F' version type");
    if (head[2] < STEER_WIRE_VERSION_MIN || head[2] > STEER_WIRE_VERSION)
        return steer_fail(err, STEER_BAD_VERSION, "protocol version %d: expected %d to %d", head[2],
                          STEER_WIRE_VERSION_MIN, STEER_WIRE_VERSION);
    int type = head[3];
    const ProtobufCMessageDescriptor *d = wire_descriptor(type);
    if (!d) return steer_fail(err, STEER_BAD_FRAME, "message type %d is unknown", type);
    if (count == 3 && type != STEERFARM__MESSAGE_TYPE__RESULT)
        return steer_fail(err, STEER_BAD_FRAME, "%s has no payload, but a third frame came",
                          wire_type_name(type));
    if (count == 2 && type == STEERFARM__MESSAGE_TYPE__RESULT)
        return steer_fail(err, STEER_BAD_FRAME, "RESULT came without its payload frame");
    if (frames[1].size > STEER_BODY_BYTES_MAX)
        return steer_fail(err, STEER_BAD_FRAME, "%s body of %zu bytes: at most %u",
                          wire_type_name(type), frames[1].size, STEER_BODY_BYTES_MAX);
    if (count == 3 && frames[2].size > STEER_IMAGE_BYTES_MAX)
        return steer_fail(err, STEER_BAD_FRAME, "payload of %zu bytes: at most %u", frames[2].size,
                          STEER_IMAGE_BYTES_MAX);

    const uint8_t *body = frames[1].data;
    if (!wire_format_valid(d, body, body + frames[1].size))
        return steer_fail(err, STEER_BAD_FRAME,
                          "%s body is not protobuf, or a text has a NUL in it",
                          wire_type_name(type));
    struct budget budget = {STEER_UNPACK_BYTES_MAX, 0};
    ProtobufCAllocator allocator = {budget_alloc, budget_free, &budget};
    ProtobufCMessage *m = protobuf_c_message_unpack(d, &allocator, frames[1].size, body);
    if (!m)
        return budget.exceeded ? steer_fail(err, STEER_BAD_FRAME, "%s needs over %u bytes unpacked",
                                            wire_type_name(type), STEER_UNPACK_BYTES_MAX)
                               : steer_fail(err, STEER_BAD_FRAME, "%s body does not parse",
                                            wire_type_name(type));
    if (!texts_valid(m)) {
        protobuf_c_message_free_unpacked(m, &allocator);
        return steer_fail(err, STEER_BAD_TEXT, "a text in %s is not UTF-8", wire_type_name(type));
    }
    *ret = (struct wire_message){type, m, count == 3 ? frames[2] : (struct wire_frame){0}};
    return 0;
}

void wire_free(struct wire_message *m)
{
    if (!m->body) return;
    struct budget budget = {0};
    ProtobufCAllocator allocator = {budget_alloc, budget_free, &budget};
    protobuf_c_message_free_unpacked(m->body, &allocator);
    m->body = NULL;
}

void wire_head(uint8_t head[WIRE_HEAD_BYTES], int type)
{
    head[0] = 'S';
    head[1] = 'F';
    head[2] = STEER_WIRE_VERSION;
    head[3] = (uint8_t)type;
}

int wire_pack(const ProtobufCMessage *body, uint8_t **ret_data, size_t *ret_size)
{
    size_t size = protobuf_c_message_get_packed_size(body);
    uint8_t *data = malloc(size ? size : 1);
    if (!data) return STEER_NO_MEMORY;
    protobuf_c_message_pack(body, data);
    *ret_data = data;
    *ret_size = size;
    return 0;
}

uint32_t wire_crc32(const void *data, size_t size)
{
    return (uint32_t)crc32_z(0, data, size);
}
