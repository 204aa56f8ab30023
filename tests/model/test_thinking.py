"""Thoughts before an answer: told apart, and steered or formed only where that is wanted."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from cmc_local.base.model import BaseModel
from cmc_local.base.sampler import NativeSampler
from cmc_local.engine.slots import Slot
from cmc_local.engine.step import Engine
from cmc_local.model.batching import Batch
from cmc_local.model.replies import Completion, completion
from cmc_local.model.requests import Request
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Sampling
from cmc_local.text.prompts import Message
from cmc_local.text.thinking import Marks, Thinking
from cmc_local.text.vocabulary import Role, Vocabulary
from fakes import AB, END, NEWLINE, A, B, FakeBase, FakeShift, GreedySampler, adapter, vocabulary

THINK, CLOSE = 5, 6
MARKS = Marks("<think>", "</think>")
THOUGHTFUL = (THINK, A, CLOSE, NEWLINE, A, A, END)
"""What the base says after any prompt of one token: <think>a</think>, a line break, aa."""
PLAIN = Sampling(temperature=0, max_tokens=20, steer_thinking=False)


def words(role: Role = Role.NORMAL) -> Vocabulary:
    """The five tokens and the marks, which may be control tokens."""
    texts = vocabulary(b"a", b"b", b"ab", b"\n", b"<think>", b"</think>")
    roles = texts.roles.copy()
    roles[THINK:] = role
    tokens = texts.tokens if role == Role.NORMAL else (*texts.tokens[:THINK], b"", b"")
    return replace(texts, roles=roles, tokens=tokens)


def says(*reply: int, prompt: int = 1) -> FakeBase:
    """A base that says `reply` by heart; where something else stands, it goes on with `a`."""

    def rule(tokens: tuple[int, ...]) -> list[float]:
        said = tokens[prompt:]
        token = reply[len(said)] if said == reply[: len(said)] and len(said) < len(reply) else A
        if len(said) > 8:
            token = END
        return [2.0 * (i == token) for i in range(7)]

    return FakeBase(rule, words=words())


def reply(base: FakeBase, sampling: Sampling, *, is_open: bool = False) -> Completion:
    """One reply, steered by a shift from "a" to "b"."""
    source = FakeShift(lambda tokens: (0, 0, 3, 0, 0))
    one = adapter(source, base.vocabulary)
    active = one.active(1.0, one.prompt([{"role": "user", "content": "b"}]))
    batch = Batch(Engine(base), [Slot(0)], lambda sampling: GreedySampler(base))
    thinking = Thinking(MARKS, is_open)
    batch.submit(Request(tokens=(B,), active=(active,), sampling=sampling, thinking=thinking))
    found = []
    while batch.active:
        found += [piece for _, piece in batch.step()]
    return completion(found)


def test_thoughts_are_steered_as_the_answer_is_unless_one_says_otherwise() -> None:
    said = reply(says(*THOUGHTFUL), replace(PLAIN, steer_thinking=True, max_tokens=3))
    assert (said.thinking, said.text) == ("bb", "")


def test_unsteered_thoughts_are_the_bases_own_and_the_answer_is_steered() -> None:
    said = reply(says(*THOUGHTFUL), PLAIN)
    assert said.thinking == "a"
    assert said.text.startswith("bb") and "a" not in said.text
    assert said.tokens[:4] == (THINK, A, CLOSE, NEWLINE)
    assert said.timings.generated_tokens == len(said.tokens)
    assert said.timings.prompt_tokens == 1


def test_thoughts_that_the_prompt_opens_are_the_bases_own_too() -> None:
    said = reply(says(*THOUGHTFUL[1:]), PLAIN, is_open=True)
    assert (said.thinking, said.text[:2]) == ("a", "bb")


def test_a_reply_without_thoughts_is_steered_from_its_first_token_on() -> None:
    base = says(A, A, END)
    said = reply(base, PLAIN)
    assert (said.thinking, said.text[:2]) == ("", "bb")
    assert A not in said.tokens


def test_a_reply_that_would_end_before_it_begins_is_steered_instead() -> None:
    assert reply(says(END), PLAIN).text.startswith("b")


def test_an_end_within_the_thoughts_ends_the_reply() -> None:
    said = reply(says(THINK, A, END), PLAIN)
    assert (said.thinking, said.text, said.finish_reason) == ("a", "", "stop")


def test_thoughts_and_answer_share_the_tokens_that_a_reply_may_have() -> None:
    said = reply(says(*THOUGHTFUL), replace(PLAIN, max_tokens=2))
    assert (said.thinking, said.text, said.finish_reason) == ("a", "", "length")
    said = reply(says(*THOUGHTFUL), replace(PLAIN, max_tokens=6))
    assert (said.text, said.finish_reason, len(said.tokens)) == ("bb", "length", 6)


def test_stop_texts_are_of_the_answer() -> None:
    said = reply(says(*THOUGHTFUL), replace(PLAIN, stop=("a", "bbb")))
    assert (said.thinking, said.text, said.finish_reason) == ("a", "", "stop")


@pytest.mark.parametrize("role", [Role.NORMAL, Role.CONTROL])
def test_the_chat_template_says_how_thoughts_are_marked(role: Role) -> None:
    base = says(*THOUGHTFUL, prompt=2)
    base.vocabulary = words(role)
    base.chat_template = "{{ messages[0]['content'] }}\n{# </think> #}"
    model = SteeredModel(base, base.sampler)
    found = model.generate("a", Sampling(temperature=0))
    assert (found.thinking, found.text) == ("a", "aa")
    raw = model.generate("a", Sampling(temperature=0, max_tokens=3), base_prompt="raw")
    assert raw.thinking == ""


def test_an_adapter_says_how_its_thoughts_are_marked() -> None:
    base = says(*THOUGHTFUL, prompt=2)
    model = SteeredModel(base, base.sampler)
    silent = adapter(FakeShift(lambda tokens: np.zeros(5)), base.vocabulary)
    model.attach(replace(silent, thinking=MARKS), 1.0)
    found = model.generate("a", Sampling(temperature=0))
    assert (found.thinking, found.text) == ("a", "aa")
    plain = model.generate("a", Sampling(temperature=0, max_tokens=3), alphas=0.0)
    assert plain.thinking == ""  # nobody says what marks thoughts then


def test_the_thoughts_of_earlier_answers_are_no_part_of_the_history() -> None:
    source = FakeShift(lambda tokens: np.zeros(5))
    base = says(*THOUGHTFUL)
    base.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{# </think> #}"
    model = SteeredModel(base, base.sampler)
    model.attach(adapter(source, base.vocabulary))
    turns: list[Message] = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nab\n</think>\n\nb"},
        {"role": "user", "content": "a"},
    ]
    model.generate(turns, Sampling(temperature=0, max_tokens=1))
    assert base.decoded[0] == (AB, A)
    assert source.fed[0] == (A, NEWLINE, B, END, A, NEWLINE)


def test_a_form_is_that_of_the_answer_alone(tiny_gguf: Path) -> None:
    """A real model, whose first space ends what counts as its thoughts here."""
    base = BaseModel(tiny_gguf, context=256)
    with SteeredModel(base, partial(NativeSampler, base)) as model:
        sampling = Sampling(regex="ab|cd", seed=3, max_tokens=60)
        thinking = Thinking(Marks("<think>", " "), is_open=True)
        batch = model.batch()
        with model.alone():
            made = Request(tokens=base.tokenize("Hello"), sampling=sampling, thinking=thinking)
            batch.submit(made)
            found = []
            while batch.active:
                found += [piece for _, piece in batch.step()]
    said = completion(found)
    assert said.text in ("ab", "cd")
    assert said.thinking and " " not in said.thinking
