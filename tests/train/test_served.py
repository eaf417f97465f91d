"""A file that is not what was trained is an error that names the likely cause."""

from __future__ import annotations

from dataclasses import replace
from threading import Event

import gguf
import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from dspark_gguf import Decoder, Limits, ModelOptions, Sampling, Speculation, load_pair
from dspark_gguf.engine import block
from dspark_gguf.engine.model import Model
from dspark_gguf.errors import DSparkError
from dspark_gguf.train.batches import Batches
from dspark_gguf.train.export import export
from dspark_gguf.train.fit import feature_scale
from dspark_gguf.train.record import Teacher
from dspark_gguf.train.served import Served, require_right, serve
from dspark_gguf.train.shape import Shape
from dspark_gguf.train.start import new_network
from dspark_gguf.train.weights import Weights
from dspark_gguf.train.work import Conversation
from tests.tiny_dflash import MASK
from tests.tiny_gguf import Tiny, write_llama

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A network that guesses by the inputs of two different layers of a target, at random."""
    path = write_llama(tmp_path_factory.mktemp("served") / "target.gguf", Tiny(layers=4))
    with load_pair(path, target_options=ModelOptions(n_ctx=256)) as pair:
        plain = Decoder.for_pair(pair, Sampling(temperature=0), Speculation(mode="off"))
        prompts = [[40 + k, 50, 60 + k] for k in range(6)]
        answers = [plain.answer(each, Limits(max_tokens=40)).tokens for each in prompts]
    talks = [
        Conversation(prompt, answer, 0.0, 3, held=True)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    model = Model(path, ModelOptions())
    shape = replace(Shape.of_target(model.header), target_layers=(1, 3))
    teacher = Teacher(model, shape.target_layers, 64, Event())
    records = [teacher.read(talk.tokens) for talk in talks]
    teacher.close()
    torch.manual_seed(1)
    weights, known = Weights(path), torch.arange(shape.n_vocab)
    scale = feature_scale([record.features for record in records])
    network = new_network(shape, weights, "llama", known, MASK, scale).eval()
    with torch.no_grad():  # both layers and the context matter
        network.fc.weight.normal_(0, network.fc.in_features**-0.5)
        for layer in network.layers:
            layer.v.weight.mul_(8.0)
    return path, network, weights, Batches(talks, records, shape.block, known, shape.n_vocab, CPU)


def check(untrained, draft):
    target, network, _, batches = untrained
    with load_pair(target, draft) as pair:
        found = serve(pair, network, batches, range(len(batches.conversations)))
        require_right(found, pair, network, batches)
    return found


@pytest.fixture
def draft(untrained, tmp_path):
    _, network, weights, _ = untrained
    export(network, weights, tmp_path / "draft.gguf", "f16", "a draft")
    return tmp_path / "draft.gguf"


def test_what_was_trained_is_served(untrained, draft):
    """Even guesses of no worth are the same guesses."""
    found = check(untrained, draft)
    assert found.equal > 0.97
    assert len(found.anchors) > 100


def changed(draft, key, value):
    """The file with another value of its metadata."""
    reader = gguf.GGUFReader(draft, "r+")
    reader.fields[key].parts[reader.fields[key].data[0]][:] = value
    reader.data.flush()


def test_a_wrong_layer_is_named(untrained, draft):
    """The file reads the input of layer 2 where 1 was trained."""
    changed(draft, "dflash.target_layers", 2)
    with pytest.raises(DSparkError, match=r"wrong layer: the file reads .*trained were 1, 3"):
        check(untrained, draft)


def test_what_was_recorded_of_another_layer_is_named(untrained, draft, monkeypatch):
    """The recordings are not what the layers read."""
    batches = untrained[3]
    moved = [each._replace(features=each.features[:, ::-1]) for each in batches.records]
    monkeypatch.setattr(batches, "records", moved)
    with pytest.raises(DSparkError, match="its layer inputs differ from the recorded"):
        check(untrained, draft)


def test_a_shifted_row_is_named(untrained, draft):
    """The first row is taken for the anchor's own."""
    changed(draft, "dflash.sample_from_anchor", False)
    with pytest.raises(DSparkError, match=r"shifted position: row \+1 of the block"):
        check(untrained, draft)


def test_shifted_inputs_are_named(untrained, draft, monkeypatch):
    """What one token's layers read is taken for the next one's."""
    inject, held = block.inject, [np.zeros(1, np.float32)]

    def late(caches):
        [cache] = caches
        if count := len(cache._pending):
            rows = cache._features[:count].copy()
            held[0] = held[0] if cache.length else rows[0]
            cache._features[1:count] = rows[:-1]
            cache._features[0], held[0] = held[0], rows[-1]
        inject(caches)

    monkeypatch.setattr(block, "inject", late)
    with pytest.raises(DSparkError, match=r"shifted position: the layer inputs .* \+1 tokens"):
        check(untrained, draft)


def test_answers_that_are_others_are_no_success(untrained, draft, monkeypatch):
    """Where nothing can be compared, nothing was checked."""
    batches = untrained[3]
    wrong = [replace(talk, answer=talk.answer[::-1]) for talk in batches.conversations]
    monkeypatch.setattr(batches, "conversations", wrong)
    with pytest.raises(DSparkError, match="answers differently than before"):
        check(untrained, draft)


@pytest.mark.parametrize(
    ("blocks", "accepted", "trained", "equal", "right"),
    [
        (3, 0, 0, 0.67, True),  # one near tie of three: found with a real target and three prompts
        (300, 0, 0, 0.67, False),
        (3, 0, 0, 0.0, False),
        (9, 0, 1, 1.0, False),
        (300, 0, 0, 0.88, True),
    ],
)
def test_few_blocks_prove_little(blocks, accepted, trained, equal, right):
    """Of so many, an unequal guess may be a near tie; what is wrong throughout is seen at once."""
    places = [(0, k) for k in range(blocks)]
    found = Served(places, [[]] * blocks, [accepted] * blocks, [trained] * blocks, equal)
    assert found.is_right == right


def test_few_answers_may_all_begin_with_another_word():
    """Not so many."""
    assert Served(answers=2).is_right
    assert not Served(answers=6).is_right
