"""The third step: train a network on the conversations, saved whenever it stops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from dspark_gguf.chat.progress import counting
from dspark_gguf.engine.gguf import Header
from dspark_gguf.errors import UsageError
from dspark_gguf.train.batches import Batches, Records
from dspark_gguf.train.evaluate import Walk, evaluate
from dspark_gguf.train.export import known_tokens, load
from dspark_gguf.train.fit import Fit, best_device, feature_scale
from dspark_gguf.train.network import Network
from dspark_gguf.train.recipe import Recipe
from dspark_gguf.train.shape import Shape
from dspark_gguf.train.start import new_network
from dspark_gguf.train.vocabulary import choose_known, choose_mask
from dspark_gguf.train.weights import Weights
from dspark_gguf.train.work import Work, divided

#: Conversations from which the reduced vocabulary and the scale of inputs are computed.
_COUNTED, _MEASURED = 2000, 60


class Learner:
    """A network, its data, and their files.

    The first `count` conversations are in `records`; `ends` are the target's end tokens, `start` is
    a draft to continue from. Raises a `UsageError` if there is too little to learn from.
    """

    def __init__(
        self,
        work: Work,
        records: Records,
        count: int,
        shape: Shape,
        target: Header,
        ends: Sequence[int],
        start: Path | None,
        recipe: Recipe,
    ) -> None:
        self._work, self._file = work, work.folder / "checkpoint.pt"
        talks = work.conversations[:count]
        self.train, self.held = divided(talks, shape.block)
        if not self.train or not self.held:
            raise UsageError(
                f"{len(self.train)} conversations to learn from and {len(self.held)} to judge on "
                f"are too few, with answers of more than {shape.block} tokens",
                "Give more --hours, --disk or --prompts, or prompts that ask for longer answers.",
            )
        self.target, self._ends = Weights(target.path), ends
        device = best_device()
        with self._reading():
            state = (
                torch.load(self._file, map_location=device, weights_only=True)
                if self._file.exists()
                else None
            )
        network = self._network(records, shape, target.architecture, start, state)
        self.fit = Fit(network, recipe, device)
        if state is not None:
            with self._reading():
                self.fit.load(state)
        self.batches = Batches(
            talks, records, shape.block, network.known, shape.n_vocab, device
        )  # fmt: skip

    @property
    def network(self) -> Network:
        """The network as trained so far."""
        network: Network = self.fit.network
        return network

    def run(self, seconds: float, say: Callable[[str], object]) -> Walk:
        """Train until so many seconds are spent on it, or it stops improving."""
        curve = self._work.values["curve"]
        try:
            with counting(1, title="training", say=say) as show:
                text = ""
                for done, found in self.fit.run(self.batches, self.train, self.held, seconds):
                    if found is not None:
                        curve.append([round(self.fit.seconds), round(found.tokens_a_pass, 3)])
                        text = f"{found.tokens_a_pass:.2f} tokens a pass, held out"
                        self.save()
                    show(done, text)
        finally:
            self.save()
        found = self.judge()
        curve.append([round(self.fit.seconds), round(found.tokens_a_pass, 3)])
        return found

    def judge(self) -> Walk:
        """Evaluate on held-out conversations, as they would be served."""
        found: Walk = evaluate(self.network, self.batches, self.held, self.fit.autocast)
        return found

    def save(self) -> None:
        """Save everything, so that a later run resumes here."""
        self.fit.save(self._file)
        self._work.values["spent"]["training"] = self.fit.seconds
        self._work.save()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turns torch's errors about a damaged file into a `UsageError`."""
        try:
            yield
        except (RuntimeError, UnpicklingError, EOFError, LookupError, ValueError) as error:
            hint = "Delete it: training begins again, with the conversations that are there."
            raise UsageError(f"cannot read {self._file}: it is damaged", hint) from error

    def _network(
        self, records: Records, shape: Shape, architecture: str, start: Path | None, state: Any
    ) -> Network:
        scale = feature_scale([records[k].features for k in self.train[:_MEASURED]])
        draft = None if start is None else Weights(start)
        if state is not None:
            known, mask = state["known"].cpu(), state["mask"]
        elif draft is not None:
            known = known_tokens(draft, shape)
            mask = int(draft.readers[0].fields["tokenizer.ggml.mask_token_id"].contents())
        else:
            counted = (records[k] for k in self.train[:_COUNTED])
            ids, share = choose_known(counted, shape.n_vocab, shape.vocabulary)
            self._work.values["vocabulary"] = {"tokens": len(ids), "share": round(share, 4)}
            known, mask = torch.from_numpy(ids), self._mask()
        torch.manual_seed(0)
        network = new_network(shape, self.target, architecture, known, mask, scale)
        if draft is not None and state is None:
            load(network, draft)
        return network

    def _mask(self) -> int:
        kinds = self.target.readers[0].fields.get("tokenizer.ggml.token_type")
        sizes = (self.target["token_embd.weight"] ** 2).mean(1) ** 0.5
        return choose_mask(
            self._work.conversations,
            kinds.contents() if kinds else [],
            self._ends,
            sizes,
        )
