"""The round loop on fakes: plain decoding's answers, clean caches at every yield."""

import numpy as np
import pytest

from tests.fakes import followed
from tests.worlds import finished, random_limits, random_prompt, random_world


@pytest.mark.parametrize("block", range(5))
def test_greedy_is_plain_decoding(block):
    """1,250 worlds: same tokens, text and reason, with stops inside drafts, all budgets, all rules.

    Two answers each: the first is abandoned after some rounds or read to its end, the second goes
    on from it, begins anew, or is a shorter edit of it. Rows depend on the whole cache.
    """
    for case in range(250):
        rng = np.random.default_rng([block, case])
        world = random_world(rng)
        decoder = world.decoder()
        prompt, limits = random_prompt(rng, world), random_limits(rng)
        rounds = followed(decoder, prompt, decoder.generate(prompt, limits))
        if rng.random() < 0.5:
            first = [next(rounds, None) for _ in range(int(rng.integers(0, 4)))]
            answer = [token for round in first if round for token in round.tokens]
            assert answer == world.plain(prompt, limits)[0][: len(answer)]
        else:
            expected = world.plain(prompt, limits)
            assert finished(rounds) == expected
            answer = expected[0]
        past = [*prompt, *answer, *random_prompt(rng, world)]
        again = past[: int(rng.integers(1, len(past) + 1))][: world.n_ctx - 1]
        rounds = followed(decoder, again, decoder.generate(again, limits))
        assert finished(rounds) == world.plain(again, limits)
