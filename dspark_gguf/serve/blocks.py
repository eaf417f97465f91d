"""Pieces in blocks, as the newer protocols send them: a thought, a text, a call, one by one."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal

from dspark_gguf.serve.pieces import Piece
from dspark_gguf.serve.tools import Call

Kind = Literal["thought", "text", "call"]


@dataclass
class Block:
    """A part of an answer that is of one kind; calls are blocks of their own."""

    number: int
    kind: Kind
    text: str = ""  # of a call: its arguments
    call: Call | None = None
    id: str = field(default_factory=lambda: secrets.token_hex(12))


@dataclass(frozen=True)
class Step:
    """A block opens, grows by a text, or closes; without a block, the answer has its `finish`."""

    what: Literal["opens", "grows", "closes", "ends"]
    block: Block
    text: str = ""
    finish: str = "stop"


async def steps(pieces: AsyncIterator[Piece]) -> AsyncIterator[Step]:
    """The pieces of one answer, block by block; a text block there is at least."""
    count, block = 0, None
    async for piece in pieces:
        kind: Kind = "thought" if piece.thought else "call" if piece.call else "text"
        text = piece.thought or piece.text or (piece.call.arguments if piece.call else "")
        if block and ((text and kind != block.kind) or kind == "call" or piece.finish):
            yield Step("closes", block)
            block = None
        if block is None and (text or (piece.finish and not count)):
            block = Block(count, kind, call=piece.call)
            count += 1
            yield Step("opens", block)
        if block and text:
            block.text += text
            yield Step("grows", block, text)
        if piece.finish:
            if block:
                yield Step("closes", block)
            yield Step("ends", block or Block(count, "text"), finish=piece.finish)
