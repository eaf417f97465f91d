"""Answers as blocks (thought, text, or tool call), as the Responses and Messages APIs have them."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal

from dspark_gguf.serve.deltas import Delta
from dspark_gguf.serve.tools import ToolCall

Kind = Literal["thought", "text", "call"]


@dataclass
class Block:
    """A part of an answer that is of one kind; each call is a block of its own."""

    index: int
    kind: Kind
    text: str = ""  # of a call: its arguments
    call: ToolCall | None = None  # its latest part
    is_truncated: bool = False  # a text that ended because of a length limit
    id: str = field(default_factory=lambda: secrets.token_hex(12))

    @property
    def is_complete(self) -> bool:
        """False for a call that turned out to be none: its text follows in a text block."""
        return self.call is None or self.call.done

    def accepts(self, kind: Kind, call: ToolCall | None) -> bool:
        """Whether a delta of this kind, or of this call, belongs to the block."""
        return kind == self.kind and (not call or not self.call or call.id == self.call.id)


@dataclass(frozen=True)
class BlockEvent:
    """A block starts, gets more `text`, or stops; or the answer ends with `finish`."""

    type: Literal["start", "delta", "stop", "end"]
    block: Block
    text: str = ""
    finish: str = "stop"


async def block_events(deltas: AsyncIterator[Delta]) -> AsyncIterator[BlockEvent]:
    """The events of one answer; an empty answer has one empty text block."""
    count, block = 0, None
    async for delta in deltas:
        kind: Kind = "thought" if delta.thought else "call" if delta.call else "text"
        text = delta.thought or delta.text or (delta.call.arguments if delta.call else "")
        has_content = bool(text or delta.call)
        if block and (delta.finish or (has_content and not block.accepts(kind, delta.call))):
            yield _stop(block, delta.finish)
            block = None
        if block is None and (has_content or (delta.finish and not count)):
            block = Block(count, kind)
            block.call, count = delta.call, count + 1
            yield BlockEvent("start", block)
        if block:
            block.call = delta.call or block.call
        if block and text:
            block.text += text
            yield BlockEvent("delta", block, text)
        if delta.finish:
            if block:
                yield _stop(block, delta.finish)
            yield BlockEvent("end", block or Block(count, "text"), finish=delta.finish)


def _stop(block: Block, finish: str | None) -> BlockEvent:
    block.is_truncated = block.kind == "text" and finish == "length"
    return BlockEvent("stop", block)


async def collect_blocks(deltas: AsyncIterator[Delta]) -> tuple[list[Block], str]:
    """The complete blocks of an answer, and its finish."""
    blocks, finish = list[Block](), "stop"
    async for event in block_events(deltas):
        if event.type == "stop" and event.block.is_complete:
            blocks.append(event.block)
        finish = event.finish
    return blocks, finish
