"""Block drafts in a pair: chosen, refused, traced, profiled, and given up where they do not pay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dspark_gguf import Decoder, Limits, Sampling, Speculation, load_pair
from dspark_gguf.calibration import Calibration
from dspark_gguf.cost import FixedCosts
from dspark_gguf.draft import Cascade
from dspark_gguf.draft.block import BlockDrafter
from dspark_gguf.engine import symbols
from dspark_gguf.engine.dflash import BlockDraft
from dspark_gguf.engine.gguf import read_header
from dspark_gguf.errors import EngineError, ModelError, PairError
from dspark_gguf.measure.profile import profile
from dspark_gguf.measure.prompts import Prompt
from dspark_gguf.measure.trace import record
from dspark_gguf.schedule import Optimal
from dspark_gguf.verify import match
from tests.tiny.test_block import (
    GREEDY,
    PLAIN,
    PROMPT,
    SUCCESSOR,
    cycle_target,
    exact_pair,
    folder,
    target,
)
from tests.tiny_dflash import Block, embedding, sure_of, write_dflash
from tests.tiny_gguf import Tiny, write_llama, write_mamba

__all__ = ["cycle_target", "folder", "target"]  # fixtures


def test_the_kind_decides(target, folder):
    """-d alone: the drafter, its limit, and `match`."""
    with exact_pair(target, write_dflash(folder / "kind.gguf")) as pair:
        for sampling in (GREEDY, Sampling()):
            decoder = Decoder.for_pair(pair, sampling)
            made, rule = decoder.drafter, decoder.stopping_rule
            assert decoder.rule is match
            assert isinstance(made, Cascade)
            assert isinstance(made.other, BlockDrafter)
            assert rule.step_rule.limit == 6
            assert not rule.steps_after
        answer = Decoder.for_pair(pair, GREEDY).answer(PROMPT, Limits(max_tokens=30))
        plain = Decoder.for_pair(pair, GREEDY, PLAIN).answer(PROMPT, Limits(max_tokens=30))
        assert answer.tokens == plain.tokens
        costs = pair.learned(Speculation()).costs
        assert costs.draft_seconds[5] < 3 * costs.draft_seconds[0]


def test_refusals(target, folder):
    """Each names what the draft needs and what it was given."""

    def refused(block, tiny=Tiny(), other=target):  # noqa: B008
        path = write_dflash(folder / "no.gguf", block, tiny)
        with load_pair(other, path) as pair, pytest.raises(PairError) as caught:
            pair.draft_cache()
        return str(caught.value)

    assert "128 wide, not 64" in refused(Block(), Tiny(width=128))
    assert "layer 7" in refused(Block(layers=(0, 7)))
    assert "output of its last layer" in refused(Block(layers=(0, 2)))
    padded = write_llama(folder / "pad.gguf", Tiny(padding=3))
    assert "263 tokens, not 266" in refused(Block(), other=padded)
    mamba = write_mamba(folder / "mamba.gguf")
    with pytest.raises(PairError, match="mamba does not expose the inputs of its layers"):
        BlockDraft(read_header(write_dflash(folder / "no.gguf"))).require_target(
            replace(read_header(mamba), metadata={**read_header(mamba).metadata,
                                                  "mamba.block_count": 4})
        )  # fmt: skip


def test_a_block_draft_is_no_target(folder):
    """Given with -m, it says where it belongs; in the start-up line, what kind it is."""
    path = write_dflash(folder / "swap.gguf")
    with pytest.raises(ModelError, match="Give it with -d"):
        load_pair(path)


def test_the_summary_names_the_kind(target, folder):
    """And a block is the most that is drafted."""
    with exact_pair(target, write_dflash(folder / "named.gguf")) as pair:
        pair.draft_cache()
        assert "draft (DSpark) named on CPU" in pair.summary(Speculation())
        assert "up to 6 draft tokens a round" in pair.summary(Speculation())


def test_a_build_without_the_symbols(target, folder, monkeypatch):
    """One line: the symbol, this version, the version that has it."""
    monkeypatch.setattr(symbols, "mangle", lambda *_: ["no_such_symbol"])
    with (
        load_pair(target, write_dflash(folder / "s.gguf")) as pair,
        pytest.raises(
            EngineError, match=r"llama_set_embeddings_layer_inp.*Install llama-cpp-python 0\.3"
        ),
    ):
        pair.draft_cache()


def test_an_incomplete_draft(folder):
    """A header without what drafting needs is refused before it is loaded."""
    header = read_header(write_dflash(folder / "part.gguf"))
    del header.metadata["tokenizer.ggml.mask_token_id"]
    with pytest.raises(ModelError, match="mask_token_id"):
        BlockDraft(header)


def test_traced_like_any_other_draft(cycle_target, folder):
    """Chains of a draft that is always right: all survive, scored by its confidence head."""
    path = write_dflash(folder / "trace.gguf", Block(cycle=tuple(SUCCESSOR)))
    with exact_pair(cycle_target, path) as pair:
        prompt = Prompt("chat", [{"role": "user", "content": "hello"}])
        chains = record(pair, prompt, positions=10, depth=4)
        assert chains.survived.shape == (10, 4)
        assert chains.survived.all()
        tokens = pair.template.encode(prompt.messages)
        weighed = float(embedding()[tokens[-1]] @ sure_of()) + 0.5
        assert chains.confidence[0, 0] == pytest.approx(1 / (1 + np.exp(-weighed)), abs=1e-3)
        assert chains.gap[0, 0] == pytest.approx(weighed, abs=0.02)


def test_profiled_like_any_other_draft(target, folder):
    """A block is paid once: the table that `replay` reads says so."""
    with exact_pair(target, write_dflash(folder / "profile.gguf")) as pair:
        (table,) = profile(pair, [16], 7)
        assert table.once
        assert len(set(table.as_dict()["draft_seconds"])) == 1


def test_the_scheduler_learns_what_a_block_is_worth(cycle_target, target, folder):
    """On a fixed table where a block costs half a pass: a draft that is right is always used, all
    of it; one that is wrong is given up. The clock plays no part.
    """
    costs = FixedCosts(1.0 + 0.05 * np.arange(13), np.full(12, 0.5))
    right = write_dflash(folder / "right.gguf", Block(cycle=tuple(SUCCESSOR)))
    wrong = write_dflash(folder / "wrong.gguf", Block(anchor_first=False))
    for model, draft, worth in ((cycle_target, right, True), (target, wrong, False)):
        with exact_pair(model, draft) as pair:
            decoder = Decoder.for_pair(pair, GREEDY)
            decoder.stopping_rule = Optimal(costs, Calibration(), pair.max_drafts, source="block")
            rounds = [r for r in decoder.generate(PROMPT, Limits(max_tokens=150)) if r.tokens]
        late = rounds[len(rounds) // 2 : -2]
        if worth:
            assert all(round.accepted == 6 for round in late)
        else:
            assert sum(round.drafted > 0 for round in late) <= 2


def test_a_block_larger_than_any_draft_is_asked_for_no_more(target, folder):
    """80 guesses: llama.cpp's graph of the chain has no room for so many, and ends the process."""
    large = write_dflash(folder / "large.gguf", Block(size=80))
    with load_pair(target, large) as pair:
        pair.learned(Speculation(learn=False))
        assert pair.draft_cache().max_drafts == 64
        how = Speculation(mode="on", draft_max=64, draft_min_prob=0.0, learn=False)
        decoder = Decoder.for_pair(pair, Sampling(temperature=0, ignore_eos=True), how)
        answer = decoder.answer([1, 2, 3], Limits(max_tokens=20))
    assert len(answer.tokens) == 20
    assert answer.tally.drafted > 20
