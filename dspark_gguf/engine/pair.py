"""A target and a draft, loaded and checked against each other."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import Any

from dspark_gguf.config import MAX_DRAFT, MAX_ROWS, DraftOptions, ModelOptions, Speculation
from dspark_gguf.engine import library, trial
from dspark_gguf.engine.closed import shut
from dspark_gguf.engine.compatible import difference
from dspark_gguf.engine.drafts import open_drafts
from dspark_gguf.engine.facts import model_facts, unloaded_facts
from dspark_gguf.engine.fitting import FreeMemory, open_what_fits
from dspark_gguf.engine.follower import Follower
from dspark_gguf.engine.gguf import read_header, readable_gguf
from dspark_gguf.engine.heads import is_own_draft, require_model
from dspark_gguf.engine.measuring import PROFILE_SECONDS, measure, measure_again
from dspark_gguf.engine.memory import Footprint, default_context
from dspark_gguf.engine.model import Model
from dspark_gguf.engine.sequence import SequenceCache, open_caches
from dspark_gguf.engine.template import ChatTemplate
from dspark_gguf.engine.token_map import share_aligned
from dspark_gguf.engine.vocabulary import Vocabulary
from dspark_gguf.errors import DSparkError, UsageError
from dspark_gguf.learned import Learned, learned_path
from dspark_gguf.paths import MIB
from dspark_gguf.progress import ProgressCallback, no_progress
from dspark_gguf.schedule.expected import is_hopeless

#: The first profile of a pair may take this share of the target's loading time, if that is more.
_PROFILE_SHARE = 0.05
#: A note about a decision; nothing is wrong.
NOT_USED = (
    "the draft model is not used: as measured on this machine, it would gain nothing even if it "
    "were always right; use `--drafter model` or `--spec on` to use it anyway"
)


class Pair:
    """Two models and their caches, from GGUF files of the target and the draft.

    The draft is loaded by the first decoder that drafts: with speculation off, or if it was found
    to gain nothing, it costs nothing. If memory is short, it gets a smaller context or is not
    loaded at all, with a note. The same file twice means a target with its own prediction heads, if
    it has any. `chat_template` is Jinja text, or a file with it, instead of the one in the target's
    file. At most `conversations` can share a pass (see ``batching.py``) and the context, fewer if
    each needs much memory. `on_progress` is called during loading and the first measurement.

    Raises:
        UsageError: no such file, or an unknown device.
        ModelError: a file llama.cpp cannot generate text with.
        ResourceError: not enough memory.
    """

    def __init__(
        self,
        target: str | Path,
        draft: str | Path | None = None,
        target_options: ModelOptions | None = None,
        draft_options: DraftOptions | None = None,
        chat_template: str | None = None,
        conversations: int = 1,
        on_progress: ProgressCallback = no_progress,
    ) -> None:
        if conversations < 1:
            raise UsageError(f"cannot open {conversations} conversations", "Give 1 or more.")
        target_options = ModelOptions.given(target_options)
        ModelOptions.given(draft_options)  # plain ModelOptions are accepted too
        self._on_progress = on_progress
        self._draft_path = None if draft is None else readable_gguf(draft)
        self._draft_options = draft_options or DraftOptions()
        #: Set it to end work on a long prompt or an answer at the next pass.
        self.interrupt = Event()
        self.draft: Model | None = None
        self.found = ""  # which pair this is and how its draft was found, if not named by the user
        self._learned: Learned | None = None
        header = read_header(target)
        require_model(header)
        with_heads = self._draft_path is not None and is_own_draft(header, self._draft_path)
        started = perf_counter()
        self._free_memory = FreeMemory.of(
            target, target_options, self._draft_options, conversations
        )
        self.target = Model(
            target, target_options, with_heads, on_progress=on_progress, interrupt=self.interrupt
        )
        self._profile_seconds = max(PROFILE_SECONDS, _PROFILE_SHARE * (perf_counter() - started))
        self.vocabulary: Vocabulary = self.target.vocabulary
        self.template = ChatTemplate(self.target, chat_template)
        options, train = self.target.options, self.target.n_ctx_train
        on_gpu = options.n_gpu_layers is None and library.can_offload()
        #: Notes on features that are off because a trial failed, and all notes for the user.
        self.left_out = trial.notes(options.extra_buffers, on_gpu)
        self.notes = [*self.target.notes, *self.template.notes, *self.left_out]
        if options.n_ctx > train and options.rope_scaling in (None, "none"):
            self.notes.append(
                f"n_ctx {options.n_ctx} is beyond the {train} tokens that {self.target.path.name} "
                "was trained for: answers may fall apart there; --rope-scaling can stretch it"
            )
        n_ctx = default_context(options, train)
        # Each has a row in every pass.
        conversations = min(conversations, MAX_ROWS)
        conversations = Footprint(self.target.header, options).conversations(conversations)
        #: One for each conversation.
        self.target_caches = open_caches(
            self.target, n_ctx, MAX_DRAFT + 1, self.interrupt, n_seq=conversations
        )
        self._draft_caches: list[SequenceCache] = []
        self.target_cache = self.target_caches[0]
        #: Caches of the first conversation; the draft's is added when it is loaded.
        self.caches = {"target": self.target_cache}

    def draft_cache(self, conversation: int = 0) -> SequenceCache | None:
        """Load the draft at the first call; None if there is none. Raises like `open_drafts`."""
        path, target = self._draft_path, self.target_cache
        if path is None:
            return None
        if self._draft_caches:
            return self._draft_caches[conversation]
        asked, crowd = self._draft_options, (target.context.n_ctx, len(self.target_caches))
        try:
            found, used, note = open_what_fits(
                path, asked, self.target.header, target.n_ctx, self._free_memory, self._open, *crowd
            )
        except DSparkError as error:
            if not self.found:  # the user named it
                raise
            found, used, note = [], asked, f"{error.problem}: the draft that was found is not used"
        self.notes += [note] if note else []
        if not found:
            self._draft_path = None
            return None
        self._draft_caches, self._draft_options = found, used
        self.caches["draft"] = cache = self._draft_caches[0]
        self.draft = cache.model
        self.notes += self.draft.notes
        if cache.kind in ("foreign", "mapped"):
            self.notes.append(_other_tokenizer(self.vocabulary, cache))
        if cache.n_ctx < target.n_ctx:
            self.notes.append(
                f"the draft's context is {cache.n_ctx} tokens, the target's {target.n_ctx}: "
                "beyond that, plain decoding"
            )
        if self.draft.size > self.target.size:
            sizes = [f"{model.size / MIB:.0f} MiB" for model in (self.draft, self.target)]
            self.notes.append(
                f"the draft ({sizes[0]}) is larger than the target ({sizes[1]}): drafting will "
                "cost more than it saves; are -m and -d swapped?"
            )
        return self._draft_caches[conversation]

    def others(self, conversation: int) -> list[SequenceCache]:
        """The caches of all conversations but this one."""
        caches = [*self.target_caches, *self._draft_caches]
        return [each for each in caches if each.sequence != conversation]

    def _open(self, options: DraftOptions) -> list[SequenceCache]:
        assert self._draft_path is not None  # checked by the caller
        names = self._draft_path, options, self.target_caches, self.vocabulary, self.target.path
        return open_drafts(*names, self.interrupt, self.target, self._on_progress)

    def learned(self, speculation: Speculation, into: Learned | None = None) -> Learned:
        """What was learned about this pair on this machine; measured first if nothing is known.

        Measuring takes about two seconds, once, and leaves both caches empty. `into` is used and
        returned instead of the pair's own.
        """
        known = into or self._learned
        if known is None:
            facts = self._facts(speculation)
            path = learned_path(facts) if speculation.learn else None
            draft = facts.get("draft", {}).get("file")
            about = {"machine": facts["machine"], "target": facts["target"]["file"], "draft": draft}
            known = self._learned = Learned(path, about)
            known.target_bytes = self.target.size
            self.notes += [known.note] if known.note else []
        leave_out = speculation.drafter == "lookup" or is_hopeless(known.costs, speculation)
        draft = None if leave_out else self.draft_cache()
        measure(
            known, self.target_cache, draft, speculation, self._profile_seconds, self._on_progress
        )
        if (
            self._draft_path
            and NOT_USED not in self.notes
            and is_hopeless(known.costs, speculation)
        ):
            self.notes.append(NOT_USED)
        return known

    def after_answer(self, tokens: int) -> None:
        """Save what was learned, now and then."""
        if self._learned is not None:
            self._learned.after_answer(tokens)

    def kept(self) -> Learned:
        """What earlier runs have learned about this pair, from its file."""
        return Learned(learned_path(self._facts(Speculation())))

    def measure_again(self, budget: float) -> None:
        """While idle, measure the least certain costs for about `budget` seconds.

        The caches are unchanged afterwards. Set `interrupt` to end it.
        """
        if self._learned is not None:
            measure_again(self.target_cache, self.caches.get("draft"), self._learned.costs, budget)

    def copy_costs(self) -> Learned:
        """A new `Learned` with only the current costs; it is never saved."""
        copied = Learned()
        if self._learned is not None:
            copied.costs, copied.of_file = deepcopy(self._learned.costs), self._learned.of_file
            copied.is_checked = True
        return copied

    def summary(self, speculation: Speculation) -> str:
        """A few lines: place and size of each model and its cache; what speculation does."""
        parts, count = [], len(self.target_caches)
        shared = f", shared by up to {count} conversations" if count > 1 else ""
        for role, cache in self.caches.items():
            model = cache.model
            kind = f" ({cache.draft.kind})" if isinstance(cache, Follower) else ""
            if role == "draft" and model.path == self.target.path:  # its size is listed already
                what = "the target's own prediction heads:"
            else:
                what = f"{model.name} on {model.place}: {model.size / MIB:.0f} MiB, and"
            parts.append(
                f"{role}{kind} {what} {cache.context.cache_bytes / MIB:.0f} MiB for "
                f"{cache.context.n_ctx:,} tokens{shared}"
            )
        return "\n".join([*parts, self._speculation_summary(speculation)])

    def close(self) -> None:
        """Save what was learned and free both models; using them later raises a `UsageError`."""
        if self._learned is not None:
            self._learned.save()
        for cache in (*self._draft_caches, *self.target_caches):
            cache.close()
            shut(cache)
        for model in filter(None, (self.draft, self.target)):
            model.close()
            shut(model.vocabulary)

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def has_draft(self) -> bool:
        """Whether there is a draft model, loaded or not."""
        return self._draft_path is not None

    @property
    def max_drafts(self) -> int:
        """Maximum draft tokens of a round."""
        draft = self.caches.get("draft", self.target_cache)
        return min(draft.max_drafts, self.target_cache.max_rows - 1)

    def _facts(self, speculation: Speculation) -> dict[str, Any]:
        facts = {"machine": library.machine(), "target": model_facts(self.target_cache)}
        if self._draft_path is not None and speculation.drafter != "lookup":
            facts["draft"] = unloaded_facts(self._draft_path, self._draft_options)
        return facts

    def _speculation_summary(self, speculation: Speculation) -> str:
        if speculation.mode == "off":
            return "speculation off: plain decoding, as asked"
        kind = "lossless" if speculation.lossless else "LOSSY, changes the output"
        kind = kind if speculation.acceptance == "match" else f"{speculation.acceptance} ({kind})"
        most, what = speculation.max_draft_steps, "draft tokens a round"
        known = self._learned
        left_out = known is not None and is_hopeless(known.costs, speculation)
        if left_out or "draft" not in self.caches or speculation.drafter == "lookup":
            most, what = speculation.max_lookup_tokens, "tokens copied from the conversation"
        how = f"up to {min(most, self.max_drafts)} {what}"
        if speculation.stopping_rule == "threshold":
            how += f" at {speculation.min_probability:.0%} or more"
        elif speculation.stopping_rule == "optimal":
            how += ", as many as pay here"
        return f"speculation {speculation.mode}: {kind}, {how}"


def _other_tokenizer(target: Vocabulary, draft: SequenceCache) -> str:
    """What to expect of a draft with another tokenizer."""
    vocabulary = draft.model.vocabulary
    start = f"the draft has another tokenizer ({difference(target, vocabulary)}): "
    if draft.kind == "mapped":
        return f"{start}{draft.token_map.share:.1%} of the tokens are the same, with other ids"
    return (
        f"{start}{share_aligned(target, vocabulary):.0%} of positions align; its text is turned "
        "into the target's tokens, which gains less than a draft of the target's own family"
    )
