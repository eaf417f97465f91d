"""Fakes to test a drafter, a stopping rule or an acceptance rule.

They need no model and no llama.cpp, and are exact::

    tokenizer = ByteTokenizer()
    rows = random_rows(tokenizer.n_vocab, seed=1)
    target, draft = TableModel(rows), TableModel(agreeing_rows(rows, agreement=0.7, seed=2))

``TableModel`` computes each row from the whole prefix in its cache, so one wrong token there shows
in the answer. ``distribution_of`` computes the distribution of a function's results without
sampling, by walking every path that its draws can take: it shows whether a rule is lossless.
"""

from dspark_gguf.testing.draws import WalkedDraw, WalkedDraws, distribution_of
from dspark_gguf.testing.models import (
    ByteTokenizer,
    Misuse,
    RowOf,
    TableModel,
    agreeing_rows,
    random_rows,
    reciting_rows,
)

__all__ = [
    "ByteTokenizer",
    "Misuse",
    "RowOf",
    "TableModel",
    "WalkedDraw",
    "WalkedDraws",
    "agreeing_rows",
    "distribution_of",
    "random_rows",
    "reciting_rows",
]
