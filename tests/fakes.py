"""A base model, a sampler and a shift source whose every number can be checked by hand.

Their vocabulary has five tokens: `</s>`, "a", "b", "ab" and a newline. What they say is a function
from the tokens so far to a row of logits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cmc_local.base.span import Span
from cmc_local.delta.source import Feed
from cmc_local.settings import Control, Sampling
from cmc_local.steer.loaded_adapter import LoadedAdapter, ready
from cmc_local.text.delta_tokenizer import DeltaTokenizer
from cmc_local.text.prompts import PromptForm
from cmc_local.text.vocabulary import Role, Vocabulary

END, A, B, AB, NEWLINE = range(5)
Rule = Callable[[tuple[int, ...]], Sequence[float]]
"""All tokens of a sequence -> the logits of what comes next."""


def vocabulary(*texts: bytes) -> Vocabulary:
    """`</s>` and one normal token for each text."""
    tokens = (b"", *(texts or (b"a", b"b", b"ab", b"\n")))
    roles = np.array([Role.EOS, *[Role.NORMAL] * (len(tokens) - 1)], np.uint8)
    names = ("</s>", *(token.decode("latin-1") for token in tokens[1:]))
    return Vocabulary(tokens, roles, names, eos_id=END, bos_id=None)


def tokenizer_json() -> bytes:
    """The same five tokens as a byte-level BPE with the one merge "a" + "b"."""
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": [
                {
                    "id": END,
                    "content": "</s>",
                    "special": True,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                }
            ],
            "pre_tokenizer": {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": False,
                "use_regex": False,
            },
            "decoder": {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": False,
                "use_regex": False,
            },
            "model": {
                "type": "BPE",
                "vocab": {"</s>": END, "a": A, "b": B, "ab": AB, "Ċ": NEWLINE},
                "merges": [["a", "b"]],
            },
        }
    ).encode()


def always(*logits: float) -> Rule:
    """The same row whatever came before."""
    return lambda tokens: logits


class FakeBase:
    """A base model that follows a rule and notes what it was made to decode."""

    def __init__(
        self,
        rule: Rule,
        *,
        words: Vocabulary | None = None,
        n_ctx: int = 64,
        chat_template: str | None = None,
        truncates: bool = True,
    ) -> None:
        self.vocabulary = words or vocabulary()
        self.n_ctx = n_ctx
        self.chat_template = chat_template
        self.rule = rule
        self.cache: dict[int, list[int]] = {}
        self.decoded: list[tuple[int, ...]] = []
        """What each sequence was given in each decode."""
        self.batches: list[tuple[int, ...]] = []
        """How many tokens each sequence was given, decode by decode."""
        self.copied: list[tuple[int, int, int]] = []
        self.cleared = 0
        self.closed = False
        self.can_roll_back = truncates
        self._truncates = truncates
        self._rows: list[NDArray[np.float32] | None] = []

    def tokenize(self, text: str, *, special: bool = False, bos: bool | None = None) -> list[int]:
        """The longest token first."""
        data, found = text.encode(), []
        order = sorted(range(len(self.vocabulary)), key=lambda i: -len(self.vocabulary.tokens[i]))
        while data:
            token = next(i for i in order if data.startswith(self.vocabulary.tokens[i]))
            found.append(token)
            data = data[max(len(self.vocabulary.tokens[token]), 1) :]
        return found

    def decode_spans(self, spans: Sequence[Span]) -> None:
        self.batches.append(tuple(len(span.tokens) for span in spans))
        self._rows = []
        for span in spans:
            cache = self.cache.setdefault(span.sequence, [])
            assert span.start == len(cache), "a decode must go on where the cache ends"
            assert span.end <= self.n_ctx, "the context is full"
            last = len(span.tokens) - 1
            outputs = range(last, last + 1) if span.outputs is None else span.outputs
            for i, token in enumerate(span.tokens):
                cache.append(token)
                row = np.array(self.rule(tuple(cache)), np.float32) if i in outputs else None
                self._rows.append(row)
            self.decoded.append(tuple(span.tokens))

    def logits(self, i: int = -1) -> NDArray[np.float32]:
        row = self._rows[i]
        assert row is not None, "no logits were asked for here"
        return row

    def copy(self, source: int, target: int, length: int) -> None:
        self.cache[target] = self.cache[source][:length]
        self.copied.append((source, target, length))

    def truncate(self, sequence: int, length: int) -> bool:
        if self._truncates:
            del self.cache.setdefault(sequence, [])[length:]
        return self._truncates

    def clear(self, sequence: int) -> None:
        self.cache[sequence] = []
        self.cleared += 1

    def embed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """How often each token of the vocabulary comes."""
        return np.bincount(tokens, minlength=len(self.vocabulary)).astype(np.float32)

    def sampler(self, sampling: Sampling) -> GreedySampler:
        return GreedySampler(self)

    def close(self) -> None:
        self.closed = True


class GreedySampler:
    """Takes the most likely token."""

    def __init__(self, base: FakeBase) -> None:
        self._base = base

    def sample(self, i: int = -1) -> int:
        return int(self._base.logits(i).argmax())

    def close(self) -> None:
        """Nothing to free."""


class FakeShift:
    """A shift source that follows a rule and notes what it was fed."""

    def __init__(self, rule: Rule, *, words: Vocabulary | None = None, context: int = 64) -> None:
        self.vocabulary = words or vocabulary()
        self.context = context
        self.rule = rule
        self.streams: dict[int, list[int]] = {}
        self.copied: list[tuple[int, int, int]] = []
        self.fed: list[tuple[int, ...]] = []
        """What each call was given."""
        self.slots = 8
        self.error: Exception | None = None
        """Raised by the next feed."""

    def feed(self, slot: int, tokens: Sequence[int], rows: int = 1) -> NDArray[np.float32]:
        if self.error is not None:
            raise self.error
        stream = self.streams.setdefault(slot, [])
        stream.extend(tokens)
        assert len(stream) <= self.context, "the context is full"
        self.fed.append(tuple(tokens))
        end, count = len(stream), min(rows, len(tokens))
        ends = range(end - count + 1, end + 1)
        return np.array([self.rule(tuple(stream[:at])) for at in ends], np.float32)

    def feed_many(self, feeds: Sequence[Feed]) -> list[NDArray[np.float32]]:
        return [self.feed(*feed) for feed in feeds]

    def copy(self, source: int, target: int, length: int) -> bool:
        assert length <= len(self.streams[source])
        self.streams[target] = self.streams[source][:length]
        self.copied.append((source, target, length))
        return True

    def truncate(self, slot: int, length: int) -> None:
        stream = self.streams.setdefault(slot, [])
        assert length <= len(stream)
        del stream[length:]

    def length(self, slot: int) -> int:
        return len(self.streams.setdefault(slot, []))


def adapter(
    source: FakeShift, base: Vocabulary | None = None, *, name: str = "tiny", mid_token: str = "off"
) -> LoadedAdapter:
    """A fake delta with the prompt form "{query}" and a newline, made ready for a vocabulary."""
    return ready(
        source,
        DeltaTokenizer(tokenizer_json()),
        base or vocabulary(),
        Control(mid_token=mid_token),  # type: ignore[arg-type]
        name=name,
        form=PromptForm("tiny", "{query}\n"),
    )
