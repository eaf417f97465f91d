"""A draft learns a rule, and llama.cpp serves what was learned."""

from __future__ import annotations

from itertools import islice
from threading import Event

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from dspark_gguf import Decoder, Limits, ModelOptions, Sampling, Speculation, load_pair
from dspark_gguf.engine.gguf import read_header
from dspark_gguf.engine.model import Model
from dspark_gguf.train.batches import Batches
from dspark_gguf.train.evaluate import evaluate
from dspark_gguf.train.export import export, known_tokens, load
from dspark_gguf.train.fit import Fit, Recipe, feature_scale
from dspark_gguf.train.record import Teacher
from dspark_gguf.train.shape import Shape
from dspark_gguf.train.start import new_network
from dspark_gguf.train.weights import Weights
from dspark_gguf.train.work import Conversation
from tests.tiny_dflash import MASK
from tests.train.targets import SUCCESSOR

GREEDY = Sampling(temperature=0)
ALWAYS = Speculation(mode="on", draft_min_prob=0.0, draft_max=16)
CPU = torch.device("cpu")


def way(start, count):
    """Tokens of the rule, from one on."""
    tokens = [start]
    while len(tokens) < count:
        tokens.append(SUCCESSOR[tokens[-1]])
    return tokens


@pytest.fixture(scope="module")
def talks():
    """Every step of the way is seen; the last two are held out."""
    order = way(0, 256)
    ways = [way(order[53 * k % 256], 40) for k in range(40)]
    return [Conversation(each[:4], each[4:], 0.0, 4, held=k >= 38) for k, each in enumerate(ways)]


@pytest.fixture(scope="module")
def learned(cycle_target, talks):
    """A network after 150 steps, its shape, the target's weights and the batches."""
    model = Model(cycle_target, ModelOptions())
    shape = Shape.of_target(model.header)
    teacher = Teacher(model, shape.target_layers, 64, Event())
    records = [teacher.read(talk.tokens) for talk in talks]
    teacher.close()
    model.close()
    assert [record.ids[k, 0] for record in records for k in (0, 9)] == [
        SUCCESSOR[talk.tokens[k]] for talk in talks for k in (0, 9)
    ]
    torch.manual_seed(0)
    weights, known = Weights(cycle_target), torch.arange(shape.n_vocab)
    scale = feature_scale([record.features for record in records])
    network = new_network(shape, weights, "llama", known, MASK, scale)
    batches = Batches(talks, records, shape.block, known, shape.n_vocab, CPU)
    before = evaluate(network, batches, [38, 39], Fit(network, Recipe(), CPU).autocast)
    fit = Fit(network, Recipe(anchors=128, each=16, steps=150, dropout=0.0, warm=10), CPU)
    for _ in fit.run(batches, range(38), [], 0.0):
        pass
    after = evaluate(network, batches, [38, 39], fit.autocast)
    assert before.tokens_a_pass < 2.0
    assert after.tokens_a_pass > 5.0, after
    return network.eval(), weights, batches


@pytest.mark.parametrize("type", ["f16", "q8_0"])
def test_served_as_trained(type, learned, cycle_target, tmp_path):
    """The rule has no doubt, so a block of five is right: six tokens a pass but for the ends."""
    network, weights, _ = learned
    path = tmp_path / "draft.gguf"
    export(network, weights, path, type, "a draft")
    with load_pair(cycle_target, path) as pair:
        decoder = Decoder.for_pair(pair, GREEDY, ALWAYS)
        answer = decoder.answer(way(9, 4), Limits(max_tokens=60))
    assert answer.tokens == way(9, 64)[4:]
    assert answer.tally.tokens_per_round > 5.0


def test_a_block_is_what_the_network_says(learned, cycle_target, talks, tmp_path):
    """Logits of served rows and of the network, number by number, at several places."""
    network, weights, batches = learned
    path = tmp_path / "draft.gguf"
    export(network, weights, path, "f16", "a draft")
    batch = batches.served(38)
    with torch.no_grad():
        hidden = network(batch.anchors)
        ids, _ = network.guess(hidden, batch.anchors.tokens)
        before = torch.cat([batch.anchors.tokens[..., None], ids[..., :-1]], -1)
        logits = network.logits(hidden, before)[0].numpy()
    tokens = talks[38].tokens
    with load_pair(cycle_target, path) as pair:
        cache = pair.draft_cache()
        for k in (0, 7, 20):
            place = int(batch.anchors.places[0, k])
            pair.target_cache.trim(0)
            pair.target_cache.decode(tokens[:place], 0)
            rows = cache.propose(tokens[place], 5).rows
            assert np.array_equal(rows.argmax(1), ids[0, k])
            assert np.abs(rows - logits[k]).max() < 0.02 * np.abs(logits[k]).max()


def test_a_file_is_read_back(learned, cycle_target, tmp_path):
    """`--from`: the same shape, the same guesses."""
    network, weights, batches = learned
    path = tmp_path / "draft.gguf"
    export(network, weights, path, "f16", "a draft")
    header, draft = read_header(path), Weights(path)
    shape = Shape.of_draft(header, read_header(cycle_target))
    known = known_tokens(draft, shape)
    again = new_network(shape, weights, "llama", known, MASK, network.scale)
    load(again, draft)
    batch = batches.served(38)
    with torch.no_grad():
        one, two = (each.eval()(batch.anchors) for each in (network, again))
    assert torch.allclose(one, two, atol=0.05)
    assert known.tolist() == network.known.tolist()


def test_stops_when_more_no_longer_helps(learned):
    """The rule is known: two evaluations without a gain, then the rates fall, and it ends."""
    network, _, batches = learned
    recipe = Recipe(anchors=32, each=16, steps=2000, every=5, patience=2, dropout=0.0, rate=1e-5)
    fit = Fit(network, recipe, CPU)
    shares = [done for done, _ in fit.run(batches, range(38), [38, 39], 0.0)]
    assert fit.step == len(shares) < 60
    assert shares == sorted(shares)


def test_a_slow_machine_is_not_judged_by_the_minute(learned):
    """Evaluations are so many steps apart, however long these take."""
    network, _, batches = learned
    recipe = Recipe(anchors=32, each=16, every=0.0, apart=3, dropout=0.0, rate=1e-5)
    run = Fit(network, recipe, CPU).run(batches, range(38), [38, 39], 60.0)
    found = [walk is not None for _, walk in islice(run, 12)]
    assert found == [False, False, True] * 4


def test_served_confidence_is_the_fitted_head(learned, cycle_target, talks, tmp_path):
    """Its inputs are the hidden row and the best guess before it, as in the fit."""
    network, weights, batches = learned
    path = tmp_path / "draft.gguf"
    head = torch.randn(len(network.confidence), generator=torch.Generator().manual_seed(2)) / 20
    batch, place = batches.served(38), 5
    with torch.no_grad():
        network.confidence.copy_(head)
        export(network, weights, path, "f16", "a draft")
        network.confidence.zero_()
        hidden = network(batch.anchors)[0, place]
        first = batch.anchors.tokens[0, place]
        ids, _ = network.guess(hidden, first)
        before = torch.cat([first[None], ids[:-1]])
        inputs = torch.cat([hidden, network.markov_in[before]], -1)
        wanted = torch.sigmoid(inputs @ head[:-1] + head[-1])
    tokens, at = talks[38].tokens, int(batch.anchors.places[0, place])
    with load_pair(cycle_target, path) as pair:
        cache = pair.draft_cache()
        pair.target_cache.trim(0)
        pair.target_cache.decode(tokens[:at], 0)
        served = cache.propose(tokens[at], 5).confidence
    assert served == pytest.approx(wanted.tolist(), abs=0.01)
    assert max(served) - min(served) > 0.05
