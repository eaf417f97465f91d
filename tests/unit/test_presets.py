"""Presets: each is valid, lossless, and argues for every one of its lines."""

from __future__ import annotations

import pytest

from dspark_gguf.config import Settings
from dspark_gguf.errors import UsageError
from dspark_gguf.paths import packaged
from dspark_gguf.settings_files import load_settings, preset_names, read_yaml, validate


@pytest.mark.parametrize("name", preset_names())
def test_presets_load_and_are_lossless(name):
    """Every shipped preset is valid, and none changes the output behind one's back."""
    assert load_settings(name, {}).speculation.lossless
    assert Settings().speculation.lossless


def test_the_presets_there_are():
    """For a kind of text, and for a kind of machine."""
    assert set(preset_names()) == {
        "chat", "code", "cpu-laptop", "apple-silicon", "cuda",
    }  # fmt: skip
    assert load_settings(None, {}) == Settings()


def leaves(tree, path=()):
    """The path of every key that has a value of its own."""
    for key, value in tree.items():
        yield from leaves(value, (*path, key)) if isinstance(value, dict) else [(*path, key)]


@pytest.mark.parametrize("name", preset_names())
def test_every_line_of_a_preset_matters_and_is_argued(name):
    """Without any of its keys the settings are others, and above each stands why it is there."""
    whole, tree = load_settings(name, {}), read_yaml(name)
    lines = (packaged("configs") / f"{name}.yaml").read_text("utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert list(leaves(tree))
    for path in leaves(tree):
        without = read_yaml(name)
        part = without
        for key in path[:-1]:
            part = part[key]
        del part[path[-1]]
        assert validate(without, name) != whole, path
    for number, line in enumerate(lines):
        key, _, value = line.strip().partition(":")
        if value and not key.startswith("#"):
            assert lines[number - 1].strip().startswith("# "), line


def test_presets_are_put_together(tmp_path, monkeypatch):
    """What for, and which machine; a later one holds; a file's own name may have a comma."""
    both = load_settings("code,cuda", {})
    assert both.sampling == load_settings("code", {}).sampling
    assert both.target_options == load_settings("cuda", {}).target_options
    path = tmp_path / "a,b.yaml"
    path.write_text("sampling: {temperature: 0.5}\n")
    assert load_settings(str(path), {}).sampling.temperature == 0.5
    (tmp_path / "c.yaml").write_text("sampling: {temperature: 0.6}\n")
    monkeypatch.chdir(tmp_path)
    assert load_settings("code,c.yaml", {}).sampling.temperature == 0.6
    assert load_settings("c.yaml,code", {}).sampling.temperature == 0
    (tmp_path / "bad.yaml").write_text("sampling: {temperature: -1}\n")
    with pytest.raises(UsageError, match=r"--config bad\.yaml"):
        load_settings("code,bad.yaml", {})
