"""Mid-token shifts, by hand on four tokens, and against loops over all pairs of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cmc_local.settings import Control
from cmc_local.steer.control import MappedShift, Offer
from cmc_local.steer.mid_token import REACH, MidToken
from cmc_local.text.token_map import build
from cmc_local.text.vocabulary import Role, Vocabulary

END = (b"", Role.EOS, "</s>")


def vocabulary(*texts: bytes, bytes_too: bytes = b"") -> Vocabulary:
    """Token 0 ends, then normal tokens, then byte tokens."""
    normal = [(text, Role.NORMAL, repr(text)) for text in texts]
    single = [(bytes([b]), Role.BYTE, f"<0x{b:02X}>") for b in bytes_too]
    return Vocabulary.assemble([END, *normal, *single], eos_id=0)


def before(*rows: Sequence[float]) -> Callable[[int], np.ndarray]:
    """Rows from the oldest to the latest: before(a, b, c)(1) is b."""
    arrays = [np.array(row, np.float32) for row in rows]
    return lambda back: arrays[len(arrays) - 1 - back]


def as_dict(offers: Sequence[Offer]) -> dict[int, float]:
    """The largest offer for each base token."""
    best: dict[int, float] = {}
    for offer in offers:
        for i, value in zip(offer.ids.tolist(), offer.values.tolist(), strict=True):
            best[i] = max(value, best.get(i, value))
    return best


DELTA = vocabulary(b"Mar", b"Maria", b"Mark")  # 1, 2, 3
BASE = vocabulary(b"i", b"ia", b"k", b"Mar")  # 1, 2, 3, 4


def test_the_docstrings_example() -> None:
    # after "Mar": Maria 4 - Mar 1 = 3 for "i" and "ia"; Mark 2 - Mar 1 = 1 for "k"
    offers = MidToken(BASE, DELTA).offers([1], before([0, 1, 4, 2], [0, 0, 0, 0]))
    assert as_dict(offers) == {1: 3, 2: 3, 3: 1}


def test_offers_reach_the_base_logits() -> None:
    # i, ia and k have no counterpart of their own; the end and "Mar" keep their 0.5, the fill
    rows = before([0, 1, 4, 2], [0.5, 0.5, 0.5, 0.5])
    mapped = MappedShift(build(BASE, DELTA, fallback="none"), Control(unmapped="zero"))
    offers = MidToken(BASE, DELTA).offers([1], rows)
    row = mapped.row(np.zeros(5, np.float32), rows(0), 1.0, offers)
    assert row.tolist() == [0.5, 3.5, 3.5, 1.5, 0.5]


def test_two_tokens_on_their_way_both_count() -> None:
    # "Ma" + "r", then Maria: 7 (before both) - 2 (Ma) - 0.5 (r, before it) = 4.5
    delta = vocabulary(b"Ma", b"r", b"Maria", b"ring")
    base = vocabulary(b"ia", b"in")
    offers = MidToken(base, delta).offers(
        [1, 2], before([0, 2, 0, 7, 0], [0, 0, 0.5, 0, 3], [0, 0, 0, 0, 0])
    )
    # for "in": ring 3 - r 0.5 = 2.5
    assert as_dict(offers) == {1: 4.5, 2: 2.5}


def test_nothing_is_joined_over_a_space_or_a_newline() -> None:
    delta = vocabulary(b"a", b" b", b"a bc", b"\nb", b"a\nbc", b" bc")
    base = vocabulary(b"c")
    rows = before([0, 0, 0, 9, 0, 9, 0], [0, 0, 0, 0, 0, 0, 5], [0] * 7)
    assert as_dict(MidToken(base, delta).offers([1, 2], rows)) == {1: 5}
    assert as_dict(MidToken(base, delta).offers([1, 4], rows)) == {}


def test_a_lone_space_may_begin_a_word() -> None:
    delta = vocabulary(b" ", b" Paris")
    base = vocabulary(b"Par", b" Paris")
    offers = MidToken(base, delta).offers([1], before([0, 1, 3], [0, 0, 0]))
    assert as_dict(offers) == {1: 2}


def test_nothing_is_joined_over_an_end_token() -> None:
    offers = MidToken(BASE, DELTA).offers([1, 0], before([0, 1, 4, 2], [0] * 4, [0] * 4))
    assert as_dict(offers) == {}


def test_a_byte_token_is_offered_only_where_no_normal_token_has_its_text() -> None:
    delta = vocabulary(b"a", b"ab", b"ac")
    base = vocabulary(b"b", bytes_too=b"bc")  # 1 b, 2 <0x62>, 3 <0x63>
    offers = MidToken(base, delta).offers([1], before([0, 0, 1, 2], [0] * 4))
    assert as_dict(offers) == {1: 1, 3: 2}


def test_half_a_character_that_is_held_back_is_part_of_the_beginning() -> None:
    delta = vocabulary("é".encode(), "né".encode(), b"n")  # 1, 2, 3
    base = vocabulary(bytes_too=b"\xa9\xc3")
    rows = before([0, 0, 7, 1], [0, 4, 0, 0])
    # after "n" and the first byte of é: é itself 4; né 7 - n 1 = 6
    assert as_dict(MidToken(base, delta).offers([3], rows, held=b"\xc3")) == {1: 6}


def test_no_more_than_four_tokens_are_looked_back_on() -> None:
    delta = vocabulary(b"a", b"aaaab", b"aaaaab")
    base = vocabulary(b"b")
    rows = before(*[[0, 0, 1, 5]] * 6)
    assert as_dict(MidToken(base, delta).offers([1] * 5, rows)) == {1: 1}


def slow_offers(
    base: Vocabulary,
    delta: Vocabulary,
    tokens: Sequence[int],
    row_before: Callable[[int], np.ndarray],
) -> dict[int, float]:
    """docs/design.md's sentence, by loops over all pairs of tokens."""
    best: dict[int, float] = {}
    for k in range(1, min(REACH, len(tokens)) + 1):
        texts = [delta.tokens[t] for t in tokens[-k:]]
        u = b"".join(texts)
        if b"" in texts or b" " in u[1:] or b"\n" in u[1:]:
            break
        spent = sum(float(row_before(i)[tokens[-i]]) for i in range(1, k + 1))
        for d, text in enumerate(delta.tokens):
            if not (text.startswith(u) and len(text) > len(u)):
                continue
            for v, piece in enumerate(base.tokens):
                if piece and text[len(u) :].startswith(piece):
                    value = float(row_before(k)[d]) - spent
                    best[v] = max(value, best.get(v, value))
    return best


words = st.lists(st.sampled_from(list("aaab \n\xff")), min_size=1, max_size=5)
vocabularies = st.lists(
    words.map(lambda w: "".join(w).encode("latin-1")), min_size=1, max_size=12
).map(lambda texts: vocabulary(*texts))


@settings(max_examples=200)
@given(data=st.data(), base=vocabularies, delta=vocabularies)
def test_offers_equal_the_slow_reference(
    data: st.DataObject, base: Vocabulary, delta: Vocabulary
) -> None:
    tokens = data.draw(st.lists(st.integers(0, len(delta) - 1), max_size=6))
    seed = data.draw(st.integers(0, 2**32 - 1))
    rows = np.random.default_rng(seed).normal(size=(len(tokens) + 1, len(delta)))
    row_before = before(*rows)
    found = as_dict(MidToken(base, delta).offers(tokens, row_before))
    expected = slow_offers(base, delta, tokens, row_before)
    assert found.keys() == expected.keys()
    for v, value in expected.items():
        assert abs(found[v] - value) < 1e-5


def test_each_offer_names_a_base_token_once() -> None:
    delta = vocabulary(b"a", b"ab", b"abc", b"abd")
    base = vocabulary(b"b", b"b", b"bc")
    (offer,) = MidToken(base, delta).offers([1], before([0, 0, 1, 3, 2], [0] * 5))
    assert offer.ids.tolist() == [1, 2, 3]
    assert offer.values.tolist() == [3, 3, 3]
