"""Generate prompts to train a draft for the demo on: JSON lines, seven kinds of text, at random.

    python scripts/demo_prompts.py --count 6000 > prompts.jsonl
    dspark-gguf train -m SmolLM2-135M-Instruct-Q8_0.gguf -o DRAFT.gguf --prompts prompts.jsonl

None of them is in ``configs/prompts``, so the draft can be evaluated on those.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from string import Formatter

import click

WORDS = {
    "topic": (
        "bread;the moon;old castles;stamps;rivers;sleep;saving "
        "water;tea;chess;penguins;running;the violin;wind power;a first job;insects;painting a "
        "room;pickles;maps;the printing press;stars;knitting;radio;deserts;good "
        "manners;learning Korean;lighthouses;mushrooms;a long flight;honesty"
    ),
    "person": "Amir;Beth;Clara;Diego;Eva;Felix;Grace;Hugo;Ines;Jonas;Kim;Lena;Mina;Noah;Oskar;Rosa",
    "place": "Lisbon;Kyoto;Nairobi;Warsaw;Quito;Hanoi;Bergen;Denver;Perth;Naples;Cork;Split",
    "day": "Monday;Tuesday;Wednesday;Thursday;Saturday;Sunday",
    "thing": "bench;kettle;scarf;ladder;lantern;bucket;violin;stove;map;blanket;clock;tent",
    "goods": "pears;nails;stamps;bricks;lemons;buttons;tickets;jars;spoons;roses;pencils",
    "language": "French;Spanish;German;Italian;Portuguese;Dutch",
    "code": "Python;Python;JavaScript;Java;C;Go;Bash;TypeScript",
    "job": (
        "reverses the words of a line;finds the smallest number in a list;checks whether two "
        "words are anagrams;turns seconds into hours and minutes;counts the lines of a "
        "file;sorts people by age;removes spaces at both ends;adds two matrices;draws a square "
        "of stars;converts inches to centimetres;tests whether a year is a leap year;reads JSON"
        " from a file;merges two sorted lists;implements a linked list;guesses a secret "
        "number;rolls two dice"
    ),
    "query": (
        "lists the cheapest five books;counts the visits of each day;deletes users without an "
        "address;finds the last order of each customer;doubles the price of one product"
    ),
    "verb": "repairs;paints;sells;carries;cleans;forgets;borrows;finds;hides;buys",
    "fact": (
        "{person} {verb} a {thing} near the market in {place}.;The {thing} was made in {place} "
        "in {year}.;On {day} {person} will visit {place} with {n} friends.;It costs {n} euros, "
        "which is {m} euros more than before.;Nobody knew why {person} left {place} so "
        "early.;The shop sells {goods} and {goods}, but no {goods}.;In the evening it rained, "
        "and the {thing} got wet.;{person} has worked there since {year} and likes it.;A train "
        "leaves for {place} every {n} minutes.;The council wants to close the library on "
        "{day}.;Most of the {n} {goods} were gone by noon."
    ),
    "text": "{fact} {fact} {fact};{fact} {fact} {fact} {fact};{fact} {fact} {fact} {fact} {fact}",
}
KINDS = {
    "chat": (
        "What do you know about {topic}?;How do I begin with {topic}?;Write four lines of verse"
        " about {topic}.;Why is {topic} important?;Tell a story about {person} and a "
        "{thing}.;Name three things to see in {place}.;{person} and I disagree about {topic}. "
        "What should we do?;Write a letter to {person} about {topic}.;Compare {topic} with "
        "{topic}.;Is {topic} boring?"
    ),
    "code": (
        "Write a {code} function that {job}.;Show a {code} program that {job}, with "
        "comments.;How can I write {code} code that {job}?;Write a SQL query that "
        "{query}.;Explain how a {code} function that {job} works."
    ),
    "maths": (
        "What is {n} times {m}?;What is {n} plus {m} minus {k}? Show the steps.;{person} has "
        "{n} {goods} and gives away {k}. How many are left?;{k} {goods} cost {n} euros. What do"
        " {m} cost?;Solve {k}x - {m} = {n} for x.;A field is {n} m by {m} m. How large is "
        "it?;What is {m} percent of {n}0? Explain.;How many days are {n} weeks and {k} days?"
    ),
    "translation": (
        "Translate to {language}: {fact};Say this in {language}: {fact};Translate into "
        "{language}: I would like {n} {goods}, please.;What is the {language} for: where is my "
        "{thing}?"
    ),
    "summarising": (
        "Summarise in one sentence: {text};Summarise this for {person}: {text};Give the main "
        "points: {text};Find a title for this text: {text}"
    ),
    "rewriting": (
        "Rewrite politely: Bring me the {thing} at once.;Rewrite in the past tense: {fact};Make"
        " this shorter: {text};Repeat this text with all names replaced by X: {text};Write this"
        " as a list: {text};Rewrite in simple words: {text};Correct the mistakes: {fact}"
    ),
    "extraction": (
        "List all names in this text: {text};Give the numbers in this text as JSON: "
        "{text};Which places are named here? {text};Which words are nouns? {fact};Make a table "
        "of names and places: {text}"
    ),
}


class Maker:
    """Draws from the lists; a name in braces is replaced by a draw from the list of that name."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def prompt(self) -> tuple[str, str]:
        """A kind of text, and a prompt of this kind."""
        kind = self._random.choice(list(KINDS))
        return kind, self._fill(self._random.choice(KINDS[kind].split(";")))

    def _fill(self, form: str) -> str:
        parts = (text + self._word(name) for text, name, *_ in Formatter().parse(form))
        return "".join(parts)

    def _word(self, name: str | None) -> str:
        if name is None:
            return ""
        if name in WORDS:
            return self._fill(self._random.choice(WORDS[name].split(";")))
        least, most = {"year": (1890, 2024), "n": (10, 99), "m": (3, 60), "k": (2, 9)}[name]
        return str(self._random.randint(least, most))


@click.command(help=__doc__)
@click.option("--count", default=6000)
@click.option("--seed", default=0)
def main(count: int, seed: int) -> None:
    """Print the prompts without repetition."""
    folder = Path(__file__).parents[1] / "configs" / "prompts"
    lines = [
        line for path in folder.glob("*.jsonl") for line in path.read_text("utf-8").splitlines()
    ]
    seen = {json.loads(line)["prompt"] for line in lines}
    maker = Maker(seed)
    while count:
        kind, text = maker.prompt()
        if text not in seen:
            seen.add(text)
            click.echo(json.dumps({"domain": kind, "prompt": text}))
            count -= 1


if __name__ == "__main__":
    main()
