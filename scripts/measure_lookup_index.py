"""Which index for copies: hashed pairs of tokens, as in draft/lookup.py, or a suffix automaton.

    python scripts/measure_lookup_index.py [--tokens 32768]

Text: the tokens of this project's own sources, by words. Both are asked for the longest match after
each of the last 4,096 tokens. Prints the seconds to read everything, the microseconds of a token
more with its question, the megabytes, and how long the matches are.
"""

from __future__ import annotations

import argparse
import re
import tracemalloc
from pathlib import Path
from time import perf_counter

from dspark_gguf.draft.index import FURTHEST, LEAST, Index

ASKED = 4096


class Automaton:
    """Blumer's suffix automaton, and the state of the longest suffix that stood before."""

    def __init__(self) -> None:
        self.next: list[dict[int, int]] = [{}]
        self.link, self.length, self.first = [-1], [0], [0]
        self.last = self.state = self.matched = 0
        self.count = 0

    def add(self, token: int) -> None:
        """One token more; first the match is carried on, over what was there before."""
        while self.state and token not in self.next[self.state]:
            self.state = self.link[self.state]
            self.matched = self.length[self.state]
        if token in self.next[self.state]:
            self.state, self.matched = self.next[self.state][token], self.matched + 1
        self.count += 1
        new = self._state({}, self.length[self.last] + 1, self.count)
        place = self.last
        while place != -1 and token not in self.next[place]:
            self.next[place][token] = new
            place = self.link[place]
        if place != -1:
            self.link[new] = self._split(place, token)
        else:
            self.link[new] = 0
        self.last = new

    def _state(self, follow: dict[int, int], length: int, first: int) -> int:
        self.next.append(follow)
        self.length.append(length)
        self.first.append(first)
        self.link.append(-1)
        return len(self.next) - 1

    def _split(self, place: int, token: int) -> int:
        old = self.next[place][token]
        if self.length[place] + 1 == self.length[old]:
            return old
        clone = self._state(dict(self.next[old]), self.length[place] + 1, self.first[old])
        self.link[clone], self.link[old] = self.link[old], clone
        while place != -1 and self.next[place].get(token) == old:
            self.next[place][token] = clone
            place = self.link[place]
        if self.state == old and self.matched <= self.length[clone]:
            self.state = clone
        return clone

    def longest(self) -> int:
        """Tokens of the longest match of the end."""
        return self.matched


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=32768)
    count = parser.parse_args().tokens
    root = Path(__file__).parent.parent
    files = sorted([*root.glob("dspark_gguf/**/*.py"), *root.glob("tests/*.py")])
    words = re.findall(r"\w+|\W", "".join(file.read_text("utf-8") for file in files))
    names = {word: k for k, word in enumerate(dict.fromkeys(words))}
    tokens = [names[word] for word in words[:count]]
    if len(tokens) < count:
        raise SystemExit(f"only {len(tokens)} tokens of text")
    print("| index | read all, s | a token and its match, us | MB | mean match |")
    print("|---|---|---|---|---|")
    for name in ("hashed pairs", "suffix automaton"):
        tracemalloc.start()
        index, automaton = Index(), Automaton()
        hashed = name == "hashed pairs"
        lengths = []
        for token in tokens[:-ASKED]:
            index.extend([token]) if hashed else automaton.add(token)
        for token in tokens[-ASKED:]:
            if hashed:
                index.extend([token])
                found = index.matches()
                lengths.append(found[0].length if found else 0)
            else:
                automaton.add(token)
                lengths.append(automaton.longest())
        memory = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        read, asked = timed(tokens, hashed)
        shown = [min(length, FURTHEST) if length >= LEAST else 0 for length in lengths]
        mean = sum(shown) / ASKED
        print(f"| {name} | {read:.3f} | {asked:.1f} | {memory / 1e6:.1f} | {mean:.2f} |")


def timed(tokens: list[int], hashed: bool) -> tuple[float, float]:
    """Seconds for the first tokens, and microseconds for each of the last, without tracing."""
    index, automaton = Index(), Automaton()
    started = perf_counter()
    for token in tokens[:-ASKED]:
        index.extend([token]) if hashed else automaton.add(token)
    read = perf_counter()
    for token in tokens[-ASKED:]:
        if hashed:
            index.extend([token])
            index.matches()
        else:
            automaton.add(token)
            automaton.longest()
    return read - started, 1e6 * (perf_counter() - read) / ASKED


if __name__ == "__main__":
    main()
