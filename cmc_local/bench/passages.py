"""What is written in every arm: a prompt, and the reply that is forced upon the models.

A long text gives prompts of several lengths before one and the same reply:

    text      a b c d e f g h i j        3 tokens of reply, prompts of 2 and 4, BOS among them
    passages  <s> d | e f g              the reply's first token is not timed
              <s> b c d | e f g

Several sequences at once take theirs from different places of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cmc_local.bench.arms import Tokens
from cmc_local.errors import UsageError
from cmc_local.text.vocabulary import Vocabulary


class TextBase(Protocol):
    """What tokenises; `BaseModel` is one."""

    @property
    def vocabulary(self) -> Vocabulary: ...

    def tokenize(
        self, text: str, *, special: bool = False, bos: bool | None = None
    ) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Passage:
    """A prompt and its reply, in the base model's tokens."""

    name: str
    """The text that it is from."""
    prompt: Tokens
    reply: Tokens
    question: str
    """The prompt's text, without BOS: what the delta is asked."""

    @property
    def context(self) -> int:
        """Tokens before the reply."""
        return len(self.prompt)


class Source:
    """A text in the base's tokens, from which passages are cut."""

    def __init__(self, base: TextBase, name: str, text: str) -> None:
        self.name = name
        self._vocabulary = base.vocabulary
        tokens = tuple(base.tokenize(text))
        begins = tokens[:1] == (base.vocabulary.bos_id,)
        self._begin, self._body = (tokens[:1], tokens[1:]) if begins else ((), tokens)

    def passages(self, contexts: Sequence[int], count: int) -> dict[int, Passage]:
        """For each length of prompt the passage whose reply has `count` tokens, always the same."""
        place = self._first_place(max(contexts), count, 1)
        return {context: self._cut(context, place, count) for context in contexts}

    def spread(self, context: int, count: int, sequences: int) -> list[Passage]:
        """As many passages of one length of prompt, from places all over the text."""
        first = self._first_place(context, count, sequences)
        room = len(self._body) - count - first
        places = [first + room * i // max(1, sequences - 1) for i in range(sequences)]
        return [self._cut(context, place, count) for place in places]

    def _first_place(self, context: int, count: int, sequences: int) -> int:
        """Where in the body the first reply begins; UsageError where the text is too short."""
        place = max(context - len(self._begin), 0)
        needed = place + count + sequences - 1
        if len(self._body) < needed:
            raise UsageError(
                f"{self.name} is too short: {len(self._body)} of the base model's tokens where"
                f" {needed} are needed; give a longer --text, or fewer --prompt-tokens or --tokens"
            )
        return place

    def _cut(self, context: int, place: int, count: int) -> Passage:
        before = self._body[place - max(context - len(self._begin), 0) : place]
        reply = self._body[place : place + count]
        question = b"".join(self._vocabulary.tokens[token] for token in before)
        return Passage(self.name, self._begin + before, reply, question.decode("utf-8", "replace"))


def given(base: TextBase, name: str, prompt: str, reply: str, count: int) -> Passage:
    """A prompt with its own reply; of that at most `count` tokens.

    The two are one text to the tokenizer: a token that reaches over the border is the reply's.
    """
    tokens = tuple(base.tokenize(prompt + reply))
    texts = [base.vocabulary.tokens[token] for token in tokens]  # BOS has none
    border = sum(map(len, texts)) - len(reply.encode())
    end, at = 0, 0
    while at < len(texts) and end + len(texts[at]) <= border:
        end += len(texts[at])
        at += 1
    question = b"".join(texts[:at]).decode("utf-8", "replace")
    return Passage(name, tokens[:at], tokens[at : at + count], question)
