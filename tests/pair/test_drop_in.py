"""`DSparkLlama` beside `Llama`: the same tokens, for every way of drawing them."""

import json

import llama_cpp
import numpy as np

from dspark_gguf.config import Speculation
from dspark_gguf.dropin.llama import DSparkLlama
from dspark_gguf.dropin.tokenizer import GrowingTokenizer
from dspark_gguf.engine.llama import SafeLlama

EXACT = {
    "n_ctx": 512, "flash_attn": False, "type_k": 0, "type_v": 0, "verbose": False, "seed": 7,
}  # fmt: skip


def test_characters_split_across_tokens(demo_files):
    """Streamed text is whole characters, and the same as without a draft."""
    grammar = llama_cpp.LlamaGrammar.from_string('root ::= "héllo 🦊🐻‍❄️ 日本語 わくわく" [.!]')
    texts = []
    for made in (SafeLlama, DSparkLlama):
        llama = made(str(demo_files[0]), n_ctx=256, verbose=False)
        parts = [
            part["choices"][0]["text"]
            for part in llama.create_completion(
                "Say:", max_tokens=64, temperature=0.0, stream=True, grammar=grammar
            )
        ]
        assert "\N{REPLACEMENT CHARACTER}" not in "".join(parts)
        texts.append("".join(parts))
        llama.close()
    assert texts[0] == texts[1]
    assert texts[1].startswith("héllo 🦊🐻‍❄️ 日本語 わくわく")


def test_a_draft_with_another_vocabulary(tiny_files, demo_files):
    """It drafts by its text, and changes nothing."""
    always = Speculation(mode="on", draft_min_prob=0.0, draft_max=3)
    texts = []
    for options in ({}, {"draft_model": demo_files[1], "speculation": always}):
        llama = (DSparkLlama if options else SafeLlama)(str(tiny_files.target), **options, **EXACT)
        said = llama.create_completion("Hello", max_tokens=20, temperature=0)
        texts.append(said["choices"][0]["text"])
        llama.close()
    assert texts[0] == texts[1]


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


CHAT = [{"role": "user", "content": "Anna is 31 years old. Who is it, and how old?"}]


def test_chat_on_the_real_pair(demo_files):
    """Answers, JSON schema and tools have the usual form.

    Texts are not compared: where two words are nearly as probable, a quantized model's choice
    depends on how many tokens a pass reads.
    """
    llama = DSparkLlama(str(demo_files[0]), draft_model=demo_files[1], n_ctx=1024, verbose=False)
    asked = {"messages": CHAT, "temperature": 0.0}
    answer = llama.create_chat_completion(**asked, max_tokens=24)
    assert answer["choices"][0]["message"]["content"]
    parts = llama.create_chat_completion(**asked, max_tokens=24, stream=True)
    assert any(part["choices"][0]["delta"].get("content") for part in parts)
    # Longer than any text of this schema.
    asked["max_tokens"] = 200
    shaped = llama.create_chat_completion(
        **asked, response_format={"type": "json_object", "schema": SCHEMA}
    )
    assert json.loads(shaped["choices"][0]["message"]["content"]).keys() == {"name", "age"}
    tool = {"type": "function", "function": {"name": "note", "parameters": SCHEMA}}
    called = llama.create_chat_completion(
        **asked, tools=[tool], tool_choice={"type": "function", "function": {"name": "note"}}
    )
    (call,) = called["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "note"
    assert json.loads(call["function"]["arguments"]).keys() == {"name", "age"}
    llama.close()


def test_growing_lists_are_detokenized_as_before(demo_files, tiny_files):
    """Byte for byte: lists that grow, shrink, change, begin with the first token, or are parts."""
    rng = np.random.default_rng(0)
    for file in (demo_files[0], tiny_files.target):
        llama = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
        wanted, ours = llama_cpp.LlamaTokenizer(llama), GrowingTokenizer(llama)
        for _ in range(40):
            tokens = rng.integers(0, llama.n_vocab(), 100).tolist()
            if rng.random() < 0.3:
                tokens[0] = llama.token_bos()
            for end in sorted(rng.integers(0, 101, 12).tolist()):
                assert ours.detokenize(tokens[:end]) == wanted.detokenize(tokens[:end])
                part = tokens[end // 2 : end]
                assert ours.detokenize(part, prev_tokens=tokens[: end // 2]) == (
                    wanted.detokenize(part)
                )
                assert ours.detokenize(part, special=True) == wanted.detokenize(part, special=True)
        llama.close()
