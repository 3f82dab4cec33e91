// SPDX-License-Identifier: Apache-2.0
#include "pb_json.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* protobuf-c's own reflection: descriptors say where each field lies in its struct. */

static const struct {
    const char *wire, *people;
} aliases[] = {{"WEBP_LOSSY", "webp"}, {"WEBP_LOSSLESS", "lossless"}};

static json_t *enum_to_json(const ProtobufCEnumDescriptor *type, int value)
{
    char text[64];
    const ProtobufCEnumValue *v = protobuf_c_enum_descriptor_get_value(type, value);
    if (!v) return json_integer(value);
    for (size_t i = 0; i < sizeof aliases / sizeof *aliases; i++)
        if (strcmp(v->name, aliases[i].wire) == 0) return json_string(aliases[i].people);
    size_t n = 0;
    for (; v->name[n] && n + 1 < sizeof text; n++)
        text[n] = (char)tolower((unsigned char)v->name[n]);
    text[n] = 0;
    return json_string(text);
}

/* Jansson's integers end at 2^63 - 1; beyond it digits in a text, as proto3's JSON writes them. */
static json_t *json_u64(uint64_t value)
{
    char digits[24];
    if (value <= INT64_MAX) return json_integer((json_int_t)value);
    snprintf(digits, sizeof digits, "%" PRIu64, value);
    return json_string(digits);
}

static json_t *value_to_json(const ProtobufCFieldDescriptor *f, const void *at)
{
    switch (f->type) {
    case PROTOBUF_C_TYPE_STRING: {
        const char *text = *(char *const *)at;
        return text ? json_string(text) : json_null();
    }
    case PROTOBUF_C_TYPE_MESSAGE: {
        const ProtobufCMessage *m = *(ProtobufCMessage *const *)at;
        return m ? pb_to_json(m) : json_null();
    }
    case PROTOBUF_C_TYPE_ENUM: return enum_to_json(f->descriptor, *(const int *)at);
    case PROTOBUF_C_TYPE_BOOL: return json_boolean(*(const protobuf_c_boolean *)at);
    case PROTOBUF_C_TYPE_DOUBLE: return json_real(*(const double *)at);
    case PROTOBUF_C_TYPE_UINT32: return json_integer(*(const uint32_t *)at);
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32: return json_integer(*(const int32_t *)at);
    default: return json_u64(*(const uint64_t *)at);
    }
}

static size_t value_size(const ProtobufCFieldDescriptor *f)
{
    switch (f->type) {
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_MESSAGE: return sizeof(void *);
    case PROTOBUF_C_TYPE_ENUM:
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32: return 4;
    case PROTOBUF_C_TYPE_BOOL: return sizeof(protobuf_c_boolean);
    default: return 8;
    }
}

static int is_pointer(const ProtobufCFieldDescriptor *f)
{
    return f->type == PROTOBUF_C_TYPE_STRING || f->type == PROTOBUF_C_TYPE_MESSAGE;
}

json_t *pb_to_json(const ProtobufCMessage *m)
{
    json_t *out = json_object();
    int bad = !out;
    for (unsigned i = 0; !bad && i < m->descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *f = m->descriptor->fields + i;
        const char *at = (const char *)m + f->offset;
        const char *quantifier = (const char *)m + f->quantifier_offset;
        if (f->label == PROTOBUF_C_LABEL_REPEATED) {
            size_t count = *(const size_t *)quantifier;
            const char *items = *(const char *const *)at;
            json_t *list = count ? json_array() : NULL;
            for (size_t k = 0; k < count && !bad; k++)
                bad = json_array_append_new(list, value_to_json(f, items + k * value_size(f)));
            if (count) bad |= json_object_set_new(out, f->name, list);
            continue;
        }
        int there = is_pointer(f) ? *(void *const *)at != NULL
                                  : f->label == PROTOBUF_C_LABEL_REQUIRED ||
                                        *(const protobuf_c_boolean *)quantifier;
        if (there) bad |= json_object_set_new(out, f->name, value_to_json(f, at));
    }
    if (!bad) return out;
    json_decref(out);
    return NULL;
}

/* ---- back ---- */

static int wrong(struct steer_error *err, const char *field, const char *expected)
{
    return steer_fail(err, STEER_BAD_VALUE, "field \"%s\": expected %s", field, expected);
}

static int enum_from_json(int *ret, const ProtobufCFieldDescriptor *f, const json_t *json,
                          struct steer_error *err)
{
    const ProtobufCEnumDescriptor *type = f->descriptor;
    const char *text = json_string_value(json);
    char names[256] = "";
    for (size_t i = 0; text && i < sizeof aliases / sizeof *aliases; i++)
        if (strcasecmp(text, aliases[i].people) == 0) text = aliases[i].wire;
    for (unsigned i = 0; i < type->n_values; i++) {
        if (text && strcasecmp(text, type->values[i].name) == 0) {
            *ret = type->values[i].value;
            return 0;
        }
        size_t used = strlen(names);
        snprintf(names + used, sizeof names - used, "%s%s", i ? ", " : "one of ",
                 type->values[i].name);
    }
    return wrong(err, f->name, names);
}

/* A number, or digits in a text for what is beyond 2^63 - 1. */
static int u64_from_json(uint64_t *ret, const ProtobufCFieldDescriptor *f, const json_t *json,
                         struct steer_error *err)
{
    const char *text = json_string_value(json);
    char *end = NULL;
    errno = 0;
    if (json_is_integer(json) && json_integer_value(json) >= 0) {
        *ret = (uint64_t)json_integer_value(json);
        return 0;
    }
    if (text && isdigit((unsigned char)*text)) *ret = strtoull(text, &end, 10);
    if (end && !*end && !errno) return 0;
    return wrong(err, f->name, "a whole number from 0 to 18446744073709551615");
}

static int integer_from_json(uint64_t *ret, const ProtobufCFieldDescriptor *f, const json_t *json,
                             struct steer_error *err)
{
    int is_signed = f->type == PROTOBUF_C_TYPE_INT32 || f->type == PROTOBUF_C_TYPE_SINT32;
    json_int_t value = json_integer_value(json);
    if (value_size(f) == 8) return u64_from_json(ret, f, json, err);
    if (!json_is_integer(json)) return wrong(err, f->name, "a whole number");
    if (is_signed ? value < INT32_MIN || value > INT32_MAX : value < 0 || value > UINT32_MAX)
        return wrong(err, f->name,
                     is_signed ? "a number of 32 bits" : "a number from 0 to 2^32 - 1");
    *ret = (uint64_t)value;
    return 0;
}

static int value_from_json(void *at, const ProtobufCFieldDescriptor *f, const json_t *json,
                           struct steer_error *err)
{
    uint64_t number = 0;
    int code = 0;
    switch (f->type) {
    case PROTOBUF_C_TYPE_STRING:
        if (!json_is_string(json)) return wrong(err, f->name, "a text");
        *(char **)at = strdup(json_string_value(json));
        return *(char **)at ? 0 : steer_fail(err, STEER_NO_MEMORY, "out of memory");
    case PROTOBUF_C_TYPE_MESSAGE:
        if (!json_is_object(json)) return wrong(err, f->name, "an object");
        return pb_from_json(at, f->descriptor, json, err);
    case PROTOBUF_C_TYPE_BOOL:
        if (!json_is_boolean(json)) return wrong(err, f->name, "true or false");
        *(protobuf_c_boolean *)at = json_is_true(json);
        return 0;
    case PROTOBUF_C_TYPE_DOUBLE:
        if (!json_is_number(json)) return wrong(err, f->name, "a number");
        *(double *)at = json_number_value(json);
        return 0;
    case PROTOBUF_C_TYPE_ENUM: return enum_from_json(at, f, json, err);
    default:
        if ((code = integer_from_json(&number, f, json, err))) return code;
        if (value_size(f) == 4)
            *(uint32_t *)at = (uint32_t)number;
        else
            *(uint64_t *)at = number;
        return 0;
    }
}

static int list_from_json(ProtobufCMessage *m, const ProtobufCFieldDescriptor *f,
                          const json_t *json, struct steer_error *err)
{
    size_t count = json_array_size(json), size = value_size(f);
    if (!json_is_array(json)) return wrong(err, f->name, "a list");
    if (count > 4096) return wrong(err, f->name, "at most 4096 items");
    char *items = count ? calloc(count, size) : NULL;
    if (count && !items) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    *(char **)((char *)m + f->offset) = items;
    for (size_t i = 0; i < count; i++) {
        int code = value_from_json(items + i * size, f, json_array_get(json, i), err);
        if (code) return code;
        *(size_t *)((char *)m + f->quantifier_offset) = i + 1;
    }
    return 0;
}

int pb_from_json(ProtobufCMessage **ret, const ProtobufCMessageDescriptor *type, const json_t *json,
                 struct steer_error *err)
{
    ProtobufCMessage *m = malloc(type->sizeof_message);
    const char *key;
    json_t *value;
    int code = 0;
    if (!m) return steer_fail(err, STEER_NO_MEMORY, "out of memory");
    type->message_init(m);
    json_object_foreach((json_t *)(uintptr_t)json, key, value)
    {
        const ProtobufCFieldDescriptor *f =
            protobuf_c_message_descriptor_get_field_by_name(type, key);
        if (!f)
            code = steer_fail(err, STEER_BAD_VALUE, "unknown field \"%s\"", key);
        else if (json_is_null(value))
            continue;
        else if (f->label == PROTOBUF_C_LABEL_REPEATED)
            code = list_from_json(m, f, value, err);
        else
            code = value_from_json((char *)m + f->offset, f, value, err);
        if (code) break;
        if (f->label == PROTOBUF_C_LABEL_OPTIONAL && !is_pointer(f))
            *(protobuf_c_boolean *)((char *)m + f->quantifier_offset) = 1;
    }
    for (unsigned i = 0; i < type->n_fields && !code; i++)
        if (type->fields[i].label == PROTOBUF_C_LABEL_REQUIRED &&
            (!(value = json_object_get(json, type->fields[i].name)) || json_is_null(value)))
            code = steer_fail(err, STEER_BAD_VALUE, "field \"%s\" is needed", type->fields[i].name);
    if (code) {
        protobuf_c_message_free_unpacked(m, NULL);
        return code;
    }
    *ret = m;
    return 0;
}

json_t *pb_json_read(const char *text, json_error_t *where)
{
    size_t size = strlen(text), used = 0;
    char *copy = malloc(3 * size + 1); /* every number may get two quotes */
    int quoted = 0;
    if (!copy) return NULL;
    for (const char *p = text; *p;) {
        size_t digits = quoted ? 0 : strspn(p, "0123456789");
        if (digits == 19 || digits == 20) {
            char after = p[digits], before = used ? copy[used - 1] : 0;
            int whole = !strchr(".eE", after) && !strchr("-+.eE", before);
            used += (size_t)sprintf(copy + used, whole ? "\"%.*s\"" : "%.*s", (int)digits, p);
            p += digits;
            continue;
        }
        if (*p == '"') quoted = !quoted;
        if (quoted && *p == '\\' && p[1]) copy[used++] = *p++;
        size_t take = digits ? digits : 1;
        memcpy(copy + used, p, take);
        used += take;
        p += take;
    }
    copy[used] = 0;
    json_t *json = json_loads(copy, JSON_REJECT_DUPLICATES, where);
    free(copy);
    return json;
}
