"""The page: one file, and nothing else may run in it."""

from __future__ import annotations

import shutil

import pytest

from tests.serve.test_page_script import run


def test_the_page_allows_its_own_script_and_style_alone(server):
    answer = server.http.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert policy.count("sha256-") == 2
    assert answer.text.count("<script>") == answer.text.count("<style>") == 1
    for way in ("innerHTML", "insertAdjacentHTML", "document.write", "eval(", " style=", "http"):
        assert way not in answer.text, way


def test_the_page_needs_nothing_that_the_server_does_not_have(server):
    assert {"model_alias", "speculation", "plain_per_second"} <= server.http.get(
        "/props"
    ).json().keys()


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_an_answer_without_drafts_is_compared_with_nothing():
    """It was plain decoding: a ratio would only show how busy the machine was."""
    steps = """
        plain = 100;
        out.said = [0, 4].map(n => numbers({predicted_n: 9, predicted_per_second: 50, draft_n: n}));
    """
    without, drafted = run([], steps)["said"]
    assert without == "9 tokens, 50.0 a second, no drafts"
    assert "0.50 times plain decoding" in drafted
