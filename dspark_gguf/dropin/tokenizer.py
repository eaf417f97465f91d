"""A ``Llama``'s tokenizer that reads each token of a growing answer once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import llama_cpp

from dspark_gguf.errors import UsageError

#: From this length on, a list of tokens is remembered.
_LONG = 32


class GrowingTokenizer(llama_cpp.LlamaTokenizer):  # type: ignore[misc]
    """Detokenizes a list that grows by reading only what is new.

    ``Llama.create_completion`` asks for the text of the whole answer after every token, which
    makes long answers quadratic. The result is the same, byte for byte.
    """

    def __init__(self, llama: llama_cpp.Llama) -> None:
        super().__init__(llama)
        self._pieces: dict[int, bytes] = {}
        self._tokens: list[int] = []
        self._known = 0, b""  # how many tokens were read, and their text

    def detokenize(
        self, tokens: Iterable[int], prev_tokens: list[int] | None = None, special: bool = False
    ) -> bytes:
        """The bytes of `tokens`."""
        if not isinstance(tokens, list):  # a stopping criterion is given an array
            tokens = [int(token) for token in tokens]
        if special or not tokens:
            self._require_tokens(tokens)
            return bytes(self._model.detokenize(tokens, special=special))
        known, text = self._known
        del self._tokens[known:]  # an exception may have struck before they were known
        if known == 0 or tokens[:known] != self._tokens:
            if len(tokens) < _LONG:  # a short list; the long one will be asked for again
                return self._without_space(tokens, self._text_of(tokens))
            known, text = self._known = 0, b""
            self._tokens = []
        text += self._text_of(tokens[known:])
        self._tokens += tokens[known:]
        self._known = len(tokens), text
        return self._without_space(tokens, text)

    def _text_of(self, tokens: Sequence[int]) -> bytes:
        for token in tokens:
            if token not in self._pieces:
                self._require_tokens([token])
                self._pieces[token] = self._model.detokenize([token])
        return b"".join([self._pieces[token] for token in tokens])

    def _require_tokens(self, tokens: Sequence[int]) -> None:
        """Of any other, llama.cpp ends the process."""
        for token in tokens:
            if not 0 <= token < self._model.n_vocab():
                raise UsageError(f"{token} is no token of this model", "Give ids below n_vocab().")

    def _without_space(self, tokens: Sequence[int], text: bytes) -> bytes:
        """Llama 1 begins a text with a space after its first token."""
        begins = tokens[0] == self._model.token_bos() and text[:1] == b" "
        return text[1:] if begins else text
