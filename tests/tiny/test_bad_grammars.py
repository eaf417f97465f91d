"""Grammars that `Llama` ends the process with: `DSparkLlama` refuses them by name, always."""

from __future__ import annotations

import llama_cpp
import pytest

from dspark_gguf import Speculation
from dspark_gguf.dropin.llama import DSparkLlama
from dspark_gguf.errors import UsageError
from tests.children import run_python

PROMPT = [1, 2, 3, 4, 1, 2]


@pytest.fixture(params=["on", "off"])
def pair(tiny_files, request):
    """`Llama` and the drop-in."""
    options = {"n_ctx": 256, "verbose": False, "seed": 7}
    speculation = Speculation(mode=request.param, draft_min_prob=0.0, learn=False)
    file = str(tiny_files.target)
    plain, ours = (
        llama_cpp.Llama(file, **options),
        DSparkLlama(file, speculation=speculation, **options),
    )
    yield plain, ours
    plain.close()
    ours.close()


def answer(llama, **options):
    out = llama.create_completion(PROMPT, max_tokens=20, temperature=0.0, **options)
    return out["choices"], out["usage"]


def test_grammars_that_lead_nowhere(pair):
    """They parse, and then let no token follow; the next answer is that of a new model."""
    plain, ours = pair
    nowhere = llama_cpp.LlamaGrammar.from_string('root ::= "ab" <[999]>', verbose=False)
    for options in (
        {},
        {"temperature": 0.8},
        {"temperature": 0.8, "top_k": 0, "typical_p": 0.5},
        {"repeat_penalty": 1.3},
        {"temperature": 0.8, "mirostat_mode": 1},
        {"temperature": 0.8, "mirostat_mode": 2},
        {"temperature": -1.0, "logprobs": 1},
        {"stream": True},
    ):
        options = {"temperature": 0.0, "grammar": nowhere, **options}
        with pytest.raises(UsageError, match="allows no token"):
            list(ours.create_completion(PROMPT, **options))
    assert answer(ours) == answer(plain)


def test_an_empty_grammar_is_none(pair):
    """As for `Llama`."""
    plain, ours = pair
    none = llama_cpp.LlamaGrammar.from_string("", verbose=False)
    assert answer(ours, grammar=none) == answer(plain, grammar=none) == answer(plain)


#: Prints, for a model with a draft, without one and for a recurrent one: whether all are refused,
#: and that it goes on.
PROGRAM = r"""
import json, sys
from llama_cpp import LlamaGrammar
from dspark_gguf import DSparkLlama, Speculation
from dspark_gguf.errors import UsageError

kinds = (
    {"type": "string", "pattern": "^\\d+$"},
    {"const": 'say "a"'},
    {"enum": ['say "a"', "b"]},
)
schemas = [{"type": "object", "properties": {"x": kind}, "required": ["x"]} for kind in kinds]
grammars = [LlamaGrammar.from_json_schema(json.dumps(schema), verbose=False) for schema in schemas]
grammars += [
    LlamaGrammar.from_string(text, verbose=False)
    for text in (
        "root ::= nothing", 'a ::= "x"', 'root ::= root "a" | "b"', "# nothing", 'root ::= "a',
        'root ::= "a"{5,2}',
        'root ::= ws root "+" | "b"\nws ::= " "*',
    )
]
asked = [{"role": "user", "content": "hi"}]


def tries(llama):
    for grammar in grammars:
        yield lambda: next(llama.generate([1, 2], grammar=grammar))
        for more in ({}, {"logprobs": 1}, {"repeat_penalty": 1.2}):
            yield lambda: llama.create_completion("a", grammar=grammar, **more)
    for schema in schemas:
        shape = {"type": "json_object", "schema": schema}
        tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
        choice = {"type": "function", "function": {"name": "f"}}
        yield lambda: llama.create_chat_completion(asked, response_format=shape)
        yield lambda: llama.create_chat_completion(asked, tools=[tool], tool_choice=choice)


for path, mode in ((sys.argv[1], "auto"), (sys.argv[1], "off"), (sys.argv[2], "auto")):
    speculation = Speculation(mode=mode, learn=False)
    llama = DSparkLlama(path, n_ctx=256, verbose=False, speculation=speculation)
    passed = []
    for attempt in tries(llama):
        try:
            passed.append(attempt())
        except UsageError as error:
            assert "llama.cpp cannot use the grammar: " in str(error), error
    print(passed, llama.create_completion("abc", max_tokens=2)["usage"]["total_tokens"])
"""


def test_grammars_that_do_not_parse(tiny_files):
    """From a string, a schema, a response format or a tool. In a process that may end."""
    done = run_python("-c", PROGRAM, tiny_files.target, tiny_files.mamba)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["[] 5"] * 3
