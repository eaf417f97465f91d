"""Memory: what is needed is known before anything is loaded, and the draft gives way first."""

from __future__ import annotations

import re
from functools import partial
from types import SimpleNamespace

import pytest

from dspark_gguf import Decoder, DSparkLlama, Limits, Sampling, Speculation, load_pair
from dspark_gguf.config import DraftOptions, ModelOptions
from dspark_gguf.engine import library, memory
from dspark_gguf.engine.fitting import FreeMemory, draft_need, ways_to_fit, what_gave_way
from dspark_gguf.engine.gguf import read_header
from dspark_gguf.engine.memory import Need, need_of
from dspark_gguf.engine.model import Model
from dspark_gguf.engine.pair import Pair
from dspark_gguf.errors import ModelError, ResourceError, UsageError
from tests.tiny_eagle3 import write_assistant, write_gemma4
from tests.tiny_gguf import Tiny, write_llama
from tests.tiny_heads import HEADS, Made, write_mtp
from tests.tiny_kinds import WRITERS, write_qwen3next

MIB = 1024**2
GREEDY = Sampling(temperature=0.0)


@pytest.fixture
def log(capfd):
    """What llama.cpp says, by a regular expression with one number."""
    library.set_command_log(True)
    yield lambda pattern: [float(one) for one in re.findall(pattern, capfd.readouterr().err)]
    library.set_command_log(False)


@pytest.mark.parametrize("flash_attn", ["auto", "off"])
@pytest.mark.parametrize("kind", WRITERS)
def test_buffers_are_known_before(tmp_path, log, kind, flash_attn):
    """Not less than what llama.cpp reserves, but for a MiB that tiny recurrent states take."""
    path = WRITERS[kind](tmp_path / "m.gguf")
    options = ModelOptions(flash_attn=flash_attn)
    need = need_of(read_header(path), options, 1024)
    with Pair(path, None, options):
        [reserved] = log(r"CPU compute buffer size = +([\d.]+) MiB")
    assert reserved * MIB <= need.buffers + MIB
    assert need.buffers <= 4 * reserved * MIB + MIB


def beside(need, share=1.0):
    """Room for this share of what a draft needs, after what is spared."""
    return FreeMemory(int(need.total * share / 0.95) + 1)


@pytest.fixture(scope="module")
def long_draft(tmp_path_factory):
    """One whose cache is most of it."""
    return write_llama(tmp_path_factory.mktemp("long") / "long.gguf", Tiny(context=8192, noise=0.1))


def test_less_and_less_of_a_draft(long_draft):
    """Shorter contexts, then a smaller cache; in the end nothing. Each says what gave way."""
    asked, needed = DraftOptions(), partial(need_of, read_header(long_draft), is_draft=True)
    need = needed(asked, 8192)
    assert next(ways_to_fit(needed, asked, 8192, beside(need))) is asked
    assert what_gave_way(needed, asked, asked, 8192, beside(need)) == ""
    seen = []
    for share in (0.9, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.01):
        room = beside(need, share)
        used = next(ways_to_fit(needed, asked, 8192, room), None)
        if used is not None:
            taken = needed(used, used.n_ctx)
            assert room.has_room_for(taken)
            seen.append((used.n_ctx, used.cache_type_k, used.cache_type_v))
        else:
            seen.append(None)
        said = what_gave_way(needed, asked, used, 8192, room)
        assert ("not loaded" in said) is (used is None)
        assert used is None or f"context is {used.n_ctx} tokens" in said
    assert seen[0] == (4096, "f16", "f16")
    assert seen[-1] is None
    lengths = [one[0] for one in seen if one]
    assert lengths == sorted(lengths, reverse=True)
    assert min(lengths) >= 1024
    assert any(one and one[1:] == ("q8_0", "q8_0") for one in seen)


def test_no_smaller_type_without_flash_attention(long_draft):
    """llama.cpp refuses quantized values then; and what is small already stays as it is."""
    needed = partial(need_of, read_header(long_draft), is_draft=True)
    for asked in (
        DraftOptions(flash_attn="off"),
        DraftOptions(cache_type_k="q4_0", cache_type_v="q4_0"),
    ):
        types = {
            (way.cache_type_k, way.cache_type_v)
            for way in ways_to_fit(needed, asked, 8192, FreeMemory(10**12))
        }
        assert types == {(asked.cache_type_k, asked.cache_type_v)}


GIB = 1024**3
GPU = library.Device("CUDA0", "a GPU", "GPU", 8 * GIB, 12 * GIB)
OTHER = library.Device("CUDA1", "a GPU", "GPU", 4 * GIB, 12 * GIB)
CPU = library.Device("CPU", "a CPU", "CPU", 16 * GIB, 32 * GIB)


@pytest.mark.parametrize(
    ("target", "draft", "left"),
    [
        ((), (), 8 + 4 - 6),
        (("CUDA0",), ("CUDA0",), 8 - 6),
        (("CUDA0",), ("CUDA1",), 4),  # on another GPU nothing is taken from it
        (("CUDA0",), (), 8 + 4 - 6),
    ],
)
def test_what_is_left_beside_a_target(monkeypatch, target, draft, left):
    """By place: the draft's devices, less what the target takes there."""
    monkeypatch.setattr(library, "devices", lambda: [CPU, GPU, OTHER])
    need = Need(weights=5 * GIB, cache=GIB, n_ctx=1, layers=10, on_gpu=10)
    found = FreeMemory.beside_target(
        need, ModelOptions(devices=target), DraftOptions(devices=draft)
    )
    assert (found.gpu, found.main) == (left * GIB, 16 * GIB)
    half = Need(weights=5 * GIB, cache=GIB, n_ctx=1, layers=10, on_gpu=5)
    assert found.has_room_for(Need(GIB, 0, 1, 10, 10))
    assert not found.has_room_for(Need(12 * GIB, 0, 1, 10, 10))
    assert not FreeMemory(16 * GIB, 8 * GIB).has_room_for(Need(32 * GIB, 0, 1, 10, 2))
    assert FreeMemory.beside_target(half, ModelOptions(), DraftOptions()).main == 13 * GIB


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({}, None),
        ({"memory.max": "max", "memory.current": "5", "memory.stat": "file 3"}, None),
        ({"memory.max": "9000", "memory.current": "5000",
          "memory.stat": "anon 4000\nfile 1000\nfile_mapped 900"}, 5000),
        ({"memory.max": "4000", "memory.current": "5000", "memory.stat": "file 0"}, 0),
        ({"memory/memory.limit_in_bytes": "9000", "memory/memory.usage_in_bytes": "5000",
          "memory/memory.stat": "cache 2000\nrss 3000"}, 6000),
        ({"memory/memory.limit_in_bytes": "9223372036854771712",
          "memory/memory.usage_in_bytes": "5000", "memory/memory.stat": "cache 1"}, None),
    ],
)  # fmt: skip
def test_a_container_has_less_memory_than_its_host(tmp_path, monkeypatch, files, left):
    """Both versions of control groups; files in memory give way and do not count."""
    (tmp_path / "memory").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=GIB))
    assert library.free_memory(tmp_path) == (GIB if left is None else left)


def answers(pair):
    decoder = Decoder.for_pair(pair, GREEDY, Speculation(learn=False, mode="on"))
    return decoder.answer("hello", Limits(max_tokens=24)).text


def free_memory(monkeypatch, path, draft, share):
    """So much free memory that this share of the draft fits beside its target."""
    target = need_of(read_header(path), ModelOptions(), 8192).total if path else 0
    more = need_of(read_header(draft), DraftOptions(), 8192, is_draft=True)
    free = target + int(more.total * share / 0.95)
    device = library.Device("CPU", "a CPU", "CPU", free, 2 * free)
    monkeypatch.setattr(library, "devices", lambda: [device])


@pytest.mark.parametrize(("share", "n_ctx"), [(1.1, 8192), (0.6, 4096), (0.02, None)])
def test_a_pair_in_little_memory(monkeypatch, long_draft, tmp_path, share, n_ctx):
    """It answers as ever; what gave way is a note, and nothing of the draft is loaded in vain."""
    target = write_llama(tmp_path / "t.gguf", Tiny(context=8192))
    with load_pair(target) as plain:
        wanted = answers(plain)
    free_memory(monkeypatch, target, long_draft, share)
    with load_pair(target, long_draft) as pair:
        cache = pair.draft_cache()
        assert (cache and cache.n_ctx) == n_ctx
        said = [note for note in pair.notes if "beside the target" in note]
        assert len(said) == (share < 1)
        assert answers(pair) == wanted
        assert pair.draft_cache() is cache  # once decided, it stays so


@pytest.mark.parametrize(("share", "n_ctx"), [(0.6, 4096), (0.02, None)])
def test_the_drop_in_in_little_memory(monkeypatch, long_draft, tmp_path, share, n_ctx):
    """The same, as a warning: Python code has no other place for it."""
    target = write_llama(tmp_path / "t.gguf", Tiny(context=8192))
    free_memory(monkeypatch, None, long_draft, share)
    with pytest.warns(UserWarning, match="the draft needs"):
        llama = DSparkLlama(str(target), draft=str(long_draft), n_ctx=8192, verbose=False)
    assert (llama._draft and llama._draft.n_ctx) == n_ctx
    assert llama.create_completion("hello", max_tokens=4)["choices"][0]["text"]
    llama.close()


def test_the_targets_own_heads_need_a_cache_alone(tmp_path):
    """Their weights are loaded with it; an assistant has no cache, a sidecar has both."""
    made = Made(how="cycle")
    target = read_header(write_mtp(tmp_path / "t.gguf", made))
    sidecar = read_header(write_mtp(tmp_path / "mtp.gguf", made, keep=HEADS))
    own, beside_it = (draft_need(one, target, DraftOptions(), 1024) for one in (target, sidecar))
    assert own.weights == 0
    assert beside_it.weights == sum(one.size for one in sidecar.tensors.values())
    with load_pair(tmp_path / "t.gguf", "mtp") as pair:
        cache = pair.draft_cache()
        assert own.cache == beside_it.cache == cache.context.cache_bytes > 0
    gemma = read_header(write_gemma4(tmp_path / "g.gguf"))
    assistant = read_header(write_assistant(tmp_path / "a.gguf"))
    assert draft_need(assistant, gemma, DraftOptions(), 1024).cache == 0


def test_a_load_that_fails_all_the_same(monkeypatch, long_draft, tmp_path):
    """A header does not tell everything: less is tried, and then none."""
    target = write_llama(tmp_path / "t.gguf", Tiny(context=8192))
    tried = []

    def refuse(path, options, *_):
        tried.append(options.n_ctx)
        raise ResourceError("no memory", "")

    monkeypatch.setattr("dspark_gguf.engine.pair.open_drafts", refuse)
    with load_pair(target, long_draft) as pair:
        assert pair.draft_cache() is None
        assert tried[:3] == [0, 4096, 2048]
        [note] = [note for note in pair.notes if "not loaded" in note]
        assert note.startswith("no memory: ")
        assert pair.draft_cache() is None
    assert len(tried) == len(set(tried)) + 1  # 2048 once more, with a smaller cache


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """A mixture of experts."""
    return write_qwen3next(tmp_path_factory.mktemp("experts") / "m.gguf")


def test_experts_stay_in_main_memory(experts, monkeypatch):
    """They are counted there, whatever the layers do."""
    monkeypatch.setattr(memory, "wanted_gpu_layers", lambda options: 2**30)
    header = read_header(experts)
    sizes = [
        sum(one.size for name, one in header.tensors.items() if re.search(fits, name))
        for fits in (r"_exps", r"blk\.[01]\..*_exps", r"ffn_down_exps")
    ]
    options = [
        ModelOptions(n_cpu_moe="all"), ModelOptions(n_cpu_moe=2),
        ModelOptions(override_tensor=("ffn_down_exps=CPU",)),
    ]  # fmt: skip
    whole = need_of(header, ModelOptions(), 1024)
    assert (whole.at(on_gpu=True), whole.at(on_gpu=False)) == (whole.total, 0)
    for size, one in zip(sizes, options, strict=True):
        need = need_of(header, one, 1024)
        assert need.kept == need.at(on_gpu=False) == size > 0
        assert need.layers_that_fit(whole.total) > whole.layers_that_fit(whole.total)


@pytest.mark.parametrize("kind", [ModelOptions, DraftOptions])
def test_tensors_go_where_they_are_sent(experts, monkeypatch, capfd, kind):
    """llama.cpp says of each that it is loaded elsewhere, and of no other."""
    # What it says of this is for developers.
    monkeypatch.setattr("dspark_gguf.engine.log.DEBUG_LEVEL", 0)
    library.set_command_log(True)
    try:
        Model(experts, kind(override_tensor=("blk.1.*_exps=CPU",))).close()
    finally:
        library.set_command_log(False)
    moved = re.findall(r"tensor (\S+) .* overridden to", capfd.readouterr().err)
    wanted = [name for name in read_header(experts).tensors if re.search("blk.1.*_exps", name)]
    assert sorted(moved) == sorted(wanted) != []


def test_wrong_places_and_patterns(experts):
    """Each is refused in words, before or by llama.cpp."""
    with pytest.raises(UsageError, match=r"'NOWHERE': this build of llama\.cpp has .*CPU"):
        Model(experts, ModelOptions(override_tensor=("exps=NOWHERE",)))
    with pytest.raises(ModelError, match=r"regex|regular"):
        Model(experts, ModelOptions(override_tensor=("(?<=a)b=CPU",)))
    for wrong in ("exps", "=CPU", "exps=", "(=CPU"):
        with pytest.raises(ValueError, match=r"PATTERN=PLACE|regular expression"):
            ModelOptions(override_tensor=(wrong,))


def test_on_the_command_line(experts, dspark):
    """For target and draft, as llama.cpp spells them."""
    words = ("-ncmoe", "all", "-ot", "down=CPU,up=CPU", "-ncmoed", "3", "-otd", "gate=CPU")
    shown = dspark("run", "-m", experts, *words, "--show-config")
    assert shown.exit_code == 0, shown.stderr
    assert shown.stdout.count("n_cpu_moe: all") == 1
    assert shown.stdout.count("n_cpu_moe: 3") == 1
    assert "- down=CPU\n  - up=CPU" in shown.stdout
    done = dspark("run", "-m", experts, *words, "-n", "2", "--no-learn", "--temp", "0", "hi")
    assert done.exit_code == 0, done.stderr
    wrong = dspark("run", "-m", experts, "-ncmoe", "some", "hi")
    assert wrong.exit_code == 2
