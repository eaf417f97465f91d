"""What would end the process is refused by name before llama.cpp is asked; what lacks its heads is
a plain target.
"""

from __future__ import annotations

import llama_cpp
import pytest

from dspark_gguf import Decoder, DSparkLlama, Limits, ModelOptions, Sampling, Speculation, load_pair
from dspark_gguf.config import DraftOptions
from dspark_gguf.engine import symbols
from dspark_gguf.engine.gguf import read_header
from dspark_gguf.engine.heads import target_draft
from dspark_gguf.engine.quantize import quantize
from dspark_gguf.errors import EngineError, ModelError, PairError, UsageError
from tests.tiny_cycle import CYCLE
from tests.tiny_dflash import Block, write_dflash
from tests.tiny_eagle3 import Eagle, write_assistant, write_cycle_llama, write_eagle3, write_gemma4
from tests.tiny_heads import HEADS, ONE_HEAD, SEVERAL, TRUNK, Made, write_mtp

OPTIONS = {
    "n_ctx": 256, "flash_attn": "off", "cache_type_k": "f32", "cache_type_v": "f32", "threads": 1,
}  # fmt: skip
GREEDY = Sampling(temperature=0, ignore_eos=True)
ALWAYS = Speculation(mode="on", draft_min_prob=0.0, draft_max=3, learn=False)
PLAIN = Speculation(mode="off")
PROMPT = list(CYCLE[3:15])


def pair_of(target, draft):
    return load_pair(
        target,
        draft,
        target_options=ModelOptions(**OPTIONS),
        draft_options=DraftOptions(**OPTIONS),
    )


def text(pair, how=PLAIN, count=40):
    return Decoder.for_pair(pair, GREEDY, how).answer(PROMPT, Limits(max_tokens=count))


@pytest.fixture
def no_llama(monkeypatch):
    """llama.cpp loads nothing and opens no context."""

    def asked(*_):
        raise AssertionError("llama.cpp was asked")

    for name in ("llama_model_load_from_file", "llama_init_from_model"):
        monkeypatch.setattr(llama_cpp, name, asked)


FILES = {
    "prediction heads alone": lambda path: write_mtp(path, Made("qwen35"), keep=HEADS),
    "EAGLE-3": write_eagle3,
    "Gemma 4 assistant": write_assistant,
    "block draft": write_dflash,
}


@pytest.mark.parametrize("what", FILES)
def test_a_draft_is_no_target(tmp_path, no_llama, what):
    """A sidecar would crash in its first pass, an EAGLE-3 file say one token for ever."""
    path = FILES[what](tmp_path / "swapped.gguf")
    with pytest.raises(ModelError, match=rf"swapped.gguf is .*{what}.*Give it with -d"):
        load_pair(path)
    with pytest.raises(ModelError, match=what):
        DSparkLlama(str(path), verbose=False)


def refused(target, draft):
    """What is said of a draft; the target is loaded first, the draft never."""
    with pair_of(target, draft) as pair:
        before = llama_cpp.llama_model_load_from_file
        llama_cpp.llama_model_load_from_file = None  # not called from here on
        try:
            with pytest.raises((PairError, ModelError)) as caught:
                pair.draft_cache()
        finally:
            llama_cpp.llama_model_load_from_file = before
    return str(caught.value)


def test_heads_of_another_target(tmp_path):
    """Another architecture or vocabulary: llama.cpp checks neither."""
    sidecar = write_mtp(tmp_path / "mtp-x.gguf", Made(), keep=HEADS)
    hybrid = write_mtp(tmp_path / "hybrid.gguf", Made("qwen35"))
    assert "architecture hy_v3, not qwen35" in refused(hybrid, sidecar)
    padded = write_mtp(tmp_path / "padded.gguf", Made(), padding=3)
    assert "263 tokens, not 266" in refused(padded, sidecar)
    llama = write_cycle_llama(tmp_path / "llama.gguf")
    assert "architecture hy_v3, not llama" in refused(llama, sidecar)
    assert "architecture gemma4, not llama" in refused(llama, write_assistant(tmp_path / "a.gguf"))


def test_eagle3_of_another_target(tmp_path):
    """One that hands out no layers (it would end the process), too few layers, another width."""
    draft = write_eagle3(tmp_path / "eagle3.gguf")
    heads = write_mtp(tmp_path / "hy.gguf", Made())
    assert "made for a target with layer 2, not 1 layers" in refused(heads, draft)
    low = write_eagle3(tmp_path / "low.gguf", Eagle(layers=(0, 0, 0)))
    assert "hy_v3 does not expose the inputs of its layers" in refused(heads, low)
    # Of 5 blocks, 4 are layers: the fifth is a head, which has no input to hand out.
    high = write_eagle3(tmp_path / "high.gguf", Eagle(layers=(0, 1, 5)))
    hybrid = write_mtp(tmp_path / "hybrid.gguf", Made("qwen35"))
    assert "layer 5, not 4 layers" in refused(hybrid, high)
    llama = write_cycle_llama(tmp_path / "llama.gguf")
    narrow = write_eagle3(tmp_path / "narrow.gguf", Eagle(wide=32, random=True, own=False))
    assert "it cannot borrow the embeddings" in refused(llama, narrow)
    padded = write_eagle3(tmp_path / "padded.gguf", Eagle(padding=2))
    assert "265 tokens, not 263" in refused(llama, padded)
    gemma = write_gemma4(tmp_path / "gemma4.gguf")
    assert "layer 2" in refused(gemma, draft) or "output of its last" in refused(gemma, draft)


def test_a_block_draft_counts_layers_without_heads(tmp_path):
    """The block behind the layers is a head, not a layer whose input could be read."""
    hybrid = read_header(write_mtp(tmp_path / "hybrid.gguf", Made("qwen35")))
    block = target_draft(read_header(write_dflash(tmp_path / "b.gguf", Block(layers=(0, 5)))))
    assert "layer 5, not 4 layers" in block.why_not_for(hybrid)


#: Their headers list something for each block.
LISTS = ("nemotron_h_moe", "deepseek4")


@pytest.mark.parametrize("arch", LISTS)
def test_a_stripped_model_that_llama_cpp_cannot_load(tmp_path, arch):
    """It is refused by name: the count can be corrected, lists of another length cannot."""
    stripped = write_mtp(tmp_path / "stripped.gguf", Made(arch), keep=TRUNK)
    for opened in (lambda: pair_of(stripped, None), lambda: DSparkLlama(str(stripped))):
        with pytest.raises(ModelError, match=f"left them out, and .* cannot load a {arch} like"):
            opened()


@pytest.mark.parametrize("arch", sorted({*ONE_HEAD, *SEVERAL} - {*LISTS}))
def test_a_stripped_model_is_a_plain_target(tmp_path, arch):
    """Quantizers drop the heads and keep their count: the same text; asked for, the heads are
    refused by name, where llama.cpp would end the process.
    """
    whole = write_mtp(tmp_path / "whole.gguf", Made(arch))
    stripped = write_mtp(tmp_path / "stripped.gguf", Made(arch), keep=TRUNK)
    texts = []
    for path in (whole, stripped):
        with pair_of(path, None) as pair:
            texts.append(text(pair).tokens)
    assert texts[0] == texts[1]
    llama = DSparkLlama(str(stripped), n_ctx=64, verbose=False)
    assert llama.create_completion(PROMPT, max_tokens=4)["usage"]["completion_tokens"]
    llama.close()
    for draft in ("mtp", stripped):
        with pytest.raises(ModelError, match="left them out"):
            pair_of(stripped, draft).draft_cache()


def test_models_without_heads(tmp_path):
    """Asked for by name; the same file twice is a plain draft as ever."""
    llama = write_cycle_llama(tmp_path / "llama.gguf")
    with pytest.raises(ModelError, match=r"llama.gguf has no prediction heads"):
        load_pair(llama, "mtp")
    with pair_of(llama, llama) as pair:
        assert pair.draft_cache().kind == "model"


def test_states_of_another_width_than_promised(tmp_path, monkeypatch):
    """Read at the wrong width they would be nonsense, and pairs would be read beyond their end."""
    path = write_mtp(tmp_path / "model.gguf", Made())
    with pair_of(path, "mtp") as pair:
        monkeypatch.setattr(llama_cpp, "llama_model_n_embd_out", lambda model: 256)
        with pytest.raises(PairError, match=r"states of 256 numbers in model.gguf"):
            pair.draft_cache()


def test_heads_are_loaded_only_when_used(tmp_path):
    """They take memory: a plain target leaves them in the file."""
    path = write_mtp(tmp_path / "model.gguf", Made("qwen35"))
    with pair_of(path, "none") as pair:
        assert not pair.target.has_heads
    with pair_of(path, "mtp") as pair:
        assert pair.target.has_heads
        assert pair.draft_cache().kind == "mtp"
        assert pair.draft.pointer == pair.target.pointer
        assert 0 < pair.draft.size < pair.target.size
        assert "draft (MTP) the target's own prediction heads: " in pair.summary(ALWAYS)


def test_quantized_heads(tmp_path):
    """llama.cpp quantizes them like the rest: nearly as right."""
    whole, small = write_mtp(tmp_path / "whole.gguf", Made()), tmp_path / "small.gguf"
    quantize(whole, small, "Q8_0")
    with pair_of(small, "mtp") as pair:
        plain, answer = text(pair), text(pair, ALWAYS)
        assert plain.tokens == answer.tokens
        assert answer.tally.accepted > 0.9 * answer.tally.drafted


@pytest.mark.parametrize("name", [*symbols.STATES, *symbols.OWN_STATE])
def test_a_build_without_the_symbols(tmp_path, monkeypatch, name):
    """One line: the symbol, this version, the version that has it; plain decoding goes on."""
    path, mangle = write_mtp(tmp_path / "model.gguf", Made()), symbols.mangle

    def without(asked, *spelling):
        return ["no_such_symbol"] if asked == name else mangle(asked, *spelling)

    monkeypatch.setattr(symbols, "mangle", without)
    with pair_of(path, "mtp") as pair:
        with pytest.raises(EngineError, match=rf"lacks {name}, .*Install llama-cpp-python 0\.3"):
            pair.draft_cache()
        assert text(pair).tokens


def test_many_tokens_between_two_guesses(tmp_path):
    """More pairs wait than may be flagged in a pass, which would end the process."""
    path = write_mtp(tmp_path / "model.gguf", Made())
    with pair_of(path, "mtp") as pair:
        answer = text(pair, ALWAYS, count=6)
        tokens = [*PROMPT, *answer.tokens]
        plain = Decoder.for_pair(pair, GREEDY, PLAIN).answer(tokens, Limits(max_tokens=90))
        tokens += plain.tokens
        on = Decoder.for_pair(pair, GREEDY, ALWAYS).answer(tokens, Limits(max_tokens=20))
        assert on.cached_tokens == len(tokens) - 1
        assert on.tally.drafted == on.tally.accepted > 0


def test_other_words(tmp_path):
    """The vocabulary of a sidecar must be the target's, token for token."""
    target = write_mtp(tmp_path / "t.gguf", Made())
    other = write_mtp(tmp_path / "mtp-t.gguf", Made(), keep=HEADS, changed=((99, "no"),))
    with pair_of(target, other) as pair, pytest.raises(PairError, match="token 99"):
        pair.draft_cache()


def test_a_llama_of_a_draft_is_no_draft_model(tmp_path):
    """An EAGLE-3 file says one token for ever: its path is what to give."""
    path, target = write_eagle3(tmp_path / "eagle.gguf"), write_cycle_llama(tmp_path / "t.gguf")
    theirs = llama_cpp.Llama(str(path), n_ctx=64, verbose=False)
    with pytest.raises(UsageError, match=r"eagle.gguf \(eagle3\) is no model.*Give its path"):
        DSparkLlama(str(target), draft_model=theirs, n_ctx=64, verbose=False)
    theirs.close()
