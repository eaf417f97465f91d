"""llama.cpp's log: collect its errors, and print it for the commands."""

from __future__ import annotations

import ctypes
import re
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import RLock, get_ident
from typing import Any

import llama_cpp

from dspark_gguf.visible import visible

# GGML_LOG_LEVEL_* of ggml.h; the binding's own table is off by one.
DEBUG_LEVEL, ERROR_LEVEL, CONTINUED = 1, 4, 5


class _Log:
    """Our log callback, installed while a block listens for errors; forwards the rest.

    A block is entered at each pass, when the CPU caches are cold from the pass before and each line
    of Python takes a microsecond. So where our log stays installed, a block does nothing.
    """

    def __init__(self) -> None:
        self._lock = RLock()
        self._listeners: list[int] = []  # threads inside a block
        self.count = 0  # errors so far
        self._errors: deque[tuple[int, int, str]] = deque(maxlen=100)  # number, thread, line
        # Without a reference, ctypes would free the callback while llama.cpp still uses it.
        self._ours = llama_cpp.llama_log_callback(self._hear)
        self._theirs, found = _installed(), _installed()
        #: What `_is_ours` finds, and theirs: addresses of a callback and of its argument.
        self._found = [ctypes.c_void_p.from_buffer(each) for each in found]
        self._places = [ctypes.byref(each) for each in found]
        self._our_address, self._known = _address(self._ours), [one.value for one in self._found]
        self._stays = False  # whether theirs is the commands' log: then ours may stay installed

    @property
    def stays(self) -> bool:
        """Whether it hears this thread's errors without `begin`."""
        return self._stays and self._is_ours()

    def begin(self) -> None:
        """Do not pass on what this thread is told."""
        with self._lock:
            if self._is_ours():
                if self._is_put_back():
                    self._theirs, self._stays = _commands(), True
            else:
                found = [one.value for one in self._found]
                if found != self._known:
                    self._theirs, self._known = _installed(), found
                    self._stays = found[0] == _address(_command_log.callback)
                llama_cpp.llama_log_set(self._ours, None)
            self._listeners.append(get_ident())

    def end(self) -> None:
        """Forward them again."""
        with self._lock, suppress(ValueError):  # Ctrl-C before `begin` was done
            self._listeners.remove(get_ident())
            # Restore the previous log, unless it was changed meanwhile.
            if not self._listeners and not self._stays and self._is_ours():
                llama_cpp.llama_log_set(*self._theirs)

    def errors(self, thread: int, since: int) -> list[str]:
        """Of this thread, after so many of all."""
        return [line for number, whose, line in self._errors if whose == thread and number > since]

    def _is_put_back(self) -> bool:
        """While ours is installed: whether by other code, which found it so and is done."""
        return not (self._stays or self._listeners)

    def _is_ours(self) -> bool:
        llama_cpp.llama_log_get(*self._places)
        return self._found[0].value == self._our_address

    def _hear(self, level: int, text: bytes, _: object) -> None:
        thread, line = get_ident(), text.decode("utf-8", "replace").strip()
        if level == ERROR_LEVEL and line:
            self.count += 1
            # Each line begins with the name of the C++ function that wrote it.
            self._errors.append((self.count, thread, re.sub(r"^\w+: ", "", line)))
        callback, data = _commands() if self._is_put_back() else self._theirs
        # Lines from this package's calls go to the commands' log only.
        if self._stays or thread not in self._listeners:
            callback(level, text, data)


class listening:  # noqa: N801 - reads as what a block does
    """Yields a function: the last errors that llama.cpp logged in this thread since the beginning.

    These lines otherwise only go to the commands' log. Other threads' lines, and all lines after
    the block, go where they went before.
    """

    __slots__ = ("_begun", "_since")

    def __enter__(self) -> Callable[[], list[str]]:
        self._since = _log.count
        self._begun = not _log.stays
        if self._begun:
            try:
                _log.begin()
            except BaseException:  # Ctrl-C
                _log.end()
                raise
        return self._heard

    def __exit__(self, *_: object) -> None:
        if self._begun:
            _log.end()

    def _heard(self) -> list[str]:
        return _log.errors(get_ident(), self._since)


class _CommandLog:
    """The commands' log: silent, or everything but debug lines on stderr."""

    def __init__(self) -> None:
        self.verbose, self._level = False, DEBUG_LEVEL
        self.callback = llama_cpp.llama_log_callback(self._write)

    def _write(self, level: int, text: bytes, _: object) -> None:
        self._level = self._level if level == CONTINUED else level
        if self.verbose and self._level > DEBUG_LEVEL:
            sys.stderr.write(visible(text.decode("utf-8", "replace")))


def _installed() -> tuple[Any, ctypes.c_void_p]:
    """llama.cpp's log callback, and its argument."""
    callback, data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(callback), ctypes.byref(data))
    return callback, data


def _commands() -> tuple[Any, ctypes.c_void_p]:
    return _command_log.callback, ctypes.c_void_p()


def _address(callback: Any) -> int | None:
    return ctypes.cast(callback, ctypes.c_void_p).value


_log, _command_log = _Log(), _CommandLog()


def set_command_log(verbose: bool = False) -> None:
    """Install the commands' log: silent, or `verbose` on stderr without control sequences.

    Programs that use this package as a library keep their own log.
    """
    _command_log.verbose = verbose
    llama_cpp.llama_log_set(_command_log.callback, None)
