"""Tab in bash, zsh and fish: the protocol that all of them speak, and the shells themselves."""

from __future__ import annotations

import os
import shutil
import sys
import time

import pytest
from click.testing import CliRunner

from dspark_gguf.catalog.pairs import known_pairs
from dspark_gguf.cli import main
from dspark_gguf.settings_files import preset_names
from tests.children import in_terminal

SHELLS = ("bash", "zsh", "fish")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Some files to choose from, and the program on the PATH."""
    for name in ("m/in/a b.gguf", "m/in/c.GGUF", "m/in/notes.txt", "m/in/.gguf", "my.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    program = tmp_path / ".bin" / "dspark-gguf"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nfrom dspark_gguf.cli import main\nmain(prog_name='dspark-gguf')\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def offered(shell, *words):
    """What the shell is told, as values, for the last word."""
    line = {"COMP_WORDS": " ".join(["dspark-gguf", *words]), "COMP_CWORD": str(len(words))}
    if shell == "fish":
        line["COMP_CWORD"] = words[-1]
    asking = {"_DSPARK_GGUF_COMPLETE": f"{shell}_complete"}
    done = CliRunner().invoke(main, [], env=line | asking, prog_name="dspark-gguf")
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    if shell == "zsh":  # type, value, help, each on a line of its own
        return lines[1::3]
    if shell == "fish":  # type,value<tab>help
        return [line.split(",", 1)[1].split("\t")[0] for line in lines if line.startswith("plain")]
    return [line.split(",", 1)[1] for line in lines if line]


@pytest.mark.parametrize("shell", SHELLS)
def test_presets_and_files_for_config(folder, shell):
    """By name, then YAML files and folders."""
    assert offered(shell, "chat", "--config", "a") == ["apple-silicon"]
    assert offered(shell, "chat", "--config", "m") == ["m/", "my.yaml"]
    assert offered(shell, "chat", "--config", "code,app") == ["code,apple-silicon"]
    assert set(offered(shell, "run", "--config", "c")) == {
        name for name in preset_names() if name.startswith("c")
    }


@pytest.mark.parametrize("shell", SHELLS)
def test_pairs_and_files_for_models(folder, shell):
    """A target or a draft is a pair's name or a file; one folder alone is looked into."""
    names = [pair.name for pair in known_pairs() if pair.name.startswith("qwen3-8b")]
    assert len(names) == 2
    assert offered(shell, "chat", "-m", "qwen3-8b") == names
    assert offered(shell, "chat", "-d", "qwen3-8b") == names
    assert offered(shell, "pull", "qwen3-8b") == names
    blank = r"m/in/a\\ b.gguf" if shell == "bash" else "m/in/a b.gguf"
    assert offered(shell, "chat", "-d", "m") == [blank, "m/in/c.GGUF"]


def test_a_link_to_its_own_folder_ends(folder):
    """A folder that leads to itself is not followed for ever."""
    (folder / "loop").mkdir()
    (folder / "loop" / "again").symlink_to(folder / "loop")
    (found,) = offered("bash", "chat", "-d", "loop")
    assert found.endswith("/")


def test_home_is_followed_and_kept(folder, monkeypatch):
    """`~/` is what the user typed, and what stays."""
    monkeypatch.setenv("HOME", str(folder))
    assert offered("zsh", "chat", "-d", "~/m/in/c") == ["~/m/in/c.GGUF"]
    assert offered("zsh", "chat", "-d", "~nobody-here/") == []


@pytest.mark.parametrize("shell", SHELLS)
def test_the_command_prints_what_the_shell_wants(folder, shell):
    """One plain command, and its help says where it goes."""
    printed = CliRunner().invoke(main, ["completion", shell])
    assert printed.exit_code == 0
    assert f"_DSPARK_GGUF_COMPLETE={shell}_complete" in printed.stdout
    assert f"completion {shell}" in CliRunner().invoke(main, ["completion", "--help"]).stdout


TYPED = {
    "bash": (["--norc", "--noprofile", "-i"], 'eval "$(dspark-gguf completion bash)"'),
    "zsh": (
        ["-f", "-i"],
        'autoload -U compinit; compinit -u; eval "$(dspark-gguf completion zsh)"',
    ),
    "fish": (["--no-config", "-i"], "dspark-gguf completion fish | source"),
}


@pytest.mark.parametrize("shell", SHELLS)
def test_tab_in_the_real_shell(folder, shell):
    """Where the shell is installed: what Tab leaves on the line is what the program is given."""
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here")
    arguments, begin = TYPED[shell]
    env = os.environ | {"TERM": "dumb", "HOME": str(folder), "PS1": "$ "}
    typed = in_terminal(shell, arguments, env=env)
    shown = folder / "shown"
    typed.sendline(begin)
    typed.sendline(f"echo ready > {shown}")
    wait_for(shown, "ready")
    for words, whole in (
        ("chat --config app\t", "apple-silicon"),
        ("chat -m llama-3.3\t", "llama-3.3-70b"),
        ("chat -d m/in/a\t", "m/in/a b.gguf"),
    ):
        shown.unlink()
        typed.send(f"dspark-gguf {words}")
        typed.expect(whole[-6:])
        # To the front of the line, so that another program shows the last word as it was given.
        typed.send("\x01printf '%s\\n' \x05")
        typed.sendline(f" > {shown}")
        assert wait_for(shown, "\n").splitlines()[-1] == whole


def wait_for(path, text):
    """What the shell writes, once it is there."""
    for _ in range(300):
        if path.exists() and text in path.read_text():
            return path.read_text()
        time.sleep(0.1)
    raise AssertionError(f"nothing in {path}")
