"""Whole replies on fakes: text, stops, limits, turns, prompts, scores."""

from __future__ import annotations

import numpy as np
import pytest

from cmc_local.errors import PromptTooLong, UsageError
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Limits, Sampling
from cmc_local.text.prompts import Message
from fakes import AB, END, NEWLINE, A, B, FakeBase, FakeShift, Rule, adapter, always, vocabulary

GREEDY = Sampling(temperature=0, max_tokens=6)


def saying(*tokens: int, after: int) -> Rule:
    """After `after` tokens of prompt the given tokens, then END for ever."""

    def rule(seen: tuple[int, ...]) -> list[float]:
        said = len(seen) - after
        row = [0.0] * 16
        row[tokens[said] if said < len(tokens) else END] = 9.0
        return row

    return rule


def steered(base: FakeBase, *shifts: FakeShift, batch: int = 512) -> SteeredModel:
    model = SteeredModel(base, base.sampler, limits=Limits(batch=batch))
    for shift in shifts:
        model.attach(adapter(shift))
    return model


def user(*texts: str) -> list[Message]:
    """Questions and answers by turns."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


# --- text ------------------------------------------------------------------------------------


def test_a_reply_ends_where_the_model_ends_it() -> None:
    done = steered(FakeBase(saying(A, AB, after=2))).generate("b", GREEDY)
    assert (done.text, done.tokens, done.finish_reason) == ("aab", (A, AB), "stop")


def test_a_reply_ends_at_its_longest() -> None:
    done = steered(FakeBase(always(0, 1, 0, 0, 0))).generate("b", GREEDY)
    assert (done.text, done.finish_reason) == ("aaaaaa", "length")
    assert done.timings.generated_tokens == 6


def test_a_character_in_two_tokens_is_one_piece() -> None:
    words = vocabulary(b"\xc3", b"\xa9", b"a", b"\n")
    base = FakeBase(saying(3, 1, 2, 3, after=2), words=words)
    pieces = list(steered(base).stream("a", GREEDY))
    assert [(piece.text, piece.tokens) for piece in pieces] == [
        ("a", (3,)),
        ("é", (1, 2)),
        ("a", (3,)),
        ("", ()),
    ]
    assert [piece.finish_reason for piece in pieces] == [None, None, None, "stop"]


def test_a_stop_text_is_not_shown_and_ends_the_reply() -> None:
    base = FakeBase(saying(A, NEWLINE, B, A, after=2))
    done = steered(base).generate("b", Sampling(temperature=0, stop=("\nb",)))
    assert (done.text, done.finish_reason) == ("a", "stop")
    assert done.tokens == (A, NEWLINE, B)


def test_the_start_of_a_stop_text_that_does_not_come_is_shown() -> None:
    base = FakeBase(saying(A, NEWLINE, after=2))
    assert steered(base).generate("b", Sampling(temperature=0, stop=("\nb",))).text == "a\n"


def test_cancelling_ends_between_two_steps() -> None:
    model = steered(FakeBase(always(0, 1, 0, 0, 0)))
    seen: list[str] = []
    for piece in model.stream("b", GREEDY, cancelled=lambda: len(seen) >= 2):
        seen.append(piece.text)
    assert seen == ["a", "a", ""]
    assert piece.finish_reason == "cancelled"


# --- steering --------------------------------------------------------------------------------


def test_after_a_plain_turn_the_delta_catches_up() -> None:
    shift = FakeShift(always(0, 0, 1, 0, 0))
    model = steered(FakeBase(always(0, 1, 0.5, 0, 0)), shift)
    model.chat(user("b"), GREEDY)
    shift.fed.clear()
    model.chat(user("b", "bbbbbb", "a"), GREEDY, alphas=0)
    assert shift.fed == []
    model.chat(user("b", "bbbbbb", "a", "aaaaaa", "b"), GREEDY)
    assert shift.fed[0] == (B, END, A, NEWLINE, A, A, A, A, A, A, END, B, NEWLINE)


def test_strengths_by_name_and_for_all() -> None:
    model = steered(
        FakeBase(always(0, 1, 0.5, 0, 0)),
        FakeShift(always(0, 0, 1, 0, 0)),
        FakeShift(always(0, 0, 0, 5, 0)),
    )
    short = Sampling(temperature=0, max_tokens=1)
    assert list(model.alphas) == ["tiny", "tiny-2"]
    assert model.generate("b", short).text == "ab"
    assert model.generate("b", short, alphas={"tiny-2": 0}).text == "b"
    assert model.generate("b", short, alphas=0.0).text == "a"
    model.set_alpha("tiny-2", 0.0)
    assert model.generate("b", short).text == "b"
    with pytest.raises(UsageError, match="there are tiny, tiny-2"):
        model.generate("b", short, alphas={"other": 1})
    with pytest.raises(UsageError, match="finite"):
        model.set_alpha("tiny", float("nan"))


# --- turns and contexts ----------------------------------------------------------------------


def test_a_second_turn_decodes_only_its_own_tokens() -> None:
    base = FakeBase(always(0, 1, 0.5, 0, 0))
    model = steered(base, FakeShift(always(0, 0, 1, 0, 0)))
    first = model.chat(user("a"), GREEDY)
    base.decoded.clear()
    second = model.chat(user("a", first.text, "ab"), GREEDY)
    # The last "b" of the first reply was chosen and never decoded; then the separator, "ab\n".
    assert base.decoded[0] == (B, NEWLINE, AB, NEWLINE)
    assert second.timings.reused_tokens == 2 + 5


def test_the_oldest_turns_go_when_the_context_is_full_and_the_system_text_stays() -> None:
    base = FakeBase(always(0, 1, 0, 0, 0), n_ctx=20)
    model = steered(base)
    system: Message = {"role": "system", "content": "ab"}
    talk = user("a" * 6, "b" * 6, "b", "a", "ab")
    done = model.chat([system, *talk], GREEDY)
    # "ab\n" + "b\na\n" + "ab\n" = 8 tokens; with the first turn 14 more.
    assert base.decoded[0] == (AB, NEWLINE, B, NEWLINE, A, NEWLINE, AB, NEWLINE)
    assert done.notices == ("the base model's context is full: the oldest turn was left out",)


def test_one_prompt_that_cannot_fit_is_refused_before_anything_runs() -> None:
    base = FakeBase(always(0, 1, 0, 0, 0), n_ctx=8)
    with pytest.raises(PromptTooLong, match=r"has 13 tokens.*holds 8"):
        steered(base).stream("a" * 12)
    assert base.decoded == []


def test_two_streams_at_once_are_refused() -> None:
    model = steered(FakeBase(always(0, 1, 0, 0, 0)))
    first = model.stream("b", GREEDY)
    next(first)
    with pytest.raises(UsageError, match="under way"):
        model.generate("b", GREEDY)
    first.close()  # type: ignore[attr-defined]
    assert model.generate("b", GREEDY).text == "aaaaaa"


# --- prompts ---------------------------------------------------------------------------------


TEMPLATE = "{% for m in messages %}{{ m.content }}b{% endfor %}"


@pytest.mark.parametrize(
    ("template", "kind", "decoded"),
    [
        (TEMPLATE, None, (A, B)),
        (TEMPLATE, "gguf", (A, B)),
        (TEMPLATE, "adapter", (A, NEWLINE)),
        (TEMPLATE, "raw", (A,)),
        (None, None, (A, NEWLINE)),
    ],
)
def test_how_the_base_is_asked(template: str | None, kind: str, decoded: tuple[int, ...]) -> None:
    words = vocabulary(b"a", b"b", b"ba", b"\n")  # "ab" is two tokens here
    base = FakeBase(always(1, 0, 0, 0, 0), words=words, chat_template=template)
    steered(base).generate("a", GREEDY, base_prompt=kind)  # type: ignore[arg-type]
    assert base.decoded == [decoded]


def test_without_a_template_gguf_is_refused() -> None:
    with pytest.raises(UsageError, match="no chat template"):
        steered(FakeBase(always(1, 0, 0, 0, 0))).generate("a", base_prompt="gguf")


# --- scores ----------------------------------------------------------------------------------


def test_a_score_is_taken_after_the_shift() -> None:
    # logits 0 1 0.5 0 0 plus 0 0 1 0 0: log softmax of b is 1.5 - log(3 + e + e^1.5)
    model = steered(FakeBase(always(0, 1, 0.5, 0, 0)), FakeShift(always(0, 0, 1, 0, 0)))
    score = model.score("a", "bb")
    expected = 1.5 - np.log(3 + np.exp(1) + np.exp(1.5))
    assert score.tokens == (B, B)
    np.testing.assert_allclose(score.logprobs, [expected, expected], rtol=1e-6)
    assert score.greedy.tolist() == [True, True]
    plain = model.score("a", "bb", alphas=0)
    np.testing.assert_allclose(plain.logprobs, 0.5 - np.log(3 + np.exp(1) + np.exp(0.5)), rtol=1e-6)
    assert plain.greedy.tolist() == [False, False]


def test_a_score_of_tokens_takes_them_as_they_are() -> None:
    model = steered(FakeBase(always(0, 1, 0, 0, 0)))
    assert model.score("b", [A, B]).tokens == (A, B)
    assert model.score("b", "ab").tokens == (AB,)


def test_an_empty_continuation_is_refused() -> None:
    model = steered(FakeBase(always(0, 1, 0, 0, 0)))
    with pytest.raises(UsageError, match="continuation is empty"):
        model.score("b", "")


def test_closing_frees_the_base() -> None:
    base = FakeBase(always(1, 0, 0, 0, 0))
    with steered(base) as model:
        model.generate("b")
    assert base.closed


def test_as_few_turns_go_as_must() -> None:
    base = FakeBase(always(0, 1, 0, 0, 0), n_ctx=40)
    model = steered(base)
    texts = [text for _ in range(9) for text in ("b", "a")]  # four tokens a turn
    done = model.chat(user(*texts, "ab"), GREEDY)
    # 2 + 4 * turns + 6 for the reply <= 40: eight turns stay, one goes.
    assert len(base.decoded[0]) == 34
    assert done.notices[0].endswith("the oldest turn was left out")
