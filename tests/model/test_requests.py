"""Asks become requests: raw prompts, strengths, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cmc_local.errors import PromptTooLong, UsageError
from cmc_local.model.requests import Ask, Asked
from cmc_local.settings import Sampling
from cmc_local.text.prompts import PromptForm
from fakes import AB, END, NEWLINE, A, B, FakeBase, FakeShift, adapter, always

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


def test_an_exact_ask_is_steered_by_what_it_names_alone() -> None:
    ask = Ask(prompt="b", sampling=GREEDY, alphas={"one": 0.5}, exact=True)
    (acting,) = asked("one", "two").prepare(ask).request.acting
    assert (acting.adapter.name, acting.alpha) == ("one", 0.5)
    plain = Ask(prompt="b", sampling=GREEDY, alphas={}, exact=True)
    assert asked("one", "two").prepare(plain).request.acting == ()
    assert len(asked("one", "two").prepare(replace(plain, exact=False)).request.acting) == 2


def test_an_echo_is_shifted_from_its_second_token_on() -> None:
    request = asked("one").prepare(Ask(prompt="bab", sampling=GREEDY, echo=True)).request
    assert request.echo is not None
    assert (request.echo.shifted, request.echo.text) == (1, "bab")
    (acting,) = request.acting
    assert (acting.given, acting.given_before_echo) == (b"bab", b"b")


def test_where_deltas_see_the_answer_begin_elsewhere_the_last_place_counts() -> None:
    made = asked("plain", "marked")
    # One form ends in "b" on a line of its own; to the other any text is its answer.
    marked = replace(made.adapters["marked"], form=PromptForm("marked", "{query}\nb"))
    made = replace(made, adapters={**made.adapters, "marked": marked})
    request = made.prepare(Ask(prompt="a\nbab", sampling=GREEDY, echo=True)).request
    assert tuple(request.tokens) == (A, NEWLINE, B, AB)
    plain, marked_one = request.acting
    assert (plain.given, plain.given_before_echo) == (b"a\nbab", b"a\nb")
    assert (marked_one.given, marked_one.given_before_echo) == (b"ab", b"")
    assert request.echo is not None and request.echo.shifted == 3
    (alone,) = made.prepare(
        Ask(prompt="a\nbab", sampling=GREEDY, echo=True, alphas={"marked": 0.0})
    ).request.acting
    assert (alone.given, alone.given_before_echo) == (b"a\nbab", b"a")


def test_a_prompt_of_one_token_is_given_back() -> None:
    request = asked("one").prepare(Ask(prompt="b", sampling=GREEDY, echo=True)).request
    assert request.echo is not None and (request.echo.shifted, request.echo.text) == (1, "b")
    assert (request.acting[0].given, request.acting[0].given_before_echo) == (b"b", b"b")


def test_a_control_token_in_an_answer_says_nothing_to_the_delta() -> None:
    request = asked("one").prepare(Ask(prompt=[A, END, B], sampling=GREEDY, echo=True)).request
    assert request.echo is not None and request.echo.text == "a</s>b"
    assert request.acting[0].given == b"ab"  # as in a reply


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
