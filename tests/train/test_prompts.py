"""What the target is asked, and what is kept of it."""

from __future__ import annotations

from collections import Counter
from itertools import count

import pytest

from dspark_gguf.errors import UsageError
from dspark_gguf.measure.prompts import Prompt
from dspark_gguf.train.prompts import MAX_HELD, GivenPrompts, OwnPrompts


class Template:
    """Renders as ChatML does, a token for each character."""

    def render(self, messages):
        return f"<s>user\n{messages[-1]['content']}</s>assistant\n"

    def tokenize(self, text):
        return [ord(char) for char in text]

    def encode(self, messages):
        return self.tokenize(self.render(messages))


def given(numbers, held=(), done=0):
    prompts = [Prompt("all", [{"role": "user", "content": f"prompt {k}"}]) for k in numbers]
    return GivenPrompts(prompts, Template(), 0, 40, [each.tokens for each in held], done)


def test_held_out_prompts_are_asked_once_and_never_learned():
    """Greedily, first; the others come again at other temperatures."""
    source = given(range(32))
    asked = [source.next() for _ in range(2 + 3 * 30)]
    held, rest = asked[:2], asked[2:]
    assert all(each.held and each.temperature == 0 for each in held)
    assert not any(each.held for each in rest)
    seen = Counter(tuple(each.tokens) for each in rest)
    assert set(seen.values()) == {3}
    assert not {tuple(each.tokens) for each in held} & seen.keys()
    assert len({(tuple(each.tokens), each.temperature) for each in rest}) == 90


def test_a_later_run_goes_on_with_the_next_prompt():
    """What was asked before the interruption is not asked again."""
    whole = given(range(32))
    asked = [whole.next() for _ in range(20)]
    later = given(range(32), held=asked[:2], done=5)
    assert [later.next() for _ in range(13)] == asked[7:]


def test_a_held_out_prompt_without_an_answer_is_asked_again():
    """The interruption came before its answer: there would be nothing to judge on, for ever."""
    asked = given(range(32)).next()
    later = given(range(32), held=[asked], done=5)
    again = later.next()
    assert again.held
    assert again.tokens != asked.tokens


def test_a_prompt_without_room_for_an_answer_is_not_held_out():
    """There would be nothing to judge on; it is not asked at all, and counted."""
    long = [Prompt("all", [{"role": "user", "content": f"{k}" * 40}]) for k in range(9)]
    short = Prompt("all", [{"role": "user", "content": "short"}])
    source = GivenPrompts([*long, short], Template(), 0, 40)
    assert source.left_out == 9
    assert source.next().held
    assert all(len(source.next().tokens) <= 40 for _ in range(9))
    with pytest.raises(UsageError, match="all prompts have more than 40 tokens"):
        GivenPrompts(long, Template(), 0, 40)


def test_what_is_held_out_stays_so():
    """Neither a prompt that is there twice nor one held out by an earlier run is learned."""
    twice = given([*range(32), *range(32)])
    held = [twice.next() for _ in range(2)]
    assert not any(twice.next().tokens in [each.tokens for each in held] for _ in range(90))
    other = given(range(64), held=held, done=30)
    assert not any(other.next().tokens in [each.tokens for each in held] for _ in range(90))


def test_one_prompt_is_learned_and_judged_on():
    """There is no other."""
    source = given(range(1))
    assert [source.next().held for _ in range(3)] == [True, False, False]


def test_the_target_writes_the_users_turn():
    """It goes on after the template's opening; its text is a prompt then, and learned from."""
    source = OwnPrompts(Template(), 0)
    first = source.next()
    assert first.begun
    assert "".join(map(chr, first.tokens)) == "<s>user\n"
    prompt = source.heard("How are you? ", first)
    assert "".join(map(chr, prompt.tokens)) == "<s>user\nHow are you?</s>assistant\n"
    assert prompt.start == len(first.tokens)
    assert source.heard("  ", first) is None


def test_a_template_that_begins_with_the_users_text():
    """There is nothing to go on from, which is not the user's empty prompt."""

    class Bare(Template):
        def render(self, messages):
            return messages[-1]["content"]

    with pytest.raises(UsageError, match=r"nothing before a user's text .* Give --prompts"):
        OwnPrompts(Bare(), 0)


def test_some_prompts_are_tasks_on_earlier_answers():
    """And one in 16 is held out, at most 40; from held-out answers nothing is taken."""
    source, held, tasks = OwnPrompts(Template(), 0), 0, 0
    for k in count():
        asked = source.next()
        if asked.begun:
            asked = source.heard(f"question {k}", asked)
        else:
            tasks += 1
            assert "secret" not in "".join(map(chr, asked.tokens))
        held += asked.held
        text = "secret words that no task may ever show to anybody." if asked.held else (
            f"answer {k} has a good many words and ends with a point.")  # fmt: skip
        assert source.heard(text, asked) is None
        if k == 1000:
            break
    assert held == MAX_HELD
    assert 200 < tasks < 400


@pytest.mark.parametrize("done", [0, 100])
def test_own_prompts_of_a_later_run_are_others(done):
    """Another run draws another way."""
    one, two = OwnPrompts(Template(), 0, done), OwnPrompts(Template(), 0, done + 1)
    assert one._rng.random() != two._rng.random()
