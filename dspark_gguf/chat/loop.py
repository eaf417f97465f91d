"""The chat: read, answer, show what it cost."""

from __future__ import annotations

from collections.abc import Iterator

from dspark_gguf.chat.commands import Leave, run_command
from dspark_gguf.chat.session import Session
from dspark_gguf.chat.status import status_line
from dspark_gguf.chat.terminal import Reader, Screen, interruptible, read_message
from dspark_gguf.chat.think import ThinkSplitter
from dspark_gguf.errors import DSparkError
from dspark_gguf.records import Round


class Chat:
    """A session with somebody at the other end.

    Args:
        session: the conversation.
        screen: where answers appear.
        reader: where messages come from.

    Attributes:
        attached: text of files that goes with the next message.

    """

    def __init__(self, session: Session, screen: Screen, reader: Reader) -> None:
        self.session, self.screen, self.reader = session, screen, reader
        self.attached: list[str] = []
        self._forgotten = 0

    def run(self) -> None:
        """Until the end of the input, ``/exit``, or Ctrl-C twice in a row."""
        pressed = False
        while True:
            try:
                message = read_message(self.reader)
                pressed = False
                self.handle(message)
            except (EOFError, Leave):
                return
            except KeyboardInterrupt:
                if pressed:
                    return
                pressed = True
                self.screen.note("Ctrl-C again, Ctrl-D or /exit leaves")
            except DSparkError as error:
                self.screen.error(str(error))

    def handle(self, message: str) -> None:
        """A message or a slash command; ``//`` begins a message with a slash."""
        if message.startswith("/") and not message.startswith("//"):
            run_command(self, message[1:])
        elif message.strip() or self.attached:
            text = "\n\n".join([*self.attached, message.removeprefix("/")])
            self.attached.clear()
            self.show(self.session.ask(text))

    def show(self, rounds: Iterator[Round]) -> None:
        """Stream an answer, then its status line. Ctrl-C keeps what was said."""
        with interruptible(self.session.pair.interrupt):
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
        if session.last:
            self.screen.note(status_line(session.last, session.outlook))
