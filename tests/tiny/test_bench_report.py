"""The page: whole, on its own, readable without its pictures, and safe with any name in it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from dspark_gguf.errors import UsageError
from dspark_gguf.measure.bench.report import Extras, render, require_folder, write_report
from dspark_gguf.measure.chains import Chains
from dspark_gguf.measure.charts import Line, chart, up_to
from dspark_gguf.measure.profile import Table
from dspark_gguf.measure.reliability import Reliability
from tests.bench_fakes import results

EVIL = "<script>alert('x')</script>&\"quoted\""
SECTIONS = ["verdict", "speed", "positions", "costs", "reliability", "time", "how"]
VOID = {"meta", "line", "circle", "polyline", "br"}


class Checker(HTMLParser):
    """Elements in their order; every one that is opened is closed, in turn."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.attributes, self.text = [], [], [], {}

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.attributes.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append(tag)
        self.attributes.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        place = self.open[-1] if self.open else ""
        self.text[place] = self.text.get(place, "") + data


def facts(name="target"):
    return {
        "version": "0.1", "llama_cpp": "1", "date": "2026-01-02", "command": f"bench -m {name}",
        "target": {"name": name, "bytes": 2**20, "place": "CPU"},
        "draft": {"name": name, "bytes": 2**20, "place": "CPU", "kind": "model"},
        "machine": {"devices": [["CPU", name]], "cores": 2},
        "settings": {"tokens": 8, "repeats": 2, "threads": 2, "prompts": 2},
        "methods": {"plain": "nothing", "fixed-3": name}, "turns": {"measured": 2, "wanted": 2},
        "interrupted": False,
        "peak_memory_bytes": {"ours": 2**20, "all": None},
    }  # fmt: skip


def page(domain="chat", name="target", reliability=True):
    found = results(
        {
            (0, domain): {"plain": 1.0, "fixed-3": 2.0, "default": 0.9},
            (1, "code"): {"plain": 1.0, "fixed-3": 0.8, "default": 0.8},
        }
    )
    for sample in found.samples:
        if sample.method == "fixed-3":
            sample.tally.drafted_by_position[:] = [9, 9, 2]
            sample.tally.accepted_by_position[:] = [6, 3]
    rng = np.random.default_rng(0)
    chances = rng.random((2, 40, 2)).astype(np.float32)
    texts = [Chains("chat", one, one > 0.5) for one in chances]
    told = Reliability.of(texts) if reliability else None
    return render(found, facts(name), Extras([Table(16, [0.1, 0.15, 0.2], 0.05)], told))


def parse(text):
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    return checker


def test_the_page_is_well_formed_and_has_every_section():
    """Each with its heading."""
    found = parse(page())
    ids = [attributes["id"] for tag, attributes in found.attributes if tag == "section"]
    assert ids == SECTIONS
    assert found.seen.count("h2") == len(SECTIONS)
    assert found.seen.count("h1") == 1


def test_the_page_needs_nothing_from_elsewhere():
    """No address, no script, no file: it can be sent and kept."""
    text = page()
    assert not re.search(r"https?:|//[a-z]|url\(|@import|\ssrc=|\shref=", text)
    assert not {"script", "link", "img", "iframe", "object"} & set(parse(text).seen)


def test_names_from_files_are_text():
    """A model or a domain that is called like markup changes no markup."""
    plain, evil = parse(page()), parse(page(EVIL, EVIL))
    assert evil.seen == plain.seen
    assert EVIL in evil.text["h1"]
    assert "<script" not in page(EVIL, EVIL)


def test_a_file_name_that_is_not_text(tmp_path):
    """The bytes of a name in latin-1 are question marks on the page."""
    found, name = results({(0, "chat"): {"plain": 1.0, "fixed-3": 2.0}}), "caf\udce9"
    some = facts(name) | {"turns": {"measured": 1, "wanted": 1}}
    path = write_report(tmp_path, found, some, Extras((), None))
    assert ": 1 turn of up to 8 tokens" in path.read_text("utf-8")
    assert "<title>dspark-gguf bench: caf?" in path.read_text("utf-8")
    assert json.loads((tmp_path / "bench.json").read_text("utf-8"))["target"]["name"] == name


def test_everything_can_be_read_without_seeing_it():
    """Tables have captions and headings with a scope; pictures say what they show."""
    found = parse(page())
    assert found.seen.count("caption") == found.seen.count("table") > 5
    assert all("scope" in attributes for tag, attributes in found.attributes if tag == "th")
    pictures = [attributes for tag, attributes in found.attributes if tag == "svg"]
    assert len(pictures) == 3
    assert all(one["role"] == "img" and one["aria-label"] for one in pictures)
    assert ("html", {"lang": "en"}) in found.attributes


def test_the_page_fits_a_phone_and_the_dark():
    """As far as its source can tell; somebody looked at it, too."""
    text = page()
    assert 'content="width=device-width, initial-scale=1"' in text
    assert "prefers-color-scheme: dark" in text


def channels(colour):
    values = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    return [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]


@pytest.mark.parametrize("scheme", [0, 1])
def test_text_stands_out_from_its_ground(scheme):
    """WCAG: 4.5 to 1 for text, 3 to 1 for lines and bars."""
    found = re.findall(r"--(\w+): (#[0-9a-f]{6})", page())
    half = len(found) // 2
    colours = dict(found[half * scheme : half * (scheme + 1)])
    light = {
        name: sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), channels(colour), strict=True))
        for name, colour in colours.items()
    }
    light["warn"], back = light["back"], light["warn"]  # text on the warning
    assert (max(light["ink"], back) + 0.05) / (min(light["ink"], back) + 0.05) >= 4.5
    for name in ("ink", "quiet", "slow", "fast", "same", "c0", "c1", "c2", "c3"):
        high, low = sorted((light[name], light["back"]), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= (3.0 if name.startswith("c") else 4.5), name


def test_the_figures_on_the_page():
    """Medians with their spread, the losses, and only what was tried often enough."""
    text = page()
    assert "the default is faster than plain decoding on chat 1.11x, code 1.25x" in text
    assert '<td class="slow">0.50</td>' in text
    assert '<td class="fast">1.25</td>' in text
    assert "<td>67%</td><td>33%</td></tr>" in text  # the third place was tried four times in all
    assert "<td>100.00</td><td>1.00</td>" in text
    assert "not known" in text


def answer(seconds):
    """The sentence under the title, and the page."""
    found = results(
        {(k, "chat"): {"plain": one, "default": x} for k, (one, x) in enumerate(seconds)}
    )
    text = render(found, facts(), Extras([Table(16, [0.1, 0.2], 0.05)], None))
    return re.search('<p class="answer">(.*)</p>', text)[1], text


def test_the_title_is_a_question_and_the_first_sentence_answers_it():
    """With the figures of what a user gets, and when and how they were measured."""
    said, text = answer([(1.0, 0.5), (1.0, 0.5), (1.0, 0.4)])
    assert said == (
        "Faster here: 2.14x plain decoding over all answers; "
        "the medians are from 2.00x (chat) to 2.00x (chat)."
    )
    assert "not to be trusted" not in text
    assert "2026-01-02" in text
    assert "<code>bench -m target</code>" in text
    assert "optimal" not in text
    said, _ = answer([(1.0, 1.0)] * 3)
    assert said.startswith("Not faster here: 1.00x")


def test_a_busy_machine_gets_a_warning_above_all_and_no_verdict():
    """Nor a colour that says more than can be told."""
    said, text = answer([(1.0, 1.1), (2.0, 1.4), (1.0, 0.9), (2.0, 1.8)])
    assert "No verdict: plain decoding" in said
    assert "changed 2.0-fold" in said
    assert text.index("not to be trusted") < text.index("<h1>")
    assert not re.search('t-(fast|slow)"', text)


def test_bars_show_their_spread():
    """From the slowest turn to the fastest; none where there was one turn."""
    assert 'class="span"' in answer([(1.0, 0.5), (1.0, 0.4), (1.0, 0.6)])[1]
    assert 'class="span"' not in answer([(1.0, 0.5)])[1]


def test_without_a_draft_model():
    """What was not measured is said, not drawn."""
    text = page(reliability=False)
    assert "Not measured: that takes a draft model" in text
    assert len([tag for tag in parse(text).seen if tag == "svg"]) == 2


def test_the_page_is_written_whole(tmp_path):
    """Into a folder that is made; one that cannot be made is named."""
    found = results({(0, "chat"): {"plain": 1.0, "default": 0.9}})
    rest = Extras([Table(16, [0.1, 0.2], 0.05)], None)
    require_folder(tmp_path / "new" / "folder")
    path = write_report(tmp_path / "new" / "folder", found, facts(), rest)
    assert path.name == "index.html"
    assert {file.name for file in path.parent.iterdir()} == {"index.html", "bench.json"}
    assert json.loads((path.parent / "bench.json").read_text("utf-8")) == facts()
    parse(path.read_text("utf-8"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write a report"):
        require_folder(tmp_path / "file")


@pytest.mark.parametrize(("most", "ticks"), [(6.6, [0, 2, 4, 6]), (1.0, [0, 0.25, 0.5, 0.75, 1])])
def test_an_axis_has_a_few_round_marks(most, ticks):
    """Whatever the range."""
    assert list(up_to("x", most).ticks) == pytest.approx(ticks)


def test_a_chart_stays_in_its_frame():
    """The corners of the data are the corners of the drawing's inside."""
    drawn = chart(EVIL, up_to("x", 4.0), up_to("y", 2.0), [Line("a", [(0.0, 0.0), (4.0, 2.0)])])
    assert 'points="42.0,190.0 330.0,10.0"' in drawn
    assert "<script" not in drawn
