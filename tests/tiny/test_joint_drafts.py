"""Conversations in one pass share the passes of a draft that follows its target, too."""

from __future__ import annotations

import pytest

from dspark_gguf import Batcher, Limits, ModelOptions, Sampling, Speculation, load_pair
from dspark_gguf.config import DraftOptions
from dspark_gguf.engine.follower import groups_of
from tests.crowd import EXACT
from tests.tiny.test_heads import files
from tests.tiny.test_heads_everywhere import ALWAYS, PROMPT, OfTarget, crowd_of
from tests.tiny_cycle import CYCLE
from tests.tiny_dflash import N_TOKENS, Block, write_cycle_target, write_dflash

__all__ = ["files"]  # a fixture
GREEDY = Sampling(temperature=0, ignore_eos=True)
SUCCESSOR = [(7 * token + 3) % 256 for token in range(N_TOKENS)]


def passes_of(pair):
    """Fills with the tokens of each pass of the draft."""
    context, seen = pair.draft_cache().context, []
    run = context.decode

    def decode(batch):
        seen.append(batch.n_tokens)
        run(batch)

    context.decode = decode
    return seen


def go_on(pair, texts, how=ALWAYS, most=40):
    """Passes of the draft in a round in which all conversations draft, and their answers."""
    seen, batcher = passes_of(pair), Batcher(pair, how, parallel=len(texts))
    requests = [batcher.submit(text, GREEDY, Limits(max_tokens=most)) for text in texts]
    while batcher.running < len(texts) or not all(len(r.answer.tokens) > 4 for r in requests):
        batcher.step()
    seen.clear()
    rounds = batcher.step()
    assert all(round.draft.steps for _, round in rounds)
    passes = list(seen)
    list(batcher)
    return passes, [request.answer for request in requests]


@pytest.mark.parametrize("name", ["qwen35, copy", "sidecar of a hybrid", "eagle3", "assistant"])
def test_one_pass_makes_the_next_guess_of_all(files, name):
    """Three guesses of each of three conversations: three passes, and the texts are their own."""
    texts = [[*CYCLE[k : k + 9 + k], *PROMPT[: 3 + k]] for k in range(3)]
    with crowd_of(files, name, 3) as pair:
        assert pair.draft_cache().joins
        passes, answers = go_on(pair, texts)
    assert len(passes) == 3
    assert passes[1:] == [3, 3]
    alone = OfTarget(files, name)
    for text, answer in zip(texts, answers, strict=True):
        assert answer.tokens == alone.says(text, GREEDY, 40)
        assert answer.tally.drafted == answer.tally.accepted > 0
    alone.pair.close()


def test_several_heads_are_not_joined(files):
    """A pass is of one head: each conversation makes its own."""
    with crowd_of(files, "mimo2, 3 heads, copy", 3) as pair:
        assert not pair.draft_cache().joins
        passes, _ = go_on(pair, [[*CYCLE[k : k + 9 + k], *PROMPT[:3]] for k in range(3)])
    assert len(passes) > 3 * 3


@pytest.mark.parametrize("conversations", [3, 20])
@pytest.mark.parametrize("kind", [{}, {"confidence": True}], ids=["dspark", "confidence"])
def test_one_pass_makes_the_blocks_of_all(tmp_path, kind, conversations):
    """And one more reads the features of all; twenty blocks need two passes of 128 rows."""
    target = write_cycle_target(tmp_path / "target.gguf", SUCCESSOR)
    block = write_dflash(tmp_path / "block.gguf", Block(size=8, cycle=tuple(SUCCESSOR), **kind))
    with load_pair(
        target, block, target_options=ModelOptions(n_ctx=2048, **EXACT),
        draft_options=DraftOptions(**EXACT), conversations=conversations,
    ) as pair:  # fmt: skip
        how = Speculation(mode="on", draft_min_prob=0.0, draft_max=4, learn=False)
        lasts = [(30 + 11 * k) % 256 for k in range(conversations)]
        passes, answers = go_on(pair, [[10 + k, 20, last] for k, last in enumerate(lasts)], how)
        most = pair.draft_cache().opening(1, 4)
    each, total = len(most), conversations * len(most)
    assert len(passes) == 1 + -(-total // (128 // each * each))
    assert sum(passes[1:]) == total
    for last, answer in zip(lasts, answers, strict=True):
        said = [last]
        while len(said) <= 40:
            said.append(SUCCESSOR[said[-1]])
        assert answer.tokens == said[1:]
        assert answer.tally.accepted > 20


def test_groups_are_as_few_as_can_be():
    """In order, none larger than asked for but a single one that is too large itself."""
    assert [list(group) for group in groups_of([3, 3, 3, 9, 1, 1], 6)] == [[0, 1], [2], [3], [4, 5]]
    assert list(groups_of([], 6)) == []
