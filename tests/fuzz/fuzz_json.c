// SPDX-License-Identifier: Apache-2.0
/* Any bytes as JSON. */
#include "fuzz.h"
#include "json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_t *value = NULL;
    struct steer_error err = {0};
    int code = json_bytes_load(&value, (const char *)data, size, "fuzz", &err);
    FUZZ_ASSERT(code ? !value && err.text[0] : value != NULL);
    json_decref(value);
    return 0;
}
