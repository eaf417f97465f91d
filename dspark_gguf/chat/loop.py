"""The chat: read, answer, show what it cost."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, suppress

from dspark_gguf.catalog import resolve
from dspark_gguf.chat.commands import Leave, is_command, run_command, unescape
from dspark_gguf.chat.progress import waited_for
from dspark_gguf.chat.saved import SavedSession
from dspark_gguf.chat.session import AnswerRounds, Session
from dspark_gguf.chat.status import status_line
from dspark_gguf.chat.terminal import PipeReader, Reader, Screen, read_message, silent_keys
from dspark_gguf.chat.think import ThinkSplitter
from dspark_gguf.chat.transcript import with_absolute_paths
from dspark_gguf.config import Settings
from dspark_gguf.engine.pair import Pair
from dspark_gguf.errors import Cancelled, DSparkError, UsageError
from dspark_gguf.signals import ended_by_signals, interruptible
from dspark_gguf.tally import Answer

#: Limits for measuring after an answer: a share of its time, and seconds.
_IDLE_SHARE, _IDLE_SECONDS = 0.03, 0.25


class Chat:
    """A session and its user; slash commands see it as `registry.Chat`.

    `saved` is where the conversation is saved, `attached` holds the text of files for the next
    message, and `load` replaces the models in memory.
    """

    def __init__(
        self,
        session: Session,
        screen: Screen,
        reader: Reader,
        saved: SavedSession | None = None,
        load: Callable[[Settings], Pair] | None = None,
    ) -> None:
        self.session, self.screen, self.reader, self.saved = session, screen, reader, saved
        self._load = load
        self.attached: list[str] = []
        self._forgotten = 0
        self._warned = False
        self._failed: DSparkError | None = None
        self._measured_for: Answer | None = None

    def run(self) -> None:
        """Until the end of the input, ``/exit``, Ctrl-C twice in a row, or a signal.

        However it ends, the conversation is saved first. If a line of a pipe could not be answered
        or carried out, the SystemExit at the end has the exit code of the first error.
        """
        try:
            with ended_by_signals():
                self._talk()
        except BaseException:
            # Nobody may be there to read this: writing to a closed terminal fails.
            with suppress(OSError):
                self._save(with_caches=True)
                if self.saved and self.session.messages and self.saved.path.exists():
                    name = self.saved.name
                    self.screen.note(f"saved; resume with `dspark-gguf chat --session {name}`")
            raise
        if self._failed and isinstance(self.reader, PipeReader):
            raise SystemExit(self._failed.exit_code)

    def _talk(self) -> None:
        pressed = False
        while True:
            try:
                message = read_message(self.reader)
                pressed = False
                self._handle(message)
                self._save()
                self._measure_again()
            except (EOFError, Leave):
                if self._may_leave():
                    return
            except (KeyboardInterrupt, Cancelled):
                if pressed and self._may_leave():
                    return
                pressed = True
                self.screen.note("press Ctrl-C again to leave, or Ctrl-D, or type /exit")
            except DSparkError as error:
                self._failed = self._failed or error
                self.screen.error(str(error))
                self._save()

    def _measure_again(self) -> None:
        """Measure the least certain costs for a moment, while the user reads the answer.

        Never in a pipe, where the next line is waiting.
        """
        answer = self.session.last
        piped = isinstance(self.reader, PipeReader) or not self.screen.on_terminal
        if answer is None or answer is self._measured_for or piped:
            return
        self._measured_for = answer
        with silent_keys(), interruptible(self.session.pair.interrupt):
            share = _IDLE_SHARE * answer.tally.seconds
            self.session.pair.measure_again(min(share, _IDLE_SECONDS))

    def _save(self, with_caches: bool = False) -> bool:
        """Save the transcript, or everything. Returns whether it worked, and says why if not."""
        if self.saved is None:
            return True
        try:
            if not with_caches:
                self.saved.write(self.session)
            elif how := self.saved.save(self.session):
                self.screen.note(f"session {self.saved.name} is {how}")
        except DSparkError as error:
            self._failed = self._failed or error
            if with_caches or not self._warned:
                self.screen.error(f"this conversation is not saved: {error}")
            self._warned = True
            return False
        self._warned = False
        return True

    def _may_leave(self) -> bool:
        """Save everything; if that fails, let the user `/save FILE` somewhere else first."""
        warned = self._warned
        if self._save(with_caches=True) or warned or not self.screen.on_terminal:
            return True
        self.screen.note("/save FILE saves it elsewhere; leave again to drop it")
        return False

    def _handle(self, message: str) -> None:
        if is_command(message):
            run_command(self, message)
        elif message.strip() or self.attached:
            text = "\n\n".join([*self.attached, unescape(message)])
            self.show(self.session.ask(text))
            if self.session.last_message == text:  # else they go with the next one
                self.attached.clear()

    def switch(self, model: str, draft: str | None) -> None:
        """Switch to other models, or back to the present ones if those cannot be loaded."""
        if self._load is None:
            raise UsageError("this chat cannot load another model", "Start another one.")
        before = self.session.settings
        resolve(model, draft, self.screen.note)  # before the models that work are freed
        settings = before.model_copy(update={"model": model, "draft": draft})
        settings = with_absolute_paths(settings)
        try:
            self.session.use(self._load(settings), settings)
        except BaseException:
            self.session.use(self._load(before), before)
            raise

    def show(self, rounds: AnswerRounds) -> None:
        """Stream an answer, then its status line. Ctrl-C keeps what was said."""
        self.screen.markdown = self.session.settings.chat.markdown
        with silent_keys(), interruptible(self.session.pair.interrupt), closing(rounds):
            splitter = None
            for round in waited_for(rounds, "reading"):
                splitter = splitter or ThinkSplitter(inside=self.session.opens_thought)
                for text, thought in splitter.feed(round.text, round.finish_reason is not None):
                    self.screen.write(text, dim=thought)
        self.screen.end_answer()
        forgotten, answer = self.session.forgotten, self.session.last
        if forgotten > self._forgotten:
            self.screen.note(f"the context is full: the oldest {forgotten} messages are left out")
        self._forgotten = forgotten
        if answer and not answer.text:
            self.screen.note("no answer: the conversation is as it was before")
        if answer:
            self.screen.note(status_line(answer, self.session.summary))
