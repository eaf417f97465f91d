"""A conversation: its messages, and the answers that a pair of models gives to them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from dspark_gguf.chat.gain import Gain, machine_is_busy
from dspark_gguf.chat.status import Summary
from dspark_gguf.chat.think import OPEN
from dspark_gguf.config import Settings
from dspark_gguf.decoder import Decoder
from dspark_gguf.engine.pair import Pair
from dspark_gguf.errors import DSparkError, ResourceError, UsageError
from dspark_gguf.noise import Noise, some_seed
from dspark_gguf.records import Round
from dspark_gguf.settings_files import merge, validate
from dspark_gguf.tally import Answer, Tally

#: A message; the conversation needs its role and content, the template gets all keys.
Message = dict[str, str]
#: Rounds of an answer. If you stop early, close it, so that the answer so far is kept.
AnswerRounds: TypeAlias = Generator[Round, None, None]


class Session:
    """Messages, settings and the decoder that answers.

    The prompt of a turn begins with the tokens of the last one, answer included, so that both
    caches are reused up to where the conversation changed. `messages` may begin with a system
    prompt, which replaces the one in the settings.
    """

    def __init__(
        self, pair: Pair, settings: Settings, messages: Sequence[Mapping[str, str]] = ()
    ) -> None:
        self.pair, self.settings = pair, settings
        self.system = settings.chat.system
        self.messages: list[Message] = [dict(message) for message in messages]
        if self.messages and self.messages[0]["role"] == "system":
            self.system = self.messages.pop(0)["content"]
        self.forgotten = 0  # messages at the start that no longer fit the context
        self.seed = some_seed(settings.sampling.seed)
        #: How many were drawn so far; the number seeds the noise of the next one.
        self.answers = sum(message["role"] == "assistant" for message in self.messages)
        self.last: Answer | None = None
        self.last_exchange: tuple[str, list[int]] = "", []  # prompt and answer, as text and tokens
        self.total, self.gain = Tally(), Gain()
        self.opens_thought = False  # whether the newest prompt ends inside a thought
        self._decoder: Decoder | None = None

    @property
    def decoder(self) -> Decoder:
        """The decoder for the present settings; made, and the draft loaded, when first needed."""
        if self._decoder is None:
            self._decoder = Decoder.for_pair(
                self.pair, self.settings.sampling, self.settings.speculation
            )
        return self._decoder

    @property
    def summary(self) -> Summary:
        """How answers are drafted now, and how fast that is."""
        speculation, forecast = self.settings.speculation, self.decoder.stopping_rule.forecast()
        return Summary(
            speculation.acceptance,
            speculation.lossless,
            plain=self.gain.plain or (forecast.plain if forecast else None),
            drafting=forecast.drafting if forecast else None,
            seed=self.seed if self.settings.sampling.temperature else None,
            ratio=self.gain.ratio,
            is_busy=machine_is_busy(),
            sources=self.gain.sources,
            saved=self.gain.saved,
            context=(self.pair.target_cache.length, self.pair.target_cache.n_ctx),
        )

    def use(self, pair: Pair, settings: Settings) -> None:
        """Switch to other models; they read the whole conversation before the next answer.

        A DSparkError says that these models do not support the settings.
        """
        self.pair, self.settings, self._decoder = pair, settings, None
        self.last_exchange, self.forgotten, self.gain = ("", []), 0, Gain()
        self.decoder  # noqa: B018 - made now

    def update(self, changes: dict[str, Any]) -> None:
        """Change settings, given as nested plain values; a DSparkError changes nothing."""
        before = self.settings, self._decoder
        settings = validate(merge(self.settings.model_dump(), changes), "the settings")
        try:
            self.settings, self._decoder = settings, None
            self.decoder  # noqa: B018 - refuses what these models cannot do
        except BaseException:
            self.settings, self._decoder = before
            raise
        if "seed" in changes.get("sampling", {}):
            self.answers = 0
            self.seed = some_seed(settings.sampling.seed)

    def leave_out(self, kept: dict[str, Any]) -> list[str]:
        """Reset saved settings that these models do not support; returns a line about each.

        A DSparkError says that they do not support a setting that is not in `kept`.
        """
        try:
            self.decoder  # noqa: B018 - made now
            return []
        except DSparkError:
            wanted, default, lines = self.settings.model_dump(), Settings(), list[str]()
        parts = {"sampling": default.sampling, "speculation": default.speculation}
        self.settings = self.settings.model_copy(update=parts)
        for part, usual in parts.items():
            for field, value in wanted[part].items():
                try:
                    if value != getattr(usual, field):
                        self.update({part: {field: value}})
                except DSparkError as error:
                    if kept.get(part, {}).get(field) != value:
                        raise
                    lines.append(f"{field} is left out: {error}")
        return lines

    def ask(self, text: str) -> AnswerRounds:
        """Add a message, and stream the answer.

        A turn without any answer (cancelled before its first word, or refused) leaves no trace.
        """
        return self._answering(lambda: [*self.messages, _from_user(text)])

    def reply(self) -> AnswerRounds:
        """Answer the user's last message again; the new answer replaces the old one."""
        self.require_message()
        return self._answering(self._unanswered)

    def edit(self, text: str) -> AnswerRounds:
        """Replace the last message, and answer it; both stay until the new answer begins."""
        self.require_message()
        return self._answering(lambda: [*self._unanswered()[:-1], _from_user(text)])

    def _answering(self, turns: Callable[[], list[Message]]) -> AnswerRounds:
        """Answer `turns`, made of the messages when the iterator begins.

        However it ends, the conversation keeps what was said until then. If that is nothing, the
        conversation is unchanged, earlier answer included. A ResourceError says that it does not
        fit the context.
        """
        answer, before = Answer(), (list(self.messages), self.forgotten)
        try:
            self.messages[:] = turns()
            text, prompt = self._fitted_prompt()
            self.opens_thought = text.rstrip().endswith(OPEN)
            draws = Noise.of(self.seed, self.answers)
            shift = self._shorter if self.settings.chat.context_shift else None
            rounds = self.decoder.generate(prompt, self.settings.limits, draws, shift)
            for round in self.compared(rounds):
                answer.add(round)
                yield round
            ends = self.pair.vocabulary.end_tokens
            tokens = [token for token in answer.tokens if token not in ends]
            self.last_exchange = text + answer.text, [*prompt, *tokens]
        finally:
            self._close(answer, *before)

    def compared(self, rounds: Iterator[Round]) -> AnswerRounds:
        """Pass the rounds of an answer on, and compare their time with that of plain decoding."""
        self.gain.start()
        try:
            for round in rounds:
                self.gain.add(round)
                yield round
        finally:
            forecast = self.decoder.stopping_rule.forecast()
            found = self.gain.finish(forecast.plain if forecast else None)
            if found and self.settings.speculation.is_default:
                self.pair.learned(self.settings.speculation).compare([found])

    def undo(self) -> str:
        """Take back the last message and its answer; returns the message."""
        self.require_message()
        *self.messages[:], message = self._unanswered()
        self.forgotten = min(self.forgotten, len(self.messages))
        return message["content"]

    def reset(self) -> None:
        """Forget the conversation; the system prompt and the settings stay."""
        self.messages.clear()
        self.forgotten = self.answers = 0

    @property
    def last_message(self) -> str | None:
        """The user's newest message."""
        said = (each["content"] for each in reversed(self.messages) if each["role"] == "user")
        return next(said, None)

    def require_message(self) -> str:
        """The user's newest message; a UsageError if there is none."""
        if self.last_message is None:
            raise UsageError("the conversation is empty", "Say something first.")
        return self.last_message

    def prompt(self) -> tuple[str, list[int]]:
        """The part of the conversation that is not forgotten, as text and as tokens.

        If the text continues the last prompt and answer, their tokens are kept: tokenizing a
        model's text again often gives other tokens than it emitted.
        """
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = system + self.messages[self.forgotten :]
        text = self.pair.template.render(messages, self.settings.chat.think)
        tokens = self.pair.template.tokenize(text)
        before, known = self.last_exchange
        if before and text.startswith(before):
            rest = self.pair.vocabulary.tokenize(text[len(before) :], add_bos=False)
            spliced = [*known, *rest]
            if self._spell(spliced) == self._spell(tokens):
                return text, spliced
        return text, tokens

    def _spell(self, tokens: Sequence[int]) -> bytes:
        return b"".join(self.pair.vocabulary.piece(token, special=True) for token in tokens)

    def _fitted_prompt(self) -> tuple[str, list[int]]:
        text, prompt = self.prompt()
        if self.settings.chat.context_shift:
            while not self._leaves_room(prompt) and self._forget_oldest():
                text, prompt = self.prompt()
        n_ctx, length = self.decoder.target.n_ctx, len(prompt)
        if length >= n_ctx and self.forgotten + 1 < len(self.messages):
            problem = f"a conversation of {length} tokens leaves no room in a context of {n_ctx}"
            hint = "Begin anew with /reset, or use --context-shift or a larger --ctx-size."
            raise ResourceError(problem, hint)
        return text, prompt

    def _shorter(self, answer: Sequence[int]) -> list[int] | None:
        """The conversation without its oldest turns, with the answer so far at its end."""
        while self._forget_oldest():
            tokens = [*self.prompt()[1], *answer]
            if self._leaves_room(tokens):
                return tokens
        return None

    def _leaves_room(self, prompt: Sequence[int]) -> bool:
        """Whether a quarter of the context is left for the answer."""
        n_ctx = self.decoder.target.n_ctx
        return len(prompt) <= n_ctx - max(1, n_ctx // 4)

    def _forget_oldest(self) -> bool:
        """Leave out the oldest turn; the user's newest message always stays."""
        for k, message in enumerate(self.messages):
            if k > self.forgotten and message["role"] == "user":
                self.forgotten = k
                return True
        return False

    def _close(self, answer: Answer, before: list[Message], forgotten: int) -> None:
        """Add what was said to the conversation; if that is nothing, return to `before`."""
        if answer.text:
            self.messages.append({"role": "assistant", "content": answer.text})
        else:
            unanswered = bool(before) and before[-1]["role"] == "user"  # roles must alternate
            self.messages[:], self.forgotten = before[: len(before) - unanswered], forgotten
        self.last = answer
        self.answers += bool(answer.tokens)
        self.total.merge(answer.tally)
        self.pair.after_answer(len(answer.tokens))

    def _unanswered(self) -> list[Message]:
        """The messages up to the user's newest one."""
        answered = bool(self.messages) and self.messages[-1]["role"] == "assistant"
        return self.messages[:-1] if answered else list(self.messages)


def _from_user(text: str) -> Message:
    return {"role": "user", "content": text}
