"""What the README and the guides in docs/ show is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from dspark_gguf.chat.commands import COMMANDS
from dspark_gguf.cli import main

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    str(path.relative_to(ROOT).as_posix()): path.read_text("utf-8")
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
}
README = PAGES["README.md"]
#: What speaks of our own options alone.
_GUIDES = ("chat", "scripts", "python", "tuning-and-doctor", "how-it-works")
GUIDES = ["README.md", *(f"docs/{name}.md" for name in _GUIDES)]


def help_of(*command: str) -> str:
    """All that the help of a command says."""
    whole = CliRunner().invoke(main, [*command, "--help-all"])
    return (whole if not whole.exit_code else CliRunner().invoke(main, [*command, "--help"])).output


def test_the_python_example_runs(demo_files, capsys):
    """The examples are executed as they stand, the second with the demo pair's files."""
    code, drop_in = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(code.strip().splitlines()) <= 10
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert re.search(r"(stop|length) \d\.\d", printed.splitlines()[-1])
    for name, file in zip(("target.gguf", "draft.gguf"), demo_files, strict=True):
        drop_in = drop_in.replace(name, str(file))
    names = {}
    exec(compile(drop_in.replace("4096", "512, verbose=False"), "README.md", "exec"), names)
    names["llama"].close()


def test_the_examples_of_the_python_page_run(capsys):
    """As they stand, on the demo pair."""
    one, several = re.findall(r"```python\n(.*?)```", PAGES["docs/python.md"], re.S)
    exec(compile(one, "docs/python.md", "exec"), {})
    assert re.search(r"\d of \d accepted", capsys.readouterr().out)
    exec(compile(several, "docs/python.md", "exec"), {})
    said = capsys.readouterr().out
    assert all(f"{name} has ended: " in said for name in ("Anna", "Ben", "Cleo"))


@pytest.mark.parametrize("page", GUIDES)
def test_every_option_that_is_named_exists(page):
    """A flag in a guide that the program does not know would be a lie."""
    shown = "".join(help_of(name) for name in main.commands if name != "lookup")
    ours = re.sub(r"pip install --.*", "", PAGES[page])
    for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", ours)):
        assert flag in shown, flag


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_is_shown_takes_its_options(page):
    """Each option of a command line is one of that command, not of some other."""
    text = PAGES[page].replace("\\\n", " ")
    for line in re.findall(r"(?:^|\| |\")dspark-gguf ([a-z][^\n]*)", text, re.M):
        words = re.split(r" +#| \|", re.sub(r"\"[^\"]*\"|'[^']*'", "TEXT", line))[0].split()
        names = words[:2] if words[0] in ("lookup", "sessions") and len(words) > 1 else words[:1]
        shown = help_of(*names)
        for flag in words[len(names) :]:
            assert not flag.startswith("-") or re.search(rf"{flag}\b", shown), (line, flag)


@pytest.mark.parametrize("page", PAGES)
def test_every_slash_command_that_is_named_exists(page):
    """The guides and /help speak of the same commands."""
    for name in set(re.findall(r"`/([a-z]+)", PAGES[page])):
        assert name in COMMANDS, name


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    """To a file that is there, and to a heading in it."""
    for target, place in re.findall(r"\]\(([^)#:]+)(?:#([^)]+))?\)", PAGES[page]):
        path = (ROOT / page).parent / target
        assert path.exists(), target
        headings = re.findall(r"^#+ (.*)", path.read_text("utf-8"), re.M)
        anchors = [re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings]
        assert not place or place in anchors, place


@pytest.mark.parametrize("page", ["docs/tour.md", "CONTRIBUTING.md"])
def test_every_source_file_that_is_named_exists(page):
    """The tour leads to files that are there."""
    for name in set(re.findall(r"`((?:\w+/)*\w+\.py)`", PAGES[page])):
        assert (ROOT / name).exists() or list(ROOT.glob(f"dspark_gguf/**/{name}")), name


def test_the_pages_to_enter_by_are_short():
    """A newcomer reads both in one sitting."""
    assert len(README.splitlines()) <= 150
    assert len(PAGES["docs/tour.md"].splitlines()) <= 40


def test_top_level_is_complete():
    """A newcomer finds every part of the project's top level."""
    files = "pyproject.toml models.txt CHANGELOG.md CONTRIBUTING.md LICENSE .ci/run"
    folders = "configs dspark_gguf docs scripts tests"
    for name in f"{files} {folders}".split():
        assert (ROOT / name).exists(), name
