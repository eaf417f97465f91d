"""Settings: from YAML and back, refused when wrong, in the right order of precedence."""

from __future__ import annotations

import os

import pytest
import yaml
from pydantic import ValidationError

from dspark_gguf import settings_part
from dspark_gguf.config import MAX_DRAFT, DraftOptions, Limits, ModelOptions, Settings, Speculation
from dspark_gguf.errors import UsageError
from dspark_gguf.paths import remove_parts
from dspark_gguf.settings_files import load_settings, merge, read_yaml, validate
from tests.properties import given, st
from tests.properties import settings as examples

#: No clock in a test: a busy machine is no failure.
EXAMPLES = examples(deadline=None)

CHANGED = {
    "model": "target.gguf",
    "draft": "größe.gguf",
    "target_options": {"n_gpu_layers": "all", "n_ctx": 4096, "tensor_split": [3, 1]},
    "draft_options": {"n_gpu_layers": 4, "devices": ["CUDA0"], "rope_scaling": "yarn"},
    "sampling": {"temperature": 0.3, "seed": 7, "logit_bias": {5: -1.5, 9: "-inf"}},
    "limits": {"max_tokens": 100, "stop": ["\n\n", "END", "日本"]},
    "speculation": {"mode": "on", "acceptance": "match", "draft_max": 3},
    "chat": {"system": "Be brief.\nBe kind.", "context_shift": True, "think": False},
}


def refusal(tree):
    """The error that these values give."""
    with pytest.raises(UsageError) as caught:
        validate(tree, "the file")
    return caught.value


@pytest.mark.parametrize("tree", [{}, CHANGED])
def test_yaml_round_trip(tree, tmp_path):
    """What `--show-config` prints, `--config` reads: the same settings, defaults or not."""
    settings = validate(tree, "a test")
    path = tmp_path / "all.yaml"
    path.write_text(settings.as_yaml(), encoding="utf-8")
    assert load_settings(str(path), {}) == settings
    assert settings.as_yaml() == load_settings(str(path), {}).as_yaml()


STOPS = st.lists(st.text(st.characters(exclude_characters="\x85"), min_size=1), max_size=3)


@EXAMPLES
@given(max_tokens=st.none() | st.integers(0, 10**9), stops=STOPS)
def test_any_stop_string_survives_yaml(max_tokens, stops):
    """Control characters, quotes, colons, numbers that look like text: YAML has traps.

    All but U+0085, which PyYAML writes as the line break that it once was.
    """
    settings = Settings(limits=Limits(max_tokens=max_tokens, stop=tuple(stops)))
    assert Settings.model_validate(yaml.safe_load(settings.as_yaml())) == settings


@pytest.mark.parametrize(
    ("tree", "key", "known"),
    [
        ({"temperature": 1}, "temperature", "sampling"),
        ({"sampling": {"temp": 1}}, "sampling.temp", "temperature"),
        ({"draft_options": {"ctx": 1}}, "draft_options.ctx", "n_ctx"),
        ({"speculation": {"accept": "match"}}, "speculation.accept", "acceptance"),
    ],
)
def test_an_unknown_key_is_refused_with_the_known_ones(tree, key, known):
    """Never an option that is accepted and ignored: the error names it and the right ones."""
    error = refusal(tree)
    assert f"unknown setting '{key}'" in error.problem
    assert known in error.hint.removesuffix(".").split(": ")[1].split(", ")
    assert "the file" in error.problem


@pytest.mark.parametrize(
    ("part", "key", "wrong"),
    [
        ("sampling", "temperature", -0.1),
        ("sampling", "temperature", "warm"),
        ("sampling", "temperature", float("nan")),
        ("sampling", "top_p", 0),
        ("sampling", "top_p", 1.01),
        ("sampling", "top_k", -1),
        ("sampling", "top_k", 2.5),
        ("sampling", "min_p", 1.5),
        ("sampling", "repeat_penalty", 0),
        ("sampling", "repeat_last_n", -2),
        ("sampling", "seed", -1),
        ("sampling", "logit_bias", {"five": 1.0}),
        ("limits", "max_tokens", -1),
        ("limits", "stop", [""]),
        ("speculation", "mode", "maybe"),
        ("speculation", "draft_max", MAX_DRAFT + 1),
        ("speculation", "draft_max", -1),
        ("speculation", "draft_min_prob", 1.1),
        ("speculation", "acceptance", "always"),
        ("target_options", "n_ctx", -1),
        ("target_options", "n_gpu_layers", -2),
        ("target_options", "n_gpu_layers", "some"),
        ("target_options", "cache_type_k", "q3"),
        ("target_options", "tensor_split", [1, -1]),
        ("target_options", "tensor_split", [0, 0]),
        ("chat", "context_shift", "perhaps"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(part, key, wrong):
    """The text says what was set where, and what it takes; wrong use exits with 2."""
    error = refusal({part: {key: wrong}})
    assert error.problem.startswith(f"{part}.{key}")
    assert " in the file is " in error.problem
    assert str(error) == f"{error.problem}. {error.hint}"
    assert error.hint.startswith("It takes ")
    assert "Value error" not in str(error)
    assert error.exit_code == 2


@pytest.mark.parametrize("part", ["sampling", "chat"])
def test_a_part_must_be_a_mapping(part):
    """A list or a number in place of a part names the part."""
    assert part in refusal({part: 3}).problem


def test_one_stop_string_may_stand_alone():
    """`stop: END` in YAML is one stop string, not three letters."""
    assert validate({"limits": {"stop": "END"}}, "").limits.stop == ("END",)


def test_settings_cannot_be_changed_in_place():
    """They travel through the program: a change makes a new object."""
    with pytest.raises(ValidationError):
        Settings().sampling.temperature = 0.0


def test_flags_over_file_over_defaults(tmp_path):
    """Key by key: a flag replaces one value of a part, not the part."""
    path = tmp_path / "mine.yaml"
    path.write_text("sampling: {temperature: 0.2, top_k: 5}\nlimits: {max_tokens: 9}\n")
    settings = load_settings(str(path), {"sampling": {"temperature": 0.9}, "draft": "d.gguf"})
    assert (settings.sampling.temperature, settings.sampling.top_k) == (0.9, 5)
    assert (settings.limits.max_tokens, settings.draft) == (9, "d.gguf")
    assert settings.sampling.top_p == Settings().sampling.top_p


def test_a_wrong_value_is_blamed_on_its_source(tmp_path):
    """The file's mistake names the file, also where a flag would hide it; a flag's, the flags."""
    path = tmp_path / "mine.yaml"
    path.write_text("sampling: {temperature: -1}\n")
    with pytest.raises(UsageError, match=r"mine\.yaml"):
        load_settings(str(path), {"sampling": {"temperature": 1.0}})
    with pytest.raises(UsageError, match=r"^--temperature is"):
        load_settings(None, {"sampling": {"temperature": -1}})


def test_merging_changes_neither_side():
    """Nested dictionaries are merged into new ones."""
    below, above = {"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 4}, "b": {"z": 5}}
    assert merge(below, above) == {"a": {"x": 1, "y": 4}, "b": {"z": 5}}
    assert (below, above) == ({"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 4}, "b": {"z": 5}})


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ("- a\n- list\n", "a list"),
        ("just words", "a str"),
        ("sampling: [unclosed", "line 1"),
        (b"\xff\xfe\x00", ": not UTF-8 text"),
        pytest.param(b"#" * (2**20 + 1), "more than 1 MiB", id="too long"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(content, got, tmp_path):
    """One line that says what is wrong with it, never a traceback."""
    path = tmp_path / "bad.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=r"bad\.yaml") as caught:
        read_yaml(str(path))
    assert got in caught.value.problem
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no such device")
def test_a_file_without_an_end_is_not_read_to_it():
    """A device or a pipe says nothing of its size."""
    with pytest.raises(UsageError, match="more than 1 MiB"):
        read_yaml("/dev/zero")


def test_a_missing_file_names_the_presets(tmp_path):
    """A misspelt preset looks like a missing file, as does one in the home of nobody."""
    for name in ("aple-silicon", "~nobody-here/x.yaml"):
        with pytest.raises(UsageError, match="apple-silicon"):
            load_settings(name, {})
    with pytest.raises(UsageError):
        read_yaml(str(tmp_path))


def test_an_empty_file_changes_nothing(tmp_path):
    """Only comments: all defaults."""
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing yet\n")
    assert load_settings(str(path), {}) == Settings()


def test_draft_options_differ_from_the_targets_in_buffers_only():
    """The same fields, so that every flag of the one exists for the other."""
    assert DraftOptions.model_fields.keys() == ModelOptions.model_fields.keys()
    target, draft = ModelOptions().model_dump(), DraftOptions().model_dump()
    assert {key for key in target if target[key] != draft[key]} == {"n_batch", "n_ubatch"}
    assert Speculation().max_draft_steps <= Speculation().max_lookup_tokens == MAX_DRAFT


def test_a_renamed_value_works_and_says_so_once(tmp_path, capfd):
    """In Python and in a file, for one version."""
    path = tmp_path / "old.yaml"
    path.write_text("speculation: {acceptance: ratio}\n")
    for make in (
        lambda: Speculation(acceptance="ratio"),
        lambda: load_settings(str(path), {}).speculation,
    ):
        settings_part._say_renamed.cache_clear()
        assert [make().acceptance for _ in range(2)] == ["rejection"] * 2
        assert capfd.readouterr().err == "acceptance ratio is now called rejection\n"


def test_an_option_is_called_as_it_is_typed():
    """On the command line; in a file, by its place there."""
    with pytest.raises(UsageError, match=r"^--temperature is -1\. It takes a value greater"):
        load_settings(None, {"sampling": {"temperature": -1}})
    with pytest.raises(UsageError, match=r"^--ctx-size is -5"):
        load_settings(None, {"target_options": {"n_ctx": -5}})
    with pytest.raises(UsageError, match=r"^--ctx-size-draft is -5"):
        load_settings(None, {"draft_options": {"n_ctx": -5}})
    with pytest.raises(UsageError, match=r"^--tensor-split is 'a'\. It takes a number\.$"):
        load_settings(None, {"target_options": {"tensor_split": ["a", "b"]}})
    with pytest.raises(UsageError, match=r"^--logit-bias is 'x'\. It takes a number\.$"):
        load_settings(None, {"sampling": {"logit_bias": {5: "x"}}})


def test_parts_of_files_are_removed_once_they_are_old(tmp_path):
    """What a killed process left; not what another one is writing."""
    old, new = tmp_path / ".a.json.1.part", tmp_path / ".b.json.2.part"
    for path in (old, new):
        path.write_text("")
    os.utime(old, (0, 0))
    remove_parts(tmp_path, older=3600.0)
    assert [path.name for path in tmp_path.iterdir()] == [new.name]
    remove_parts(tmp_path)
    assert not new.exists()
