"""A drafter from outside the package: one file, one registration, and every door is open to it."""

from __future__ import annotations

import sys

import pytest
from click.testing import CliRunner

from dspark_gguf import Decoder, Limits, ModelOptions, Sampling, Speculation, load_pair
from dspark_gguf.cli import main
from dspark_gguf.draft import base
from dspark_gguf.dropin.llama import DSparkLlama
from dspark_gguf.errors import UsageError

PROMPT = [1, 2, 3, 4, 1, 2, 3]
#: Guesses that the last token comes again, and counts how often it was asked.
SOURCE = """
from dspark_gguf.draft import Drafter, drafter
from dspark_gguf.records import Draft, Segment


@drafter("again")
class Again(Drafter):
    name, about, is_free = "again", "the last token", True
    asked = 0

    @classmethod
    def of(cls, kit):
        return cls()

    def propose(self, tokens, plan):
        Again.asked += 1
        guesses, scores = [tokens[-1]] * min(4, plan.length), [3.0] * min(4, plan.length)
        return Draft(Segment.of_guesses(self.name, guesses, scores, plan.take(scores)))
"""


@pytest.fixture
def again(tmp_path, monkeypatch):
    """Installed beside the package, with an entry point; not imported yet."""
    (tmp_path / "again_drafter.py").write_text(SOURCE)
    info = tmp_path / "again_drafter-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: again-drafter\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dspark_gguf.drafters]\nagain = again_drafter:Again\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("again_drafter", None)
    base._DRAFTERS.pop("again", None)


def asked():
    return sys.modules["again_drafter"].Again.asked


@pytest.mark.usefixtures("again")
def test_in_the_loop(tiny_files):
    """By its name in the settings; plain decoding's text; its scores are its own to learn."""
    exact = ModelOptions(n_ctx=256, flash_attn="off", cache_type_k="f32", cache_type_v="f32")
    with load_pair(tiny_files.target, target_options=exact) as pair:
        texts = []
        for settings in ({"mode": "off"}, {"drafter": "again"}, {"drafter": "again", "mode": "on"}):
            decoder = Decoder.for_pair(pair, Sampling(temperature=0), Speculation(**settings))
            texts.append(decoder.answer(PROMPT, Limits(max_tokens=40)).tokens)
        assert texts[0] == texts[1] == texts[2]
        assert asked() > 20
        learned = pair.learned(Speculation())
        assert any(key.startswith("again/") for key in learned._calibrations)


@pytest.mark.usefixtures("again")
def test_from_the_command_line(tiny_files, dspark):
    """`run --drafter` and `bench --methods`."""
    words = ["-m", str(tiny_files.target), "-c", "256"]
    result = dspark("run", *words, "--drafter", "again", "-n", "8", "hi")
    assert result.exit_code == 0, result.output
    assert asked()
    result = CliRunner().invoke(
        main, ["bench", *words, "--methods", "again", "--tokens", "8", "--domains", "chat"]
    )
    assert result.exit_code == 0, result.output
    assert "the last token, as many as pay here" in result.output


@pytest.mark.usefixtures("again")
def test_in_the_drop_in(tiny_files):
    """By its name, as the object's own drafter."""
    llama = DSparkLlama(
        str(tiny_files.target), n_ctx=128, verbose=False, speculation=Speculation(drafter="again")
    )
    assert llama.drafter.name == "again"
    assert llama.create_completion("abc", max_tokens=12)["usage"]["completion_tokens"]
    assert asked()
    llama.close()


def test_an_unknown_name_lists_the_known_ones(tiny_files, dspark):
    """On every path."""
    with pytest.raises(
        UsageError, match="auto, block, eagle3, foreign, lookup, mapped, model, mtp"
    ):
        DSparkLlama(str(tiny_files.target), verbose=False, speculation=Speculation(drafter="no"))
    result = dspark("run", "-m", str(tiny_files.target), "--drafter", "no", "x")
    assert result.exit_code == 2
    assert "'no'" in result.output
