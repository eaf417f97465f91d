"""Grammars that llama.cpp does never finishes, and those that only look like them."""

from __future__ import annotations

import llama_cpp.llama_grammar
import pytest

from dspark_gguf.engine.gbnf import fault

FAULTS = {
    'root ::= "a"{5,2}': "its repetition {5,2}",
    'root ::= ("a" | "b"){3,\t0}': "its repetition {3,\t0}",
    'root ::= root "a" | "b"': "its rule root",
    'root ::= ws root "+" | "b"\nws ::= [ \\t]*': "its rule root",
    'root ::= "x" sum\nsum ::= pad sum "+" | "b"\npad ::= tab?\ntab ::= "\\t"': "its rule sum",
    'root ::= (ws root)* "b"\nws ::= " "?': "its rule root",
    'root ::= a "x"\na ::= b\nb ::= c | ""\nc ::= b root': "its rule",
    "root ::= " + 501 * "(" + '"a"' + 501 * ")": "its parentheses are more than 500 deep",
    "root ::= r0\n"
    + "\n".join(f"r{k} ::= r{k + 1}" for k in range(600)): "its rules are more than 500",
    "start ::= [a-z]": "it has no rule root",
    "# nothing but a comment": "it has no rule root",
}


@pytest.mark.parametrize("text", FAULTS, ids=lambda text: text[:40])
def test_what_ends_the_process(text):
    """Memory or the stack ends, or llama.cpp answers NULL and gives its reason to the log only."""
    assert fault(text, "root").startswith(FAULTS[text])


SOUND = [
    "",
    'root ::= ws root | "b"\nws ::= " "*',  # the stack does not grow: llama.cpp comes back
    'root ::= ("a"*)* "x"',
    'root ::= "root ::= root" [\\]"(] "\\"{5,2}" # {5,2} (((',
    'root ::= "a"{2} "b"{2,} "c"{0,0} "d"{1,3}',
    'root ::= "(" root ")" | "x"',
    "root ::=\n  item |\n  root2 # the other\nitem ::= <[7]> !<[8]> .\nroot2 ::= [^(]+",
    "root ::= nothing that (is ",  # llama.cpp refuses it by itself
    *(text for name, text in vars(llama_cpp.llama_grammar).items() if name.endswith("_GBNF")),
]


@pytest.mark.parametrize("text", SOUND, ids=lambda text: text[:40])
def test_what_does_not(text):
    """Also where characters, comments and brackets look like it."""
    assert fault(text, "root") is None


def test_large_grammars_are_read_in_time_that_grows_with_them():
    """A thousand rules, each of which may be empty."""
    rules = [f'r{k} ::= ("a" | "b")? r{k // 2} "c"?' for k in range(1, 1000)]
    assert fault("\n".join(["root ::= r999", 'r0 ::= "z"', *rules]), "root") is None
