"""What a user at a keyboard sees: keys, Tab, history, the editor, and what is kept."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import time

import pytest

from tests.children import PROGRAM, ended, in_terminal, program_in_terminal
from tests.tiny_gguf import Tiny, write_llama

if os.name == "nt":
    pytest.skip("pseudo-terminals", allow_module_level=True)

#: Every answer is as long as asked for, and takes a while.
LONG = ["--ignore-eos", "--temp", "0", "-c", "60000", "-t", "1", "--spec", "off"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("typing") / "tiny.gguf", Tiny(context=65536))


@pytest.fixture
def home(tmp_path):
    """Environment with a data folder of its own."""
    return {**os.environ, "XDG_DATA_HOME": str(tmp_path / "DATA")}


@pytest.fixture
def chat(home, model, tmp_path):
    """Starts a chat in a terminal, in a folder of its own, and waits for its prompt."""

    def start(*words, answer=4, **env):
        asked = ["chat", *LONG, "-m", model, "-n", str(answer), *words]
        child = program_in_terminal(
            *asked, env={**home, **env}, encoding="latin-1", cwd=str(tmp_path)
        )
        child.expect(">>>")
        return child

    return start


def left(child):
    child.expect(">>>")
    child.sendline("/bye")
    assert ended(child) == 0


def plain(text):
    """Without escape codes."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_keys_wait_until_the_answer_has_ended(chat):
    """They are not in it; the prompt has them then, Backspace included."""
    child = chat(answer=500)
    child.send("Tell me.\r")
    child.expect(r"Tell me\.[\s\S]*\n[\s\S]{40}")
    child.send("/system typeX\x7fd ahead\r")
    child.expect("500 tok")
    assert "/system" not in child.before
    child.expect("/system typed ahead")
    child.expect("system prompt: typed ahead")
    left(child)


def test_tab_completes(chat, tmp_path):
    """Commands, settings and their values, file names."""
    (tmp_path / "notes.md").write_text("one")
    child = chat()
    for typed, said in (
        ("/sys\tBe brief.", "system prompt: Be brief."),
        ("/set tempe\t 0.5", "temperature: 0.5"),
        ("/set acceptance rej\t", "acceptance: rejection"),
        ("/read no\t", "notes.md: "),
    ):
        child.send(typed.replace("\tBe", "\t Be") + "\r")
        child.expect(re.escape(said))
        child.expect(">>>")
    child.send("/s\t")
    child.expect(r"/save[\s\S]*/set[\s\S]*/show")
    child.send("\x15/bye\r")
    assert ended(child) == 0


def test_the_history_has_a_message_as_a_whole(chat):
    """Up brings back all lines of a message that was continued, in the next chat too."""
    child = chat()
    child.send("one\\\rtwo\r")
    child.expect("4 tok")
    child.expect(">>>")
    child.send('"""three\rfour"""\r')
    child.expect("4 tok")
    left(child)
    again = chat()
    again.send("\x1b[A" * 3 + "\r")  # /bye, and the last line of the message before it
    again.expect("4 tok")
    again.expect(">>>")
    again.send("/history\r")
    again.expect(r">>> three\S*\s+\S*four")
    again.expect(">>>")
    again.send("/bye\r")
    assert ended(again) == 0


def test_a_long_message_is_edited_in_the_editor(chat, tmp_path):
    """And a short one at the prompt."""
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf "one\\nchanged\\n" > "$1"\n')
    editor.chmod(0o700)
    child = chat(EDITOR=str(editor), VISUAL="")
    for lines in ("one\\\rtwo\r", "/edit\r", "/history\r"):
        child.send(lines)
        child.expect(r">>> one\S*\s+\S*changed" if "history" in lines else "4 tok")
        child.expect(">>>")
    for lines in ("short\r", "/edit\r"):
        child.send(lines)
        child.expect("edit> short" if "edit" in lines else "4 tok")
    child.send(" and more\r")
    child.expect("4 tok")
    child.expect(">>>")
    child.send("/history 1\r")
    child.expect(">>> short and more")
    left(child)


def test_a_conversation_that_goes_on_shows_where_it_was(chat):
    """The last exchange, before the prompt."""
    child = chat("--session", "fox")
    for text in ("A first one.", "The last one."):
        child.send(text + "\r")
        child.expect("4 tok")
        child.expect(">>>")
    child.send("/bye\r")
    assert ended(child) == 0
    again = chat("--session", "fox")
    again.expect(r"The last one\.[\s\S]*/help lists")
    assert "A first one" not in again.before + again.after
    left(again)


def test_saving_over_a_file_asks(chat, tmp_path):
    """Enter alone is no."""
    (tmp_path / "talk.json").write_text("mine")
    child = chat()
    child.send("/save talk.json\r")
    child.expect(re.escape("talk.json exists. Replace it? [y/N]"))
    child.send("\r")
    child.expect("not saved")
    child.expect(">>>")
    child.send("/save talk.json\r")
    child.expect(re.escape("[y/N]"))
    child.send("y\r")
    child.expect("saved 0 messages to talk.json")
    left(child)


def test_ctrl_z_suspends(home, model):
    """As every program of a shell; `fg` goes on."""
    bash = shutil.which("bash")
    if not bash:
        pytest.skip("a shell with jobs")
    env = {**home, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "PS1": "shell$ "}
    child = in_terminal(bash, ["--norc", "--noprofile", "-i"], env=env, encoding="latin-1")
    child.expect(r"shell\$ ")
    child.sendline(shlex.join([*PROGRAM, "chat", *LONG, "-m", str(model), "-n", "4"]))
    child.expect("/help lists[^>]*>>>")
    child.send("\x1a")
    child.expect("Stopped")
    child.expect(r"shell\$ ")
    child.sendline("fg")
    child.expect(">>>")
    child.send("Hello.\r")
    child.expect("4 tok")
    child.expect(">>>")
    child.send("/bye\r")
    child.expect(r"shell\$ ")
    child.sendline("exit")
    assert ended(child) == 0


def test_a_private_chat_keeps_nothing(chat, home):
    """No history, no session; what is kept otherwise is for its owner alone."""
    data = home["XDG_DATA_HOME"]
    child = chat("--private")
    child.send("A secret.\r")
    child.expect("4 tok")
    left(child)
    assert not os.path.exists(data) or not any(files for _, _, files in os.walk(data))
    child = chat()
    child.send("No secret.\r")
    child.expect("4 tok")
    left(child)
    for place, folders, files in os.walk(data):
        modes = [os.stat(os.path.join(place, name)).st_mode & 0o777 for name in files]
        assert set(modes) <= {0o600}, files
        assert {os.stat(os.path.join(place, name)).st_mode & 0o777 for name in folders} <= {0o700}


@pytest.mark.parametrize("columns", [40, 80])
def test_our_own_texts_wrap(home, model, columns):
    """Each line about the pair ends with a whole word."""
    child = program_in_terminal(
        "chat", *LONG, "-m", model, env=home, encoding="utf-8", dimensions=(24, columns)
    )
    child.expect("/help lists")
    lines = plain(child.before).replace("\r", "").split("\n")
    assert max(map(len, lines)) <= columns
    assert "speculation off: plain decoding, as asked" in " ".join(lines)
    child.send("/bye\r")
    time.sleep(0.1)
    assert ended(child) == 0
