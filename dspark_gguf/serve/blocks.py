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
    call: Call | None = None  # the part of it that came last
    is_cut: bool = False  # text, because the answer got no longer
    id: str = field(default_factory=lambda: secrets.token_hex(12))

    @property
    def is_whole(self) -> bool:
        """Off for a call that was none after all: what was said comes again as text."""
        return self.call is None or self.call.done

    def takes(self, kind: Kind, call: Call | None) -> bool:
        """Whether more of this kind, or of this call, belongs to it."""
        return kind == self.kind and (not call or not self.call or call.id == self.call.id)


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
        says = bool(text or piece.call)
        if block and (piece.finish or (says and not block.takes(kind, piece.call))):
            yield _closed(block, piece.finish)
            block = None
        if block is None and (says or (piece.finish and not count)):
            block = Block(count, kind)
            block.call, count = piece.call, count + 1
            yield Step("opens", block)
        if block:
            block.call = piece.call or block.call
        if block and text:
            block.text += text
            yield Step("grows", block, text)
        if piece.finish:
            if block:
                yield _closed(block, piece.finish)
            yield Step("ends", block or Block(count, "text"), finish=piece.finish)


def _closed(block: Block, finish: str | None) -> Step:
    block.is_cut = block.kind == "text" and finish == "length"
    return Step("closes", block)


async def whole(pieces: AsyncIterator[Piece]) -> tuple[list[Block], str]:
    """All blocks of an answer, and its finish."""
    blocks, finish = list[Block](), "stop"
    async for step in steps(pieces):
        if step.what == "closes" and step.block.is_whole:
            blocks.append(step.block)
        finish = step.finish
    return blocks, finish
