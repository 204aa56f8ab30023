"""Thoughts and answers told apart, however the text comes in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmc_local.text.thinking import (
    KNOWN,
    Marks,
    Thinking,
    ThoughtReader,
    marks_of,
    without_thoughts,
)

MARKS = Marks("<think>", "</think>")


def divided(parts: list[str], *, is_open: bool = False) -> tuple[str, str]:
    reader = ThoughtReader(Thinking(MARKS, is_open))
    found = [reader.read(part) for part in parts] + [reader.read("", last=True)]
    return "".join(one for one, _ in found), "".join(one for _, one in found)


@pytest.mark.parametrize(
    ("text", "is_open", "thoughts", "answer"),
    [
        ("<think>\nTwo and two.\n</think>\n\nFour.", False, "Two and two.", "Four."),
        ("Two and two.\n</think>\n\nFour.", True, "Two and two.", "Four."),
        ("\n<think>x</think>y", False, "x", "y"),
        ("<think>\n\n</think>\n\nFour.", False, "", "Four."),
        ("Four <think>x</think>.", False, "", "Four <think>x</think>."),
        ("  Four.", False, "", "  Four."),
        ("<thinly put", False, "", "<thinly put"),
        ("<think>never ends </thin", False, "never ends </thin", ""),
        ("<think>a</think>b</think>c", False, "a", "b</think>c"),
        ("<th", False, "", "<th"),
        ("", True, "", ""),
    ],
)
def test_thoughts_are_what_stands_between_the_marks_at_the_beginning(
    text: str, is_open: bool, thoughts: str, answer: str
) -> None:
    assert divided([text], is_open=is_open) == (thoughts, answer)
    assert divided(list(text), is_open=is_open) == (thoughts, answer)


@given(st.lists(st.sampled_from([*"ab <", "<think>", "</think>", "</thi", "\n"])), st.booleans())
def test_however_the_text_comes_in_the_parts_are_the_same(parts: list[str], is_open: bool) -> None:
    assert divided(parts, is_open=is_open) == divided(["".join(parts)], is_open=is_open)


def test_text_is_given_as_soon_as_it_is_sure() -> None:
    reader = ThoughtReader(Thinking(MARKS, is_open=False))
    assert reader.read("<think>Two") == ("Two", "")
    assert reader.read(" and </th") == (" and", "")  # a white space may be the last
    assert reader.read("e") == (" </the", "")
    assert reader.read("</think>") == ("", "")
    assert reader.read("\nF") == ("", "F")
    assert reader.read("our ") == ("", "our ")


@pytest.mark.parametrize("marks", KNOWN)
def test_a_template_says_which_marks_it_has(marks: Marks) -> None:
    assert marks_of(f"{{% if x %}}{marks.begin}{marks.end}{{% endif %}}") == marks
    assert without_thoughts(f" {marks.begin}x{marks.end}\n\ny") == "y"


def test_a_template_without_marks_has_no_thoughts() -> None:
    assert marks_of(None) is None
    assert marks_of("{{ messages }}") is None
    assert without_thoughts("a <think>b</think>") == "a <think>b</think>"


@pytest.mark.parametrize(
    ("prompt", "begun", "expected"),
    [
        ("user: x\nassistant:", "", Thinking(MARKS, is_open=False)),
        ("user: x\nassistant: <think>\n", "", Thinking(MARKS, is_open=True)),
        ("assistant: <think>\n\n</think>\n\n", "", Thinking(MARKS, is_open=False)),
        ("assistant: <think>\nTwo", "<think>\nTwo", Thinking(MARKS, is_open=True)),
        ("assistant: Four", "Four", None),
        ("assistant: <think>x</think>Four", "<think>x</think>Four", None),
    ],
)
def test_a_prompt_says_how_a_reply_begins(
    prompt: str, begun: str, expected: Thinking | None
) -> None:
    assert Thinking.of(MARKS, prompt, begun) == expected
