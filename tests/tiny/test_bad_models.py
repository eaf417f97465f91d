"""Files and options that cannot work: each one a message, none a crash."""

from __future__ import annotations

import pytest

from dspark_gguf import Limits, ModelOptions, Speculation, load_pair
from dspark_gguf.config import DraftOptions
from dspark_gguf.decoder import Decoder
from dspark_gguf.engine import library
from dspark_gguf.errors import DSparkError, ModelError, ResourceError, UsageError
from tests.tiny_gguf import Tiny, write_llama


def refused(error, text, *files, **options):
    """The message of loading these files, which must fail like this."""
    with pytest.raises(error, match=text) as caught:
        load_pair(*files, **options)
    problem, hint = caught.value.problem, caught.value.hint
    assert str(caught.value) == f"{problem}. {hint}"
    assert not problem.endswith(".")
    assert hint[0].isupper()
    assert hint.endswith(".")
    assert "\n" not in problem + hint
    return caught.value.exit_code


def test_files_that_are_no_model(tiny_files, tmp_path, capfd):
    """Missing, a directory, empty, text, truncated, an embedding model; as target and as draft."""
    cases = [
        (UsageError, "no such file", tmp_path / "missing.gguf", 2),
        (UsageError, "is a directory", tmp_path, 2),
        (ModelError, "it is empty", tiny_files.empty, 1),
        (ModelError, "begins with 'Once'", tiny_files.text, 1),
        (ModelError, "not a complete GGUF", tiny_files.truncated, 1),
        (ModelError, "an embedding or encoder model", tiny_files.embedding, 1),
    ]
    for error, text, path, code in cases:
        assert refused(error, text, path) == code
        with pytest.raises(DSparkError, match=text):
            load_pair(tiny_files.target, path).draft_cache()
    assert capfd.readouterr() == ("", "")


def test_contexts_that_do_not_fit(tiny_files):
    """The memory is counted before it is taken: no swapping, no killed process."""
    huge = 2**31 - 1
    target = {"target_options": ModelOptions(n_ctx=huge)}
    assert refused(ResourceError, r"memory for the .* GiB needed", tiny_files.wide, **target) == 4
    pair = load_pair(tiny_files.wide, tiny_files.wide, draft_options=DraftOptions(n_ctx=huge))
    cache = pair.draft_cache()  # gives way
    assert cache is not None
    assert cache.n_ctx == pair.target_cache.n_ctx
    assert "GiB in main memory" in "".join(pair.notes)
    answer = Decoder.for_pair(pair, speculation=Speculation(mode="off"))
    assert answer.answer([1], Limits(max_tokens=2)).tokens


def test_what_a_cpu_build_cannot_do_is_said(tiny_files, monkeypatch):
    """Layers for a GPU that the build cannot use: a note, for each model."""
    monkeypatch.setattr(library, "can_offload", lambda *_: False)
    asked = {"n_gpu_layers": 20}
    with load_pair(
        tiny_files.target, tiny_files.draft,
        target_options=ModelOptions(**asked), draft_options=DraftOptions(**asked),
    ) as pair:  # fmt: skip
        pair.draft_cache()
        said = [note for note in pair.notes if "no GPU offload" in note]
        assert len(said) == 2
        assert "target.gguf" in said[0]
        assert "draft.gguf" in said[1]
    with load_pair(tiny_files.target, target_options=ModelOptions(n_gpu_layers="none")) as pair:
        assert pair.notes == pair.left_out


def test_options_that_do_not_exist_here(tiny_files):
    """Unknown devices, too many shares, a quantized V cache without flash attention."""

    def options(**values):
        return {"target_options": ModelOptions(**values)}

    target = tiny_files.target
    assert refused(UsageError, r"CUDA7.*CPU", target, **options(devices=("CUDA7",))) == 2
    assert refused(UsageError, "at most", target, **options(tensor_split=(1.0,) * 99)) == 2
    bad = options(cache_type_v="q8_0", flash_attn="off")
    assert refused(ModelError, "flash_attn", target, **bad) == 1


def test_warnings(tiny_files, tmp_path):
    """A draft larger than its target, a context beyond the training length: said, not refused."""
    with load_pair(tiny_files.draft, tiny_files.wide) as pair:
        pair.draft_cache()
        assert any("larger than the target" in note for note in pair.notes)
    with load_pair(tiny_files.target, target_options=ModelOptions(n_ctx=512)) as pair:
        assert any("beyond the 256 tokens" in note for note in pair.notes)
        assert pair.target_cache.n_ctx == 512
    scaled = ModelOptions(n_ctx=512, rope_scaling="yarn")
    with load_pair(tiny_files.target, target_options=scaled) as pair:
        assert pair.notes == pair.left_out
    short = write_llama(tmp_path / "short.gguf", Tiny(context=64))
    with load_pair(tiny_files.target, short) as pair:
        pair.draft_cache()
        assert any("beyond that, plain decoding" in note for note in pair.notes)


def test_where_both_models_sit(tiny_files):
    """The start-up line names both files, their places and sizes, and what speculation does."""
    with load_pair(tiny_files.target, tiny_files.draft) as pair:
        off = pair.summary(Speculation(mode="off"))
        assert "draft" not in off
        assert "speculation off" in off
        pair.draft_cache()
        line = pair.summary(Speculation(acceptance="rejection"))
        assert line.startswith("target target on CPU: ")
        assert "\ndraft draft on CPU: " in line
        assert line.endswith(
            "speculation auto: rejection (lossless), "
            "up to 12 draft tokens a round, as many as pay here"
        )
        by_hand = pair.summary(Speculation(mode="on", draft_max=8))
        assert by_hand.endswith(
            "speculation on: lossless, up to 8 draft tokens a round at 60% or more"
        )
        assert "LOSSY" in pair.summary(Speculation(acceptance="threshold"))
    with load_pair(tiny_files.target) as pair:
        assert pair.summary(Speculation()).endswith(
            "lossless, up to 64 tokens copied from the conversation, as many as pay here"
        )
