"""The published cross-vocabulary procedure (wujwyi/CMC), step by step: a rival, not the method.

    map      on the tokenizers' own spellings; a control token takes the delta token of its number
    fill     0 for base tokens without counterpart
    choice   argmax, always; a reply ends at the base's one EOS token
    delta    a base token of the same spelling as its counterpart is appended by number. After any
             other one the response alone is encoded anew, put behind the prompt's tokens, and the
             delta's cache is dropped

The base is llama.cpp's and the delta ONNX Runtime's, so that both run the same weights; what goes
on between them shares nothing with the runner. The base's prompt is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from benchmarks.token_map_table import published
from cmc_local.base.span import Span
from cmc_local.delta.adapter import Adapter
from cmc_local.delta.onnx_delta import OnnxDelta
from cmc_local.text.vocabulary import Vocabulary

Logits = NDArray[np.float32]
MARKER = "\u2581"


class Base(Protocol):
    """What is asked of the base model."""

    vocabulary: Vocabulary

    def decode_spans(self, spans: Sequence[Span]) -> None: ...
    def logits(self, i: int = -1) -> Logits: ...
    def clear(self, sequence: int) -> None: ...


class Delta(Protocol):
    """What is asked of the delta."""

    vocabulary: Vocabulary

    def feed(self, slot: int, tokens: Sequence[int], rows: int = 1) -> Logits: ...
    def truncate(self, slot: int, length: int) -> None: ...


@dataclass
class Reply:
    """What was said, and what it took."""

    tokens: list[int] = field(default_factory=list)
    """The base's, without the EOS."""
    text: str = ""
    encoded_anew: int = 0
    """How often the response was encoded anew and the delta's cache dropped."""
    fed: int = 0
    """Tokens that the delta was fed after its prompt."""


class PublishedRunner:
    """One base model, one delta, one sequence."""

    def __init__(
        self,
        base: Base,
        delta: Delta,
        tokenizer: Tokenizer,
        *,
        normalize_delta: bool = False,
        right_end: bool = False,
    ) -> None:
        """`normalize_delta` is the published code's mode `normalization`.

        `right_end` is no part of it: the base's EOS takes the delta's, as it does of itself in the
        pairs of vocabularies that the code was written for.
        """
        self._base, self._delta, self._tokenizer = base, delta, tokenizer
        self._normalize = normalize_delta
        ids, _ = published(base.vocabulary, delta.vocabulary)
        size, names = len(delta.vocabulary), delta.vocabulary.names
        # A number beyond the delta's vocabulary ends the published code; here it counts as none.
        self.map = np.array([d if d < size else -1 for d in ids], np.intp)
        if right_end and None not in (base.vocabulary.eos_id, delta.vocabulary.eos_id):
            self.map[base.vocabulary.eos_id] = delta.vocabulary.eos_id
        pairs = zip(base.vocabulary.names, self.map.tolist(), strict=True)
        self.exact = [d >= 0 and names[d] == name for name, d in pairs]

    def answer(
        self, base_prompt: Sequence[int], delta_prompt: str, *, alpha: float = 1.0, most: int = 40
    ) -> Reply:
        """The reply to a prompt: the base's tokens, and the delta's text."""
        prompt = self.encode(delta_prompt)
        if self._delta.vocabulary.bos_id is not None:
            prompt = [self._delta.vocabulary.bos_id, *prompt]
        self._base.clear(0)
        self._delta.truncate(0, 0)
        reply, stream, known = Reply(), list(prompt), 0
        position, to_decode = 0, list(base_prompt)
        while len(reply.tokens) < most:
            self._base.decode_spans([Span(0, position, to_decode, None)])
            position += len(to_decode)
            shift = self._delta.feed(0, stream[known:])[-1]
            reply.fed += len(stream) - known if reply.tokens else 0
            known = len(stream)
            token = int((self._base.logits() + alpha * self.shift(shift)).argmax())
            if token == self._base.vocabulary.eos_id:
                break
            reply.tokens.append(token)
            to_decode = [token]
            if self.exact[token]:
                stream.append(int(self.map[token]))
            else:
                stream = prompt + self.encode(self.text(reply.tokens))
                self._delta.truncate(0, 0)
                known = 0
                reply.encoded_anew += 1
        reply.text = self.text(reply.tokens)
        return reply

    def shift(self, row: Logits) -> Logits:
        """The delta's logits (V_delta,) as the base's (V_base,): 0 where nothing is mapped."""
        if self._normalize:
            row = row - row.max()
            row = row - np.log(np.exp(row).sum())
        return np.where(self.map < 0, np.float32(0.0), row[self.map])

    def encode(self, text: str) -> list[int]:
        """The delta's tokens of a text by itself; no BOS."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def text(self, tokens: Sequence[int]) -> str:
        """The base's tokens as text; SentencePiece drops the space that a text begins with."""
        vocabulary = self._base.vocabulary
        text = b"".join(vocabulary.tokens[t] for t in tokens).decode("utf-8", "replace")
        marked = bool(tokens) and vocabulary.names[tokens[0]].startswith(MARKER)
        return text[1:] if marked else text


def runner(base: Base, adapter: Adapter, *, right_end: bool = False) -> PublishedRunner:
    """The procedure for a base model and an adapter's delta, run as the runner runs it."""
    return PublishedRunner(
        base,
        OnnxDelta(adapter, device="cpu"),
        Tokenizer.from_str(adapter.tokenizer_json.decode("utf-8")),
        normalize_delta=adapter.settings.normalization == "normalization",
        right_end=right_end,
    )
