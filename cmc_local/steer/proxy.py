"""Proxy-tuning: the logits of a tuned GGUF model minus those of the same model untuned, as a shift.

    base + alpha * (expert - antiexpert)      Liu et al. 2024, arXiv 2401.08565, section 2

Expert and antiexpert share one vocabulary, which need not be the base's: the shift goes through the
token map like any other. A `ProxyPair` is a shift source (`delta/source.py`), `loaded` makes it
ready for a base vocabulary. Knows nothing of the base model or of how a shift is added.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmc_local.base import gguf_header
from cmc_local.base.model import BaseModel
from cmc_local.base.span import Span
from cmc_local.base.tokenizer_json import tokenizer_of
from cmc_local.delta.source import Feed, check_kept, check_slot, checked_feeds
from cmc_local.errors import GGUFError, TokenizerError
from cmc_local.settings import Control
from cmc_local.steer.loaded_adapter import LoadedAdapter, ready
from cmc_local.text.delta_tokenizer import DeltaTokenizer
from cmc_local.text.prompts import PromptForm
from cmc_local.text.vocabulary import Vocabulary

Logits = NDArray[np.float32]
_WHOSE: Final = "the pair"

_PROBE: Final = (
    'Helen\'s 1,957 novels -- she wrote "The Sea" in Zürich (東京)!\n\n  for i in range(10):\n\tx'
)
"""Words, digits, punctuation, white space, several scripts: where tokenizers differ."""


class ProxyPair:
    """Two GGUF models over the slots' token streams; it belongs to one thread at a time."""

    def __init__(self, expert: BaseModel, antiexpert: BaseModel) -> None:
        """From open models, which `close` frees; each sequence of theirs is a slot.

        Raises GGUFError where their vocabularies differ.
        """
        _refuse_different(expert, antiexpert)
        self.expert, self.antiexpert = expert, antiexpert
        self.vocabulary: Vocabulary = expert.vocabulary
        self.context: int = min(expert.n_ctx, antiexpert.n_ctx)
        self.slots: int = min(expert.sequences, antiexpert.sequences)
        self._halves = (_Half(expert), _Half(antiexpert))
        self._streams: list[list[int]] = [[] for _ in range(self.slots)]

    @classmethod
    def load(
        cls,
        expert: str | Path,
        antiexpert: str | Path,
        *,
        context: int = 0,
        batch: int = 512,
        gpu_layers: int = -1,
        threads: int | None = None,
        slots: int = 1,
    ) -> ProxyPair:
        """Load both files, arguments as for `BaseModel`; a longer `context` than they were trained
        with is cut to that. Raises GGUFError for a file that cannot be used."""
        models: list[BaseModel] = []
        try:
            for path in (Path(expert), Path(antiexpert)):
                models.append(
                    BaseModel(
                        path,
                        context=_within_trained(path, context),
                        batch=batch,
                        gpu_layers=gpu_layers,
                        threads=threads,
                        sequences=slots,
                    )
                )
            return cls(*models)
        except BaseException:
            for model in models:
                model.close()
            raise

    @property
    def can_roll_back(self) -> bool:
        """Whether both models can; where one cannot it decodes its stream again."""
        return self.expert.can_roll_back and self.antiexpert.can_roll_back

    def length(self, slot: int) -> int:
        """Tokens that the slot holds now."""
        check_slot(self, slot, _WHOSE)
        return len(self._streams[slot])

    def truncate(self, slot: int, length: int) -> None:
        """Forget all tokens after the first `length`."""
        check_kept(self, slot, length, _WHOSE)
        del self._streams[slot][length:]
        for half in self._halves:
            half.truncate(slot, length)

    def copy(self, source: int, target: int, length: int) -> bool:
        """Let `target` hold the first `length` tokens of `source`; False where it cannot."""
        check_kept(self, source, length, _WHOSE)
        check_slot(self, target, _WHOSE)
        if not self.can_roll_back:
            return False
        self._streams[target] = self._streams[source][:length]
        for half in self._halves:
            half.copy(source, target, length)
        return True

    def feed(self, slot: int, tokens: Sequence[int], rows: int = 1) -> Logits:
        """Append tokens; (min(rows, len(tokens)), V) float32, expert minus antiexpert, at the last.

        Raises UsageError, and changes nothing, where the context is too short or a token is not in
        the vocabulary.
        """
        return self.feed_many([Feed(slot, tokens, rows)])[0]

    def feed_many(self, feeds: Sequence[Feed]) -> list[Logits]:
        """`feed` for several slots, each at most once, decoded together; result i is feed i's."""
        clean = checked_feeds(self, feeds, len(self.vocabulary), _WHOSE)
        before = {one.slot: len(self._streams[one.slot]) for one in clean}
        for one in clean:
            self._streams[one.slot] += one.tokens
        work = [
            _Work(slot, self._streams[slot], len(self._streams[slot]) - min(rows, len(tokens)))
            for slot, tokens, rows in clean
        ]
        try:
            found, less = (half.rows(work) for half in self._halves)
        except BaseException:
            for slot, length in before.items():
                del self._streams[slot][length:]
                for half in self._halves:
                    half.forget(slot)  # a failed decode may have left anything there
            raise
        for rows, others in zip(found, less, strict=True):
            rows -= others
        return found

    def close(self) -> None:
        """Free both models; more than once is fine."""
        self.expert.close()
        self.antiexpert.close()


class _Work(NamedTuple):
    """A slot that is to hold `stream`; logits are wanted from position `first` on."""

    slot: int
    stream: Sequence[int]
    first: int


class _Half:
    """One of the two models, and how many tokens of each slot's stream it has decoded.

    That may be fewer than the slot holds: a model that could not roll back begins again with the
    next feed.
    """

    def __init__(self, model: BaseModel) -> None:
        self._model = model
        self._decoded = [0] * model.sequences

    def truncate(self, slot: int, length: int) -> None:
        if length >= self._decoded[slot]:
            return
        if length and self._model.truncate(slot, length):
            self._decoded[slot] = length
        else:
            self.forget(slot)

    def forget(self, slot: int) -> None:
        self._decoded[slot] = 0
        self._model.clear(slot)

    def copy(self, source: int, target: int, length: int) -> None:
        self._model.copy(source, target, length)
        self._decoded[target] = length

    def rows(self, work: Sequence[_Work]) -> list[Logits]:
        """Decode what is missing; for each slot (n, V) float32, n its wanted positions."""
        size = len(self._model.vocabulary)
        found = {slot: np.empty((len(stream) - at, size), np.float32) for slot, stream, at in work}
        first = {one.slot: one.first for one in work}
        for spans in self._batches(work):
            self._model.decode_spans(spans)
            row = 0
            for span in spans:
                self._decoded[span.sequence] = span.end
                for i in span.outputs or ():
                    place = span.start + i - first[span.sequence]
                    found[span.sequence][place] = self._model.logits(row + i)
                row += len(span.tokens)
        return [found[one.slot] for one in work]

    def _batches(self, work: Sequence[_Work]) -> Iterator[list[Span]]:
        """What is missing as spans, at most the model's batch of tokens together."""
        spans: list[Span] = []
        room = self._model.batch
        for slot, stream, first in work:
            at = self._decoded[slot]
            while at < len(stream):
                tokens = stream[at : at + room]
                wanted = range(min(max(first - at, 0), len(tokens)), len(tokens))
                spans.append(Span(slot, at, tokens, wanted))
                at += len(tokens)
                room -= len(tokens)
                if not room:
                    yield spans
                    spans, room = [], self._model.batch
        if spans:
            yield spans


def loaded(
    pair: ProxyPair,
    base: Vocabulary,
    control: Control,
    *,
    form: PromptForm,
    alpha: float = 1.0,
) -> LoadedAdapter:
    """A pair made ready for a base vocabulary, asked in `form`; `SteeredModel.attach` takes it.

    Raises TokenizerError where the expert's tokenizer cannot be made outside llama.cpp.
    """
    return ready(
        pair,
        tokenizer(pair.expert),
        base,
        control,
        name=f"proxy-{pair.expert.path.stem}",
        alpha=alpha,
        form=form,
    )


def tokenizer(model: BaseModel) -> DeltaTokenizer:
    """The model's tokenizer as a delta's, checked against llama.cpp; BOS first where the model
    wants it. Raises TokenizerError."""
    made = DeltaTokenizer(tokenizer_of(model.path).to_str().encode())
    if made.encode(_PROBE) != model.tokenize(_PROBE, bos=False):
        raise TokenizerError(
            f"{model.path} tokenizes in a way that is not known here: take a model with a "
            "tokenizer of Llama's, GPT-2's or Qwen2's kind"
        )
    if not model.tokenize(""):
        made.bos_id = None  # there may be one all the same, which stands before no text
    return made


def _within_trained(path: Path, context: int) -> int:
    """`context`, or what the model was trained with if that is less; 0 stays 0."""
    metadata = gguf_header.read(path).metadata
    trained = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    return min(context, trained) if isinstance(trained, int) and trained else context


def _refuse_different(expert: BaseModel, antiexpert: BaseModel) -> None:
    one, other = expert.vocabulary.tokens, antiexpert.vocabulary.tokens
    if one == other:
        return
    if len(one) != len(other):
        how = f"{len(one)} and {len(other)} tokens"
    else:
        first = next(i for i in range(len(one)) if one[i] != other[i])
        how = f"token {first} is {one[first]!r} in one and {other[first]!r} in the other"
    raise GGUFError(
        f"{expert.path} and {antiexpert.path} have different vocabularies ({how}): expert and "
        "antiexpert must share one, the base model's may be another"
    )
