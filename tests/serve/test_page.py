"""The page: one file, and nothing else may run in it."""

from __future__ import annotations


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
