"""Speed of extraction into a JSON schema: `DSparkLlama` with and without drafts, and `Llama`.

    python scripts/measure_grammar.py TARGET.gguf [DRAFT.gguf] [--rounds 3]

All take turns, with the schema and without it, and the fastest run of each prompt counts. The
script also prints how many texts are the same with all of them. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from time import perf_counter

import llama_cpp

from dspark_gguf import Speculation
from dspark_gguf.dropin.llama import DSparkLlama
from dspark_gguf.engine.llama import SafeLlama

SCHEMA = {
    "type": "object",
    "properties": {
        "people": {
            "type": "array",
            "minItems": 2,
            "maxItems": 3,
            "items": {
                "type": "object",
                "properties": {
                    "first_name": {"type": "string", "maxLength": 20},
                    "occupation": {"type": "string", "maxLength": 30},
                    "city_of_residence": {"type": "string", "maxLength": 20},
                    "age_in_years": {"type": "integer"},
                },
                "required": ["first_name", "occupation", "city_of_residence", "age_in_years"],
            },
        }
    },
    "required": ["people"],
}
TEXTS = [
    "Anna is 31, works as a baker and lives in Ghent. Tom, 45, is a teacher in Leeds.",
    "The nurse Maria (29) comes from Porto; her brother João, 34, is a fisherman in Faro.",
    "Two guests: Ken, a pilot of 52 from Osaka, and Mia, 27, who paints in Berlin.",
    "Olga, 61, once a chemist, lives in Riga. Her neighbour Juris, 58, is a carpenter.",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target")
    parser.add_argument("draft", nargs="?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.0)
    asked = parser.parse_args()
    options = {"n_ctx": 1024, "verbose": False, "seed": 7}
    ways = {
        "Llama": SafeLlama(asked.target, **options),
        "off": DSparkLlama(asked.target, speculation=Speculation(mode="off"), **options),
        "lookup": DSparkLlama(asked.target, **options),
    }
    if asked.draft:
        ways["draft"] = DSparkLlama(asked.target, draft_model=asked.draft, **options)
    grammar = llama_cpp.LlamaGrammar.from_json_schema(json.dumps(SCHEMA), verbose=False)
    best: dict[tuple[str, str, bool], float] = {}
    said: dict[tuple[str, bool], set[str]] = {}
    for _ in range(asked.rounds):
        for text in TEXTS:
            for constrained in (True, False):
                for name, llama in ways.items():
                    messages = [{"role": "user", "content": f"List the people.\n{text}"}]
                    started = perf_counter()
                    out = llama.create_chat_completion(
                        messages, max_tokens=160, temperature=asked.temperature, seed=7,
                        grammar=grammar if constrained else None,
                    )  # fmt: skip
                    seconds = perf_counter() - started
                    count = out["usage"]["completion_tokens"]
                    key = name, text, constrained
                    best[key] = max(best.get(key, 0), count / seconds)
                    content = out["choices"][0]["message"]["content"]
                    said.setdefault((text, constrained), set()).add(content)
                    if constrained and out["choices"][0]["finish_reason"] == "stop":
                        json.loads(content, strict=False)
    rows = {}
    for name in ways:
        for constrained in (True, False):
            rates = [best[name, text, constrained] for text in TEXTS]
            rows[f"{name} {'schema' if constrained else 'free'}"] = sum(rates) / len(rates)
    for name, rate in rows.items():
        print(f"{name:16} {rate:7.1f} tok/s")
    same = sum(len(texts) == 1 for texts in said.values())
    print(f"texts that are the same with all of them: {same} of {len(said)}")
    print(json.dumps({"tokens_per_second": rows, "same": same, "of": len(said)}))


if __name__ == "__main__":
    main()
