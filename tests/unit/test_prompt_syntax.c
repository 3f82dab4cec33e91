// SPDX-License-Identifier: Apache-2.0
/* What a prompt in A1111's syntax weighs, and what is refused. The examples are those that its
 * web UI documents (wiki, "Attention/emphasis") and what follows from its rules. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "limits.h"
#include "text/prompt_syntax.h"

#define BREAK NULL
#define DOWN  (1 / 1.1)

struct want {
    const char *prompt;
    struct {
        const char *text;
        double weight;
    } pieces[10]; /* up to the first of weight 0 */
};

static const struct want table[] = {
    {"normal text", {{"normal text", 1}}},
    {"an (important) word", {{"an ", 1}, {"important", 1.1}, {" word", 1}}},
    {"(unbalanced", {{"unbalanced", 1.1}}},
    {"\\(literal\\]", {{"(literal]", 1}}},
    {"(unnecessary)(parens)", {{"unnecessaryparens", 1.1}}},
    {"a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
     {{"a ", 1},
      {"house", 1.3 * 1.1 * 1.1},
      {" ", 1.1},
      {"on", DOWN * 1.1},
      {" a ", 1.1},
      {"hill", 0.5 * 1.1},
      {", sun, ", 1.1},
      {"sky", 1.1 * 1.1 * 1.1 * 1.1},
      {".", 1.1}}},
    /* (word) ((word)) [word] (word:1.5) (word:0.25) \(word\) */
    {"a (word)", {{"a ", 1}, {"word", 1.1}}},
    {"a ((word))", {{"a ", 1}, {"word", 1.1 * 1.1}}},
    {"a [word]", {{"a ", 1}, {"word", DOWN}}},
    {"a [[word]]", {{"a ", 1}, {"word", DOWN *DOWN}}},
    {"a (word:1.5)", {{"a ", 1}, {"word", 1.5}}},
    {"a (word:0.25)", {{"a ", 1}, {"word", 0.25}}},
    {"a \\(word\\)", {{"a (word)", 1}}},
    /* numbers */
    {"(a:2)", {{"a", 2}}},
    {"(a:.5)", {{"a", 0.5}}},
    {"(a:5.)", {{"a", 5}}},
    {"(a:+1.5)b", {{"a", 1.5}, {"b", 1}}},
    {"(a:-1.5)", {{"a", -1.5}}},
    {"(a: 1.5 )", {{"a", 1.5}}},
    {"(a :1.5)", {{"a ", 1.5}}},
    {"(a:100)", {{"a", 100}}},
    {"(a (b:2) c:3)", {{"a ", 3}, {"b", 6}, {" c", 3}}},
    {"([(a:2)]:3)", {{"a", 2 * DOWN * 3}}},
    {"[(a:2)]", {{"a", 2 * DOWN}}},
    {"(a b:1.2, c:1.3)", {{"a b:1.2, c", 1.3}}},
    /* no weights */
    {"a:1.2", {{"a:1.2", 1}}},
    {"a:1.2)", {{"a:1.2)", 1}}},
    {"(a:b)", {{"a:b", 1.1}}},
    {"(a:1.2b)", {{"a:1.2b", 1.1}}},
    {"(a:1e2)", {{"a:1e2", 1.1}}},
    {"(a:1.2]", {{"a:1.2]", 1.1}}},
    {"12:30 o'clock (9:15)", {{"12:30 o'clock ", 1}, {"9", 15}}},
    {":-)", {{":-)", 1}}},
    {":)", {{":)", 1}}},
    {"(:)", {{":", 1.1}}},
    {"(:1.2)b", {{"b", 1}}},
    {"()", {{NULL, 0}}},
    {"", {{NULL, 0}}},
    {"(((", {{NULL, 0}}},
    {")]a", {{")]a", 1}}},
    {"a)", {{"a)", 1}}},
    {"(a))", {{"a", 1.1}, {")", 1}}},
    {"(a]", {{"a]", 1.1}}},
    {"[a)", {{"a)", DOWN}}},
    /* round and square ones do not hold each other */
    {"(a [b) c]", {{"a ", 1.1}, {"b", 1.1 * DOWN}, {" c", DOWN}}},
    {"((a (b", {{"a ", 1.1 * 1.1}, {"b", 1.1 * 1.1 * 1.1}}},
    {"([a", {{"a", 1.1 * DOWN}}},
    {"(a:1.3) (b", {{"a", 1.3}, {" ", 1}, {"b", 1.1}}},
    /* backslashes */
    {"\\\\", {{"\\", 1}}},
    {"a\\b", {{"ab", 1}}},
    {"a\\", {{"a", 1}}},
    {"(a\\)b)", {{"a)b", 1.1}}},
    {"(a\\:1.2)", {{"a", 1.2}}},
    {"\\((a)\\)", {{"(", 1}, {"a", 1.1}, {")", 1}}},
    {"\\\\(a)", {{"\\", 1}, {"a", 1.1}}},
    {"a (\\\\) b", {{"a ", 1}, {"\\", 1.1}, {" b", 1}}},
    /* BREAK */
    {"a BREAK b", {{"a", 1}, {BREAK, 1}, {"b", 1}}},
    {"a\n BREAK \n b", {{"a", 1}, {BREAK, 1}, {"b", 1}}},
    {"BREAK", {{BREAK, 1}}},
    {"BREAK a", {{BREAK, 1}, {"a", 1}}},
    {"a BREAK BREAK b BREAK", {{"a", 1}, {BREAK, 1}, {BREAK, 1}, {"b", 1}, {BREAK, 1}}},
    {"a,BREAK.b", {{"a,", 1}, {BREAK, 1}, {".b", 1}}},
    {"(a)BREAK(b)", {{"a", 1.1}, {BREAK, 1}, {"b", 1.1}}},
    {"(a) BREAK (b)", {{"a", 1.1}, {BREAK, 1}, {"b", 1.1}}},
    {"a (b BREAK c:2) d", {{"a ", 1}, {"b", 2}, {BREAK, 1}, {"c", 2}, {" d", 1}}},
    {"break Break BREAKS aBREAK BREAK_ \xc3\xa9"
     "BREAK BREAK\xc3\xa9 1BREAK",
     {{"break Break BREAKS aBREAK BREAK_ \xc3\xa9"
       "BREAK BREAK\xc3\xa9 1BREAK",
       1}}},
    {"\xe3\x80\x81"
     "BREAK\xe3\x80\x82",
     {{"\xe3\x80\x81", 1}, {BREAK, 1}, {"\xe3\x80\x82", 1}}},
    {"BREA", {{"BREA", 1}}},
    /* what only looks like more than weights */
    {"band and SAND ANDY", {{"band and SAND ANDY", 1}}},
    {"a | b, a < b, <3, <a>, <lora:>, <a b:c>, <a:b",
     {{"a | b, a < b, <3, <a>, <lora:>, <a b:c>, <a:b", 1}}},
    {"[a:b] [a 3] [3]", {{"a:b", DOWN}, {" ", 1}, {"a 3", DOWN}, {" ", 1}, {"3", DOWN}}},
    {"[(a|b)]", {{"a|b", 1.1 * DOWN}}},
    {"\\[a|b\\] \\[a:b:3\\]", {{"[a|b] [a:b:3]", 1}}},
    {"\xe7\x8c\xab (\xe7\x8a\xac:1.2)", {{"\xe7\x8c\xab ", 1}, {"\xe7\x8a\xac", 1.2}}},
};

static void test_table(void **unused)
{
    (void)unused;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        const struct want *w = table + i;
        struct steer_error err = {0};
        struct prompt p = {0};
        size_t count = 0;
        if (prompt_parse(&p, w->prompt, PROMPT_A1111, &err)) fail_msg("%s", err.text);
        while (count < 10 && w->pieces[count].weight != 0)
            count++;
        if (p.count != count) fail_msg("%s: %zu pieces", w->prompt, p.count);
        for (size_t k = 0; k < count; k++) {
            const struct prompt_piece *piece = p.pieces + k;
            const char *text = w->pieces[k].text;
            size_t bytes = text ? strlen(text) : 0;
            if (piece->is_break != !text || piece->end - piece->begin != bytes ||
                (text && memcmp(p.text + piece->begin, text, bytes) != 0))
                fail_msg("%s: piece %zu is \"%.*s\"", w->prompt, k,
                         (int)(piece->end - piece->begin), p.text + piece->begin);
            /* Products are made in the web UI's order, so they are equal but for the literals. */
            if (text && fabs(piece->weight - w->pieces[k].weight) > 1e-15 * fabs(piece->weight))
                fail_msg("%s: weight %zu is %.17g", w->prompt, k, piece->weight);
        }
        prompt_free(&p);
    }
}

/* Each byte of the text knows where it stood, so that a cut can be told in the prompt's bytes. */
static void test_source(void **unused)
{
    (void)unused;
    struct steer_error err = {0};
    struct prompt p = {0};
    const char *text = "a (b:1.2) \\(c BREAK  [d";
    assert_int_equal(prompt_parse(&p, text, PROMPT_A1111, &err), 0);
    assert_string_equal(p.text, "a b (cd");
    for (size_t i = 0; p.text[i]; i++)
        assert_int_equal(text[p.source[i]], p.text[i]);
    assert_int_equal(p.source[6], strlen(text) - 1);
    prompt_free(&p);
}

static void test_plain(void **unused)
{
    (void)unused;
    struct steer_error err = {0};
    struct prompt p = {0};
    const char *text = "a (b:1.2) \\[c BREAK [d|e] AND <lora:x:1>";
    assert_int_equal(prompt_parse(&p, text, PROMPT_PLAIN, &err), 0);
    assert_int_equal(p.count, 1);
    assert_string_equal(p.text, text);
    assert_true(p.pieces[0].weight == 1 && p.pieces[0].end == strlen(text));
    prompt_free(&p);
}

static void test_refused(void **unused)
{
    (void)unused;
    static const struct {
        const char *prompt;
        int code;
        const char *word;
    } list[] = {
        {"a [cat:dog:0.5]", STEER_BAD_TEXT, "\"[cat:dog:0.5]\" at byte 2: prompt editing"},
        {"[cat:0.5]", STEER_BAD_TEXT, "prompt editing"},
        {"[cat::10 ]", STEER_BAD_TEXT, "prompt editing"},
        {"([(cat:1.2): 3])", STEER_BAD_TEXT, "prompt editing"},
        {"[cat|dog]", STEER_BAD_TEXT, "alternation"},
        {"a [[b] (c:1.2)|d]", STEER_BAD_TEXT, "alternation"},
        {"a cat AND a dog", STEER_BAD_TEXT, "\"AND\" at byte 6: a composition"},
        {"a cat <lora:cats_v1:0.8>", STEER_BAD_TEXT, "\"<lora:cats_v1:0.8>\" at byte 6"},
        {"(a:1.2.3)", STEER_BAD_VALUE, "\"1.2.3\" at byte 3: expected a number"},
        {"(a:.)", STEER_BAD_VALUE, "expected a number"},
        {"(a:+.)", STEER_BAD_VALUE, "expected a number"},
        {"b (a:100.1)", STEER_BAD_VALUE, "weight 100.1 of \"a\": expected -100 to 100"},
        {"((a:-50):3)", STEER_BAD_VALUE, "-150"},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        struct steer_error err = {0};
        struct prompt p = {0};
        if (prompt_parse(&p, list[i].prompt, PROMPT_A1111, &err) != list[i].code)
            fail_msg("%s: %s", list[i].prompt, err.text);
        if (!strstr(err.text, list[i].word)) fail_msg("%s: %s", list[i].prompt, err.text);
        assert_null(p.text);
    }
}

/* As deep and long as a prompt may be: answered, without a stack that grows. */
static void test_hostile(void **unused)
{
    (void)unused;
    static const char *const units[] = {"(",      "[", ")",  "]",    "a(",    "(a",      "((a)",
                                        "BREAK ", ":", "(:", "(a:2", ":1.2)", "\\",      "\\(",
                                        "<a:",    "|", "[|", "[1",   "(a\\)", "BREAK(a)"};
    static char text[STEER_PROMPT_BYTES_MAX + 1];
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        struct steer_error err = {0};
        struct prompt p = {0};
        size_t n = strlen(units[i]), size = 0;
        for (; size + n < sizeof text; size += n)
            memcpy(text + size, units[i], n);
        text[size] = 0;
        int code = prompt_parse(&p, text, PROMPT_A1111, &err);
        assert_true(code == 0 || (code == STEER_BAD_VALUE && err.text[0]));
        prompt_free(&p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_table), cmocka_unit_test(test_source),
                                       cmocka_unit_test(test_plain), cmocka_unit_test(test_refused),
                                       cmocka_unit_test(test_hostile)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
