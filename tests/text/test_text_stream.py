"""What may be shown of a reply: whole characters, no stop texts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cmc_local.text.text_stream import TextStream


def test_half_a_character_is_held_until_it_is_whole() -> None:
    stream = TextStream()
    assert stream.push("é".encode()[:1]) == ""
    assert stream.push("é".encode()[1:] + b"t") == "ét"


def test_a_character_cut_off_by_the_end_is_dropped() -> None:
    stream = TextStream()
    assert stream.push(b"a\xf0\x9f") == "a"
    assert stream.finish() == ""


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert TextStream().push(b"a\xff\xffb") == "a\ufffd\ufffdb"


def test_a_possible_stop_text_is_held_and_released_when_it_is_none() -> None:
    stream = TextStream(("###",))
    assert [stream.push(part) for part in (b"a#", b"#", b"b")] == ["a", "", "##b"]
    assert not stream.stopped_by


def test_a_stop_text_over_several_pushes_is_never_shown() -> None:
    stream = TextStream(("\nUser:",))
    assert [stream.push(part) for part in (b"Yes.\n", b"Us", b"er: more", b"!")] == [
        "Yes.",
        "",
        "",
        "",
    ]
    assert stream.stopped_by
    assert stream.finish() == ""


def test_the_stop_text_that_is_whole_first_wins() -> None:
    assert TextStream(("cd", "b")).push(b"abcd") == "a"
    assert TextStream(("bcd", "c")).push(b"abcd") == "ab"


def test_a_held_prefix_comes_out_at_the_end() -> None:
    stream = TextStream(("stop",))
    assert stream.push(b"full sto") == "full "
    assert stream.finish() == "sto"


@given(st.text(), st.lists(st.text(min_size=1, max_size=3), max_size=3), st.integers(1, 5))
def test_pieces_join_to_the_text_before_the_stop(text: str, stop: list[str], size: int) -> None:
    data = text.encode(errors="ignore")
    whole = data.decode()
    ends = [(whole.find(one) + len(one), whole.find(one)) for one in stop if one in whole]
    stream = TextStream(stop)
    shown = "".join(stream.push(data[i : i + size]) for i in range(0, len(data), size))
    shown += stream.finish()
    assert shown == whole[: min(ends, default=(0, len(whole)))[1]]
