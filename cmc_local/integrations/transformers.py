"""An adapter as a `LogitsProcessor` for `model.generate` of Hugging Face transformers.

    input_ids (R, L) --> which row is at which reply --> Steering, one a row --> shift (V_delta,)
    scores (R, W) ------------------------------------------ steer/control.py + <----------- map

A batch of one prompt for each row, with several beams or samples of each; rows change places
between steps as beam search likes. So no row is known by its number: what a row has written says
which steering has followed it, a second row that goes on from there takes a free one, and what
their deltas have in common is copied.

    beams of one prompt   "The" "A" "An"  ->  "The sea" "The sky" "A boat":  the steering of "An"
                                              now follows "The sky"

Imports transformers, and knows nothing of GGUF files: the base's vocabulary is the tokenizer's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from transformers import LogitsProcessor

from cmc_local.delta import adapter as adapter_folder
from cmc_local.delta.adapter import Adapter
from cmc_local.delta.onnx_delta import OnnxDelta
from cmc_local.delta.source import Feed, ShiftSource
from cmc_local.errors import TokenizerError, UsageError
from cmc_local.settings import Control
from cmc_local.steer.control import Shift, add_shifts
from cmc_local.steer.loaded_adapter import LoadedAdapter, ready
from cmc_local.steer.steering import WORTH_COPYING, Forecast, Steering, advance
from cmc_local.steer.strengths import check_alpha
from cmc_local.text.alignment import DeltaPrompt, DeltaTokenizer, common_prefix
from cmc_local.text.prompts import Message, base_text
from cmc_local.text.vocabulary import Role, Vocabulary, from_tokenizer_json

if TYPE_CHECKING:
    import torch

__all__ = ["Conversation", "SteeringProcessor"]

Conversation = str | Sequence[Message]
"""A question, or a conversation in OpenAI's chat shape that awaits an answer."""


class SteeringProcessor(LogitsProcessor):  # type: ignore[misc]  # transformers is not typed here
    """Adds an adapter's shift to the scores of every row of `generate`.

        steer = SteeringProcessor(tokenizer, "my-adapter", prompts=["Who wrote Dune?"])
        model.generate(**inputs, logits_processor=[steer])

    A row's log-sum-exp stays what it was, so beams remain comparable. Errors of the adapter or the
    delta end `generate`: no token is chosen from scores that miss a shift.
    """

    supports_continuous_batching = False

    def __init__(
        self,
        tokenizer: Any,
        adapter: str | Path,
        alpha: float | None = None,
        *,
        prompts: Sequence[Conversation],
        control: Control | None = None,
        device: str = "auto",
        threads: int = 1,
    ) -> None:
        """`tokenizer` is the base's, a fast one; `prompts` are what the rows of `generate` answer.

        `alpha` None is the adapter's own strength; `device` and `threads` are the delta's.
        """
        self._adapter = adapter_folder.load(adapter)
        self._alpha = self._adapter.settings.alpha if alpha is None else check_alpha(alpha)
        self._base = _vocabulary_of(tokenizer)
        self._control = control or Control()
        self._device, self._threads = device, threads
        self._rows: Rows | None = None
        self._width = 0
        self.begin(prompts)

    def begin(self, prompts: Sequence[Conversation]) -> None:
        """Answer other prompts from the next `generate` on, one for each text it is given."""
        if isinstance(prompts, str) or not prompts:
            raise UsageError("prompts must be a list with a conversation for each row")
        self._conversations: list[list[Message]] = [
            [{"role": "user", "content": one}] if isinstance(one, str) else list(one)
            for one in prompts
        ]
        self._texts = [self._text(messages) for messages in self._conversations]
        self._asked: torch.Tensor | None = None  # (len(prompts), P), the base's prompts as tokens
        self._rows_asked = False

    def base_texts(self) -> list[str]:
        """The base's prompts in the adapter's form, for a base that has no chat template."""
        return list(self._texts)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        """(R, W) scores with the shifts, after (R, L) tokens: prompts, padded left, and replies."""
        if self._alpha == 0:
            return scores
        replies = self._replies(input_ids)
        rows = self._prepared(len(replies), scores.shape[-1])
        shifted = np.array(scores.detach().float().cpu().numpy(), np.float32, order="C")
        for row, forecast in zip(shifted, rows.follow(replies), strict=True):
            add_shifts(row, [Shift(rows.mapped, forecast.shift, self._alpha, forecast.offers)])
        found = scores.new_tensor(shifted)
        gained = found.logsumexp(-1, keepdim=True) - scores.logsumexp(-1, keepdim=True)
        return found - gained.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

    def _text(self, messages: Sequence[Message]) -> str:
        settings = self._adapter.settings
        return base_text(settings.prompt, messages, turns=settings.turns)

    def _replies(self, input_ids: torch.LongTensor) -> list[RowReply]:
        """For each row which prompt it answers, and with which tokens so far."""
        rows, prompts = len(input_ids), len(self._conversations)
        if rows % prompts:
            raise UsageError(
                f"generate works on {rows} rows, which {prompts} prompts do not divide: give "
                "`prompts` one conversation for each text of the batch"
            )
        each = rows // prompts
        if self._asked is None:
            self._asked = input_ids[::each].clone()
        length = self._asked.shape[1]
        begun = input_ids[:, :length]
        asked = self._asked.repeat_interleave(each, 0).to(begun.device)
        if begun.shape != asked.shape or not bool((begun == asked).all()):
            raise UsageError(
                "generate was given other texts than before: call `begin` with their conversations"
            )
        replies: list[list[int]] = input_ids[:, length:].tolist()
        return [RowReply(row // each, tuple(reply)) for row, reply in enumerate(replies)]

    def _prepared(self, count: int, width: int) -> Rows:
        """Steerings for so many rows and scores so wide; the first call loads the delta."""
        if self._rows is None or len(self._rows.branches) < count or self._width != width:
            base = _widened(self._base, width)
            loaded = _loaded(
                self._adapter, base, self._control, self._device, self._threads, slots=count
            )
            self._rows, self._width, self._rows_asked = Rows(loaded, base), width, False
        if not self._rows_asked:
            self._rows.ask(self._conversations)
            self._rows_asked = True
        return self._rows


# --- rows that change places ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RowReply:
    """What a row has written."""

    prompt: int
    """The number of the prompt that it answers."""
    tokens: tuple[int, ...]
    """The base's."""


@dataclass(eq=False, slots=True)
class Branch:
    """A steering, and the reply that it has been told of; None where it follows none."""

    steering: Steering
    reply: RowReply | None = None


class Rows:
    """The steerings of one adapter, each on whatever row it suits best."""

    def __init__(self, loaded: LoadedAdapter, base: Vocabulary) -> None:
        self.mapped = loaded.mapped
        self.branches = [Branch(steering) for steering in loaded.steerings]
        self._loaded = loaded
        self._texts = base.tokens
        self._prompts: list[DeltaPrompt] = []

    def ask(self, conversations: Iterable[Sequence[Message]]) -> None:
        """New prompts; no steering follows any reply to them yet."""
        self._prompts = [self._loaded.prompt(messages) for messages in conversations]
        for branch in self.branches:
            branch.reply = None

    def follow(self, replies: Sequence[RowReply]) -> list[Forecast]:
        """What the delta says after each reply; after an error all steerings begin anew."""
        try:
            branches = self._assigned(replies)
            for branch, reply in zip(branches, replies, strict=True):
                self._plan(branch, reply)
            advance([branch.steering for branch in branches])
        except BaseException:
            for branch in self.branches:
                branch.reply, branch.steering.stale = None, True
            raise
        return [branch.steering.forecasts[0] for branch in branches]

    def _assigned(self, replies: Sequence[RowReply]) -> list[Branch]:
        """For each reply the branch that is at it or one token before it, else a free one."""
        at: dict[RowReply | None, list[Branch]] = {}
        for branch in self.branches:
            at.setdefault(branch.reply, []).append(branch)
        found: list[Branch | None] = []
        for reply in replies:
            before = RowReply(reply.prompt, reply.tokens[:-1])
            known = at.get(reply) or at.get(before)
            found.append(known.pop(0) if known else None)
        free = chain.from_iterable(at.values())
        return [next(free) if branch is None else branch for branch in found]

    def _plan(self, branch: Branch, reply: RowReply) -> None:
        steering, told = branch.steering, branch.reply
        tokens = reply.tokens
        if told == reply:
            tokens = ()
        elif told is not None and told == RowReply(reply.prompt, reply.tokens[:-1]):
            tokens = reply.tokens[-1:]
        else:
            steering.begin(self._prompts[reply.prompt])
        branch.reply = reply
        steering.plan([b"".join(self._texts[token] for token in tokens)])


class CopiedPrefixes:
    """A shift source that copies what another slot holds rather than compute it again."""

    def __init__(self, source: ShiftSource) -> None:
        self._source = source
        self._held: list[list[int]] = [[] for _ in range(source.slots)]
        self.vocabulary = source.vocabulary
        self.context = source.context
        self.slots = source.slots

    def feed(self, slot: int, tokens: Sequence[int], rows: int = 1) -> NDArray[np.float32]:
        """`ShiftSource.feed`."""
        return self.feed_many([Feed(slot, tokens, rows)])[0]

    def feed_many(self, feeds: Sequence[Feed]) -> list[NDArray[np.float32]]:
        """`ShiftSource.feed_many`; the tokens whose rows are wanted are always computed."""
        rest = [self._copied(feed) for feed in feeds]
        found = self._source.feed_many(rest)
        for slot, tokens, _ in rest:
            self._held[slot].extend(tokens)
        return found

    def copy(self, source: int, target: int, length: int) -> bool:
        """`ShiftSource.copy`."""
        copied = self._source.copy(source, target, length)
        if copied:
            self._held[target] = self._held[source][:length]
        return copied

    def truncate(self, slot: int, length: int) -> None:
        """`ShiftSource.truncate`."""
        self._source.truncate(slot, length)
        del self._held[slot][length:]

    def length(self, slot: int) -> int:
        """`ShiftSource.length`."""
        return self._source.length(slot)

    def _copied(self, feed: Feed) -> Feed:
        """What is left to feed after the best copy from another slot."""
        slot, tokens, rows = feed
        own = len(self._held[slot])
        most = len(tokens) - rows
        if most < WORTH_COPYING:
            return feed
        stream = [*self._held[slot], *tokens]
        others = (i for i in range(self.slots) if i != slot)
        shared = [(min(common_prefix(self._held[i], stream), own + most), i) for i in others]
        length, best = max(shared, default=(0, 0))
        if length - own < WORTH_COPYING or not self.copy(best, slot, length):
            return feed
        return Feed(slot, tokens[length - own :], rows)


# --- the adapter and the base's vocabulary ----------------------------------------------------


def _loaded(
    adapter: Adapter, base: Vocabulary, control: Control, device: str, threads: int, *, slots: int
) -> LoadedAdapter:
    """An adapter ready for a base vocabulary, with a steering for each of the rows."""
    settings = adapter.settings
    return ready(
        CopiedPrefixes(OnnxDelta(adapter, device=device, threads=threads, slots=slots)),
        DeltaTokenizer(adapter.tokenizer_json),
        base,
        control,
        name=settings.name,
        alpha=settings.alpha,
        form=settings.prompt,
        turns=settings.turns,
    )


def _vocabulary_of(tokenizer: Any) -> Vocabulary:
    """The vocabulary of a fast tokenizer, with the two ends that it names."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TokenizerError(
            f"a {type(tokenizer).__name__} has no tokenizer.json: give a fast tokenizer, as "
            "AutoTokenizer.from_pretrained loads it"
        )
    found = from_tokenizer_json(backend.to_str().encode())
    ends = tokenizer.eos_token_id, tokenizer.bos_token_id
    eos, bos = (
        own if given is None else given for given, own in zip(ends, _ends(found), strict=True)
    )
    return Vocabulary.assemble(_entries(found), eos_id=eos, bos_id=bos)


def _widened(vocabulary: Vocabulary, width: int) -> Vocabulary:
    """The vocabulary with unused tokens up to the model's number of scores.

    Models round that number up; what lies beyond the tokenizer is unmapped, and gets the fill.
    """
    more = width - len(vocabulary)
    if more < 0:
        raise UsageError(
            f"the tokenizer has {len(vocabulary)} tokens, the model's scores only {width}: give "
            "the model's own tokenizer, or call model.resize_token_embeddings(len(tokenizer))"
        )
    unused = repeat((b"", Role.UNUSED, ""), more)
    eos, bos = _ends(vocabulary)
    return Vocabulary.assemble(chain(_entries(vocabulary), unused), eos_id=eos, bos_id=bos)


def _ends(vocabulary: Vocabulary) -> tuple[int | None, int | None]:
    return vocabulary.eos_id, vocabulary.bos_id


def _entries(vocabulary: Vocabulary) -> Iterable[tuple[bytes, Role, str]]:
    """What `Vocabulary.assemble` takes."""
    roles = map(Role, vocabulary.roles.tolist())
    return zip(vocabulary.tokens, roles, vocabulary.names, strict=True)
