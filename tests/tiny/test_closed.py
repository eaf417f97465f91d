"""What was closed is refused by name: llama.cpp would end the process."""

from __future__ import annotations

import llama_cpp
import pytest

from dspark_gguf import Batcher, Decoder, DSparkLlama, Limits, Sampling
from dspark_gguf.errors import UsageError
from tests.crowd import ALWAYS, pair_of
from tests.tiny.test_drop_in_answers import ALWAYS as DRAFTS
from tests.tiny.test_drop_in_answers import EXACT, PROMPT, said


@pytest.mark.parametrize("kind", ["removal", "snapshots"])
@pytest.mark.parametrize("draft", [True, False])
def test_a_closed_pair(files, kind, draft):
    """Its template and tokenizer, decoders, generators and batches, old and new."""
    sampling = Sampling(temperature=0, grammar='root ::= "abc"+')
    with pair_of(files, kind, 2, draft=draft) as pair:
        decoder, batcher = Decoder.for_pair(pair, sampling, ALWAYS), Batcher(pair, ALWAYS)
        free = Decoder.for_pair(pair, speculation=ALWAYS, conversation=1)
        cached = pair.target_caches[1], pair.draft_cache(1)
        rounds = [each.generate([5, 6, 7], Limits(max_tokens=9)) for each in (decoder, free)]
        for each in rounds:
            next(each)
        running = batcher.submit([5, 6], limits=Limits(max_tokens=9))
        batcher.step()
    uses = [
        lambda: decoder.answer([5, 6, 7]),
        lambda: decoder.answer("abc"),
        lambda: free.answer([5, 6, 7]),
        lambda: next(rounds[0]),
        lambda: next(rounds[1]),
        decoder.reset,
        batcher.step,
        lambda: batcher.submit("abc"),
        lambda: batcher.submit([5, 6]),
        lambda: Batcher(pair),
        lambda: Decoder.for_pair(pair),
        lambda: pair.template.encode([{"role": "user", "content": "abc"}]),
        lambda: pair.vocabulary.tokenize("abc"),
        lambda: pair.vocabulary.piece(5),
        lambda: cached[0].decode([5], 1),
    ]
    if draft:
        uses += [lambda: cached[1].reuse_prefix([]), lambda: pair.draft.vocabulary.text(5)]
    for use in uses:
        with pytest.raises(UsageError, match="were closed"):
            use()
    assert not running.is_over
    pair.close()


@pytest.mark.parametrize("kind", [llama_cpp.Llama, DSparkLlama])
def test_a_draft_that_its_owner_closed(tiny_files, kind):
    """Between two answers, and within one; the target is closed as ever."""
    for within in (False, True):
        draft = kind(str(tiny_files.draft), **EXACT)
        ours = DSparkLlama(str(tiny_files.target), draft=draft, speculation=DRAFTS, **EXACT)
        tokens = ours.generate(list(PROMPT), temp=0.0)
        next(tokens)
        draft.close()
        with pytest.raises(UsageError, match="were closed"):
            list(tokens) if within else said(ours, temp=0.0)
        ours.close()


def test_a_stream_of_a_closed_llama(tiny_files):
    ours = DSparkLlama(str(tiny_files.target), speculation=DRAFTS, draft="none", **EXACT)
    tokens = ours.generate(list(PROMPT), temp=0.0)
    next(tokens)
    ours.close()
    with pytest.raises(UsageError, match="were closed"):
        list(tokens)
