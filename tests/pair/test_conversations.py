"""Real models: each of several conversations says what it says alone."""

from __future__ import annotations

from dspark_gguf import Batcher, Decoder, Limits, Sampling, Speculation, load_pair
from dspark_gguf.config import ModelOptions
from dspark_gguf.measure.prompts import read_prompts

#: A context that others share splits its sums in other places. The last bit of a number then
#: decides how Q8_0 rounds activations to 8 bits, and two logits this close may change places.
NEAR = 0.5
GREEDY, MAX = Sampling(temperature=0), Limits(max_tokens=24)


def test_texts_are_those_of_the_conversations_alone(demo_files):
    options = ModelOptions(n_ctx=4096)
    with load_pair(*demo_files, target_options=options, conversations=4) as pair:
        chosen = [prompt for prompt in read_prompts() if prompt.domain != "summarising"][::4]
        prompts = [pair.template.encode(prompt.messages, None) for prompt in chosen]
        batcher = Batcher(pair, Speculation(learn=False), parallel=4)
        requests = [batcher.submit(prompt, GREEDY, MAX) for prompt in prompts]
        list(batcher)
        batcher.clear()
        decoder = Decoder.for_pair(pair, GREEDY, Speculation(mode="off"))
        for prompt, request in zip(prompts, requests, strict=True):
            alone = decoder.answer(prompt, MAX).tokens
            ours = request.answer.tokens
            parts = [k for k, (a, b) in enumerate(zip(alone, ours, strict=False)) if a != b]
            if parts:
                text = [*prompt, *alone[: parts[0]]]
                decoder.reset()
                row = pair.target_cache.decode(text, 1)[0]
                gap = float(row[alone[parts[0]]] - row[ours[parts[0]]])
                assert abs(gap) < NEAR, f"parts after {parts[0]} tokens at a gap of {gap}"
                decoder.reset()
            else:
                assert ours == alone
