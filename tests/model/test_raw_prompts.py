"""Where an answer begins in a raw prompt, and what a delta is told of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cmc_local.model.raw_prompts import RawPrompt, answer_offset, split_prompt
from cmc_local.steer.loaded_adapter import LoadedAdapter
from cmc_local.text.prompts import named_form
from fakes import AB, END, NEWLINE, A, B, FakeShift, adapter, always, vocabulary


@pytest.mark.parametrize(
    ("form", "text", "asked"),
    [
        ("cmc", "<|user|>\nWho?\n<|assistant|>\nAda", "<|user|>\nWho?\n<|assistant|>\n"),
        ("cmc", "<|user|>\nWho?\n<|assistant|>\n", "<|user|>\nWho?\n<|assistant|>\n"),
        ("cmc", "Who?", None),
        ("cmc", "<|user|>\nWho?\n<|assistant|>", None),  # the form's newline is missing
        ("inst", "[INST] Who? [/INST] Ada", "[INST] Who? [/INST]"),  # its last space is free
        ("plain", "Who?\nAda", None),  # a newline is no mark
        (
            "cmc",
            "<|user|>\nA\n<|assistant|>\nB\n<|user|>\nC\n<|assistant|>\nD",
            "<|user|>\nA\n<|assistant|>\nB\n<|user|>\nC\n<|assistant|>\n",
        ),
    ],
)
def test_the_answer_begins_behind_the_forms_last_mark(
    form: str, text: str, asked: str | None
) -> None:
    found = answer_offset(named_form(form), text.encode())
    assert found == (None if asked is None else len(asked.encode()))


def test_tokens_spell_a_text_without_what_the_tokenizer_added() -> None:
    raw = RawPrompt.of((NEWLINE, A, AB), vocabulary(), added=b"\n")
    assert (raw.text, raw.starts) == (b"aab", (0, 0, 1, 3))
    assert [raw.first_token(offset) for offset in (0, 1, 2, 3)] == [0, 2, 3, 3]
    raw = RawPrompt.of((A, NEWLINE), vocabulary(), added=b"\n")
    assert raw.text == b"a\n"
    assert RawPrompt.of((END, A), vocabulary()).text == b"</s>a"


@pytest.fixture
def tiny() -> LoadedAdapter:
    return adapter(FakeShift(always(0, 0, 0, 0, 0)))  # its form is "{query}\n": no mark


def told(tiny: LoadedAdapter, tokens: Sequence[int], *, echo: bool) -> tuple[str, int]:
    found = split_prompt(tiny, RawPrompt.of(tokens, vocabulary()), echo=echo)
    texts = tiny.tokenizer.vocabulary.tokens
    spelled = b"".join(texts[token] for token in found.prompt.tokens).decode()
    return spelled + found.prompt.pending, found.answer


def test_any_other_text_is_the_question(tiny: LoadedAdapter) -> None:
    assert told(tiny, (A, B), echo=False) == ("ab\n", 2)


def test_a_text_to_be_read_is_all_answer(tiny: LoadedAdapter) -> None:
    assert told(tiny, (A, B), echo=True) == ("\n", 0)
