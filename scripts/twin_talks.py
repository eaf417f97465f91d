"""Conversations that a `Twin` writes, with prompts of four kinds."""

from __future__ import annotations

import random

import torch
from demo_prompts import Maker
from twin import Twin

from dspark_gguf.engine.template import ChatTemplate
from dspark_gguf.train.work import Conversation

#: Tokens: of a conversation, an answer, and a user turn.
LONGEST, ANSWER, TURN = 640, 224, 70
#: First words of user turns; the target goes on from there.
OPENINGS = (
    "What is|What are|How do I|How can I|How does|Why do|Why is|When did|Who was|Where is|Can you "
    "explain|Explain|Describe|Tell me about|Give me|Give three|Write a|Write a short|Write an "
    "email|Write a poem about|Write a story about|Write a Python function|Write a Python program|"
    "Write a JavaScript function|Write a function in C|Write an SQL query|Write a bash script|"
    "Write a class|Fix this code:|What does this code do?|Translate to French:|Translate to "
    "Spanish:|Translate to German:|Translate this to Italian:|Summarise this text:|Summarize the "
    "following paragraph:|Rewrite this sentence|Rewrite the following in a formal tone:|Correct "
    "the grammar:|Make this sentence shorter:|Turn this into bullet points:|Extract the names "
    "from|Extract all dates from this text:|List the|List five|Find the|Find all numbers in|"
    "Convert|Calculate|Solve|Solve the equation|What is the sum of|What is the product of|If I "
    "have|If a car travels|A shop sells|A rectangle has|There are|Is it true that|Should I|I want "
    "to|I need help with|I feel|My friend|My dog|Compare|What is the difference between|Classify|"
    "Complete the sentence:|Create a table|Create a list of|Make a plan for|Suggest|Recommend|"
    "Answer the question:|Generate|Name|Define|Which|Do you|Hello|Please|Imagine|Act as|Repeat "
    "after me:|In one sentence,|Step by step,|Write the code for|Given the text"
)
TASKS = (
    "Summarise in one sentence: |Summarise in three bullet points: |Give the main points: |"
    "Translate to French: |Translate to Spanish: |Translate to German: |Translate to Italian: |"
    "Rewrite politely: |Rewrite in simple words: |Rewrite in the past tense: |Make this shorter: |"
    "Correct the spelling and repeat the text: |Repeat this text: |Write this as a list: |Write "
    "this as one paragraph: |List the key facts of this text: |List all names and places: |List "
    "the verbs in this text: |Extract all numbers as JSON: |Make a table of this: |What is the "
    "main idea of this text? |Find a title for this text: |Write a question about this text: |"
    "Explain this to a child: |Is this true? |Continue this text: "
)
#: Temperatures, and the share of answers at each.
TEMPERATURES, SHARES = (0.0, 0.6, 1.0), (0.55, 0.3, 0.15)


class Talks:
    """User turns that the target writes, most of them from a few words on; forms; and tasks."""

    def __init__(self, twin: Twin, template: ChatTemplate, seed: int) -> None:
        self._twin, self._template = twin, template
        self._random, self._maker = random.Random(seed), Maker(seed)
        mark = "\x02"
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                 {"role": "user", "content": mark}]  # fmt: skip
        head, _, tail = template.render(turns[2:]).partition(mark)
        again = template.render(turns).rpartition("b")[2].partition(mark)[0]
        self._head, self._tail, self._again = map(template.tokenize, (head, tail, again))
        self._end = self._tail[0]
        self._openings = [template.tokenize(each) for each in OPENINGS.split("|")]
        self._tasks = [template.tokenize(each) for each in TASKS.split("|")]
        self._texts: list[list[int]] = []

    def encode(self, prompt: str) -> list[int]:
        """The tokens of a conversation up to its first answer."""
        return self._template.encode([{"role": "user", "content": prompt}])

    def round(self, count: int, second: list[Conversation]) -> list[Conversation]:
        """So many new conversations, some of which continue others with another turn."""
        rng, begun = self._random, []
        for k in range(count):
            before = second[k].tokens + self._again if k < len(second) else self._head
            begun.append([*before, *(rng.choice(self._openings) if rng.random() < 0.75 else [])])
        one = torch.ones(count, device=self._twin.device)
        turns = self._twin.write(begun, one, TURN, self._end, filtered=False)
        asked: list[list[int]] = []
        for k, (before, turn) in enumerate(zip(begun, turns, strict=True)):
            kind = rng.random()
            if k >= len(second) and kind < 0.3:
                asked.append(self.encode(self._maker.prompt()[1]))
            elif k >= len(second) and kind < 0.5 and self._texts:
                task, text = rng.choice(self._tasks), rng.choice(self._texts)
                asked.append([*self._head, *task, *text[: rng.randint(10, 90)], *self._tail])
            else:
                asked.append([*before, *turn, *self._tail])
        found = self.answer(asked, rng.choices(TEMPERATURES, SHARES, k=count))
        self._texts = [each.answer for each in found if len(each.answer) > 20] + self._texts[:4000]
        return found

    def answer(
        self, asked: list[list[int]], temperatures: list[float], most: int = ANSWER
    ) -> list[Conversation]:
        """Answers to prompts; those too short or too long to learn from are left out."""
        heat = torch.tensor(temperatures, device=self._twin.device)
        answers = self._twin.write(asked, heat, most, self._end)
        return [
            Conversation(prompt, answer, t, len(prompt))
            for prompt, answer, t in zip(asked, answers, temperatures, strict=True)
            if len(answer) >= 4 and len(prompt) + len(answer) < LONGEST
        ]
