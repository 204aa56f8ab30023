"""The delta's tokenizer: prompts and training examples as the delta's tokens.

One rule serves training and run time: question and answer are encoded together, as one text, so a
token may begin in the question's last character and end in the answer. What may still change when
more text comes is kept apart as `pending`. Imports `tokenizers`; knows no base model.

    Llama-2, "<|assistant|>\\n" + "Paris"  ->  ... `>` `<0x0A>` `Par` `is`   (not `▁Paris`)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Final

from tokenizers import Tokenizer

from cmc_local.errors import TokenizerError, UsageError
from cmc_local.text.prompts import (
    EndOfAnswer,
    Exchange,
    Message,
    PromptForm,
    Turns,
    delta_segments,
    exchanges,
)
from cmc_local.text.stable_cuts import StableCuts, Tail
from cmc_local.text.vocabulary import Vocabulary, byte_value, from_tokenizer_json

_ANCHORS: Final = 4096
"""Anchors whose tokens are remembered."""
_PIECES: Final = 2048
"""Pieces of text whose tokens the library remembers; its own 10,000 take 7 MB, slowly."""


@dataclass(frozen=True, slots=True)
class DeltaPrompt:
    """The delta's prompt: tokens that no response can change, then text that one may.

    The whole prompt is `tokens` followed by the tokens of `pending`, in the context of `anchor`.
    """

    tokens: tuple[int, ...]
    pending: str
    anchor: str = ""


class DeltaTokenizer:
    """A `tokenizer.json` with one canonical encoding of text; special spellings are plain text."""

    def __init__(self, data: bytes) -> None:
        """From the file's bytes; raises TokenizerError where they cannot serve a delta."""
        self.vocabulary: Vocabulary = from_tokenizer_json(data)
        self.sha256: str = hashlib.sha256(data).hexdigest()
        if self.vocabulary.eos_id is None:
            raise TokenizerError(
                "the tokenizer has no end-of-text token: give it one among its special tokens"
            )
        self.eos_id: int = self.vocabulary.eos_id
        self.bos_id: int | None = self.vocabulary.bos_id
        self._tokenizer = _load(data)
        self._cuts = StableCuts(data, self.vocabulary, self._tokenizer.normalizer)
        self._anchor_ids: Callable[[str], list[int]] = lru_cache(_ANCHORS)(self.encode)

    def encode(self, text: str) -> list[int]:
        """The tokens of a whole text; no BOS, no EOS; `</s>` in the text is four characters."""
        ids: list[int] = self._tokenizer.encode(clean(text), add_special_tokens=False).ids
        return ids

    def encode_tail(self, tail: Tail) -> list[int]:
        """The tokens that `tail.text` has in its place: anchor and text's, less the anchor's.

        (A normalizer may put a space before whatever it is given; here it lands on the anchor.)
        """
        return self._tail_ids(tail.anchor, tail.text)

    def split_tail(
        self, tail: Tail, seen: Sequence[int] = (), *, least: int = 0
    ) -> tuple[list[int], list[int], Tail]:
        """Tokens of `tail` that are final, its other tokens, and the tail that these belong to.

        The new tail begins at the last place where the text can be cut, not before the character
        `least`; where there is none it is `tail` itself. `seen` are the tokens that the first
        `tail.seen` characters had, so that they are not encoded again.
        """
        anchor, text, old = tail
        ids = self._tail_ids(anchor, text)
        encode = partial(self._tail_ids, anchor)
        for place, before in self._cuts.places(tail, max(least, 1), encode):
            final = list(seen) if place == old else encode(text[:place])
            if ids[: len(final)] == final:
                return final, ids[len(final) :], Tail(before, text[place:])
        return [], ids, tail

    def _tail_ids(self, anchor: str, text: str) -> list[int]:
        """The tokens of `text` after `anchor`, or after a newline where the anchor's own change."""
        for before in (anchor, "\n") if anchor else ():
            known = self._anchor_ids(before)
            ids = self.encode(before + text)
            if ids[: len(known)] == known:
                return ids[len(known) :]
        return self.encode(text)

    def prompt(
        self,
        form: PromptForm,
        messages: Sequence[Message],
        *,
        turns: Turns = "all",
        max_tokens: int,
    ) -> DeltaPrompt:
        """The prompt of a conversation in at most `max_tokens`; BOS first, EOS after each answer.

        What is too long loses its oldest turns, then the system text if it alone takes half of the
        room, then the middle of the question.
        """
        for kept in _shortenings(form, messages, turns):
            found = self._prompt(delta_segments(form, kept, turns=turns))
            if self.length(found) <= max_tokens:
                return found
        return self._prompt([self._cut_question(form, messages, max_tokens)])

    def verbatim(self, text: str, *, max_tokens: int) -> DeltaPrompt:
        """A prompt that is this text and nothing else; its end, if it is too long."""
        found = self._prompt([text])
        while self.length(found) > max_tokens and text:
            # Half a character for each token too many: tokens are longer, so this hardly ever cuts
            # more than it must.
            text = text[max((self.length(found) - max_tokens) // 2, 1) :]
            found = self._prompt([text])
        return found

    def length(self, prompt: DeltaPrompt) -> int:
        """How many tokens the whole prompt has."""
        return len(prompt.tokens) + len(self.encode_tail(Tail(prompt.anchor, prompt.pending)))

    def example(
        self, form: PromptForm, messages: Sequence[Message]
    ) -> tuple[list[int], list[bool]]:
        """A conversation to train on: its tokens, and for each whether it is in the loss.

        In the loss is every token that holds some of an answer, and the EOS after it. Raises
        UsageError for messages out of order or without a last answer.
        """
        ids = [] if self.bos_id is None else [self.bos_id]
        in_loss = [False] * len(ids)
        for exchange in exchanges(form, messages):
            tokens, answered = self._exchange(exchange)
            ids += [*tokens, self.eos_id]
            in_loss += [*answered, True]
        return ids, in_loss

    def _exchange(self, exchange: Exchange) -> tuple[list[int], list[bool]]:
        if exchange.answer is None:
            raise UsageError("the last message must have the role assistant: give the answer")
        question = clean(exchange.question)
        encoding = self._tokenizer.encode(
            question + clean(exchange.answer), add_special_tokens=False
        )
        border = len(question)
        return encoding.ids, [end > border for _, end in encoding.offsets]

    def _prompt(self, segments: Sequence[str | EndOfAnswer]) -> DeltaPrompt:
        tokens = [] if self.bos_id is None else [self.bos_id]
        for segment in segments[:-1]:
            tokens += self.encode(segment) if isinstance(segment, str) else [self.eos_id]
        last = segments[-1]
        final, _, rest = self.split_tail(Tail("", clean(last) if isinstance(last, str) else ""))
        return DeltaPrompt((*tokens, *final), rest.text, rest.anchor)

    def _cut_question(self, form: PromptForm, messages: Sequence[Message], max_tokens: int) -> str:
        """The last question in its form with as much of its middle left out as it takes."""
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        query = messages[-1]["content"]

        def fits(text: str, room: int) -> bool:
            return self.length(self._prompt([text])) <= room

        if not fits(form.question("", system), max_tokens // 2):
            system = None
        if fits(form.question(query, system), max_tokens):
            return form.question(query, system)
        low, high = 0, len(query)
        if not fits(form.question("", system), max_tokens):
            raise UsageError(
                f"the prompt form alone is longer than {max_tokens} tokens, half of the delta's "
                "context: use a shorter form"
            )
        while high - low > 1:
            middle = (low + high) // 2
            kept = form.question(_without_middle(query, middle), system)
            low, high = (middle, high) if fits(kept, max_tokens) else (low, middle)
        return form.question(_without_middle(query, low), system)


def clean(text: str) -> str:
    """A text that has UTF-8: lone surrogates become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _load(data: bytes) -> Tokenizer:
    """The tokenizer of a file: no truncation, padding or dropout, special spellings as text."""
    try:
        tokenizer = Tokenizer.from_str(_without_specials(data))
    except Exception as error:  # tokenizers raises Exception itself
        raise TokenizerError(
            f"the tokenizers library cannot read the tokenizer.json ({error}); "
            "save it again with that library"
        ) from error
    if hasattr(tokenizer.model, "_resize_cache"):
        tokenizer.model._resize_cache(_PIECES)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None
    return tokenizer


def _without_specials(data: bytes) -> str:
    """The file's text, special tokens renamed where the model itself would find them in a text.

    `encode_special_tokens` stops the search for them before the model, which is enough where tokens
    are built by merges. Unigram, WordPiece and BPE with `ignore_merges` look up whole spellings.
    """
    root = json.loads(data)
    model = root["model"]
    kind = model.get("type")
    if kind not in ("Unigram", "WordPiece") and not model.get("ignore_merges"):
        return data.decode("utf-8")
    special = {entry["content"] for entry in root.get("added_tokens") or () if entry["special"]}
    special = {name for name in special if byte_value(name) is None}
    if kind == "Unigram":
        model["vocab"] = [[_hidden(name, special), score] for name, score in model["vocab"]]
    else:
        special.discard(model.get("unk_token"))
        model["vocab"] = {_hidden(name, special): i for name, i in model["vocab"].items()}
    root["added_tokens"] = [entry for entry in root["added_tokens"] if not entry["special"]]
    root["post_processor"] = None  # it names special tokens
    return json.dumps(root)


def _hidden(name: str, special: set[str]) -> str:
    """A special token's spelling behind a noncharacter, which no text should hold."""
    return f"\ufdd0{name}\ufdd0" if name in special else name


def _shortenings(
    form: PromptForm, messages: Sequence[Message], turns: Turns
) -> Iterator[list[Message]]:
    """The messages, then with ever more of their oldest turns left out."""
    system = list(messages[:1]) if messages and messages[0]["role"] == "system" else []
    rest = list(messages[len(system) :])
    yield [*system, *rest]
    if turns == "all":
        for first in range(2, len(rest), 2):
            yield [*system, *rest[first:]]


def _without_middle(text: str, kept: int) -> str:
    """The first and last characters of a text, `kept` of them together, around an ellipsis."""
    head = (kept + 1) // 2
    return text[:head] + " ... " + text[len(text) - (kept - head) :]
