"""Chat templates: render a conversation as the model's prompt format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import index
from typing import Any, TypeAlias, cast

from llama_cpp.llama_chat_format import CHATML_CHAT_TEMPLATE, Jinja2ChatFormatter

from dspark_gguf.engine.model import Model
from dspark_gguf.errors import UsageError
from dspark_gguf.paths import text_or_file

#: Each ``{"role": "system" | "user" | "assistant", "content": text}``; templates may use more keys.
Messages = Sequence[Mapping[str, Any]]
#: A user's text, a conversation whose last message is the user's, or token ids.
Prompt: TypeAlias = str | Messages | Sequence[int]

#: Maximum characters of a prompt; the longest contexts hold fewer.
_MAX_CHARACTERS = 16 * 1024**2


class ChatTemplate:
    """The chat template of a model, rendered by llama-cpp-python in Jinja's immutable sandbox.

    The sandbox keeps a template from reaching Python or changing the messages; it does not limit
    its time. `override` is Jinja text, or a file with it, instead of the template in the model's
    file; it is ignored if blank. Raises a `UsageError` if it is not Jinja or the file is missing.
    """

    def __init__(self, model: Model, override: str | None = None) -> None:
        self._vocabulary = vocabulary = model.vocabulary
        self.notes: list[str] = []
        if override and override.strip():
            override = text_or_file(override, "{", "chat-template")
        for source in (override, model.header.metadata.get("tokenizer.chat_template")):
            if source and source.strip():
                break
        else:
            source = CHATML_CHAT_TEMPLATE
            self.notes.append(
                f"{model.path.name} has no chat template (a base model?): ChatML is used; "
                "give another with --chat-template, or use `run --raw`"
            )
        self.source = str(source)
        self._bos, eos = (
            vocabulary.text(token).decode("utf-8", "replace")
            for token in (vocabulary.bos, vocabulary.eos)
        )
        try:
            self._format = Jinja2ChatFormatter(self.source, eos_token=eos, bos_token=self._bos)
        except Exception as error:  # from Jinja, or from Python if it is nested too deeply
            raise _refusal(f"is not valid Jinja: {_reason(error)}") from None

    @property
    def switches_thinking(self) -> bool:
        """Whether the template can turn thinking on and off."""
        return "enable_thinking" in self.source

    def render(self, messages: Messages, think: bool | None = None, **more: Any) -> str:
        """The prompt that asks for an answer to `messages`, the last of which is the user's.

        `think` sets ``enable_thinking``; None: the template's default. `more` are further variables
        for the template, such as ``tools``. Raises a `UsageError` if the template refuses the
        messages, or writes nothing or far too much.
        """
        extra = more if think is None else {"enable_thinking": think, **more}
        try:
            text = self._format(messages=[dict(message) for message in messages], **extra).prompt
        except Exception as error:  # whatever a template may raise
            are_whole = len(messages) > 1 and {"role", "content"} <= {*messages[0]} & {*messages[1]}
            if are_whole and messages[0]["role"] == "system":
                # Some templates (Gemma) have no system role: put its text into the first turn.
                system, first, *rest = messages
                content = f"{system['content']}\n\n{first['content']}"
                return self.render(
                    [{"role": first["role"], "content": content}, *rest], think, **more
                )
            raise _refusal(f"does not accept these messages: {_reason(error)}") from None
        if not text.strip() or len(text) > _MAX_CHARACTERS:
            what = f"{len(text):,} characters" if text.strip() else "nothing"
            raise _refusal(f"writes {what} as the prompt")
        return str(text)

    def encode(self, messages: Messages, think: bool | None = None) -> list[int]:
        """Token ids of `render`."""
        return self.tokenize(self.render(messages, think))

    def ids(self, prompt: Prompt) -> list[int]:
        """Token ids of a user's text or a conversation; ids are only checked."""
        if isinstance(prompt, str):
            return self.encode([{"role": "user", "content": prompt}])
        if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
            problem = f"a prompt is text, messages or token ids, not {type(prompt).__name__}"
            raise UsageError(problem, "Give a list.")
        if prompt and isinstance(prompt[0], Mapping):
            return self.encode(cast(Messages, prompt))
        try:
            ids = [index(token) for token in cast(Sequence[int], prompt)]
        except TypeError:
            raise UsageError("a prompt of token ids has other things in it", "Give ints.") from None
        if ids and not 0 <= min(ids) <= max(ids) < self._vocabulary.n_vocab:
            wrong = max(ids) if min(ids) >= 0 else min(ids)
            problem = f"{wrong} is not a token of a vocabulary of {self._vocabulary.n_vocab}"
            raise UsageError(problem, "Use the ids of this model's own tokenizer.")
        return ids

    def tokenize(self, text: str) -> list[int]:
        """Ids of a rendered prompt, with a BOS token unless the template wrote it."""
        written = bool(self._bos) and text.startswith(self._bos)
        return self._vocabulary.tokenize(text, add_bos=not written)


def _refusal(problem: str) -> UsageError:
    return UsageError(f"the chat template {problem}", "Give another with --chat-template.")


def _reason(error: Exception) -> str:
    return str(error)[:500].rstrip(".") or type(error).__name__
