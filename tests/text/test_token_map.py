"""The token map, on vocabularies that can be checked by hand, and against a slow reference."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from benchmarks.token_map_table import published
from cmc_local.base.vocabulary import read_vocabulary
from cmc_local.errors import UsageError
from cmc_local.text import token_map
from cmc_local.text.token_map import Match, TokenMap, build, load_or_build
from cmc_local.text.vocabulary import Role, Vocabulary, from_tokenizer_json
from slow_token_map import edit_distance, slow_map

N, BYTE, EOS, BOS, CONTROL = Role.NORMAL, Role.BYTE, Role.EOS, Role.BOS, Role.CONTROL


def vocabulary(
    *texts: str | bytes | tuple[bytes, Role], eos: int | None = None, bos: int | None = None
) -> Vocabulary:
    """Tokens by id: text, or (text, role)."""
    entries = []
    for text in texts:
        data, role = text if isinstance(text, tuple) else (text, N)
        data = data.encode() if isinstance(data, str) else data
        entries.append((data, role, repr(data)))
    return Vocabulary.assemble(entries, eos_id=eos, bos_id=bos)


def ids(base: Vocabulary, delta: Vocabulary) -> list[int]:
    return build(base, delta, fallback="none").ids.tolist()


def test_worked_example_of_the_module() -> None:
    delta = vocabulary("", " ", " Par", "is", "ist", (b"\n", BYTE), eos=0)
    base = vocabulary("", " Par", " Paris", "i", "\n", "\n\n", eos=0)

    def encode(text: str) -> list[int]:  # newlines only: what this test asks for
        return [5] * len(text)

    made = build(base, delta, encode=encode)

    assert made.ids.tolist() == [0, 2, 2, 3, 5, 5]
    assert [Match(m).name for m in made.matches] == [
        *("ROLE", "EXACT", "NEAR", "NEAR", "EXACT", "FALLBACK")
    ]


@pytest.mark.parametrize(
    ("base", "delta", "expected"),
    [
        # of two that are equally near the lowest id: "ab" is one away from "abc" and from "a"
        (["ab"], ["abc", "a"], [0]),
        (["ab"], ["a", "abc"], [0]),
        # the nearer of a longer and a shorter one
        (["abcd"], ["a", "abcdef", "ab"], [1]),  # 3, 2, 2 away
        (["abcd"], ["a", "abcdef", "abc"], [2]),  # 3, 2, 1 away
        # a lone space stands for spaces only, though " x" is one away and "   " two
        ([" x", "   "], [" "], [-1, 0]),
        # lengths are in characters where both texts are whole: one away, in spite of two bytes
        (["aé"], ["aéé", "a"], [0]),
        # and in bytes where one is broken: "a語" is 61 E8 AA 9E, one byte from 61 E8 AA, two from
        # 61 E8, one character from "a"
        (["a語"], [b"a\xe8\xaa", "a"], [0]),
        (["a語"], [b"a\xe8", "a"], [1]),
        # among equal texts the same role, then the lowest id
        (["A", (b"A", BYTE)], [(b"A", BYTE), "A", "A"], [1, 0]),
        # a byte token stands for another role only where the texts are equal
        (["\n", "\n\n"], [(b"\n", BYTE)], [0, -1]),
    ],
)
def test_the_rule_by_hand(base: list[Any], delta: list[Any], expected: list[int]) -> None:
    assert ids(vocabulary(*base), vocabulary(*delta)) == expected


def test_control_tokens_are_matched_by_role_and_never_by_number_or_text() -> None:
    base = vocabulary((b"", CONTROL), (b"<s>", N), (b"", BOS), (b"", EOS), (b"", EOS), eos=3, bos=2)
    delta = vocabulary((b"", EOS), "<", (b"", BOS), (b"", CONTROL), eos=0, bos=2)
    made = build(base, delta, fallback="none")
    assert made.ids.tolist() == [-1, 1, 2, 0, 0]
    assert made.matches.tolist() == [Match.NONE, Match.NEAR, Match.ROLE, Match.ROLE, Match.ROLE]


def test_without_an_eos_of_the_delta_an_end_token_has_no_counterpart() -> None:
    assert ids(vocabulary("", "a", eos=0), vocabulary("a")) == [-1, 0]


def test_the_first_piece_is_the_one_within_a_text_not_at_its_start() -> None:
    # Like Llama-2's: a space token is put before what stands alone.
    delta = vocabulary(" ", (b"\n", BYTE), (b"\xe8", BYTE))
    spoken = {"\n": [0, 1], "語": [0, 2, 2, 2], "\n語": [0, 1, 2, 2, 2]}
    made = build(vocabulary("語"), delta, encode=lambda text: spoken[text])
    assert made.ids.tolist() == [2]
    assert made.matches.tolist() == [Match.FALLBACK]


def test_a_broken_character_falls_back_to_its_first_byte() -> None:
    delta = vocabulary((b"\n", BYTE), (b"\xe8", BYTE))
    made = build(vocabulary(b"\xe8\xaa", b"\xff\xfe"), delta, encode=lambda _: [0])
    assert made.ids.tolist() == [1, -1]


def test_a_control_token_is_no_first_piece() -> None:
    delta = vocabulary((b"", CONTROL), "a")
    assert build(vocabulary("x"), delta, encode=lambda _: [0]).ids.tolist() == [-1]


def test_first_piece_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(UsageError, match="tokenizer"):
        build(vocabulary("x"), vocabulary("a"))


def test_index_points_one_past_the_delta_for_none() -> None:
    made = TokenMap(np.array([1, -1], np.int32), np.zeros(2, np.uint8), delta_size=2)
    assert made.index().tolist() == [1, 2]
    assert made.index().dtype == np.intp


def test_rivals_explain_a_token_best_first() -> None:
    delta = vocabulary(" ", " Par", " Parisian", (b" ", BYTE), " Pa", " Q")
    assert token_map.rivals(b" Paris", delta) == [(2, 1), (3, 2), (3, 4)]


# Random vocabularies. Few different bytes, so that texts often begin alike; some are broken UTF-8.
PIECES = st.sampled_from([b"a", b"b", b" ", b"\n", "é".encode(), b"\xc3", "語".encode(), b"\xe8"])
TEXTS = st.lists(PIECES, max_size=4).map(b"".join)
ROLES = st.sampled_from([N, N, N, N, N, BYTE, EOS, BOS, CONTROL, Role.UNUSED])


@st.composite
def vocabularies(draw: st.DrawFn) -> Vocabulary:
    entries = draw(st.lists(st.tuples(TEXTS, ROLES), min_size=1, max_size=12))
    entries = [(text[:1] if role == BYTE else text, role) for text, role in entries]
    found = {role: i for i, (_, role) in enumerate(entries)}
    rows = [(text, role, "") for text, role in entries]
    return Vocabulary.assemble(rows, eos_id=found.get(EOS), bos_id=found.get(BOS))


@settings(max_examples=300, deadline=None)
@given(vocabularies(), vocabularies())
def test_equals_two_loops_and_an_edit_distance_table(base: Vocabulary, delta: Vocabulary) -> None:
    made = build(base, delta, fallback="none")
    assert list(zip(made.ids, made.matches, strict=True)) == slow_map(base, delta)


@settings(max_examples=200, deadline=None)
@given(vocabularies(), vocabularies(), st.booleans())
@example(vocabulary("\n語"), vocabulary((b"\n", BYTE), "語"), True)
def test_fallback_equals_the_slow_reference(
    base: Vocabulary, delta: Vocabulary, marks_the_start: bool
) -> None:
    def encode(text: str) -> list[int]:  # the longest token first, else the first byte, else 0
        data, out = text.encode(), [0] if marks_the_start else []
        while data:
            sizes = [(len(t), -i) for i, t in enumerate(delta.tokens) if t and data.startswith(t)]
            size, i = max(sizes, default=(1, 0))
            out.append(-i)
            data = data[size:]
        return out

    made = build(base, delta, encode=encode)
    assert list(zip(made.ids, made.matches, strict=True)) == slow_map(base, delta, encode)


@given(TEXTS, TEXTS)
def test_distance_of_a_prefix_is_the_edit_distance(one: bytes, rest: bytes) -> None:
    both = one + rest
    try:
        expected = edit_distance(one.decode(), both.decode())
    except UnicodeDecodeError:
        expected = edit_distance(one, both)
    assert token_map.distance(one, both) == token_map.distance(both, one) == expected


def cached(folder: Path, **changes: str) -> TokenMap:
    options = {"fallback": "first-piece", "tokenizer_sha256": "aa", **changes}
    return load_or_build(
        vocabulary("ab", "x"),
        vocabulary("a"),
        encode=lambda _: [0],
        cache_dir=folder,
        **options,  # type: ignore[arg-type]
    )


def test_a_cached_map_is_read_and_not_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cached(tmp_path)
    monkeypatch.setattr(token_map, "build", lambda *_, **__: pytest.fail("built again"))
    again = cached(tmp_path)
    assert made.ids.tolist() == again.ids.tolist() == [0, 0]
    assert made.matches.tolist() == again.matches.tolist() == [Match.NEAR, Match.FALLBACK]
    assert made.delta_size == again.delta_size == 1


def test_another_fallback_or_tokenizer_is_another_map(tmp_path: Path) -> None:
    for changes in ({}, {"tokenizer_sha256": "bb"}, {"fallback": "none"}):
        cached(tmp_path, **changes)
    assert len(list(tmp_path.rglob("*.map"))) == 3
    cached(tmp_path, fallback="none", tokenizer_sha256="cc")  # where no tokenizer has a say
    assert len(list(tmp_path.rglob("*.map"))) == 3


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "long"])
def test_a_damaged_cache_file_is_made_anew(tmp_path: Path, damage: str) -> None:
    cached(tmp_path)
    (path,) = tmp_path.rglob("*.map")
    whole = path.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    path.write_bytes(
        {"cut": whole[:-1], "flip": flipped, "empty": b"", "long": whole + b"x"}[damage]
    )
    assert cached(tmp_path).ids.tolist() == [0, 0]
    assert path.read_bytes() == whole


def test_a_cache_that_is_no_folder_costs_nothing_but_time(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    assert cached(file).ids.tolist() == [0, 0]


def test_mistral_onto_llama2_gives_the_published_counts(shared_data: Path) -> None:
    base, delta = (
        from_tokenizer_json(shared_data / "tokenizers" / name / "tokenizer.json")
        for name in ("mistral", "llama2")
    )
    made = build(base, delta, fallback="none")
    ordinary = made.matches[3:]
    theirs, _ = published(base, delta)
    differ = [i for i in range(3, len(base)) if made.ids[i] != theirs[i]]
    assert len(differ) == 30
    assert sorted(base.tokens[i] for i in differ)[-2:] == [b"<?>", b"\x7f"]
    assert all(len(base.tokens[i]) == 1 for i in differ if base.tokens[i] != b"<?>")
    assert (ordinary == Match.EXACT).sum() == 24_210
    assert (ordinary == Match.NONE).sum() == 1_312
    assert made.ids[:3].tolist() == [-1, 1, 2]  # <unk>, <s>, </s>


def test_a_large_vocabulary_is_mapped_without_comparing_all_pairs(
    shared_data: Path, tmp_path: Path
) -> None:
    # It takes 0.6 to 0.8 s, from the cache 15 ms; 4 billion pairs take minutes.
    gguf = shared_data / "vocab" / "ggml-vocab-llama-bpe.gguf"
    path = shared_data / "tokenizers" / "llama2" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    times = []
    for _ in range(2):
        base, delta = read_vocabulary(gguf), from_tokenizer_json(path)
        start = time.process_time()  # of one thread; other programs do not count
        made = load_or_build(
            base,
            delta,
            encode=lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
            tokenizer_sha256="llama2",
            cache_dir=tmp_path,
        )
        times.append(time.process_time() - start)
    assert len(made.ids) == 128_256
    assert times[0] < 20.0
    assert times[1] < 0.2 * times[0]
