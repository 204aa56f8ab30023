"""Asks become requests: raw prompts, strengths, refusals."""

from __future__ import annotations

import pytest

from cmc_local.asks import Ask, Asked
from cmc_local.errors import PromptTooLong, UsageError
from cmc_local.settings import Sampling
from fakes import AB, NEWLINE, A, FakeBase, FakeShift, adapter, always

GREEDY = Sampling(temperature=0, max_tokens=3)
ZERO = always(0, 0, 0, 0, 0)


def asked(*names: str) -> Asked:
    base = FakeBase(always(0, 1, 0, 0, 0), n_ctx=8)
    adapters = {name: adapter(FakeShift(ZERO), name=name) for name in names}
    return Asked(base, base.n_ctx, adapters, dict.fromkeys(names, 1.0))


def test_a_text_and_its_tokens_are_the_same_ask() -> None:
    for prompt in ("aab\n", (A, AB, NEWLINE)):
        request = asked("one").prepare(Ask(prompt=prompt, sampling=GREEDY)).request
        assert tuple(request.tokens) == (A, AB, NEWLINE)
        assert request.echo is None and len(request.acting) == 1


def test_a_conversation_is_put_in_the_adapters_form() -> None:
    ask = Ask(prompt=[{"role": "user", "content": "ab"}], sampling=GREEDY)
    assert asked("one").prepare(ask).request.tokens == (AB, NEWLINE)


def test_adapters_act_by_name_and_strength() -> None:
    ask = Ask(prompt="b", sampling=GREEDY, alphas={"one": 0.0, "two": 0.5})
    (acting,) = asked("one", "two").prepare(ask).request.acting
    assert (acting.adapter.name, acting.alpha) == ("two", 0.5)
    assert asked("one").prepare(Ask(prompt="b", sampling=GREEDY, alphas=0.0)).request.acting == ()


def test_an_echo_is_shifted_from_its_second_token_on() -> None:
    request = asked("one").prepare(Ask(prompt="bab", sampling=GREEDY, echo=True)).request
    assert request.echo is not None
    assert (request.echo.shifted, request.echo.text) == (1, "bab")
    (acting,) = request.acting
    assert (acting.given, acting.given_before_echo) == (b"bab", b"b")


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (Ask(prompt="", sampling=GREEDY), "the prompt is empty"),
        (Ask(prompt=[], sampling=GREEDY), "the prompt is empty"),
        (Ask(prompt=[9], sampling=GREEDY), "token 9 is not in the base model's vocabulary of 5"),
        (Ask(prompt=[-1], sampling=GREEDY), "token -1 is not"),
        (Ask(prompt="a", sampling=Sampling(max_tokens=0)), "max_tokens must be at least 1"),
        (
            Ask(prompt=[{"role": "user", "content": "a"}, 3], sampling=GREEDY),  # type: ignore[list-item]
            "messages or tokens, not both",
        ),
        (
            Ask(prompt=[{"role": "user", "content": "a"}], sampling=GREEDY, echo=True),
            "echo takes a text or tokens",
        ),
        (Ask(prompt="a", sampling=GREEDY, alphas={"gone": 1.0}), "no adapter 'gone' is loaded"),
        (Ask(prompt="a", sampling=GREEDY, alphas=float("nan")), "must be a finite number"),
    ],
)
def test_what_cannot_be_asked(ask: Ask, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        asked("one").prepare(ask)


def test_a_raw_prompt_must_leave_room_for_a_token() -> None:
    asked().prepare(Ask(prompt="b" * 7, sampling=GREEDY))
    with pytest.raises(PromptTooLong):
        asked().prepare(Ask(prompt="b" * 8, sampling=GREEDY))
