"""The commands as a user types them, on the demo pair."""

from __future__ import annotations

import io
import json
import re
import signal

import pytest
import yaml
from click.testing import CliRunner

from dspark_gguf import __version__
from dspark_gguf.chat.stdin import read_prompt
from dspark_gguf.cli import main
from dspark_gguf.errors import UsageError
from tests.children import ENDING, started

GREEDY = ["--temp", "0", "-c", "512"]


@pytest.mark.parametrize("hopeless", [False, True])
def test_only_the_answer_goes_to_stdout(dspark, monkeypatch, hopeless):
    """Scripts read stdout; on stderr are notes, and where it is no terminal the start-up line only
    if it is asked for, as is what was decided.
    """

    def is_hopeless(costs, speculation):
        return hopeless and speculation.drafter == "auto"

    for module in ("engine.pair", "assemble"):
        monkeypatch.setattr(f"dspark_gguf.{module}.is_hopeless", is_hopeless)
    words = ("run", "Say hello in one sentence.", "-n", 16, *GREEDY)
    result = dspark(*words)
    assert result.exit_code == 0
    assert result.stdout == json.loads(dspark(*words, "--json").stdout)["text"].rstrip("\n") + "\n"
    assert result.stderr == ""
    assert "\x1b" not in result.output
    assert ("the draft model is not used" in dspark(*words, "--verbose").stderr) == hopeless
    said = dspark(*words, "--verbose", "--drafter", "model").stderr
    assert "its draft gains nothing" in said
    assert "target SmolLM2-135M-Instruct-Q8_0 on CPU" in said
    assert "draft SmolLM2-135M-Instruct-Q2_K on CPU" in said
    assert "speculation auto: lossless, up to 12 draft tokens a round, as many as pay here" in said


def test_json_object(dspark):
    """`--json` prints one object with at least the documented keys, and they agree."""
    result = dspark("run", "Count to five.", "--json", "-n", 24, *GREEDY)
    answer = json.loads(result.stdout)
    assert set(answer) >= {"text", "tokens", "finish_reason", "usage", "stats", "settings"}
    assert answer["finish_reason"] in ("stop", "length")
    assert answer["usage"]["completion_tokens"] == len(answer["tokens"]) <= 24
    assert answer["usage"]["cached_tokens"] == 0 < answer["usage"]["prompt_tokens"]
    stats = answer["stats"]
    assert set(stats["seconds"]) == {"total", "prefill", "target", "draft", "controller"}
    assert stats["accepted"] == sum(stats["accepted_by_position"]) <= stats["drafted"]
    assert stats["rounds"] + stats["accepted"] == len(answer["tokens"])
    assert stats["tokens_per_round"] == pytest.approx(len(answer["tokens"]) / stats["rounds"], 0.01)
    assert answer["settings"] == {
        "limits": {"max_tokens": 24},
        "sampling": {"temperature": 0.0, "seed": answer["settings"]["sampling"]["seed"]},
        "target_options": {"n_ctx": 512},
    }
    assert answer["model"] == "SmolLM2-135M-Instruct-Q8_0"
    assert answer["draft"] in ("SmolLM2-135M-Instruct-Q2_K", None)  # None: it would win nothing
    assert answer["version"] == __version__
    assert answer["plain_tokens_per_second"] > 0
    assert answer["speedup"] is None or answer["speedup"] > 0  # None: not known, or no drafts


def test_a_drawn_seed_is_shown_and_gives_the_same_text(dspark):
    """Same seed, settings and machine: same text; a seed that was drawn can be used again."""
    words = ("run", "Tell me a story.", "--json", "-n", 24, "-c", 512)
    first = json.loads(dspark(*words).stdout)
    seed = first["settings"]["sampling"]["seed"]
    again = json.loads(dspark(*words, "--seed", seed).stdout)
    other = json.loads(dspark(*words, "--seed", seed + 1).stdout)
    assert again["tokens"] == first["tokens"]
    assert other["tokens"] != first["tokens"]  # equal with a chance of about 1e-10


def test_spec_off_does_no_draft_work(dspark):
    """Off is plain decoding: the draft is not even loaded."""
    result = dspark("run", "Hello", "--spec", "off", "--json", "-n", 8, "-v", *GREEDY)
    stats = json.loads(result.stdout)["stats"]
    assert stats["drafted"] == 0
    assert stats["seconds"]["draft"] == 0
    assert "Q2_K" not in result.stderr
    assert "speculation off" in result.stderr


def test_lossy_acceptance_says_so(dspark):
    """Who opts in to a changed output reads it in the start-up line."""
    result = dspark("run", "Hello", "--acceptance", "typical", "-n", 4, "-c", 512)
    assert "LOSSY" in result.stderr


def test_raw_prompt_has_no_template(dspark):
    """`--raw` continues the text itself."""
    answer = json.loads(
        dspark("run", "--raw", "One, two, three,", "--json", "-n", 4, *GREEDY).stdout
    )
    assert answer["usage"]["prompt_tokens"] < 10
    assert "four" in answer["text"]


def test_stop_string_and_logit_bias(dspark):
    """A stop string ends the answer and is not part of it; a forbidden token never comes."""
    words = ("run", "--raw", "One, two, three,", "--json", "-n", 12, *GREEDY)
    free = json.loads(dspark(*words).stdout)
    stopped = json.loads(dspark(*words, "--stop", "five").stdout)
    assert stopped["finish_reason"] == "stop"
    assert stopped["text"] == free["text"].partition("five")[0]
    biased = json.loads(dspark(*words, "--logit-bias", f"{free['tokens'][0]}-inf").stdout)
    assert free["tokens"][0] not in biased["tokens"]


def test_check_compares_with_plain_decoding(dspark):
    """`--check` ends with equal or near-tie on a sound decoder."""
    result = dspark("run", "Write a haiku about rain.", "--check", "-n", 32, "-c", 512)
    assert result.exit_code == 0
    assert result.stdout.startswith(("equal", "near-tie"))
    found = json.loads(dspark("run", "Hello.", "--check", "--json", "-n", 16, "-c", 512).stdout)
    assert found["drafted"] >= 8 * 2  # by force, whether or not it pays


def test_check_catches_a_rule_that_accepts_everything(dspark, monkeypatch):
    """`--check` can fail: exit code 1 for tokens that the target would not have chosen."""
    monkeypatch.setattr("dspark_gguf.assemble.make_rule", lambda _: lambda t, d, token, rng: token)
    result = dspark(
        "run", "Tell me about the sea.", "--check", "-n", 32, "--draft-min-prob", 0, "-c", 512
    )
    assert result.exit_code == 1
    assert result.stdout.startswith("wrong")


def test_check_without_a_draft_model_compares_copies(dspark, demo_files):
    """What is copied from the prompt is checked like any draft."""
    words = ("run", "Say this again: one two three one two three one two three", "--check")
    result = dspark(*words, "-n", 24, "-m", demo_files[0], "-c", 512)
    assert result.exit_code == 0
    assert " drafted, " in result.stdout
    assert " 0 stood" not in result.stdout


def test_check_of_a_recurrent_model(dspark, tiny_files):
    """Its state goes back where drafts were wrong, and the text is that of plain decoding."""
    words = ("run", "abcabcabcabcabcabc", "--raw", "--check", "--ignore-eos", "-n", 60)
    result = dspark(*words, "-m", tiny_files.mamba, "-c", 256)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(("equal", "near-tie"))
    assert " 0 stood" not in result.stdout


def test_show_config_reads_back(dspark, tmp_path):
    """What `--show-config` prints is a file for `--config`, and flags override it."""
    shown = dspark("run", "--show-config", "--config", "code", "--top-k", 7).stdout
    assert yaml.safe_load(shown)["sampling"] | {"top_k": 7} == yaml.safe_load(shown)["sampling"]
    path = tmp_path / "mine.yaml"
    path.write_text(shown)
    assert dspark("run", "--show-config", "--config", path).stdout == shown
    flagged = dspark("chat", "--show-config", "--config", path, "--draft-max", 2).stdout
    assert yaml.safe_load(flagged)["speculation"]["draft_max"] == 2


BAD = {
    "no prompt": (["run"], 2, "there is no prompt"),
    "blank prompt": (["run", "  "], 2, "there is no prompt"),
    "negative temperature": (["run", "x", "--temp", "-1"], 2, "--temperature is -1.0"),
    "top-p of 7": (["run", "x", "--top-p", "7"], 2, "--top-p is 7.0"),
    "negative budget": (["run", "x", "-n", "-5"], 2, "--predict is -5"),
    "absurd threads": (["run", "x", "-t", "100000"], 2, "threads"),
    "absurd draft": (["run", "x", "--draft-max", "1000"], 2, "--draft-max is 1000"),
    "layers in words": (["run", "x", "-ngl", "many"], 2, "all, none or a number"),
    "bias in words": (["run", "x", "--logit-bias", "much"], 2, "TOKEN_ID"),
    "unknown option": (["run", "x", "--frobnicate"], 2, "No such option"),
    "unknown preset": (["run", "x", "--config", "nope"], 2, "presets are apple-silicon, chat"),
    "draft without target": (["run", "x", "-d", "d.gguf"], 2, "the draft d.gguf has no target"),
    "output without jsonl": (["run", "x", "-o", "out"], 2, "--jsonl"),
    "keep errors of nothing": (["run", "--jsonl", "x", "--keep-errors"], 2, "-o FILE"),
    "prompt too long": (["run", "x " * 600, "-c", "512"], 4, "a context of 512"),
    "context beyond memory": (["run", "x", "-c", "2000000000"], 4, "GiB needed"),
    "missing file": (
        ["run", "x", "-m", "missing.gguf"],
        2,
        "missing.gguf: no such file",
    ),
    "missing chat model": (
        ["chat", "-m", "missing.gguf"],
        2,
        "missing.gguf: no such file",
    ),
    "missing prompt file": (["run", "-f", "missing.txt"], 2, "missing.txt"),
    "missing jsonl": (["run", "--jsonl", "missing.jsonl"], 2, "missing.jsonl"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_a_message_and_a_code(dspark, name, tmp_path, monkeypatch):
    """One or two lines with a problem and a hint; the documented exit code; no traceback."""
    words, code, text = BAD[name]
    monkeypatch.chdir(tmp_path)
    result = dspark(*words)
    assert result.exit_code == code, result.output
    assert text in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    message = [line for line in result.stderr.splitlines() if line.startswith("dspark-gguf: ")]
    if "No such option" not in text:
        assert len(message) == 1
        assert re.fullmatch(r"dspark-gguf: .+\. [A-Z-].+\.", message[0])  # problem, then hint
    assert list(tmp_path.iterdir()) == []


def test_yaml_with_a_wrong_key(dspark, tmp_path):
    """An unknown key is refused with the keys there are."""
    path = tmp_path / "bad.yaml"
    path.write_text("sampling: {temprature: 1}\n")
    result = dspark("run", "x", "--config", path)
    assert result.exit_code == 2
    assert "'sampling.temprature'" in result.stderr
    assert "temperature" in result.stderr


def test_invalid_utf8_on_stdin(dspark):
    """Bytes that are no text are refused with their place, not guessed at."""
    result = CliRunner().invoke(main, ["run"], input=b"caf\xe9")
    assert result.exit_code == 2
    assert "byte 0xe9 at offset 3" in result.stderr


def test_debug_shows_the_traceback(dspark):
    """Only `--debug` shows where an error came from."""
    result = dspark("run", "x", "-m", "missing.gguf", "--debug")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr


def test_prompt_parts_are_joined(monkeypatch, tmp_path):
    """What a question is about comes before it; a part alone keeps every character."""

    def piped(data):
        stdin = io.TextIOWrapper(io.BytesIO(data or b""))
        stdin.isatty = lambda: data is None
        return stdin

    path = tmp_path / "main.c"
    path.write_text("int main;\n")
    monkeypatch.setattr("sys.stdin", piped(b"from stdin\n"))
    assert read_prompt("Why?", path) == "int main;\n\nfrom stdin\n\nWhy?"
    monkeypatch.setattr("sys.stdin", piped(None))
    assert read_prompt(None, path) == "int main;\n"
    monkeypatch.setattr("sys.stdin", piped(b""))
    assert read_prompt("Why?", None) == "Why?"
    with pytest.raises(UsageError):
        read_prompt(None, None)


def test_a_closed_pipe_ends_quietly(demo_files):
    """`| head -1` is no error: nothing on stderr but the usual lines."""
    words = ["run", "--raw", "1\n2\n3\n", "--ignore-eos", "-n", "400", *GREEDY]
    with started(*words) as writer:
        assert writer.stdout.readline()
        writer.stdout.close()
        said = writer.stderr.read().decode()
        assert writer.wait(ENDING) == 0
    assert "Traceback" not in said
    assert "BrokenPipe" not in said


def test_interrupted_run_keeps_what_was_said(demo_files):
    """Ctrl-C: the partial answer stays on stdout, exit code 130."""
    words = ["run", "Tell me a very long story.", "--ignore-eos", "--temp", "0"]
    with started(*words) as process:
        begin = process.stdout.read(12)
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=ENDING)
    assert process.returncode == 130
    assert len(begin) == 12
    assert rest.endswith(b"\n")
    assert b"Traceback" not in said
