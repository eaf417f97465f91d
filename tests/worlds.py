"""Random worlds for the round loop: fakes, settings, prompts and limits of every kind."""

from dspark_gguf.config import Limits, Sampling, Speculation
from dspark_gguf.tally import Answer
from dspark_gguf.testing import agreeing_rows, random_rows
from tests.fakes import Letters, World

RULES = ("rejection", "match", "typical", "threshold")


def random_world(rng, **changes):
    """A world of 4 to 7 tokens whose draft agrees never, sometimes, mostly or always."""
    n_vocab, seed = int(rng.integers(4, 8)), int(rng.integers(2**31))
    rows = random_rows(n_vocab, seed)
    n_ctx = int(rng.integers(8, 48))
    values = {
        "target_rows": rows,
        "draft_rows": agreeing_rows(rows, float(rng.choice([0.0, 0.5, 0.9, 1.0])), seed + 1),
        "tokenizer": Letters(n_vocab),
        "sampling": Sampling(
            temperature=0,
            repeat_penalty=float(rng.choice([1.0, 1.4])),
            ignore_eos=bool(rng.random() < 0.5),
        ),
        "speculation": Speculation(
            acceptance=str(rng.choice(RULES)),
            draft_max=int(rng.integers(0, 8)),
            draft_min_prob=float(rng.choice([0.0, 0.4])),
        ),
        "n_ctx": n_ctx,
        "draft_n_ctx": int(rng.choice([4, n_ctx, 64])),
    }
    return World(**{**values, **changes})


def random_prompt(rng, world, most=7):
    return rng.integers(0, world.tokenizer.n_vocab, size=int(rng.integers(1, most))).tolist()


def random_limits(rng):
    letters = [*"abcdef", "ab", "ba", "aca", "bd"]
    return Limits(
        max_tokens=rng.choice([None, 0, 1, 2, 5, 20]),
        stop=tuple(rng.choice(letters, size=int(rng.choice([0, 0, 1, 3]))).tolist()),
    )


def finished(rounds):
    """The answer as plain decoding tells it."""
    answer = Answer()
    for round in rounds:
        answer.add(round)
    return answer.tokens, answer.text, answer.finish_reason
