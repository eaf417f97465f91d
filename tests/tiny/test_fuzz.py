"""Foreign files, damaged in any way: each reader works or raises a DSparkError."""

from __future__ import annotations

import io
import json
import re
import struct
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dspark_gguf.errors import DSparkError
from tests.children import run_python
from tests.foreign import FOREIGN, gguf_header, text

#: Derandomized: what the suite finds it finds everywhere; `scripts/fuzz.py` looks further.
BOUNDED = settings(max_examples=100, deadline=None, derandomize=True)


def reads(name, data, folder):
    """Whether the file was read; any other error than ours is a failure."""
    foreign = FOREIGN[name]
    path = folder / f"file{foreign.ending}"
    path.write_bytes(data)
    message = None
    try:
        foreign.read(path)
    except DSparkError as error:
        message = str(error)
    assert message is None or re.fullmatch(r".+\. [A-Z].*", message, re.DOTALL)
    assert len(message or "") < 2000
    return message is None


@st.composite
def damaged(draw, name):
    """A whole file with some bytes changed, cut, doubled or put in."""
    data = bytearray(draw(st.sampled_from(FOREIGN[name].seeds())))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 16)))
        change = draw(st.sampled_from(["bytes", "number", "cut", "double", "end"]))
        if change == "bytes":
            data[start:end] = draw(st.binary(max_size=16))
        elif change == "number":
            data[start : start + 8] = struct.pack("<Q", draw(st.integers(0, 2**64 - 1)))
        elif change == "cut":
            del data[start:end]
        elif change == "double":
            data[start:start] = data[start:end] * draw(st.integers(1, 50))
        else:
            del data[start:]
    return bytes(data)


@pytest.mark.parametrize("name", FOREIGN)
def test_whole_files_are_read(name, tmp_path):
    """What the damage below begins with is good."""
    assert all(reads(name, data, tmp_path) for data in FOREIGN[name].seeds())


@pytest.mark.parametrize("name", FOREIGN)
def test_damaged_files(name, tmp_path_factory):
    """Any damage to a whole file."""
    folder = tmp_path_factory.mktemp(name)

    @BOUNDED
    @given(damaged(name))
    def check(data):
        reads(name, data, folder)

    check()


@pytest.mark.parametrize("name", FOREIGN)
def test_any_bytes(name, tmp_path_factory):
    """Whatever a file may hold."""
    folder = tmp_path_factory.mktemp(name)

    @BOUNDED
    @given(st.binary(max_size=200))
    @example(b"")
    @example(b"\xff\xfe")
    @example(b"[" * 200_000)
    @example(b'{"a":' * 100_000)
    @example(b"9" * 10_000)
    @example(b"\x93NUMPY\x01\x00\x10\x00{'descr':'<f4'}\n")
    def check(data):
        reads(name, data, folder)

    check()


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**30, -1, 1e308, "inf", "\ud800", [], {}]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["1", "role", "content", "first", "-inf"]), inner)
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("name", ["settings", "chat", "learned", "table", "jobs", "results"])
def test_any_value_in_any_place(name, tmp_path_factory):
    """JSON (which is YAML too) with a value of another kind than is wanted there."""
    folder = tmp_path_factory.mktemp(name)
    seed = FOREIGN[name].seeds()[0]
    values = None if name == "settings" else json.loads(seed.split(b"\n")[0])
    if values is None:
        import yaml

        values = yaml.safe_load(seed)

    @BOUNDED
    @given(st.data())
    def check(data):
        tree = json.loads(json.dumps(values))
        place = tree
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = data.draw(st.sampled_from(keys))
            if not (isinstance(place[key], dict | list) and place[key]) or data.draw(st.booleans()):
                break
            place = place[key]
        place[key] = data.draw(VALUES)
        reads(name, json.dumps(tree).encode(), folder)

    check()


KEYS = [
    "general.architecture", "general.name", "general.file_type", "general.license",
    "general.alignment", "llama.block_count", "llama.attention.head_count",
    "llama.embedding_length", "dflash.block_size", "dflash.embedding_length",
    "dflash.target_layers", "dflash.sample_from_anchor", "dflash.attention.causal",
    "dflash.selector_top_k", "dflash.attention.sliding_window", "tokenizer.ggml.tokens",
    "tokenizer.ggml.mask_token_id", "tokenizer.ggml.model", "tokenizer.chat_template",
]  # fmt: skip
NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}


@st.composite
def typed_value(draw):
    """A kind and a packed value of metadata, of any kind."""
    if draw(st.booleans()):
        words = st.sampled_from(["dflash", "llama", "\x1b[2J", ""]) | st.text(max_size=9)
        return 8, text(draw(words.filter(lambda word: max(word, default="a") < "\ud800")))
    kind = draw(st.sampled_from(sorted(NUMBERS)))
    form = NUMBERS[kind]
    bits = st.binary(min_size=struct.calcsize(form), max_size=struct.calcsize(form))
    if draw(st.booleans()):
        return kind, draw(bits)
    items = draw(st.lists(bits, max_size=3))
    return 9, struct.pack("<IQ", kind, len(items)) + b"".join(items)


@settings(BOUNDED, max_examples=250, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(st.sampled_from(KEYS), typed_value(), max_size=12),
    st.sampled_from(["llama", "dflash", None]),
    st.lists(
        st.tuples(
            st.sampled_from(["markov_w1.weight", "selector_hidden.weight", "d2t", "a"]),
            st.lists(st.integers(0, 2**40), min_size=0, max_size=4),
            st.integers(0, 40),
        ),
        max_size=1,
    ),
)
def test_metadata_of_any_kind(tmp_path_factory, pairs, architecture, tensors):
    """A true header whose values are of other kinds than `inspect` expects."""
    if architecture:
        pairs = {**pairs, "general.architecture": (8, text(architecture))}
    data = gguf_header(*((key, *value) for key, value in pairs.items()), tensors=tensors)
    reads("gguf", data + bytes(64), tmp_path_factory.getbasetemp())


HUGE = {
    "tensors": gguf_header(n_tensors=2**60),
    "pairs": gguf_header(n_pairs=2**60),
    "negative": gguf_header(n_tensors=2**64 - 1, n_pairs=2**63),
    "a string": gguf_header(n_pairs=1) + struct.pack("<Q", 2**62) + b"abc",
    "a value": gguf_header(("a", 8, struct.pack("<Q", 2**40))),
    "an array": gguf_header(("a", 9, struct.pack("<IQ", 0, 2**40))),
    "strings": gguf_header(("a", 9, struct.pack("<IQ", 8, 2**60))),
    "arrays": gguf_header(("a", 9, struct.pack("<IQ", 9, 2**60))),
    "a tensor": gguf_header(tensors=[("a", (2**40, 2**40), 0)]),
}
IN_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from tests.foreign import FOREIGN
from dspark_gguf.errors import DSparkError
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28,) * 2)
for path in map(Path, sys.argv[2:]):
    try:
        FOREIGN[sys.argv[1]].read(path)
        print("read", path.name)
    except DSparkError as error:
        print("refused", path.name, error)
"""


def in_little_memory(name, paths):
    """Read the files in a process that may use 256 MiB more than it has."""
    if sys.platform != "linux":
        pytest.skip("needs /proc and a limit on address space")
    ran = run_python("-c", IN_LITTLE_MEMORY, name, *paths)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


def test_a_header_that_claims_much_takes_little(tmp_path):
    """2^60 tensors, pairs, items: refused over what the file has, in little memory."""
    paths = []
    for name, data in HUGE.items():
        paths.append(tmp_path / f"{name}.gguf")
        paths[-1].write_bytes(data)
    said = in_little_memory("gguf", paths)
    assert said.count("refused ") == len(HUGE)


def test_arrays_that_claim_much_take_little(tmp_path):
    """A header of 2^50 numbers, and zeros that unpack to more than a gigabyte."""
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        member, {"descr": "<f4", "fortran_order": False, "shape": (2**25, 2**25)}
    )
    claims, bomb = tmp_path / "claims.npz", tmp_path / "bomb.npz"
    with zipfile.ZipFile(claims, "w") as archive:
        archive.writestr("confidence_0.npy", member.getvalue() + bytes(99))
    with zipfile.ZipFile(bomb, "w") as archive:
        archive.writestr("confidence_0.npy", member.getvalue())
    data = bytearray(bomb.read_bytes())
    place = data.index(b"PK\1\2") + 24  # the size after unpacking, in the archive's directory
    data[place : place + 4] = struct.pack("<I", 2**31)
    bomb.write_bytes(data)
    assert in_little_memory("chains", [claims, bomb]).count("refused ") == 2
    assert "unpacks to" in in_little_memory("chains", [bomb])


BOMB = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    f"{chr(98 + k)}: &{chr(98 + k)} [{', '.join(['*' + chr(97 + k)] * 9)}]\n".encode()
    for k in range(12)
)


def test_yaml_that_grows_takes_little(tmp_path):
    """Nested aliases mean 9^12 words; deep nesting; numbers and dates that are none."""
    files = {
        "bomb": BOMB + b"sampling: *m\n",
        "deep": b"limits: " + b"[" * 5000,
        "long": b"sampling: {seed: " + b"9" * 10_000 + b"}",
        "date": b"model: 2001-99-99",
        "large": b"# " + b"x" * 3_000_000,
    }
    paths = []
    for name, data in files.items():
        paths.append(tmp_path / f"{name}.yaml")
        paths[-1].write_bytes(data)
    assert in_little_memory("settings", paths).count("refused ") == len(files)


@pytest.mark.parametrize("name", sorted({*FOREIGN} - {"learned", "results"}))
def test_the_message_names_the_file(name, tmp_path):
    """So that it can be found among many. What was learned is learned anew without a word more."""
    path = tmp_path / f"named{FOREIGN[name].ending}"
    path.write_bytes(b"\xff\x00nonsense")
    with pytest.raises(DSparkError, match=path.name):
        FOREIGN[name].read(path)
