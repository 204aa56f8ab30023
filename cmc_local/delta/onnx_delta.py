"""Delta tokens -> shift: the ONNX delta on the CPU or a GPU.

Knows token ids and caches, no text and no base model. One preallocated cache holds every slot;
past and present of a slot are the same memory, so a step copies nothing, and rolling back is
remembering a smaller length:

    layer i, key or value: (slots, kv_heads, S, head_dim), S = the delta's context in tokens

Tokens reach the graph in two ways. A *chunk* is several tokens of one slot. A *step* is one token
for each of several adjacent slots: its inputs and logits lie still and are bound once, so that a
step is writing a few numbers and one call (`delta/buffers.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from cmc_local.delta.adapter import Adapter, Precision
from cmc_local.delta.buffers import Cache, DeviceSteps, Logits, Steps
from cmc_local.delta.session import (
    Options,
    choose_device,
    choose_precision,
    open_session,
    quiet_options,
)
from cmc_local.delta.source import Feed, check_kept, check_slot, checked_feeds
from cmc_local.errors import UsageError
from cmc_local.text.vocabulary import Vocabulary, from_tokenizer_json

_WHOSE = "the delta"
CHUNK = 256
"""Tokens that one run takes; a longer feed is cut, which bounds the memory of its activations."""


class OnnxDelta:
    """An adapter's graph with the caches of `slots` independent token streams.

    `device` is auto, cpu, cuda or cuda:N. `auto` takes a usable GPU if the adapter has the fp16
    graph that its attention wants, else the CPU. It belongs to one thread at a time.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        device: str = "auto",
        slots: int = 1,
        threads: int = 1,
        precision: Precision | None = None,
        options: Options = quiet_options,
    ) -> None:
        """`threads` run the graph on the CPU; `options` makes ONNX Runtime's settings of them.

        Raises UsageError for a device that has no such name, DeviceError for one that cannot be
        used, AdapterError for a graph that cannot.
        """
        if slots < 1 or threads < 1:
            raise UsageError(f"slots and threads must be at least 1, not {slots} and {threads}")
        self.vocabulary: Vocabulary = from_tokenizer_json(adapter.tokenizer_json)
        self._shape = adapter.settings.shape
        self.context: int = self._shape.context
        self.slots = slots
        self.device, self.device_id = choose_device(device, adapter, precision)
        self.precision: Precision = precision or choose_precision(adapter, self.device)
        self._session = open_session(
            adapter, self.precision, self.device, self.device_id, options(threads)
        )
        self._cache = Cache(self._shape, slots, self.precision, self.device, self.device_id)
        self._lengths = [0] * slots
        self._chunks = [self._cache.binding(self._session, slot, 1) for slot in range(slots)]
        steps = Steps if self._cache.on_cpu else DeviceSteps
        self._steps = steps(self._session, self._cache, slots, self._shape.vocabulary)

    @property
    def providers(self) -> tuple[str, ...]:
        """ONNX Runtime's execution providers, the one that runs the graph first."""
        return tuple(self._session.get_providers())

    def length(self, slot: int) -> int:
        """Tokens that the slot holds now."""
        check_slot(self, slot, _WHOSE)
        return self._lengths[slot]

    def truncate(self, slot: int, length: int) -> None:
        """Forget all tokens after the first `length`; free of cost."""
        check_kept(self, slot, length, _WHOSE)
        self._lengths[slot] = length

    def copy(self, source: int, target: int, length: int) -> bool:
        """Let slot `target` hold the first `length` tokens of slot `source`, whatever it held.

        False on a GPU, whose cache nobody here can reach: feed the tokens instead.
        """
        check_kept(self, source, length, _WHOSE)
        check_slot(self, target, _WHOSE)
        if not self._cache.copy(source, target, length):
            return False
        self._lengths[target] = length
        return True

    def feed(self, slot: int, tokens: Sequence[int], rows: int = 1) -> Logits:
        """Append tokens to a slot; the logits at its last `rows` new positions.

        Returns a new array (min(rows, len(tokens)), V_delta) float32. Raises UsageError, and
        changes nothing, where the context is too short or a token is not in the vocabulary.
        """
        (one,) = checked_feeds(self, [Feed(slot, tokens, rows)], self._shape.vocabulary, _WHOSE)
        return self._feed(one)

    def feed_many(self, feeds: Sequence[Feed]) -> list[Logits]:
        """`feed` for several slots, each at most once; result i belongs to feed i.

        Equal to one feed after the other up to the rounding of different kernels per batch size.
        Short feeds run together, a token of each slot at a time; longer ones run alone (`_rounds`
        says which is which). An idle slot between two others may take part in a run: what is
        written for it lies behind its tokens, where its next feed writes again. Raises UsageError
        before anything has changed.
        """
        clean = checked_feeds(self, feeds, self._shape.vocabulary, _WHOSE)
        rounds = _rounds([len(one.tokens) for one in clean])
        together = {one.slot: one for one in clean if 0 < len(one.tokens) <= rounds}
        found = self._feed_together(together, rounds) if together else {}
        return [found[one.slot] if one.slot in found else self._feed(one) for one in clean]

    # --- running the graph -------------------------------------------------------------------

    def _feed(self, feed: Feed) -> Logits:
        """One checked feed: a single token as a step, more as chunks."""
        slot, tokens, rows = feed
        kept = min(rows, len(tokens))
        found = np.empty((kept, len(self.vocabulary)), np.float32)
        if len(tokens) == 1:
            found[:] = self._step(slot, slot, {slot: tokens[0]})
            return found
        first_wanted = len(tokens) - kept
        for start in range(0, len(tokens), CHUNK):
            stop = min(start + CHUNK, len(tokens))
            begin = min(max(start, first_wanted), stop - 1)  # the graph gives one row at least
            logits = self._chunk(slot, tokens[start:stop], begin - start)
            if stop > first_wanted:
                found[begin - first_wanted : stop - first_wanted] = logits
        return found

    def _chunk(self, slot: int, tokens: Sequence[int], first: int) -> Logits:
        """One run over tokens of one slot; (K, V_delta) logits from the `first` of them on."""
        total = self._lengths[slot] + len(tokens)
        binding = self._chunks[slot]
        positions = np.arange(first, len(tokens), dtype=np.int64)
        logits = np.empty((1, len(positions), self._shape.vocabulary), np.float32)
        binding.bind_cpu_input("input_ids", np.array([tokens], np.int64))
        binding.bind_cpu_input("seqlens_k", np.array([total - 1], np.int32))
        binding.bind_cpu_input("total_sequence_length", np.array([total], np.int32))
        binding.bind_cpu_input("logit_positions", positions)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._session.run_with_iobinding(binding)
        self._lengths[slot] = total
        rows: Logits = logits[0, :, : len(self.vocabulary)]
        return rows

    def _feed_together(self, feeds: dict[int, Feed], rounds: int) -> dict[int, Logits]:
        """Checked feeds by slot, of at most `rounds` tokens: one token of each in a round."""
        kept = {slot: min(one.rows, len(one.tokens)) for slot, one in feeds.items()}
        found = {slot: np.empty((n, len(self.vocabulary)), np.float32) for slot, n in kept.items()}
        for at in range(rounds):
            left = {slot: one for slot, one in feeds.items() if len(one.tokens) > at}
            tokens = {slot: one.tokens[at] for slot, one in left.items()}
            for first, last in self._spans(sorted(tokens)):
                logits = self._step(first, last, tokens)
                for slot, one in left.items():
                    row = at - len(one.tokens) + kept[slot]
                    if first <= slot <= last and row >= 0:
                        found[slot][row] = logits[slot - first]
        return found

    def _spans(self, active: Sequence[int]) -> Iterator[tuple[int, int]]:
        """First and last slots of runs that cover the active slots.

        A single idle slot between rides along, which costs less than another run; several would
        not, and a full one cannot: it has no place behind its tokens.
        """
        first = active[0]
        for one, other in pairwise(active):
            idle = self._lengths[one + 1 : other]
            if len(idle) > 1 or self.context in idle:
                yield first, one
                first = other
        yield first, active[-1]

    def _step(self, first: int, last: int, tokens: Mapping[int, int]) -> Logits:
        """One run over slots `first` to `last`: a token each for those in `tokens`.

        Their logits (last + 1 - first, V_delta) are valid until the next step.
        """
        steps, held = self._steps, self._lengths[first : last + 1]
        for place, slot in enumerate(range(first, last + 1)):
            steps.ids[place] = tokens.get(slot, 0)
            self._lengths[slot] += slot in tokens
        steps.lengths[: len(held)] = held  # each slot's total less one
        steps.total[0] = max(held) + 1
        return steps.run(first, last)[:, : len(self.vocabulary)]


def _rounds(counts: Sequence[int]) -> int:
    """Up to how many tokens to feed in rounds of single tokens, so that the graph runs least.

    Those of more tokens take one run each: 1, 1, 1, 9 tokens are one round and one run.
    """
    longest = max(counts, default=0)
    several = sum(count > 0 for count in counts) > 1
    choices = range(min(longest, len(counts)) + 1 if several else 1)
    return min(choices, key=lambda rounds: rounds + sum(count > rounds for count in counts))
