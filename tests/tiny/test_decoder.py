"""The round loop on fakes: plain decoding's answers, clean caches at every yield."""

from types import SimpleNamespace

from dspark_gguf.config import Speculation
from dspark_gguf.decoder import Decoder
from dspark_gguf.draft import NoDrafter
from dspark_gguf.testing import ByteTokenizer, TableModel, reciting_rows
from tests.fakes import World


def reciting(prompt, answer, **changes):
    """A world that says `answer` after `prompt`, whose draft knows it too."""
    tokenizer = ByteTokenizer()
    tokens = tokenizer.tokenize(prompt + answer)
    rows = reciting_rows(tokens, tokenizer.n_vocab, tokenizer.end)
    return World(rows, rows, tokenizer, **changes)


def test_off_means_that_the_draft_sees_no_work():
    """Mode off: not a pass of the draft, not even of the prompt; nor is a draft model asked for."""
    world = reciting("ab", "cdefghij", speculation=Speculation(mode="off"))
    decoder = world.decoder()
    assert decoder.answer(list(b"ab")).text == "cdefghij"
    assert decoder.drafter.cache.passes == []
    pair = SimpleNamespace(
        target_caches=[TableModel(world.target_rows)],
        vocabulary=world.tokenizer,
        draft_cache=None,
        template=None,
    )
    decoder = Decoder.for_pair(pair, world.sampling, world.speculation)
    assert isinstance(decoder.drafter, NoDrafter)
    assert decoder.answer(list(b"ab")).text == "cdefghij"
