"""JSON schemas as grammars: what fits is JSON and valid, and what cannot be held to is refused."""

from __future__ import annotations

import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspark_gguf import Sampling, load_pair
from dspark_gguf.engine.grammar import Grammar, grammar_text
from dspark_gguf.errors import UsageError
from tests.json_valid import is_valid
from tests.tiny_gguf import Tiny, write_llama


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    path = write_llama(tmp_path_factory.mktemp("schemas") / "target.gguf", Tiny())
    with load_pair(path, None) as loaded:
        yield loaded.vocabulary


def fits(vocabulary, schema, text):
    grammar = Grammar(vocabulary, grammar_text(Sampling(json_schema=json.dumps(schema))))
    for token in vocabulary.tokenize(text, special=False, add_bos=False):
        if not grammar.allows(token):
            return False
        grammar.accept(token)
    return bool({*grammar.all().tolist()} & {*vocabulary.pieces.end_tokens})


def one(schema, **more):
    """An object with one part."""
    return {"type": "object", "properties": {"x": schema}, "required": ["x"], **more}


DEFINED = {
    "x": {"type": "integer"}, "date": {"enum": ["d"]}, "a_b": {"enum": ["u"]},
    "a-b": {"enum": ["v"]}, "in": {"x": {"enum": ["w"]}},
}  # fmt: skip
REFS = ["x", "date", "a_b", "a-b", "in/x"]
TREE = {
    "$ref": "#/$defs/Tree",
    "$defs": {"Tree": one({"anyOf": [{"$ref": "#/$defs/Tree"}, {"type": "null"}]})},
}
ANY = {"type": "string"}
LARGE = {"type": "number", "exclusiveMinimum": -(10**12), "exclusiveMaximum": 2 * 10**7}
#: Schema, texts that fit, texts that do not.
CASES = {
    "control characters": (ANY, ['"a b"', r'"a\nb\u00e9"'], ['"a\nb"', '"a\tb"', '"\x7f"']),
    "half a character": (ANY, [], [r'"\ud83d"', r'"\uDE00"']),
    "text in a literal": (
        {"enum": ["C:\\Users", 'say "hi"', "a\nb", "é", "<b>"]},
        [r'"C:\\Users"', r'"say \"hi\""', r'"a\nb"', '"é"', '"<b>"'],
        [r'"C:\Users"', '"say "hi""', '"a\nb"'],
    ),
    "text in a key": (
        {"properties": {'a\\"\n': {"const": {"b\\": None}}}},
        [r'{"a\\\"\n":{"b\\": null}}'],
        [r'{"a\"\n":{"b\\": null}}'],
    ),
    "integers": (
        {"type": "integer", "minimum": -7, "exclusiveMaximum": 120},
        ["-7", "0", "9", "10", "119"],
        ["-8", "120", "1000", "1.5"],
    ),
    "no upper bound": ({"type": "integer", "exclusiveMinimum": 9.5}, ["10", "9999"], ["9", "-10"]),
    "no lower bound": ({"type": "integer", "maximum": -3}, ["-3", "-12345"], ["-2", "3"]),
    "numbers": (
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        ["0.25", "1", "1.00"],
        ["0", "0.0", "1.5", "-0.5"],
    ),
    "rounding": (LARGE, ["19999999.9999999"], ["19999999.999999999", "-999999999999.99999"]),
    "references are not mixed up": (
        {
            "prefixItems": [{"$ref": f"#/$defs/{name}"} for name in REFS],
            "items": one({"type": "string", "format": "date"}),
            "$defs": DEFINED,
        },
        ['[1, "d", "u", "v", "w"]', '[1, "d", "u", "v", "w", {"x": "2024-02-29"}]'],
        ['["w", "d", "u", "v", "w"]', '[1, "d", "u", "v", "w", {"x": "2023-02-29"}]'],
    ),
    "a name of the standard rules": (
        one({"$ref": "#/$defs/value"}, **{"$defs": {"value": {"enum": ["low"]}}}),
        ['{"x": "low"}'],
        ['{"x": 1}'],
    ),
    "allOf of a reference": (
        one({"allOf": [{"$ref": "#/$defs/a_b"}], "default": "u"}, **{"$defs": DEFINED}),
        ['{"x": "u"}'],
        ["{}", '{"x": {}}'],
    ),
    "allOf of two": (
        {"allOf": [one({"type": "number"}), one({"minimum": 3, "type": ["integer", "null"]})]},
        ['{"x":3}'],
        ['{"x":2}', '{"x":3.5}', '{"x":null}'],
    ),
    "anyOf beside more": (
        one(ANY, anyOf=[{"required": ["x"], "properties": {"x": {"enum": ["a", 1]}}}]),
        ['{"x":"a"}'],
        ['{"x":"b"}', '{"x":1}'],
    ),
    "recursion": (TREE, ['{"x":null}', '{"x":{"x":null}}'], ['{"x":1}', "{}"]),
    "recursion to the root": (one({"items": {"$ref": "#"}}), ['{"x":[{"x":[]}]}'], ['{"x":[1]}']),
    "any items": (one({"type": "array", "items": {}}), ['{"x":[1,"a",{}]}'], ['{"x":{}}']),
    "true": (one({"items": True, "type": "array"}), ['{"x":[1]}'], []),
    "false": ({"items": False, "type": "array"}, ["[]"], ["[1]"]),
    "counts of items": (
        {"items": {"type": "null"}, "minItems": 1, "maxItems": 2},
        ["[null]", "[null,null]"],
        ["[]", "[null,null,null]"],
    ),
    "a tuple and more": (
        {"prefixItems": [ANY], "items": {"type": "null"}, "minItems": 2, "maxItems": 3},
        ['["a",null]', '["a",null,null]'],
        ['["a"]', '["a",null,null,null]'],
    ),
    "types": ({"type": ["string", "null"], "maxLength": 1}, ["null", '"a"'], ['"ab"', "1"]),
    "an enum and types": ({"type": ["string", "null"], "enum": ["a", None, 1]}, ["null"], ["1"]),
    "a const of any type": ({"const": [True, 1.5]}, ["[true, 1.5]"], ["[1, 1.5]"]),
    "long texts": ({"type": "string", "maxLength": 1500}, [f'"{"a" * 1500}"'], [f'"{"a" * 1501}"']),
    "required and not listed": ({"required": ["a"]}, ['{"a":1}', '{"a":1,"b":2}'], ['{"b":2}']),
    "additional ones do not repeat": (
        {"properties": {"ab": {"const": 1}}, "additionalProperties": ANY},
        ['{"ab":1}', '{"ab":1,"a":"","abc":"","":""}', '{"b":""}'],
        ['{"ab":""}', '{"ab":1,"ab":""}', r'{"a\u0062":""}', '{"b":1}'],
    ),
    "additional ones beside long names": (
        {"properties": {f"{k}" * 200: ANY for k in range(9)}, "additionalProperties": ANY},
        [f'{{"{"8" * 200}":"","{"8" * 199}":""}}'],
        [f'{{"{"8" * 200}":"","{"8" * 200}":""}}'],
    ),
    "keys of a map": (
        {"propertyNames": {"enum": ["a"]}, "type": "object"},
        ['{"a":1}'],
        ['{"b":1}'],
    ),
    "any character": (
        {"type": "string", "pattern": "^.{3,12}$"},
        ['"abc"', r'"a\"c"', '"日本語"'],
        ['"a"c"', '"a\nc"', '"ab"'],
    ),
    "other characters": (
        {"type": "string", "pattern": '^[^@"]{2}@(a|b)\\d?$'},
        ['"xy@a"', '"xy@b5"'],
        ['"x"@a"', '"x\n@a"', r'"x\"@a"', '"xy@c"', '"xy@a55"'],
    ),
    "a part of the text": (
        {"type": "string", "pattern": "^ab|\\.c$"},
        ['"abz"', '"z.c"'],
        ['"zab"', '".cz"', '"zc"'],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_fits(vocabulary, case):
    """One thing each that was once wrong, ignored or refused."""
    schema, right, wrong = CASES[case]
    assert [text for text in right if not fits(vocabulary, schema, text)] == []
    assert [text for text in wrong if fits(vocabulary, schema, text)] == []


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        *(({word: value}, word) for word, value in {
            "not": {}, "if": {}, "contains": {}, "maxProperties": 3, "multipleOf": 2,
            "uniqueItems": True, "minProperties": 1, "patternProperties": {"^a": {}},
            "dependentRequired": {"a": ["b"]}, "$ref": "#/$defs/none", "type": "text",
            "enum": "a", "maxLength": 2001, "minItems": -1, "required": [1], "anyOf": [],
        }.items()),
        ({"$ref": "#"}, "$ref"),
        ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "$ref"),
        ({"$ref": "#name"}, "$ref #name"),
        ({"type": "number", "minimum": 0.5}, "minimum"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "minimum"),
        ({"type": "integer", "exclusiveMinimum": True}, "exclusiveMinimum"),
        ({"type": "string", "pattern": "^a", "minLength": 2}, "pattern together with minLength"),
        ({"enum": ["a"], "pattern": "a"}, "const together with pattern"),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, "string and null"),
        (one(False), "false"),
        (one({}, additionalProperties=False, allOf=[{"properties": {"y": {}}}]), "additionalProp"),
        *(({"type": "string", "pattern": text}, "pattern") for text in
          ("^(?=a)", r"\bfoo", r"(a)\1", "a)", "(a", "[a", "a{2", "*", "(^a)", "a$b", "a{9999}",
           "[z-a]", "\\")),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_refused_by_name(schema, named):
    with pytest.raises(UsageError, match=re.escape(named)):
        grammar_text(Sampling(json_schema=json.dumps(schema)))


def test_small_schemas_that_mean_too_much():
    """Each level doubles what comes after it; and anyOf times anyOf."""
    twice = {
        f"a{k}": {
            "allOf": [
                {"$ref": f"#/$defs/a{k + 1}", "properties": {"p": {"maxLength": length}}}
                for length in (k + 100, k + 200)
            ]
        }
        for k in range(60)
    }
    choices = {"anyOf": [{"minLength": k} for k in range(40)]}
    for schema in (
        {"$ref": "#/$defs/a0", "$defs": {**twice, "a60": {"properties": {"p": {"title": "x"}}}}},
        {"allOf": [choices, {**choices, "title": "x"}, {"anyOf": choices["anyOf"][:39]}]},
        {"type": "integer", "minimum": -(10**1000)},
        {"properties": {f"{k}" * 9: {} for k in range(999)}, "additionalProperties": True},
        {"allOf": [{"$ref": "#"}, {"$ref": "#"}]},
    ):
        with pytest.raises(UsageError, match="cannot make a grammar"):
            grammar_text(Sampling(json_schema=json.dumps(schema)))


NAMES = ["a", "a-b", "a_b", "ab", "string", "root", "value", "thought", 'q"\\\n', "é/~", ""]
BOUND, COUNT = st.integers(-120, 120), st.integers(0, 3)


def some(**keys):
    return st.fixed_dictionaries({}, optional=keys)


def typed(kind, keywords):
    return keywords.map(lambda found: {"type": kind, **found})


SCALARS = st.one_of(
    st.sampled_from([{}, True, {"type": "boolean"}, {"type": ["null", "string"]}]),
    st.sampled_from(["date", "date-time"]).map(lambda kind: {"type": "string", "format": kind}),
    st.sampled_from(["^.{1,3}$", "^[^@]+@[\\w.]{2}", "a|b$", "^(x\\d?|\\s)*$", '^["\\\\\\n]{2}$'])
    .map(lambda text: {"type": "string", "pattern": text}),
    st.lists(st.sampled_from([1, True, None, "a", 'say "\\"', "\n", "é\ud800", [1], {"a": {}}]),
             min_size=1, max_size=3).map(lambda values: {"enum": values}),
    st.sampled_from(["C:\\Users", 0, {"a": [None]}]).map(lambda value: {"const": value}),
    typed("string", some(minLength=COUNT, maxLength=COUNT)),
    *(typed(kind, some(minimum=BOUND, maximum=BOUND, exclusiveMinimum=BOUND,
                       exclusiveMaximum=BOUND)) for kind in ("integer", "number")),
)  # fmt: skip


def larger(inner):
    named = st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
    several = st.lists(inner, min_size=1, max_size=3)
    required = st.lists(st.sampled_from(NAMES), max_size=2)
    return st.one_of(
        typed("object", some(properties=named, required=required, additionalProperties=inner)),
        typed("array", some(items=inner, minItems=COUNT, maxItems=COUNT)),
        typed("array", some(prefixItems=several, items=inner, minItems=COUNT, maxItems=COUNT)),
        several.map(lambda schemas: {"anyOf": schemas}),
        st.lists(inner, min_size=1, max_size=2).map(lambda schemas: {"allOf": schemas}),
        st.sampled_from(["#", "#/$defs/a_b", "#/$defs/a-b"]).map(lambda ref: {"$ref": ref}),
        st.tuples(inner, inner).map(lambda pair: {"anyOf": [pair[0]], "allOf": [pair[1]]}),
    )


PARTS = st.recursive(SCALARS, larger, max_leaves=6)
SCHEMAS = st.tuples(typed("object", some(
    properties=st.dictionaries(st.sampled_from(NAMES), PARTS, min_size=1, max_size=3),
    required=st.lists(st.sampled_from(NAMES), max_size=2))) | PARTS, PARTS, PARTS,
).map(lambda three: {**(three[0] if isinstance(three[0], dict) else {}),
                     "$defs": {"a_b": three[1], "a-b": three[2]}})  # fmt: skip


def written(vocabulary, schema, rng):
    """A random text that fits; None if it becomes too long."""
    grammar = Grammar(vocabulary, grammar_text(Sampling(json_schema=json.dumps(schema))))
    ends, said = vocabulary.pieces.end_tokens, b""
    for k in range(500):
        choices = grammar.all().tolist()
        assert choices, (schema, said)
        if not {*choices} - {*ends} or ({*choices} & {*ends} and rng.random() < 0.5):
            return said.decode()
        choices = [token for token in choices if token not in ends]
        # llama.cpp takes some bytes that are no character, where a token is half of one.
        choices = [t for t in choices if vocabulary.pieces.text[t].isascii()] or choices
        closing = [t for t in choices if vocabulary.pieces.text[t] in (b'"', b"}", b"]")]
        token = rng.choice(closing if closing and rng.random() < k / 40 else choices)
        said += vocabulary.pieces.text[token]
        grammar.accept(token)
    return None


@settings(max_examples=400, deadline=None, derandomize=True)
@given(SCHEMAS, st.integers(0, 2**32))
def test_whatever_fits_is_json_and_valid(vocabulary, schema, seed):
    """Schemas of any kind, texts drawn from their grammars."""
    try:
        text = written(vocabulary, schema, random.Random(seed))
    except UsageError:
        return
    if text is not None:
        assert is_valid(json.loads(text), schema), (schema, text)
