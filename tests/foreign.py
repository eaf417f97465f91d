"""Everything that reads foreign bytes, as functions of a file, and whole files to begin with.

Each reader works or raises a DSparkError. ``tests/tiny/test_fuzz.py`` runs them on a bounded number
of damaged files; ``scripts/fuzz.py`` looks for more, guided by coverage.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dspark_gguf.catalog.inspect import as_text, inspect
from dspark_gguf.catalog.pairs import known_pairs
from dspark_gguf.chat import transcript
from dspark_gguf.chat.jobs import Job, read_jobs
from dspark_gguf.chat.results import results_in
from dspark_gguf.cost import load_table
from dspark_gguf.draft import Store
from dspark_gguf.errors import DSparkError
from dspark_gguf.learned import Learned
from dspark_gguf.measure.chains import load_chains
from dspark_gguf.paths import packaged
from dspark_gguf.settings_files import load_settings
from dspark_gguf.visible import as_json, visible


@dataclass(frozen=True)
class Foreign:
    """A kind of file.

    Attributes:
        ending: of its name.
        read: what the package does with it.
        seeds: makes whole files.

    """

    ending: str
    read: Callable[[Path], object]
    seeds: Callable[[], list[bytes]]


def read_gguf(path):
    """As `inspect` prints it."""
    facts = inspect(path)
    visible(as_text(facts)).encode()
    json.loads(as_json(facts))


def read_store(path):
    """A store, asked for matches."""
    store = Store.load(path, "letters", 9)
    for known in ([1, 2, 3], [7] * 9, []):
        store.matches(known)


def read_learned(path):
    """What was learned must be usable, or is learned anew."""
    learned = Learned(path)
    for seconds in (learned.costs.target_seconds, learned.costs.draft_seconds):
        assert np.isfinite(seconds).all()
        assert (seconds >= 0).all()
    assert learned.costs.target_seconds[0] > 0
    for drafter in ("model", "lookup"):
        calibration = learned.calibration(drafter, "rejection", 0.8)
        for dist in (calibration.confidence, calibration.start, calibration.follow):
            assert np.isfinite(dist).all()
            assert ((dist >= 0) & (dist <= 1)).all()
    json.dumps(learned.costs.as_dict())


def read_results(path):
    """A results file that a batch would go on with."""
    jobs = [Job(0, {"prompt": "a"}), Job(1, {"prompt": "b"})]
    with results_in(path, jobs, load_settings(None, {}), keep_errors=False):
        pass


def read_batch(path):
    """Prompts: each makes a conversation, or is a job that fails."""
    for job in read_jobs(path):
        with suppress(DSparkError):
            job.messages  # noqa: B018


def npz(**arrays):
    """Bytes of such a file."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def gguf_header(*pairs, tensors=(), n_pairs=None, n_tensors=None):
    """Bytes of a GGUF 3: (key, type, packed value) and (name, shape, type) in order."""
    out = b"GGUF" + struct.pack("<I", 3)
    out += struct.pack("<QQ", len(tensors) if n_tensors is None else n_tensors,
                       len(pairs) if n_pairs is None else n_pairs)  # fmt: skip
    for key, kind, value in pairs:
        out += text(key) + struct.pack("<I", kind) + value
    for name, shape, kind in tensors:
        out += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, 0)
    return out


def text(value):
    """A string as GGUF has it."""
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def gguf_seeds():
    """A model and a block draft."""
    model = gguf_header(
        ("general.architecture", 8, text("llama")),
        ("general.name", 8, text("a model")),
        ("general.file_type", 4, struct.pack("<I", 7)),
        ("llama.block_count", 4, struct.pack("<I", 2)),
        ("llama.attention.head_count", 4, struct.pack("<I", 4)),
        ("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2) + text("a") + text("b")),
        ("tokenizer.chat_template", 8, text("{{ messages }}")),
        tensors=[("token_embd.weight", (32, 2), 0)],
    ) + bytes(512)
    draft = gguf_header(
        ("general.architecture", 8, text("dflash")),
        ("dflash.block_size", 4, struct.pack("<I", 4)),
        ("dflash.embedding_length", 4, struct.pack("<I", 32)),
        ("dflash.target_layers", 9, struct.pack("<IQ2I", 4, 2, 1, 2)),
        ("dflash.attention.causal", 7, b"\0"),
        ("tokenizer.ggml.mask_token_id", 4, struct.pack("<I", 1)),
        tensors=[("markov_w1.weight", (32, 2), 0)],
    ) + bytes(512)
    return [model, draft]


def learned_seeds():
    """What a profile and some drafts leave."""
    learned = Learned()
    for rows in (1, 2, 4):
        learned.costs.add_pass(rows, rows * 0.01)
    learned.costs.add_draft_step(0.002)
    learned.calibration("model", "rejection", 0.8).observe([1.0, 2.0], [1, 0])
    learned.calibration("lookup", "rejection", 0.8).observe([1.0, 2.0], [1, 0])
    calibrations = {k: one.as_dict() for k, one in learned._calibrations.items()}
    record = {"format": 1, "costs": learned.costs.as_dict(), "calibrations": calibrations}
    return [json.dumps(record).encode()]


def chat_seeds():
    """Two turns, and none."""
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2
    record = {"format": transcript.FORMAT, "system": None, "messages": said, "settings": {}}
    return [json.dumps(record).encode(), b'{"messages": []}']


def chain_seeds():
    """A text with all arrays, and one without a draft model."""
    two = np.full((3, 2), 0.5, dtype=np.float32)
    yes = np.ones((3, 2), dtype=np.bool_)
    return [
        npz(confidence_0=two, survived_0=yes, domain_0=np.array("code"), gap_0=two,
            lookup_0=two, lookup_survived_0=yes),
        npz(confidence_0=two[:, :0], survived_0=yes[:, :0]),
    ]  # fmt: skip


def store_seeds():
    """A store of two texts."""
    store = Store.of_texts([[1, 2, 3, 1, 2, 3], [7] * 9], 100, "letters")
    return [
        npz(tokens=np.array(store.tokens, dtype=np.int32), pairs=store._pairs,
            places=store._places, vocabulary=np.array("letters")),
    ]  # fmt: skip


FOREIGN = {
    "gguf": Foreign(".gguf", read_gguf, gguf_seeds),
    "settings": Foreign(
        ".yaml",
        lambda path: load_settings(str(path), {}),
        lambda: [
            load_settings(None, {}).as_yaml().encode(),
            b"sampling: {temperature: 1, logit_bias: {3: -inf}}\nlimits: {stop: [a, b]}\n",
        ],
    ),
    "models": Foreign(".txt", known_pairs, lambda: [packaged("models.txt").read_bytes()]),
    "chat": Foreign(".json", transcript.read, chat_seeds),
    "learned": Foreign(".json", read_learned, learned_seeds),
    "table": Foreign(
        ".json", load_table, lambda: [b'{"target_seconds": [1, 2.5], "draft_seconds": [0, 1]}']
    ),
    "chains": Foreign(".npz", load_chains, chain_seeds),
    "store": Foreign(".npz", read_store, store_seeds),
    "jobs": Foreign(
        ".jsonl",
        read_batch,
        lambda: [b'{"prompt": "a"}\n\n{"messages": [{"role": "user", "content": "b"}], "id": 1}\n'],
    ),
    "results": Foreign(
        ".jsonl",
        read_results,
        lambda: [
            b'{"index": 0, "input": {"prompt": "a"}, "settings": {"sampling": {"seed": 1}}}\n'
            b'{"index": 1,'
        ],
    ),
}
