"""Answers that must fit a grammar or a JSON schema, in `run`, `chat` and `Decoder`."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from dspark_gguf import Decoder, Limits, ModelOptions, Sampling, Speculation, load_pair
from dspark_gguf.cli import main
from dspark_gguf.ending import Endless
from dspark_gguf.engine.grammar import Grammar, grammar_text
from dspark_gguf.errors import UsageError
from dspark_gguf.noise import Noise
from tests.tiny_gguf import Tiny, write_llama

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "kind": {"enum": ["cat", "dog"]}},
    "required": ["name", "kind"],
}
GBNF = 'root ::= ("yes" | "no") " " [a-z]{3,9} "!"'
EXACT = ModelOptions(n_ctx=512, flash_attn="off", cache_type_k="f32", cache_type_v="f32", threads=1)
PROMPT = [1, 2, 3, 4, 1, 2, 3]
WAYS = [
    {"temperature": 0},
    {"temperature": 0.9, "seed": 3},
    {"temperature": 1.0, "top_k": 0, "seed": 4},
    {"temperature": 0.7, "repeat_penalty": 1.3, "seed": 5},
]  # fmt: skip
SPECS = [
    {}, {"mode": "on", "draft_min_prob": 0.0, "draft_max": 5}, {"drafter": "lookup"},
    {"acceptance": "match"},
]  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A target and a draft that often agrees."""
    folder = tmp_path_factory.mktemp("schema")
    target = write_llama(folder / "target.gguf", Tiny(context=512))
    draft = write_llama(folder / "draft.gguf", Tiny(context=512, noise=0.05))
    with load_pair(target, draft, target_options=EXACT) as loaded:
        yield loaded


def answered(pair, sampling, **speculation):
    decoder = Decoder.for_pair(pair, sampling, Speculation(learn=False, **speculation))
    return decoder.answer(PROMPT, Limits(max_tokens=200))


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("rule", [{"json_schema": json.dumps(SCHEMA)}, {"grammar": GBNF}], ids=list)
def test_it_fits_and_drafts_do_not_change_it(pair, way, rule):
    """Every answer fits; with any draft it is that of plain decoding."""
    sampling = Sampling(**way, **rule)
    plain = answered(pair, sampling, mode="off")
    assert plain.finish_reason == "stop"
    if "json_schema" in rule:
        value = json.loads(plain.text)
        assert value["kind"] in ("cat", "dog")
        assert isinstance(value["name"], str)
    else:
        assert plain.text.endswith("!")
    drafted = 0
    for speculation in SPECS:
        answer = answered(pair, sampling, **speculation)
        assert answer.tokens == plain.tokens
        drafted += answer.tally.drafted
    assert drafted > 5


def test_dictated_tokens_save_passes(pair):
    """Keys and quotes come several to a pass; no model drafts them."""
    sampling = Sampling(temperature=0, json_schema=json.dumps(SCHEMA))
    plain = answered(pair, sampling, mode="off")
    answer = answered(pair, sampling, drafter="lookup", mode="on", draft_min_prob=0.0)
    assert answer.tokens == plain.tokens
    assert answer.tally.rounds < 0.8 * plain.tally.rounds


def test_no_law_but_the_targets_under_the_grammar(pair):
    """The draws are those of the target's row with the forbidden tokens left out, exactly."""
    sampling = Sampling(temperature=1.0, top_k=0, top_p=1, min_p=0, grammar='root ::= "a" | "bc"')
    decoder = Decoder.for_pair(pair, sampling, Speculation(mode="off"))
    run = decoder.start(PROMPT, Endless(), Noise(1))
    rows = pair.target_cache.decode(run.propose().tokens, 1)
    fits = Grammar(pair.vocabulary, 'root ::= "a" | "bc"').all()
    dist = decoder.sampler(rows[0], (), (), run.verifier.grammar)
    assert sorted(dist.ids) == sorted(fits)


def run_words(pair, *words):
    target, draft = pair.target.path, pair.draft.path
    start = ["-m", str(target), "-d", str(draft), "-c", "256", "--no-learn"]
    return CliRunner().invoke(main, [words[0], *start, *words[1:]])


def test_from_the_command_line(pair, tmp_path):
    """`run` and `chat`, from text and from files; what cannot be is refused by name."""
    pair.draft_cache()
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    for given in (str(file), json.dumps(SCHEMA)):
        result = run_words(pair, "run", "--json-schema", given, "-n", "150", "hello")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["kind"] in ("cat", "dog")
    rules = tmp_path / "rules.gbnf"
    rules.write_text(GBNF)
    result = CliRunner().invoke(
        main, ["chat", "-m", str(pair.target.path), "--grammar", str(rules), "-c", "256"],
        input="hello\nagain\n",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert all(line.endswith("!") for line in result.stdout.splitlines())
    assert len(result.stdout.splitlines()) == 2
    for option, value, named in (
        ("--grammar", str(tmp_path / "none.gbnf"), "none.gbnf"),
        ("--grammar", "root ::= nothing", "grammar"),
        ("--json-schema", '{"type": "no such type"}', "schema"),
        ("--json-schema", "{", "schema"),
    ):
        result = run_words(pair, "run", option, value, "hello")
        assert result.exit_code == 2, result.output
        assert named in result.stderr
    result = run_words(pair, "run", "--grammar", GBNF, "--json-schema", "{}", "hello")
    assert result.exit_code == 2


def test_the_settings_say_one_of_both():
    """And a file's text is read once, when it is needed."""
    with pytest.raises(ValueError, match="exclude each other"):
        Sampling(grammar=GBNF, json_schema="{}")
    assert grammar_text(Sampling()) is None
    assert grammar_text(Sampling(grammar=GBNF)) == GBNF
    with pytest.raises(UsageError, match="no-such-file"):
        grammar_text(Sampling(json_schema="no-such-file"))
