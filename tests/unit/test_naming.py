"""What models on a hub are called, and which files are meant."""

from __future__ import annotations

import pytest

from dspark_gguf.errors import UsageError
from dspark_gguf.naming import HubName, chosen, sidecars_for

FILES = [
    "README.md", "m-Q4_K_M.gguf", "m-UD-Q4_K_XL.gguf", "m-Q8_0.gguf", "m-IQ4_XS.gguf",
    "mmproj-BF16.gguf", "m.imatrix.gguf",
    "BF16/m-BF16-00001-of-00002.gguf", "BF16/m-BF16-00002-of-00002.gguf",
    "m-Q6_K-00001-of-00002.gguf", "m.mmproj-Q8_0.gguf", "m-mmproj-IQ4_XS.gguf",
]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "role", "files"),
    [
        ("q4_k_m", "target", ["m-Q4_K_M.gguf"]),
        ("", "target", ["m-Q4_K_M.gguf"]),
        ("", "draft", ["m-Q8_0.gguf"]),
        ("m-Q8_0.gguf", "target", ["m-Q8_0.gguf"]),
        ("*IQ4*", "target", ["m-IQ4_XS.gguf"]),
        ("UD-Q4_K_XL", "target", ["m-UD-Q4_K_XL.gguf"]),
        ("BF16", "target", FILES[7:9]),
        ("m-BF16-00001-of-00002.gguf", "target", FILES[7:9]),
    ],
)
def test_which_file_is_meant(what, role, files):
    """A quantization in any case, a file, a pattern, or the usual one; shards together."""
    assert chosen(HubName("org/m", what), FILES, role) == files


BESIDE = [
    *FILES, "mtp-m-Q8_0.gguf", "mtp-m-Q4_K_M.gguf", "MTP/eagle3-m-F16.gguf", "m-mtp-Q5_0.gguf",
    "m-MTP-Q2_K.gguf",
]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "role", "file"),
    [
        ("Q4_K_M", "target", "m-Q4_K_M.gguf"),
        ("Q8_0", "target", "m-Q8_0.gguf"),
        ("Q5_0", "target", "m-mtp-Q5_0.gguf"),  # only the beginning of a name is a sign
        ("Q2_K", "target", "m-MTP-Q2_K.gguf"),
        ("mtp-m-Q8_0.gguf", "target", "mtp-m-Q8_0.gguf"),
        ("", "draft", "mtp-m-Q8_0.gguf"),
        ("Q4_K_M", "draft", "mtp-m-Q4_K_M.gguf"),
        ("F16", "draft", "MTP/eagle3-m-F16.gguf"),
        ("IQ4_XS", "draft", "m-IQ4_XS.gguf"),  # no sidecar of that kind
    ],
)
def test_a_sidecar_is_no_model(what, role, file):
    """A repository with a model and its sidecar has one model; as a draft the sidecar is meant."""
    assert chosen(HubName("org/m", what), BESIDE, role) == [file]


def test_a_repository_of_a_draft():
    """It has nothing but sidecars: no target, and what a draft's name means there."""
    files = ["dspark-m-Q8_0.gguf", "dspark-m-F16.gguf"]
    assert chosen(HubName("org/d"), files, "draft") == files[:1]
    with pytest.raises(UsageError, match="has no GGUF model"):
        chosen(HubName("org/d"), files, "target")


def test_the_sidecar_to_fetch_with_a_model():
    """The same quantization, else Q8_0, else what there is; one of each kind."""
    assert sidecars_for("m-Q4_K_M.gguf", BESIDE) == {
        "mtp": ["mtp-m-Q4_K_M.gguf"], "eagle3": ["MTP/eagle3-m-F16.gguf"],
    }  # fmt: skip
    assert sidecars_for("m-Q6_K.gguf", BESIDE)["mtp"] == ["mtp-m-Q8_0.gguf"]
    assert sidecars_for("m-UD-Q4_K_M.gguf", BESIDE)["mtp"] == ["mtp-m-Q4_K_M.gguf"]
    assert sidecars_for("m-Q4_K_M.gguf", FILES) == {}


@pytest.mark.parametrize(
    ("what", "got"),
    [
        ("Q4_K", "no model of that name: it has BF16, IQ4_XS, Q4_K_M, Q8_0, UD-Q4_K_XL"),
        ("Q6_K", "no model of that name: it has"),  # half of it is missing
        ("*Q4*", "means 3 models: IQ4_XS, Q4_K_M, UD-Q4_K_XL"),
    ],
)
def test_none_or_several(what, got):
    """Named, with what there is."""
    with pytest.raises(UsageError) as error:
        chosen(HubName("org/m", what), FILES, "target")
    assert got in str(error.value)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("org/repo", HubName("org/repo")),
        ("hf.co/org/repo:Q4_0", HubName("org/repo", "Q4_0")),
        ("https://huggingface.co/org/repo:Q4_0", HubName("org/repo", "Q4_0")),
        ("huggingface.co/org/repo", HubName("org/repo")),
        ("org/repo:sub/m.gguf", HubName("org/repo", "sub/m.gguf")),
        ("https://huggingface.co/org/repo/", HubName("org/repo")),
        ("https://huggingface.co/org/repo/tree/main?x=1", HubName("org/repo")),
        ("https://huggingface.co/o/r/blob/main/m.gguf", HubName("o/r", "m.gguf")),
        ("https://hf.co/o/r/resolve/main/s/m.gguf?download=true", HubName("o/r", "s/m.gguf")),
        ("https://huggingface.co/org/repo/resolve/other/m.gguf", None),
        ("https://example.org/repo/m.gguf", None),
        ("models/m.gguf", None),
        ("./models", None),
        ("../m", None),
        ("/models/m", None),
        ("~/m", None),
        ("C:/models/m", None),
        ("C:\\models\\m", None),
        ("a/b/c", None),
        ("qwen3-8b", None),
    ],
)
def test_what_looks_like_a_name_of_the_hub(text, name):
    """Paths of any system do not."""
    assert HubName.parse(text) == name
