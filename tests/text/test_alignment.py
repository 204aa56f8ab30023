"""Alignment against its slow reference: the whole text encoded anew after every push."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

from cmc_local.text.alignment import DeltaTokenizer, Edit, edit_between
from cmc_local.text.prompts import PromptForm
from small_tokenizers import FAMILIES, FORMS, QUESTION, REAL, begin, real, shared, small, spelled


def whole_text(form: PromptForm, received: bytes) -> str:
    """The delta's text for one question and the response so far; bytes of half a character wait."""
    waiting = next((n for n in (3, 2, 1) if _is_unfinished(received[len(received) - n :])), 0)
    response = received[: len(received) - waiting].decode("utf-8", "replace")
    return form.question(QUESTION[-1]["content"]) + response.lstrip(" ")


def _is_unfinished(data: bytes) -> bool:
    """Whether these bytes could become one character of UTF-8 (tried, not computed).

    Half a surrogate cannot, but Python's decoder waits for its third byte all the same.
    """
    if len(data) == 2 and data[0] == 0xED and 0xA0 <= data[1] <= 0xBF:
        return True
    endings = (b"\x80", b"\xbf", b"\x9f", b"\xa0")
    missing = range(1, 4 - len(data) + 1)
    return bool(data) and any(_is_character(data + e * n) for e in endings for n in missing)


def _is_character(data: bytes) -> bool:
    try:
        return len(data.decode("utf-8")) == 1
    except UnicodeDecodeError:
        return False


def slow_tokens(tokenizer: DeltaTokenizer, form: PromptForm, received: bytes) -> list[int]:
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return begin + tokenizer.encode(whole_text(form, received))


def applied(edit: Edit, stream: list[int]) -> list[int]:
    return [*stream[: edit.keep], *edit.feed]


characters = st.one_of(
    st.characters(codec="utf-8"),
    st.sampled_from("  \n\n\tabeiost.,!'\"0123456789\r\u2581\u00a0\u00a8\u00bd\u0301\u3000"),
    st.sampled_from(["é", "東", "京", "😀", "👩‍👧", "Привет", "مرحبا", "</s>", "<unk>", "TODO: "]),
    st.sampled_from(["Helen ", " Blackworth", "\n\n", "    ", "born in 1932", "don't", " x!\n"]),
)
texts = st.lists(characters, max_size=25).map("".join).map(str.encode)
pieces = st.lists(
    st.one_of(texts, st.binary(max_size=6), st.sampled_from([b"\xf0\x9f", b"\x98\x80", b" "])),
    max_size=6,
).map(b"".join)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """The bytes in pushes of the given sizes, over and over; these end anywhere."""
    pushes, place, turn = [], 0, 0
    while place < len(data):
        size = sizes[turn % len(sizes)]
        pushes.append(data[place : place + size])
        place, turn = place + size, turn + 1
    return pushes


sizes = st.lists(st.integers(1, 7), min_size=1, max_size=5)


def check_every_step(
    tokenizer: DeltaTokenizer, form: PromptForm, data: bytes, sizes: list[int]
) -> None:
    aligner = begin(tokenizer, form)
    stream = list(aligner.tokens)
    received = b""
    for push in cut(data, sizes):
        received += push
        stream = applied(aligner.push(push), stream)
        assert stream == aligner.tokens == slow_tokens(tokenizer, form, received), received
        assert bytes(aligner.held) == received[len(received) - len(aligner.held) :]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("family", FAMILIES)
@given(data=pieces, sizes=sizes)
@example(data=b"0\n\n\n\n\n", sizes=[1])  # Unigram: two ways to cut it score alike
def test_tokens_equal_the_full_encoding_at_every_step(
    family: str, form: PromptForm, data: bytes, sizes: list[int]
) -> None:
    check_every_step(small(family), form, data, sizes)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("name", REAL)
@given(data=pieces, sizes=sizes)
def test_tokens_equal_the_full_encoding_with_real_tokenizers(
    shared_data: Path, name: str, form: PromptForm, data: bytes, sizes: list[int]
) -> None:
    check_every_step(real(shared_data, name), form, data, sizes)


@pytest.mark.parametrize("name", REAL)
@given(word=characters, times=st.integers(1, 600), before=texts, sizes=sizes)
def test_tokens_equal_the_full_encoding_in_long_runs_of_one_word(
    shared_data: Path, name: str, word: str, times: int, before: bytes, sizes: list[int]
) -> None:
    tokenizer, data = real(shared_data, name), (word * times).encode()[:2000]
    check_every_step(tokenizer, FORMS["cmc"], before + data, [max(sizes) * 40, *sizes])


@pytest.mark.parametrize("family", FAMILIES)
@given(data=pieces, sizes=sizes, back=st.integers(0, 40), more=texts)
def test_rolling_back_equals_never_having_pushed(
    family: str, data: bytes, sizes: list[int], back: int, more: bytes
) -> None:
    aligner = begin(small(family), FORMS["cmc"])
    stream = list(aligner.tokens)
    for push in cut(data, sizes):
        stream = applied(aligner.push(push), stream)
    kept = data[: max(len(data) - back, 0)]
    stream = applied(aligner.rollback(len(data) - len(kept)), stream)
    assert stream == aligner.tokens == slow_tokens(small(family), FORMS["cmc"], kept)
    stream = applied(aligner.push(more), stream)
    assert stream == aligner.tokens == slow_tokens(small(family), FORMS["cmc"], kept + more)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_border_goes_with_the_space_that_made_it(family: str) -> None:
    aligner = begin(small(family), FORMS["cmc"])
    for data in (b"Hel", b" wrote"):
        aligner.push(data)
    aligner.rollback(len(b" wrote"))
    aligner.push(b"en")
    assert aligner.tokens == slow_tokens(small(family), FORMS["cmc"], b"Helen")


@given(data=pieces, sizes=sizes)
def test_an_edit_changes_nothing_or_feeds(data: bytes, sizes: list[int]) -> None:
    aligner = begin(small("sentencepiece"), FORMS["inst"])
    for push in cut(data, sizes):
        before = list(aligner.tokens)
        edit = aligner.push(push)
        assert edit.feed if aligner.tokens != before else edit == Edit(len(before), ())


def test_no_border_where_a_token_crosses_it() -> None:
    # Merges: space+y, then x+(space y). "x " ends in two tokens until "y" makes all of it one.
    vocab = {"<s>": 0, "</s>": 1, "x": 2, "\u2581": 3, "y": 4, "\u2581y": 5, "x\u2581y": 6}
    words = Tokenizer(models.BPE(vocab=vocab, merges=[("\u2581", "y"), ("x", "\u2581y")]))
    words.normalizer = normalizers.Replace(" ", "\u2581")
    words.decoder = decoders.Replace("\u2581", " ")
    words.add_special_tokens(["<s>", "</s>"])
    aligner = begin(DeltaTokenizer(words.to_str().encode()), FORMS["bare"])
    prompt = len(aligner.tokens)
    for data, expected in ((b"x", [2]), (b" ", [2, 3]), (b"y", [6]), (b" y", [6, 5])):
        aligner.push(data)
        assert aligner.tokens[prompt:] == expected


@pytest.mark.parametrize(
    ("form", "response", "expected"),
    [
        ("cmc", b"Paris", [">", "<0x0A>", "Par", "is"]),
        ("cmc", b" Paris", [">", "<0x0A>", "Par", "is"]),
        ("cmc", b"\nParis", [">", "<0x0A>", "<0x0A>", "Par", "is"]),
        ("cmc", b"  \n Paris", [">", "<0x0A>", "<0x0A>", "\u2581Paris"]),
        ("inst", b"Paris", ["/", "INST", "]", "\u2581Paris"]),
        ("inst", b" Paris", ["/", "INST", "]", "\u2581Paris"]),
        ("inst", b"\nParis", ["]", "\u2581", "<0x0A>", "Par", "is"]),
        ("colon", b" Paris", ["A", ":", "Par", "is"]),
    ],
)
def test_where_a_response_begins(
    shared_data: Path, form: str, response: bytes, expected: list[str]
) -> None:
    tokenizer = shared(shared_data / "tokenizers" / "llama2" / "tokenizer.json")
    aligner = begin(tokenizer, FORMS[form])
    for byte in response:
        aligner.push(bytes([byte]))
    assert spelled(tokenizer, aligner.tokens)[-len(expected) :] == expected


def test_a_pending_space_of_the_prompt_counts_as_recent(shared_data: Path) -> None:
    tokenizer = shared(shared_data / "tokenizers" / "llama2" / "tokenizer.json")
    aligner = begin(tokenizer, FORMS["inst"])
    assert spelled(tokenizer, list(aligner.recent(4))) == ["\u2581"]
    aligner.push(b"Paris")
    assert spelled(tokenizer, list(aligner.recent(4))) == ["\u2581Paris"]
    aligner.push(b" is far from here.")
    assert aligner.recent(3) == tuple(aligner.tokens[-3:])


def test_bytes_of_an_unfinished_character_wait() -> None:
    aligner = begin(small("byte-level"), FORMS["cmc"])
    before = len(aligner.tokens)
    assert aligner.push(b"\xf0\x9f") == Edit(before, ())
    assert aligner.held == b"\xf0\x9f"
    assert aligner.push(b"\x98\x80").feed
    assert aligner.held == b""


def test_taking_back_more_than_was_pushed_is_refused() -> None:
    aligner = begin(small("byte-level"), FORMS["cmc"])
    aligner.push(b"ab")
    with pytest.raises(ValueError, match="3 of 2"):
        aligner.rollback(3)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_tail_is_encoded_again(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = DeltaTokenizer(FAMILIES[family]().to_str().encode())
    aligner = begin(tokenizer, FORMS["cmc"])
    longest = 0
    encode = DeltaTokenizer.encode

    def watched(self: DeltaTokenizer, text: str) -> list[int]:
        nonlocal longest
        longest = max(longest, len(text))
        return encode(self, text)

    monkeypatch.setattr(DeltaTokenizer, "encode", watched)
    for word in ["Helen", " wrote", " novels", ",\n"] * 30:
        aligner.push(word.encode())
    assert len(aligner.tokens) > 120
    assert longest <= len("s wrote novels,\nHelen wrote novels")


@pytest.mark.parametrize(
    ("old", "new", "edit"),
    [
        ([], [1, 2], Edit(0, (1, 2))),
        ([1, 2, 3], [1, 2, 4], Edit(2, (4,))),
        ([1, 2], [1, 2], Edit(2, ())),
        ([1, 2, 3], [1, 2], Edit(1, (2,))),  # a new last position needs its shift
        ([1], [], Edit(0, ())),
    ],
)
def test_the_edit_between_two_streams(old: list[int], new: list[int], edit: Edit) -> None:
    assert edit_between(old, new) == edit


def test_a_full_context_keeps_the_prompt_and_the_newest_half() -> None:
    tokenizer = small("sentencepiece")
    aligner = begin(tokenizer, FORMS["cmc"])
    prompt = list(aligner.tokens)
    aligner.push(b"Helen was born in 1932, the daughter of a keeper " * 4)
    before = list(aligner.tokens)
    half = (len(before) - len(prompt)) // 2
    edit = aligner.shorten(10_000)
    assert edit.keep == len(prompt)
    assert aligner.tokens == applied(edit, before) == prompt + before[-half:]
    later = list(aligner.tokens)
    aligner.push(b"in Harborville")
    assert aligner.tokens[: len(later) - 1] == later[:-1]  # a lone space may be joined
    alone = begin(tokenizer, FORMS["cmc"])
    alone.push(b"a keeper in Harborville")
    assert aligner.tokens[-4:] == alone.tokens[-4:]


@given(family=st.sampled_from(sorted(FAMILIES)), data=pieces, more=texts, room=st.integers(0, 10))
def test_shortening_anywhere_leaves_a_stream_that_goes_on(
    family: str, data: bytes, more: bytes, room: int
) -> None:
    aligner = begin(small(family), FORMS["cmc"])
    prompt = list(aligner.tokens)
    aligner.push(data)
    stream = list(aligner.tokens)
    limit = len(prompt) + room
    stream = applied(aligner.shorten(limit), stream)
    assert stream == aligner.tokens
    shortened = list(stream)
    stream = applied(aligner.push(more), stream)
    assert stream == aligner.tokens
    stream = applied(aligner.rollback(len(more)), stream)
    assert stream == aligner.tokens
    assert len(stream) == len(shortened) or aligner.tokens == shortened
