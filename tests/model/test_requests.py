"""Asks become requests: raw prompts, strengths, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cmc_local.errors import PromptTooLong, UsageError
from cmc_local.model.requests import Ask, Request, RequestMaker
from cmc_local.settings import Sampling
from cmc_local.text.prompts import PromptForm
from fakes import AB, END, NEWLINE, A, B, FakeBase, FakeShift, adapter, always

GREEDY = Sampling(temperature=0, max_tokens=3)
ZERO = always(0, 0, 0, 0, 0)


def maker(*names: str) -> RequestMaker:
    base = FakeBase(always(0, 1, 0, 0, 0), n_ctx=8)
    adapters = {name: adapter(FakeShift(ZERO), name=name) for name in names}
    return RequestMaker(base, base.n_ctx, adapters, dict.fromkeys(names, 1.0))


def test_a_text_and_its_tokens_are_the_same_ask() -> None:
    for prompt in ("aab\n", (A, AB, NEWLINE)):
        request = maker("one").make(Ask(prompt=prompt, sampling=GREEDY))
        assert tuple(request.tokens) == (A, AB, NEWLINE)
        assert request.echo is None and len(request.active) == 1


def test_a_conversation_is_put_in_the_adapters_form() -> None:
    ask = Ask(prompt=[{"role": "user", "content": "ab"}], sampling=GREEDY)
    assert maker("one").make(ask).tokens == (AB, NEWLINE)


def test_adapters_act_by_name_and_strength() -> None:
    ask = Ask(prompt="b", sampling=GREEDY, alphas={"one": 0.0, "two": 0.5})
    (acting,) = maker("one", "two").make(ask).active
    assert (acting.name, acting.alpha) == ("two", 0.5)
    assert maker("one").make(Ask(prompt="b", sampling=GREEDY, alphas=0.0)).active == ()
    (acting,) = maker("one", "two").make(replace(ask, alphas={"one": 0.5}, exact=True)).active
    assert (acting.name, acting.alpha) == ("one", 0.5)


def given(request: Request) -> list[tuple[bytes, bytes]]:
    """What each delta is given of an answer begun already: for the reply, and where it is read."""
    assert request.echo is not None
    pairs = zip(request.active, request.echo.active, strict=True)
    return [(reply.given, judged.given) for reply, judged in pairs]


def test_an_echo_is_shifted_from_its_second_token_on() -> None:
    request = maker("one").make(Ask(prompt="bab", sampling=GREEDY, echo=True))
    assert request.echo is not None
    assert (request.echo.shifted, request.echo.text) == (1, "bab")
    assert given(request) == [(b"bab", b"b")]


def test_where_deltas_see_the_answer_begin_elsewhere_the_last_place_counts() -> None:
    made = maker("plain", "marked")
    # One form ends in "b" on a line of its own; to the other any text is its answer.
    marked = replace(made.adapters["marked"], form=PromptForm("marked", "{query}\nb"))
    made = replace(made, adapters={**made.adapters, "marked": marked})
    request = made.make(Ask(prompt="a\nbab", sampling=GREEDY, echo=True))
    assert tuple(request.tokens) == (A, NEWLINE, B, AB)
    assert given(request) == [(b"a\nbab", b"a\nb"), (b"ab", b"")]
    assert request.echo is not None and request.echo.shifted == 3
    alone = Ask(prompt="a\nbab", sampling=GREEDY, echo=True, alphas={"marked": 0.0})
    assert given(made.make(alone)) == [(b"a\nbab", b"a")]


def test_a_prompt_of_one_token_is_given_back() -> None:
    request = maker("one").make(Ask(prompt="b", sampling=GREEDY, echo=True))
    assert request.echo is not None and (request.echo.shifted, request.echo.text) == (1, "b")
    assert given(request) == [(b"b", b"b")]


def test_a_control_token_in_an_answer_says_nothing_to_the_delta() -> None:
    request = maker("one").make(Ask(prompt=[A, END, B], sampling=GREEDY, echo=True))
    assert request.echo is not None and request.echo.text == "a</s>b"
    assert request.active[0].given == b"ab"  # as in a reply


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
    ],
)
def test_what_cannot_be_asked(ask: Ask, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        maker("one").make(ask)


def test_a_raw_prompt_must_leave_room_for_a_token() -> None:
    maker().make(Ask(prompt="b" * 7, sampling=GREEDY))
    with pytest.raises(PromptTooLong):
        maker().make(Ask(prompt="b" * 8, sampling=GREEDY))
