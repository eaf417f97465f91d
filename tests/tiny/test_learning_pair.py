"""Learning on loaded pairs: what is kept between runs, and the commands that measure."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from dspark_gguf import Decoder, Limits, Sampling, Speculation, load_pair
from dspark_gguf.cli import main
from dspark_gguf.config import ModelOptions
from dspark_gguf.cost import load_table
from dspark_gguf.errors import Cancelled
from dspark_gguf.learned import forget_all, learned_dir
from dspark_gguf.measure import trace
from dspark_gguf.measure.chains import load_chains
from dspark_gguf.measure.prompts import read_prompts
from dspark_gguf.schedule import Fixed, LookupRule, Optimal, Prefix, Threshold
from dspark_gguf.schedule.expected import is_hopeless
from dspark_gguf.verify import Typical, match, rejection

PROMPT = [10, 20, 30, 40]


@pytest.fixture(autouse=True)
def nothing_learned():
    """Each test begins without files."""
    forget_all()


def measure(files, speculation=None, n_ctx=512, **options):
    """Lines said while a pair learns, after a short answer; and the pair's notes."""
    said = []
    options = ModelOptions(n_ctx=n_ctx)

    def on_progress(text, seconds):
        if text not in said:
            said.append(text)

    with load_pair(
        files.target, files.draft, target_options=options, on_progress=on_progress
    ) as pair:
        pair.learned(speculation or Speculation())
        decoder = Decoder.for_pair(pair, Sampling(temperature=0), speculation)
        decoder.answer(PROMPT, Limits(max_tokens=16))
        return said, list(pair.notes)


def test_a_pair_is_measured_once(tiny_files):
    """The second run knows; another context size is another key."""
    assert "measuring" in measure(tiny_files)[0][0]
    assert measure(tiny_files)[0] == []
    assert len(measure(tiny_files, n_ctx=256)[0]) == 1
    assert len(list(learned_dir().glob("*.json"))) == 2


def find_draft_dear(tiny_files, monkeypatch, starts):
    """An earlier run, after so many others, found its steps far too dear."""
    for module in ("assemble", "engine.pair"):
        monkeypatch.setattr(f"dspark_gguf.{module}.is_hopeless", is_hopeless)
    measure(tiny_files)
    (path,) = learned_dir().glob("*.json")
    known = json.loads(path.read_text())
    figures = {name: [seconds, 9] for name, (seconds, _) in known["costs"]["figures"].items()}
    known["costs"]["figures"] = figures | {"first": [1e3, 9], "step": [1e3, 9]}
    known["costs"]["starts"] = starts
    path.write_text(json.dumps(known))


def test_a_busy_moment_does_not_leave_a_draft_out_for_good(tiny_files, monkeypatch):
    """The next process, and the 2nd, 4th, 8th ... after it, measures its steps again."""
    for starts, loads in enumerate((True, True, False, True, False)):
        find_draft_dear(tiny_files, monkeypatch, starts)
        options = ModelOptions(n_ctx=512)
        with load_pair(tiny_files.target, tiny_files.draft, target_options=options) as pair:
            known = pair.learned(Speculation())
            assert (pair.draft is not None) == loads
            assert known.costs.starts == starts + 1
            if loads:
                assert known.costs.draft_seconds[0] < 500.0


def test_a_draft_that_could_win_nothing_is_not_loaded(tiny_files, monkeypatch):
    """An earlier run found its steps far too dear: one line says so; --drafter still uses it."""
    find_draft_dear(tiny_files, monkeypatch, starts=2)
    with load_pair(
        tiny_files.target, tiny_files.draft, target_options=ModelOptions(n_ctx=512)
    ) as pair:
        for _ in range(2):
            pair.learned(Speculation())
            Decoder.for_pair(pair, Sampling(temperature=0), Speculation())
        assert pair.draft is None
        assert len([note for note in pair.notes if "draft model is not used" in note]) == 1
        assert "copied" in pair.summary(Speculation())
        asked = Speculation(drafter="model")
        pair.learned(asked)
        assert pair.draft is not None
        assert "draft tokens a round" in pair.summary(asked)


def test_a_damaged_file_is_noted_and_rewritten(tiny_files):
    """One line, and the next run finds a good one."""
    measure(tiny_files)
    (path,) = learned_dir().glob("*.json")
    path.write_text(path.read_text()[:500])
    said, notes = measure(tiny_files)
    assert len(said) == 1
    assert [note for note in notes if str(path) in note]
    assert measure(tiny_files)[0] == []


def test_no_learn_neither_reads_nor_writes(tiny_files):
    """A file that is there stays as it is, to the byte."""
    speculation = Speculation(learn=False)
    assert len(measure(tiny_files, speculation)[0]) == 1
    assert not list(learned_dir().glob("*.json"))
    measure(tiny_files)
    (path,) = learned_dir().glob("*.json")
    before = path.read_bytes()
    assert len(measure(tiny_files, speculation)[0]) == 1
    assert path.read_bytes() == before


def test_who_decides_what(tiny_files):
    """Acceptance and rule by what the user set."""
    with load_pair(tiny_files.target, tiny_files.draft) as pair:

        def chosen(sampling, **settings):
            made = Decoder.for_pair(pair, Sampling(**sampling), Speculation(**settings))
            return made.rule, type(made.stopping_rule)

        for temperature in (0, 0.8):
            assert chosen({"temperature": temperature}) == (match, LookupRule)
        assert chosen({}, acceptance="rejection") == (rejection, LookupRule)
        assert chosen({}, mode="on") == (match, Threshold)
        assert chosen({}, draft_min_prob=0.0) == (match, Fixed)
        rule, stopping = chosen({}, acceptance="typical")
        assert (type(rule), stopping) == (Typical, LookupRule)
        assert chosen({}, drafter="model") == (match, Optimal)
        assert chosen({}, drafter="lookup") == (match, LookupRule)
        assert chosen({}, rule="prefix") == (match, Prefix)


def test_the_same_seed_says_the_same_whatever_the_clock_made_of_it(tiny_files):
    """With a seed, the schedule does not reach the text."""
    exact = ModelOptions(n_ctx=512, flash_attn="off", cache_type_k="f32", cache_type_v="f32")
    with load_pair(tiny_files.target, tiny_files.draft, target_options=exact) as pair:
        texts = {
            tuple(Decoder.for_pair(pair, Sampling(seed=7), speculation)
                  .answer(PROMPT, Limits(max_tokens=40)).tokens)
            for speculation in (Speculation(), Speculation(mode="off"),
                                Speculation(mode="on", draft_max=3, draft_min_prob=0.0))
        }  # fmt: skip
    assert len(texts) == 1


def run(*words):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert "Traceback" not in result.output
    return result


def test_profile(tiny_files, tmp_path):
    """Text, the JSON that `replay` reads, plots, and the end of all that was learned."""
    pair = ("-m", tiny_files.target, "-d", tiny_files.draft, "-c", 512)
    shown = run("profile", *pair, "--rows", 5, "--plot", tmp_path / "c.svg")
    assert shown.exit_code == 0, shown.output
    assert "common factor" in shown.stdout
    drawn = ElementTree.parse(tmp_path / "c.svg").getroot()
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    assert "after 16 tokens" in "".join(drawn.itertext())
    refused = run("profile", *pair, "--plot", tmp_path / "c.png")
    assert (refused.exit_code, "FILE.svg" in refused.stderr) == (2, True)
    (tmp_path / "t.json").write_text(run("profile", *pair, "--rows", 5, "--json").stdout)
    assert load_table(tmp_path / "t.json").limit == 4
    assert run("profile", *pair, "--depth", 5000).exit_code == 4
    alone = run("profile", "-m", tiny_files.target, "-c", 512, "--rows", 5)
    assert "look" not in alone.stdout
    assert list(learned_dir().glob("*.json"))
    assert "forgotten" in run("profile", "--reset").stdout
    assert not list(learned_dir().glob("*.json"))


def test_trace_and_calibrate_on_the_demo_pair(demo_files, tmp_path):
    """Chains say what greedy decoding with that draft does: the fixed rule, round by round."""
    prompts = tmp_path / "p.jsonl"
    lines = [{"domain": "chat", "prompt": "Say hello."}, {"domain": "code", "prompt": "def add("}]
    prompts.write_text("\n".join(json.dumps(line) for line in lines))
    words = ("--prompts", prompts, "--positions", 16, "-c", 512)
    result = run("trace", *words, "--depth", 4, "-o", tmp_path / "c.npz")
    assert result.exit_code == 0, result.output
    texts = load_chains(tmp_path / "c.npz")
    assert [text.domain for text in texts] == ["chat", "code"]
    assert all(text.depth == 4 and text.gap is not None for text in texts)
    with load_pair(*demo_files, target_options=ModelOptions(n_ctx=512)) as pair:
        decoder = Decoder.for_pair(
            pair, Sampling(temperature=0), Speculation(mode="on", draft_max=4, draft_min_prob=0.0)
        )
        tokens = pair.template.encode(read_prompts(prompts)[0].messages)
        position = 0
        for round in decoder.generate(tokens, Limits(max_tokens=12)):
            if round.tokens and round.drafted == 4:
                assert round.accepted == texts[0].survived[position].sum()
                [score, *_] = round.draft.segments[0].scores
                assert score == pytest.approx(texts[0].gap[position, 0], abs=0.5)
            position += len(round.tokens)
    result = run("calibrate", *words, "--depth", 3)
    assert result.exit_code == 0, result.output
    assert "reliability" in result.stdout


def test_calibrate_ends_before_there_is_a_result(tiny_files, monkeypatch):
    """Ctrl-C after one text, of which nothing can be told: it is no wrong use."""
    original, texts = trace.record, []

    def record(pair, *given, **named):
        if texts:
            pair.interrupt.set()
            raise Cancelled
        texts.append(original(pair, *given, **named))
        return texts[0]

    monkeypatch.setattr(trace, "record", record)
    pair = "-m", tiny_files.target, "-d", tiny_files.draft
    result = run("calibrate", *pair, "--positions", 4, "-c", 512)
    assert (result.exit_code, result.stdout) == (130, "")
    assert len(texts) == 1
    assert "two texts" not in result.stderr


def test_our_prompts_cover_every_domain():
    """Seven kinds of text, four prompts each, none twice."""
    prompts = read_prompts()
    domains = [prompt.domain for prompt in prompts]
    wanted = ["chat", "code", "maths", "translation", "summarising", "rewriting", "extraction"]
    assert {name: domains.count(name) for name in domains} == dict.fromkeys(wanted, 4)
    texts = [prompt.messages[-1]["content"] for prompt in prompts]
    assert len(set(texts)) == len(texts)


def test_what_is_learned_apart_is_known_to_no_other(tiny_files):
    """It begins with the costs; neither the pair nor its file hears of what comes after."""
    speculation = Speculation(learn=False)
    with load_pair(tiny_files.target, tiny_files.draft) as pair:
        costs = pair.learned(speculation).costs
        mine, other = pair.copy_costs(), pair.copy_costs()
        decoder = Decoder.for_pair(pair, Sampling(temperature=0), learned=mine)
        decoder.answer(PROMPT, Limits(max_tokens=16))
        assert set(costs.measured_rows) <= set(mine.costs.measured_rows)
        assert mine.costs.as_dict() != costs.as_dict()
        for side in (pair.learned(speculation), other):
            assert side.costs.as_dict() == costs.as_dict()
            assert side.calibration("lookup", "match", 0.0, is_free=True).tested == 0
        assert mine.calibration("lookup", "match", 0.0, is_free=True).tested > 0
    assert not list(learned_dir().glob("*.json"))
