"""Texts of the user's own to copy from."""


def test_built_and_used_from_the_command_line(dspark, demo_files, tmp_path):
    """A poem that the model does not know is in the store; a binary file is left out."""
    folder = tmp_path / "texts"
    folder.mkdir()
    lines = "one two three four five six seven eight nine ten\n"
    (folder / "count.txt").write_text(lines * 3)
    (folder / "image.bin").write_bytes(b"\xff\xfe\x00")
    (folder / ".hidden").write_text("secret")
    store = tmp_path / "mine.lookup"
    result = dspark("lookup", "build", folder, "-o", store, "-m", demo_files[0])
    assert result.exit_code == 0
    assert "left out" in result.stderr
    assert "image.bin" in result.stderr
    assert str(store) in result.stdout
    words = ("run", "Count from one to ten: one two three", "-m", demo_files[0], "-n", 24,
             "--lookup-store", store, "--temp", 0, "-c", 512)  # fmt: skip
    assert dspark(*words).exit_code == 0
    missing = dspark("lookup", "build", tmp_path / "no", "-o", store, "-m", demo_files[0])
    assert missing.exit_code == 2
    assert "there is no file or folder" in missing.stderr
    other = dspark("run", "x", "-m", demo_files[0], "--lookup-store", folder / "count.txt")
    assert other.exit_code == 2
    assert "is not a store of texts" in other.stderr
