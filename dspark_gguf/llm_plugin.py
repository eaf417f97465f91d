"""`llm -m dspark-gguf`: a model for the command line tool and library ``llm``.

`llm` finds it by its entry point. Options name the files; without them it is the demo pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import llm
from pydantic import Field

from dspark_gguf.catalog.resolve import resolve
from dspark_gguf.dropin.llama import DSparkLlama


@llm.hookimpl
def register_models(register: Any) -> None:
    """Register the model with ``llm``."""
    register(SpeculatingModel())


class SpeculatingModel(llm.Model):
    """A target and a draft GGUF on this machine."""

    model_id = "dspark-gguf"
    can_stream = True

    class Options(llm.Options):
        """What ``-o`` takes."""

        model: Optional[str] = Field(None, description="target: file or name; else demo")  # noqa: UP045 - llm reads it
        draft: Optional[str] = Field(None, description="draft: file or name")  # noqa: UP045
        ctx_size: int = Field(4096, description="tokens of prompt and answer", gt=0)
        max_tokens: Optional[int] = Field(None, description="limit of an answer", gt=0)  # noqa: UP045
        temperature: float = Field(0.8, description="0: always the most probable token", ge=0)
        seed: Optional[int] = Field(None, description="same seed, same answer")  # noqa: UP045

    def __init__(self) -> None:
        self._loaded: tuple[tuple[Path, Path | None, int], DSparkLlama] | None = None

    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: Any = None
    ) -> Iterator[str]:
        """The answer, in pieces if `stream`."""
        options: Any = prompt.options
        llama = self._llama(*resolve(options.model, options.draft), options.ctx_size)
        parts = llama.create_chat_completion(
            _messages(prompt, conversation),
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            seed=options.seed,
            stream=True,
        )
        texts = (part["choices"][0]["delta"].get("content") or "" for part in parts)
        yield from texts if stream else ["".join(texts)]

    def _llama(self, model: Path, draft: Path | None, n_ctx: int) -> DSparkLlama:
        key = (model, draft, n_ctx)
        if self._loaded and self._loaded[0] != key:
            self._loaded[1].close()
            self._loaded = None
        if self._loaded is None:
            llama = DSparkLlama(str(model), draft_model=draft, n_ctx=n_ctx, verbose=False)
            self._loaded = key, llama
        return self._loaded[1]

    def __str__(self) -> str:
        return f"dspark-gguf: {self.model_id}"


def _messages(prompt: llm.Prompt, conversation: Any) -> list[dict[str, str]]:
    messages: list[dict[str, str]] = []
    system = prompt.system
    for response in conversation.responses if conversation else ():
        system = system or response.prompt.system
        messages += [
            {"role": "user", "content": response.prompt.prompt},
            {"role": "assistant", "content": response.text()},
        ]
    messages.append({"role": "user", "content": prompt.prompt})
    return [{"role": "system", "content": system}, *messages] if system else messages
