"""The same tokens under other ids: the target's own copy drafts for it, and is always right."""

from __future__ import annotations

import pytest

from dspark_gguf import Batcher, Decoder, Limits, Sampling, Speculation, load_pair
from dspark_gguf.draft import MappedDrafter
from tests.tiny_gguf import Tiny, write_llama

ALWAYS = Speculation(mode="on", drafter="model", draft_min_prob=0.0, draft_max=6, learn=False)


@pytest.fixture(scope="module")
def pair(tmp_path_factory, tiny_files):
    """The tiny target, and itself with all ordinary tokens in reverse order."""
    draft = write_llama(tmp_path_factory.mktemp("mapped") / "turned.gguf", Tiny(turned=True))
    with load_pair(tiny_files.target, draft, conversations=3) as pair:
        yield pair


def test_each_token_has_its_own_other_id(pair):
    table = pair.draft_cache().token_map
    assert table.share == 1.0
    assert table.draft_ids.tolist() == [*range(259, -1, -1), 260, 261, 262]
    assert any("100.0% of the tokens are the same, with other ids" in note for note in pair.notes)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_every_guess_of_the_same_model_stands(pair, temperature):
    """Also above temperature 0: noise belongs to the target's ids."""
    sampling = Sampling(temperature=temperature, seed=5, top_k=0)
    plain = Decoder.for_pair(pair, sampling, Speculation(mode="off"))
    decoder = Decoder.for_pair(pair, sampling, ALWAYS)
    assert isinstance(decoder.drafter, MappedDrafter)
    for prompt in ("hello", "hello again", "and something else"):
        wanted = plain.answer(prompt, Limits(max_tokens=40))
        found = decoder.answer(prompt, Limits(max_tokens=40))
        assert found.tokens == wanted.tokens
        assert found.tally.accepted == found.tally.drafted > 0


def test_in_a_batch_too(pair):
    batcher = Batcher(pair, ALWAYS)
    prompts, few = ("hello", "hello there", "what"), Limits(max_tokens=20)
    requests = [batcher.submit(each, Sampling(temperature=0), few) for each in prompts]
    list(batcher)
    for request in requests:
        assert request.answer.tally.accepted == request.answer.tally.drafted > 0


def test_tokens_that_the_draft_lacks_are_read_as_their_first_piece(tmp_path, tiny_files):
    """And never proposed."""
    path = write_llama(tmp_path / "lacks.gguf", Tiny(changed=((258, "QQQ"), (3, "ZZ"))))
    with load_pair(tiny_files.target, path) as pair:
        draft = pair.draft_cache()
        table, vocabulary = draft.token_map, pair.vocabulary
        assert set(range(263)) - set(table.known.tolist()) == {3, 258}
        missing = vocabulary.piece(258).decode()
        assert table.draft_ids[258] == draft.model.vocabulary.tokenize(missing, add_bos=False)[0]
        decoder = Decoder.for_pair(pair, Sampling(temperature=0), ALWAYS)
        row = draft.decode([65], 1)[0]
        said = decoder.drafter._said_as(row)
        assert said[258] == said[3] == -float("inf")
        assert said[table.known].tolist() == row[table.draft_ids[table.known]].tolist()
