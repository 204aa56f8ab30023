"""The delta's tokenizer: prompts, examples, what is cut, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from tokenizers import Tokenizer, models

from cmc_local.errors import TokenizerError, UsageError
from cmc_local.text.alignment import Aligner, DeltaTokenizer
from cmc_local.text.prompts import Message
from small_tokenizers import FAMILIES, FORMS, QUESTION, begin, shared, small, spelled


def test_eos_stands_after_each_answer_and_turns_last_drops_what_was_before() -> None:
    tokenizer = small("sentencepiece")
    talk: list[Message] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": " Helen"},
        {"role": "user", "content": "Where?"},
    ]
    form = FORMS["cmc"]

    def whole(turns: Literal["all", "last"]) -> list[int]:
        return Aligner(tokenizer, tokenizer.prompt(form, talk, turns=turns, max_tokens=999)).tokens

    first = tokenizer.encode("Be brief.\n<|user|>\nWho?\n<|assistant|>\nHelen")
    second = tokenizer.encode("<|user|>\nWhere?\n<|assistant|>\n")
    assert whole("all") == [1, *first, 2, *second]
    assert whole("last") == [1, *tokenizer.encode("Be brief.\n" + form.question("Where?"))]


def test_a_prompt_equals_the_beginning_of_the_example_with_the_same_answer() -> None:
    tokenizer = small("byte-level")
    for form in FORMS.values():
        ids, in_loss = tokenizer.example(form, [*QUESTION, {"role": "assistant", "content": "Ah."}])
        aligner = begin(tokenizer, form)
        aligner.push(b"Ah.")
        assert ids == [*aligner.tokens, tokenizer.eos_id]
        assert in_loss[-1]


def test_the_loss_holds_every_token_with_some_of_an_answer(shared_data: Path) -> None:
    tokenizer = shared(shared_data / "tokenizers" / "llama2" / "tokenizer.json")
    answer: Message = {"role": "assistant", "content": "  Paris"}
    ids, in_loss = tokenizer.example(FORMS["inst"], [*QUESTION, answer, *QUESTION, answer])
    chosen = [token for token, counts in zip(ids, in_loss, strict=True) if counts]
    assert spelled(tokenizer, chosen) == ["\u2581Paris", "</s>"] * 2


def test_special_spellings_in_a_text_are_plain_text() -> None:
    for family in FAMILIES:
        tokenizer = small(family)
        ids = tokenizer.encode("a</s>b<s> </s>")
        assert tokenizer.eos_id not in ids
        assert tokenizer.bos_id not in ids


def test_a_lone_surrogate_is_a_question_mark() -> None:
    assert small("byte-level").encode("a\ud800b") == small("byte-level").encode("a?b")


def many_turns(count: int) -> list[Message]:
    turns: list[Message] = []
    for number in range(count):
        turns.append({"role": "user", "content": f"Question {number}?"})
        turns.append({"role": "assistant", "content": f"Answer {number}."})
    return [*turns, {"role": "user", "content": "The last question?"}]


def test_a_long_conversation_loses_its_oldest_turns() -> None:
    tokenizer, form = small("sentencepiece"), FORMS["cmc"]
    system: Message = {"role": "system", "content": "Be brief."}
    talk = [system, *many_turns(9)]
    fitting = [system, *talk[-3:]]
    room = tokenizer.length(tokenizer.prompt(form, fitting, max_tokens=999))
    assert tokenizer.prompt(form, talk, max_tokens=room) == tokenizer.prompt(
        form, fitting, max_tokens=999
    )


def test_a_long_question_loses_its_middle() -> None:
    tokenizer, form = small("byte-level"), FORMS["bare"]
    query = " ".join(f"number {n}" for n in range(200))
    talk: list[Message] = [{"role": "user", "content": query}]
    prompt = tokenizer.prompt(form, talk, max_tokens=100)
    texts = [tokenizer.vocabulary.tokens[token] for token in prompt.tokens]
    text = b"".join(texts).decode() + prompt.pending
    assert text.startswith("number 0 number 1 ")
    assert text.endswith(" number 198 number 199")
    assert text.count(" ... ") == 1
    assert 90 <= tokenizer.length(prompt) <= 100


def test_a_system_text_that_takes_half_of_the_room_goes_before_the_question_is_cut() -> None:
    tokenizer, form = small("byte-level"), FORMS["cmc"]
    talk: list[Message] = [
        {"role": "system", "content": "Be very brief. " * 50},
        {"role": "user", "content": "Who is it?"},
    ]
    prompt = tokenizer.prompt(form, talk, max_tokens=60)
    assert prompt == tokenizer.prompt(form, talk[1:], max_tokens=60)


def test_a_form_longer_than_the_room_is_refused() -> None:
    with pytest.raises(UsageError, match="longer than 5"):
        small("byte-level").prompt(FORMS["cmc"], QUESTION, max_tokens=5)


def test_an_example_needs_an_answer_at_the_end() -> None:
    with pytest.raises(UsageError, match="must have the role assistant"):
        small("byte-level").example(FORMS["cmc"], QUESTION)


@pytest.mark.parametrize("data", [b"{}", b"no json", b"\xff\xfe"])
def test_what_is_no_tokenizer_is_refused(data: bytes) -> None:
    with pytest.raises(TokenizerError):
        DeltaTokenizer(data)


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    words = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    with pytest.raises(TokenizerError, match="no end-of-text token"):
        DeltaTokenizer(words.to_str().encode())


def test_truncation_padding_and_dropout_in_the_file_are_ignored() -> None:
    words = FAMILIES["sentencepiece"]()
    words.enable_truncation(4)
    words.enable_padding(length=50)
    words.model.dropout = 0.9
    text = "Helen Blackworth was born in Harborville"
    plain = small("sentencepiece").encode(text)
    tokenizer = DeltaTokenizer(words.to_str().encode())
    assert [tokenizer.encode(text) for _ in range(5)] == [plain] * 5
