"""The chat: read, answer, show what it cost."""

from __future__ import annotations

from contextlib import closing, suppress

from dspark_gguf.chat.commands import Leave, is_command, run_command
from dspark_gguf.chat.kept import Kept
from dspark_gguf.chat.session import Answering, Session
from dspark_gguf.chat.status import status_line
from dspark_gguf.chat.terminal import (
    PipeReader,
    Reader,
    Screen,
    ended_by_signals,
    interruptible,
    read_message,
)
from dspark_gguf.chat.think import ThinkSplitter
from dspark_gguf.errors import DSparkError


class Chat:
    """A session with somebody at the other end.

    Args:
        session: the conversation.
        screen: where answers appear.
        reader: where messages come from.
        kept: where the conversation is kept, or None.

    Attributes:
        attached: text of files that goes with the next message.

    """

    def __init__(
        self, session: Session, screen: Screen, reader: Reader, kept: Kept | None = None
    ) -> None:
        self.session, self.screen, self.reader, self.kept = session, screen, reader, kept
        self.attached: list[str] = []
        self._forgotten = 0
        self._warned = False
        self._failed: DSparkError | None = None

    def run(self) -> None:
        """Until the end of the input, ``/exit``, Ctrl-C twice in a row, or a signal.

        However it ends, the conversation is kept first.

        Raises:
            SystemExit: a line of a pipe could not be answered or carried out; the code is that of
                the first error.

        """
        try:
            with ended_by_signals():
                self._talk()
        except BaseException:
            # Nobody may be there to read this: a closed terminal refuses every word.
            with suppress(OSError):
                self._keep(all_of_it=True)
                if self.kept and self.session.messages and self.kept.path.exists():
                    self.screen.note(
                        f"kept: `dspark-gguf chat --session {self.kept.name}` goes on from here"
                    )
            raise
        if self._failed and isinstance(self.reader, PipeReader):
            raise SystemExit(self._failed.exit_code)

    def _talk(self) -> None:
        pressed = False
        while True:
            try:
                message = read_message(self.reader)
                pressed = False
                self.handle(message)
                self._keep()
            except (EOFError, Leave):
                if self._leaves():
                    return
            except KeyboardInterrupt:
                if pressed and self._leaves():
                    return
                pressed = True
                self.screen.note("Ctrl-C again, Ctrl-D or /exit leaves")
            except DSparkError as error:
                self._failed = self._failed or error
                self.screen.error(str(error))
                self._keep()

    def _keep(self, all_of_it: bool = False) -> bool:
        """Write the transcript (all of it: the caches too); whether that worked. Says why not."""
        if self.kept is None:
            return True
        try:
            if all_of_it:
                self._say_kept(self.kept.save(self.session))
            else:
                self.kept.write(self.session)
        except DSparkError as error:
            self._failed = self._failed or error
            if all_of_it or not self._warned:
                self.screen.error(f"this conversation is not kept: {error}")
            self._warned = True
            return False
        self._warned = False
        return True

    def _say_kept(self, how: str) -> None:
        if how and self.kept:
            self.screen.note(f"session {self.kept.name} is kept, {how}")

    def _leaves(self) -> bool:
        """Keep everything; where that fails, whoever types can still `/save FILE` elsewhere."""
        warned = self._warned
        if self._keep(all_of_it=True) or warned or not self.screen.on_terminal:
            return True
        self.screen.note("/save FILE keeps it elsewhere; leaving again drops it")
        return False

    def handle(self, message: str) -> None:
        """A message or a slash command; ``//word`` is the message ``/word``."""
        if is_command(message):
            run_command(self, message[1:])
        elif message.strip() or self.attached:
            escaped = message.startswith("//") and is_command(message[1:])
            text = "\n\n".join([*self.attached, message[1:] if escaped else message])
            self.show(self.session.ask(text))
            if self.session.last_message == text:  # else they go with the next one
                self.attached.clear()

    def show(self, rounds: Answering) -> None:
        """Stream an answer, then its status line. Ctrl-C keeps what was said."""
        with interruptible(self.session.pair.interrupt), closing(rounds):
            splitter: ThinkSplitter | None = None
            ends_line = True
            for round in rounds:
                splitter = splitter or ThinkSplitter(inside=self.session.opens_thought)
                for text, thought in splitter.feed(round.text):
                    self.screen.write(text, dim=thought)
                    ends_line = text.endswith("\n")
            for text, thought in splitter.flush() if splitter else ():
                self.screen.write(text, dim=thought)
                ends_line = text.endswith("\n")
        if not ends_line:
            self.screen.write("\n")
        self._show_status()

    def _show_status(self) -> None:
        session = self.session
        if session.forgotten > self._forgotten:
            self.screen.note(
                f"the context is full: the oldest {session.forgotten} messages are out"
            )
        self._forgotten = session.forgotten
        if session.last and not session.last.text:
            self.screen.note("no answer: the conversation is as it was before")
        if session.last:
            self.screen.note(status_line(session.last, session.outlook))
