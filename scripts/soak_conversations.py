"""Soak test: random conversations that share each pass, with every kind of cache.

    python scripts/soak_conversations.py [--rounds 10000] [--seed N] [KIND ...]

The models are tiny, in F32, without flash attention. Requests arrive, are cancelled and end at
random, in a context that is too small for all of them. Each text must be, token for token, the one
that the conversation gets alone, in separate caches and without drafts.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.crowd import ALWAYS, COPIES, KINDS, LEARNED, Alone, live, pair_of, write_models

HOW = {"fixed": ALWAYS, "learned": LEARNED, "lookup": COPIES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = write_models(Path(folder))
        for kind in options.kinds or KINDS:
            alone = Alone(files, kind)
            for name, how in HOW.items():
                with pair_of(files, kind, 3, n_ctx=256) as pair:
                    life = live(pair, alone, options.rounds // len(HOW), options.seed, how)
                print(
                    f"{kind}, {name}: {life.rounds} rounds, {life.done} answers as alone "
                    f"({life.tokens} tokens), {life.cancelled} of them cancelled",
                    flush=True,
                )
            alone.pair.close()


if __name__ == "__main__":
    main()
