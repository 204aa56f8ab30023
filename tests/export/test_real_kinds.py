"""Kinds of tokens, ways to map, trials and sums, all checked by hand.

The delta's five tokens are those of `fakes`: 0 `</s>`, 1 "a", 2 "b", 3 "ab", 4 newline.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cmc_export.real import kind_report
from cmc_export.real.__main__ import main
from cmc_export.real.kind_report import Costs, ratio
from cmc_export.real.kind_trials import (
    DIGITS,
    END,
    INSIDES,
    MARKS,
    WORDS,
    Asked,
    Asker,
    by_class,
    by_ratio,
    changed_nats,
    classes_of,
    even,
    first_piece,
    gated,
    less_the_mean,
    sure_delta,
    unsure_base,
    without,
)
from cmc_export.real.kinds import (
    Kind,
    Place,
    answer_kinds,
    default,
    kind,
    kinds_of,
    map_ways,
    only,
    through,
)
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Control
from cmc_local.steer.control import MappedShift, Shift
from cmc_local.text.token_map import Match, TokenMap
from fakes import FakeBase, FakeShift, adapter, always, vocabulary

LN2, LN3 = np.log(2.0), np.log(3.0)


@pytest.mark.parametrize(
    ("text", "before", "expected"),
    [
        (b"The", "", Kind.BEGINNING),  # a capital says nothing at the start of an answer
        (b"The", "It rained. ", Kind.BEGINNING),
        (b" The", 'It rained. "', Kind.BEGINNING),
        (b" Paris", "The capital is", Kind.NAME),
        (b"Paris", 'is "', Kind.NAME),
        (b"is", "The capital is Par", Kind.INSIDE),
        (b" is", "The capital", Kind.BEGINNING),
        (b"ed", "bath", Kind.INSIDE),
        (b"Gs", "DN", Kind.INSIDE),
        (b"t", "don'", Kind.INSIDE),
        (b"bon", "is '", Kind.BEGINNING),
        (b"'s", "Mary", Kind.PUNCTUATION),
        (b" 1", "in", Kind.DIGITS),
        (b"945", "in 1", Kind.DIGITS),
        (b".", "end", Kind.PUNCTUATION),
        (b" (", "end", Kind.PUNCTUATION),
        (b"\xc3\x97", "length ", Kind.PUNCTUATION),  # the sign of multiplication
        (b"\n", "end.", Kind.WHITESPACE),
        (b" ", "end", Kind.WHITESPACE),
        (b"\xa9", "caf", Kind.INSIDE),  # the second byte of an accented letter
        ("é".encode(), "caf", Kind.INSIDE),
    ],
)
def test_a_token_has_the_kind_that_a_reader_would_give_it(
    text: bytes, before: str, expected: Kind
) -> None:
    assert kind(text, before) is expected


def test_the_kinds_of_an_answer_follow_its_text() -> None:
    words = vocabulary(b"In", b" Par", b"is", b" 1", b"\n", b".")
    assert kinds_of(words, [1, 2, 3, 4, 6, 5, 1, 0]) == [
        Kind.BEGINNING,
        Kind.NAME,
        Kind.INSIDE,
        Kind.DIGITS,
        Kind.PUNCTUATION,
        Kind.WHITESPACE,
        Kind.BEGINNING,  # after a newline: the start of a sentence
        Kind.END,
    ]


# --- ways ----------------------------------------------------------------------------------------


def test_a_map_is_cut_down_to_some_matches() -> None:
    ids = np.array([0, 3, 2, 5, -1], np.int32)
    matches = np.array([Match.ROLE, Match.EXACT, Match.NEAR, Match.FALLBACK, Match.NONE], np.uint8)
    found = only(TokenMap(ids, matches, 6), (Match.EXACT, Match.ROLE))
    assert found.ids.tolist() == [0, 3, -1, -1, -1]
    assert found.counts() == {
        Match.EXACT: 1,
        Match.NEAR: 0,
        Match.FALLBACK: 0,
        Match.ROLE: 1,
        Match.NONE: 3,
    }
    assert ids.tolist() == [0, 3, 2, 5, -1]


def test_base_tokens_lose_their_counterpart() -> None:
    full = TokenMap(np.array([0, 3, 2], np.int32), np.array([3, 0, 1], np.uint8), 4)
    found = without(full, np.array([False, True, False]))
    assert found.ids.tolist() == [0, -1, 2]
    assert found.matches.tolist() == [Match.ROLE, Match.NONE, Match.NEAR]


def place(target: int = 1, row: tuple[float, ...] = (0.0, LN3, 0.0, 0.0)) -> Place:
    """Four base tokens of equal mass; the delta's token i is the base's."""
    token_map = TokenMap(np.arange(4, dtype=np.int32), np.zeros(4, np.uint8), 4)
    mapped = MappedShift(token_map, Control())
    shift = Shift(mapped, np.array(row, np.float32), 1.0)
    return Place(np.zeros(4, np.float32), shift, np.array([target]))


def test_a_strength_is_what_the_runner_adds() -> None:
    # masses 1, 3, 1, 1: the token has 3/6, and 1/4 without the shift
    assert default(1.0)(place()) == pytest.approx(np.log(2))
    assert default(0.0)(place()) == pytest.approx(np.log(4))


def test_another_map_shifts_other_tokens() -> None:
    token_map = TokenMap(np.array([-1, -1, 1, -1], np.int32), np.array([4, 4, 0, 4], np.uint8), 4)
    way = through(MappedShift(token_map, Control()), join=False)
    # The one mapped token takes ln 3, and so does the fill: nothing changes.
    assert way(place()) == pytest.approx(np.log(4))
    zero = through(MappedShift(token_map, Control(unmapped="zero")), join=False)
    assert zero(place(2)) == pytest.approx(np.log(6 / 3))


def test_classes_have_their_mass_at_one_strength_and_choose_at_another() -> None:
    classes = np.array([0, 0, 1, 1])
    # At 1 the first class has (1 + 3) of 6; within it the plain base gives the token 1/2.
    assert by_class(classes, 1.0, {0: 0.0})(place()) == pytest.approx(-np.log(4 / 6 * 1 / 2))
    assert by_class(classes, 0.0, {0: 1.0})(place()) == pytest.approx(-np.log(1 / 2 * 3 / 4))
    assert by_class(classes, 1.0, {})(place()) == pytest.approx(default(1.0)(place()))


def test_log_ratios_do_not_know_the_deltas_constant() -> None:
    ones, mixed = np.ones(4, np.float32), np.array([1.0, 0.5, 1.0, 1.0], np.float32)
    assert by_ratio(ones)(place()) == pytest.approx(default(1.0)(place()))
    moved = place(row=(7.0, 7.0 + LN3, 7.0, 7.0))
    assert by_ratio(mixed)(moved) == pytest.approx(by_ratio(mixed)(place()), abs=1e-5)


def test_every_base_token_has_a_class() -> None:
    words = vocabulary(b" Par", b"is", b" is", b"7", b".", b"\n", b"")
    assert classes_of(words).tolist() == [END, WORDS, INSIDES, WORDS, DIGITS, MARKS, MARKS, MARKS]


def test_a_gate_knows_how_sure_both_are() -> None:
    assert unsure_base(place()) == pytest.approx(3 / 4)
    assert sure_delta(place()) == pytest.approx(1 / 2)


def test_a_gate_rounds_to_quarters_and_leaves_the_end_its_mass() -> None:
    assert gated(lambda _: 0.9)(place()) == pytest.approx(default(1.0)(place()))
    assert gated(lambda _: 0.6)(place()) == pytest.approx(default(0.5)(place()))
    ends = np.array([0, 1, 0, 0])  # the shifted token ends a reply: 3 of 6 at strength 1
    assert gated(lambda _: 0.0, ends)(place(1)) == pytest.approx(np.log(2))
    assert gated(lambda _: 0.0, ends)(place(2)) == pytest.approx(np.log(2 * 3))


# --- the delta asked ahead -----------------------------------------------------------------------


def asked(*later: float, firsts: tuple[int, ...] = (1, 1)) -> Asked:
    return Asked(np.array([1, 2]), np.array(firsts), np.array(later))


def test_a_few_changed_logits_cost_what_the_changed_row_would() -> None:
    # masses 1, 3, 1, 1 become 1, 1, 2, 1
    for target, mass in ((0, 1), (1, 1), (2, 2)):
        found = changed_nats(place(target), np.array([1, 2]), np.array([-LN3, LN2]))
        assert found == pytest.approx(np.log(5 / mass), abs=1e-6)


def test_even_leaves_the_mass_of_those_that_begin_alike() -> None:
    # masses 3 and 1, later pieces 1/3 and 1: 1 and 1, times 2
    assert even(place(), asked(-LN3, 0.0)) == pytest.approx([np.log(2 / 3), LN2])
    assert even(place(), asked(-LN3, 0.0, firsts=(1, 2))) == pytest.approx([0.0, 0.0])


def test_later_pieces_are_compared_with_their_mean() -> None:
    assert less_the_mean(place(), asked(-3.0, -1.0)).tolist() == [-1.0, 1.0]


def test_a_token_takes_the_shift_of_its_first_piece() -> None:
    changed = first_piece(place(), asked(0.0, 0.0, firsts=(3, 1)))
    assert changed == pytest.approx([-LN3, LN3])


def test_the_delta_is_asked_for_the_later_pieces() -> None:
    def rule(tokens: tuple[int, ...]) -> list[float]:
        return [0, 2, 0, 0, 0] if tokens[-1] == 2 else [0, 0, 0, 0, 0]

    words = vocabulary(b"a", b"ba", b"baa", b"ab")
    source = FakeShift(rule)
    loaded = adapter(source, words)
    asker = Asker(loaded, words, slot=1)
    asking = asker.follow(loaded.prompt([{"role": "user", "content": "a"}]), [b"\n", b"\n"])
    logits = np.zeros(5, np.float32)
    after_b, level = -np.log(1 + 4 * np.exp(-2.0)), np.log(5.0)
    for ask in asking:  # the same after every piece: only the last token matters
        found = ask(logits)
        order = np.argsort(found.ids)
        assert found.ids[order].tolist() == [2, 3]  # one piece is not asked for
        assert found.firsts.tolist() == [2, 2]
        assert found.later[order] == pytest.approx([after_b, after_b - level])
    assert source.length(1) == len("a\n\n\n")


def test_nothing_is_asked_where_the_text_changes_tokens_behind_it() -> None:
    words = vocabulary(b"a", b"b", b"bb")
    loaded = adapter(FakeShift(always(0, 0, 0, 0, 0)), words)
    prompt = loaded.prompt([{"role": "user", "content": "b"}])
    first, second = Asker(loaded, words, slot=1).follow(prompt, [b"a"])
    del first
    assert second(np.zeros(4, np.float32)).ids.tolist() == []  # "a", "bb" is `ab`, `b`


# --- measuring -----------------------------------------------------------------------------------


def model() -> tuple[SteeredModel, FakeBase]:
    base = FakeBase(always(0.5, 0, 1, 0, 0), words=vocabulary(b"a", b"b", b"abb", b"\n"))
    made = SteeredModel(base, base.sampler)
    made.attach(adapter(FakeShift(always(2, 1, 0.5, 0, 0)), base.vocabulary, mid_token="join"))
    return made, base


def test_what_is_measured_is_what_the_runner_scores() -> None:
    steered, base = model()
    ways = {"tiny": map_ways(base.vocabulary, steered.adapters["tiny"])}
    (found,) = answer_kinds(steered, [("a", "babb")], ways)
    assert found["tokens"] == [2, 3, 0]
    assert found["kinds"] == [Kind.BEGINNING, Kind.INSIDE, Kind.END]
    nats = found["nats"]["tiny"]
    for way, alpha in (("default", 1.0), ("plain", 0.0), ("alpha 0.5", 0.5)):
        score = steered.score("a", [2, 3, 0], alphas=alpha)
        assert nats[way] == pytest.approx((-score.logprobs).tolist(), abs=1e-6)
    assert nats["default"] != pytest.approx(nats["plain"])


def test_the_end_is_the_mass_of_all_tokens_that_end_a_reply() -> None:
    steered, base = model()
    words = base.vocabulary
    roles = words.roles.copy()
    roles[4] = roles[0]
    base.vocabulary = replace(words, roles=roles, tokens=(*words.tokens[:4], b""))
    ways = {"tiny": {"plain": default(0.0)}}
    (found,) = answer_kinds(steered, [("a", "b")], ways)
    row = np.exp([0.5, 0, 1, 0, 0])
    assert found["nats"]["tiny"]["plain"][-1] == pytest.approx(
        -np.log((row[0] + row[4]) / row.sum())
    )


# --- sums and tables -----------------------------------------------------------------------------


def costs() -> Costs:
    values = [
        {
            "kinds": ["names", "punctuation", "names"],
            "nats": {"d": {"plain": [3.0, 1.0, 2.0], "default": [1.0, 1.0, 1.0]}},
        },
        {"kinds": ["names"], "nats": {"d": {"plain": [4.0], "default": [1.0]}}},
    ]
    return Costs.of(values, "d")


def test_sums_by_kind() -> None:
    found = costs()
    assert found.examples.tolist() == [0, 0, 0, 1]
    assert found.share("names") == 0.75
    assert found.mean("plain") == 2.5
    assert found.mean("plain", "names") == 3.0
    mean, low, high = found.difference("default", "plain", "names")
    # (-2 - 1 - 3) / 3; the first answer alone has -1.5 a token, the second -3
    assert (mean, low, high) == (-2.0, -3.0, -1.5)


def test_longer_examples_count_for_more_and_empty_draws_for_nothing() -> None:
    assert ratio(np.array([3.0, 0.0]), np.array([3.0, 0.0])) == (1.0, 1.0, 1.0)
    mean, low, high = ratio(np.array([3.0, 0.0]), np.array([3.0, 1.0]))
    assert (mean, low, high) == (0.75, 0.0, 1.0)


def test_the_tables_show_each_kind_that_occurs() -> None:
    lines = kind_report.table(costs(), ["plain", "default"]).splitlines()
    assert lines[0] == "|  | share | plain | default |"
    assert lines[2:] == [
        "| all | 1.000 | 2.500 | 1.000 |",
        "| names | 0.750 | 3.000 | 1.000 |",
        "| punctuation | 0.250 | 1.000 | 1.000 |",
    ]
    found = kind_report.differences(costs(), [("default", "plain")])
    assert "| names | -2.000 (-3.000, -1.500) |" in found


def test_without_an_adapter_one_line_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short").mkdir()
    (tmp_path / "short/test.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    assert main(["kinds", "--runs", str(tmp_path), "--templates", "smollm2"]) == 1
    assert "delta.smollm2.0.adapter: make it with" in capsys.readouterr().err
