"""What the page's script does, in node with the few things of a browser that it uses."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from dspark_gguf.serve import page

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")

#: Elements of a document, and a server that answers as `answers` says, one after the other.
BROWSER = """
const kinds = {};
class Element {
  constructor(name) { this.name = name; this.value = this.text = ""; this.children = []; }
  set textContent(text) { this.children = []; this.text = text; }
  get textContent() { return this.text + this.children.map(c => c.textContent ?? c).join(""); }
  append(...more) {
    this.children.push(...more);
    for (const one of more) Object(one).parent = this;
  }
  remove() { this.parent.children = this.parent.children.filter(each => each !== this); }
  setAttribute() {}
  focus() { document.activeElement = this; }
  requestSubmit() { this.onsubmit({preventDefault() {}}); }
}
const body = new Element("body");
globalThis.document = {
  body, activeElement: body, createElement: name => new Element(name),
  getElementById: id => kinds[id] ??= new Element(id),
};
const sent = [], scrolled = [];
globalThis.sessionStorage = {
  setItem: (name, text) => kept[name] = text, getItem: name => kept[name] ?? null,
};
globalThis.innerHeight = globalThis.scrollY = 0;
body.scrollHeight = 1000;
globalThis.scrollTo = (x, y) => scrolled.push(y);
globalThis.fetch = async (url, options) => {
  if (url === "props") throw new TypeError("Failed to fetch");
  sent.push(JSON.parse(options.body));
  const answer = answers.shift();
  if (answer === "lost") throw new TypeError("Failed to fetch");
  if (answer.status) return new Response(answer.body, {status: answer.status});
  return new Response(answer.map(each => `data: ${JSON.stringify(each)}\\n\\n`).join(""));
};
const settled = () => new Promise(done => setTimeout(done, 20));
async function say(text) {
  at("say").value = text;
  at("form").requestSubmit();
  await settled();
}
const said = () => messages.map(({role, content}) => [role, content]);
const button = which => messages[which].article.children.find(each => each.name === "button");
"""


def run(answers, steps, kept=None):
    """What `steps` leave in `out`, with those answers of a server; the tab has `kept` something."""
    script = Path(page.__file__).with_suffix(".js").read_text(encoding="utf-8")
    given = f"const answers = {json.dumps(answers)}; const out = {{}};"
    given += f"const kept = {json.dumps(kept or {})};"
    program = f"{given}{BROWSER}{script}\n(async () => {{{steps}\n"
    program += "process.stdout.write(JSON.stringify(out)); process.exit(0); })();"
    done = subprocess.run(["node", "-"], input=program, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def chunk(text, finish=None):
    return {"choices": [{"delta": {"content": text}, "finish_reason": finish}]}


@pytest.mark.parametrize(
    ("failure", "fault"),
    [
        ("lost", "Failed to fetch"),
        ({"status": 502, "body": "<html>"}, "the server answers 502"),
        ({"status": 400, "body": '{"error": {"message": "too long"}}'}, "too long"),
        ([{"error": {"message": "broken"}}], "broken"),
    ],
    ids=str,
)
def test_a_question_without_an_answer_goes_back_to_be_sent_again(failure, fault):
    """It stood in the conversation with an empty answer, which the model then had to go on from."""
    out = run(
        [failure, [chunk("Hi"), chunk("!", "stop")]],
        """
        await say("hello");
        out.fault = at("fault").textContent;
        out.kept = at("say").value;
        out.after = said();
        await say(at("say").value);
        out.sent = sent[1].messages;
        out.said = said();
        out.gone = at("fault").textContent;
        """,
    )
    assert (out["fault"], out["kept"], out["after"]) == (fault, "hello", [])
    assert out["sent"] == [{"role": "user", "content": "hello"}]
    assert out["said"] == [["user", "hello"], ["assistant", "Hi!"]]
    assert out["gone"] == ""


def test_a_key_is_asked_for_where_it_is_needed():
    wrong = {"status": 401, "body": '{"error": {"message": "a key"}}'}
    out = run(
        [wrong],
        'await say("hello"); out.hidden = at("ask-key").hidden;'
        "out.at = document.activeElement.name;",
    )
    assert out == {"hidden": False, "at": "key"}


def test_an_answer_is_followed_and_says_that_it_was_cut():
    out = run(
        [[chunk("Hi", "length")]],
        """
        at("stop").focus();
        await say("hello");
        out.scrolled = scrolled;
        out.text = at("talk").textContent;
        out.busy = at("talk").ariaBusy;
        out.at = document.activeElement.name;
        """,
    )
    assert out["scrolled"][0] == 1000, "to the question, wherever the reader was"
    assert out["text"].endswith("Hicut off at the limit of tokensRegenerate")
    assert out["busy"] == "false"
    assert out["at"] == "say", "the focus is not lost with a button that is off"


def test_the_last_answer_can_be_made_again():
    """The question is asked once more, and what is being typed stays."""
    out = run(
        [[chunk("One", "stop")], [chunk("Two", "stop")], [chunk("Three", "stop")]],
        """
        await say("hello");
        await say("more");
        at("say").value = "next";
        const buttons = messages[3].article.children.filter(each => each.name === "button");
        out.names = buttons.map(each => each.textContent);
        buttons[0].onclick();
        await settled();
        out.sent = sent[2].messages.map(each => each.content);
        out.said = said();
        out.typed = at("say").value;
        """,
    )
    assert out["names"] == ["Regenerate"]
    assert out["sent"] == ["hello", "One", "more"]
    assert out["said"][2:] == [["user", "more"], ["assistant", "Three"]]
    assert out["typed"] == "next"


@pytest.mark.parametrize(
    "second",
    ["lost", {"status": 503, "body": ""}, [], [chunk("Tw"), {"error": {"message": "gone"}}]],
)
def test_an_answer_that_is_not_made_again_stays(second):
    """Where the server fails, now or halfway, or the tab reloads; an empty answer is one, too."""
    out = run(
        [[chunk("One", "stop")], second, [chunk("Three", "stop")]],
        """
        await say("hello");
        at("say").value = "next";
        button(1).onclick();
        onpagehide();
        out.kept = JSON.parse(kept["dspark-gguf"]);
        await settled();
        out.said = said();
        out.shown = at("talk").textContent;
        out.fault = at("fault").textContent;
        out.typed = at("say").value;
        button(1).onclick();
        await settled();
        out.then = said();
        """,
    )
    assert [each["content"] for each in out["kept"]] == ["hello", "One"]
    assert out["said"] == [["user", "hello"], ["assistant", "" if second == [] else "One"]]
    assert out["shown"].count("hello") == 1
    assert bool(out["fault"]) == (second != [])
    assert out["typed"] == "next"
    assert out["then"] == [["user", "hello"], ["assistant", "Three"]]


EDIT = """
        await say("hello");
        await say("more");
        button(2).onclick();
        button(0).onclick();
        Object.assign(out, {box: at("say").value, left: said()});
"""


def test_what_comes_after_an_edited_message_can_be_had_back():
    """By Escape, and where the tab reloads; until the message is sent, nothing is lost."""
    whole = [["user", "hello"], ["assistant", "One"], ["user", "more"], ["assistant", "Two"]]
    out = run(
        [[chunk(each, "stop")] for each in ("One", "Two", "Three")],
        EDIT
        + """
        onpagehide();
        out.kept = JSON.parse(kept["dspark-gguf"]).map(each => [each.role, each.content]);
        onkeydown({key: "Escape"});
        Object.assign(out, {back: said(), shown: at("talk").textContent, typed: at("say").value});
        button(0).onclick();
        await say("hi");
        out.then = said();
        button(0).onclick();
        at("new").onclick();
        out.none = kept["dspark-gguf"];
        """,
    )
    assert (out["box"], out["left"]) == ("hello", [])
    assert out["kept"] == out["back"] == whole
    assert [out["shown"].count(each) for each in ("hello", "One", "more", "Two")] == [1] * 4
    assert (out["typed"], out["none"]) == ("", "[]")
    assert out["then"] == [["user", "hi"], ["assistant", "Three"]]


def test_an_edited_message_that_fails_loses_nothing():
    """The conversation is as it was, and the new words are back in the box."""
    out = run(
        [[chunk("One", "stop")], [chunk("Two", "stop")], "lost"],
        EDIT + 'await say("hi"); out.back = said().length; out.typed = at("say").value;',
    )
    assert (out["back"], out["typed"]) == (4, "hi")


def test_what_is_typed_meanwhile_stays():
    """Beside a question that comes back, and where a new chat begins."""
    out = run(
        ["lost"],
        """
        const done = say("hello");
        at("say").value = "next";
        await done;
        out.typed = at("say").value;
        at("new").onclick();
        out.after = at("say").value;
        """,
    )
    assert out == {"typed": "hello\n\nnext", "after": "hello\n\nnext"}


def test_an_input_method_keeps_its_enter():
    """Safari's event of the Enter that ends a composition tells it by its code alone."""
    out = run(
        [],
        """
        at("say").value = "hello";
        at("say").onkeydown({key: "Enter", keyCode: 229, preventDefault() {}});
        out.sent = sent.length;
        """,
    )
    assert out == {"sent": 0}


def test_the_conversation_survives_a_reload_and_nothing_else_is_kept():
    """With its system prompt; what had no answer yet can be sent again."""
    out = run(
        [[chunk("Hi", "stop")], []],
        """
        at("system").value = "Be brief.";
        at("key").value = "secret";
        await say("hello");
        await say("more");
        onpagehide();
        out.kept = {...kept};
        at("new").onclick();
        out.after = kept["dspark-gguf"];
        """,
    )
    assert list(out["kept"]) == ["dspark-gguf"]
    assert "secret" not in out["kept"]["dspark-gguf"]
    assert out["after"] == "[]"
    again = """
        out.said = said();
        out.system = at("system").value;
        out.typed = at("say").value;
        out.names = messages[1].article.children.map(each => each.textContent);
        """
    out = run([], again, out["kept"])
    assert out["said"] == [["user", "hello"], ["assistant", "Hi"]]
    assert (out["system"], out["typed"]) == ("Be brief.", "more")
    assert out["names"][-1] == "Regenerate"


def test_a_tab_that_may_keep_nothing_works():
    """What was kept by something else is no reason to fail either."""
    assert run([], "out.said = said();", {"dspark-gguf": "{"}) == {"said": []}
    refused = 'sessionStorage.setItem = () => { throw new Error("no"); }; onpagehide();'
    assert run([], refused) == {}
