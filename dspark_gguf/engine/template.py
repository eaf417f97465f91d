"""A conversation as the text that the model was trained to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama_cpp.llama_chat_format import CHATML_CHAT_TEMPLATE, Jinja2ChatFormatter

from dspark_gguf.engine.model import Model
from dspark_gguf.errors import UsageError
from dspark_gguf.paths import text_or_file

#: ``{"role": "system" | "user" | "assistant", "content": text}``
Message = Mapping[str, str]

#: Most characters of a prompt; the longest contexts hold fewer.
MAX_CHARACTERS = 16 * 1024**2


class ChatTemplate:
    """The chat template of a model, rendered by llama-cpp-python in Jinja's immutable sandbox.

    The sandbox keeps a template away from Python and from the messages; it does not bound its time.

    Args:
        model: a loaded model.
        override: Jinja text, or a file with it, instead of the template in the model's file; blank:
            none.

    Raises:
        UsageError: a template that is no Jinja, or an override that is neither a file nor Jinja.

    """

    def __init__(self, model: Model, override: str | None = None) -> None:
        self._vocabulary = model.vocabulary
        self.notes: list[str] = []
        given = ""
        if override and override.strip():
            given = text_or_file(override, "{", "chat-template")
        source = given if given.strip() else model.template
        if source is None:
            source = CHATML_CHAT_TEMPLATE
            self.notes.append(
                f"{model.path.name} holds no chat template (a base model?): ChatML is used; "
                "give its own with --chat-template, or use `run --raw`"
            )
        self.source = source
        self._bos = self._spelled(model.vocabulary.bos)
        try:
            self._format = Jinja2ChatFormatter(
                source, eos_token=self._spelled(model.vocabulary.eos), bos_token=self._bos
            )
        except Exception as error:  # of Jinja, and of Python where it is nested too deeply
            raise UsageError("a Jinja chat template", _said(error), "see --chat-template") from None

    @property
    def switches_thinking(self) -> bool:
        """Whether the template can turn thinking on and off."""
        return "enable_thinking" in self.source

    def render(self, messages: Sequence[Message], think: bool | None = None) -> str:
        """The prompt text that asks for the next answer.

        Args:
            messages: the conversation; the last one is the user's.
            think: sets ``enable_thinking``; None leaves the template its default.

        Raises:
            UsageError: the template refuses these messages, or writes nothing or far too much.

        """
        extra: dict[str, Any] = {} if think is None else {"enable_thinking": think}
        try:
            text = self._format(messages=[dict(message) for message in messages], **extra).prompt
        except Exception as error:  # whatever a template may raise
            if messages and messages[0]["role"] == "system" and len(messages) > 1:
                # Some templates (Gemma) know no system role: its text opens the first turn.
                return self.render(_system_into_first_turn(messages), think)
            raise UsageError(
                "messages that the chat template accepts", _said(error), "see --chat-template"
            ) from None
        if not text.strip() or len(text) > MAX_CHARACTERS:
            what = f"{len(text):,} characters" if text.strip() else "nothing"
            raise UsageError(
                "a chat template that writes a prompt", f"one that writes {what}",
                "give another with --chat-template",
            )  # fmt: skip
        return str(text)

    def encode(self, messages: Sequence[Message], think: bool | None = None) -> list[int]:
        """Token ids of `render`."""
        return self.tokenize(self.render(messages, think))

    def tokenize(self, text: str) -> list[int]:
        """Ids of a rendered prompt, with the first token unless the template wrote it."""
        written = bool(self._bos) and text.startswith(self._bos)
        return self._vocabulary.tokenize(text, add_bos=not written)

    def _spelled(self, token: int) -> str:
        return self._vocabulary.text(token).decode("utf-8", "replace")


def _said(error: Exception) -> str:
    return str(error)[:500] or type(error).__name__


def _system_into_first_turn(messages: Sequence[Message]) -> list[Message]:
    system, first, *rest = messages
    content = f"{system['content']}\n\n{first['content']}"
    return [{"role": first["role"], "content": content}, *rest]
