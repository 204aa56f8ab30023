"""The report's arithmetic, by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from cmc_local.evaluate.report_gaps import (
    Gap,
    frontiers,
    gap_table,
    known_gaps,
    lower_is_better,
    main_lines,
    read_rows,
    sweeps,
)
from cmc_local.evaluate.results import ResultRow


def row(
    arm: str, value: float, *, task: str = "nll", metric: str = "nll", **more: Any
) -> ResultRow:
    return ResultRow(
        **{"task": task, "model": "large", "arm": arm, "metrics": {metric: value}} | more
    )


def steered(value: float, alpha: float = 1.0, **more: Any) -> ResultRow:
    return row("steered", value, adapter="instruct", alpha=alpha, **more)


def only(gaps: Sequence[Gap]) -> Gap:
    (gap,) = gaps
    return gap


def test_gap_closed_of_a_loss() -> None:
    gap = only(gap_table([row("plain", 4.0), row("finetuned", 3.0), steered(3.25)]))
    assert (gap.plain, gap.value, gap.finetuned) == (4.0, 3.25, 3.0)
    assert gap.closed == 0.75  # -0.75 of -1


def test_gap_closed_of_a_share() -> None:
    rows = [row("plain", 0.1), row("finetuned", 0.5), steered(0.6), row("lora", 0.0)]
    rows = [ResultRow(**{**fields(one), "task": "rouge", "metrics": {"rouge_l_f1": v}})
            for one, v in zip(rows, (0.1, 0.5, 0.6, 0.0), strict=True)]  # fmt: skip
    # (0.6 - 0.1) / 0.4 and (0 - 0.1) / 0.4
    assert {gap.row.arm: gap.closed for gap in gap_table(rows)} == {"steered": 1.25, "lora": -0.25}


def fields(one: ResultRow) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__slots__}


@pytest.mark.parametrize(
    ("metric", "plain", "finetuned", "known"),
    [
        ("nll", 4.0, 3.96, False),  # 0.04 nats: too near
        ("nll", 4.0, 3.9, True),
        ("nll", 4.0, 5.0, False),  # a ceiling that is worse than plain
        ("rouge_l_f1", 0.20, 0.24, False),
        ("rouge_l_f1", 0.20, 0.30, True),
        ("rouge_l_f1", 0.30, 0.20, False),
        ("bits_per_character", 2.0, 1.97, True),
        ("forget_probability", 0.9, 0.1, True),  # lower is more forgotten
        ("exact", 0.1, 0.35, False),
        ("exact", 0.1, 0.45, True),
        ("characters", 100.0, 300.0, False),  # longer is not better
    ],
)
def test_a_gap_needs_a_ceiling_clearly_better_than_plain(
    metric: str, plain: float, finetuned: float, known: bool
) -> None:
    rows = [
        row("plain", plain, metric=metric),
        row("finetuned", finetuned, metric=metric),
        steered((plain + finetuned) / 2, metric=metric),
    ]
    gap = only(gap_table(rows))
    assert gap.closed == (0.5 if known else None)


def test_what_was_not_measured_on_the_same_data_is_no_reference() -> None:
    rows = [
        row("plain", 4.0, count=50),
        row("finetuned", 3.0, count=300),
        steered(3.5, count=300),
        row("plain", 4.0, count=300, model="other"),
    ]
    gaps = gap_table(rows)
    own = next(gap for gap in gaps if gap.row.arm == "steered")
    assert (own.plain, own.finetuned, own.closed) == (None, 3.0, None)
    # Models without a third arm still have their line.
    rest = [(g.row.model, g.plain, g.value) for g in gaps if g is not own]
    assert rest == [("large", 4.0, None), ("other", 4.0, None)]


def test_as_many_questions_of_other_data_are_no_reference_either() -> None:
    same = {"count": 300, "data": "one"}
    rows = [
        row("plain", 4.0, **same),
        row("finetuned", 3.0, **{**same, "data": "other"}),
        steered(3.5, **same),
    ]
    own = next(gap for gap in gap_table(rows) if gap.row.arm == "steered")
    assert (own.plain, own.finetuned, own.closed) == (4.0, None, None)
    assert len(main_lines(gap_table([steered(3.5, data="one"), steered(3.5, data="other")]))) == 2
    written = [{"task": "nll", "model": "m", "arm": "plain", "count": 3, "data": name,
                "metrics": {}} for name in ("one", "other")]  # fmt: skip
    assert [one.data for one in read_rows([{"format": 1, "rows": written}])] == ["one", "other"]
    assert len(frontiers(utility_rows())) == 1
    first, *rest = utility_rows()
    moved = ResultRow(**{**fields(first), "data": "other"})
    assert frontiers([moved, *rest]) == []  # a point of each is no frontier


def test_alpha_0_stands_in_for_plain_and_is_no_line_of_its_own() -> None:
    gap = only(gap_table([steered(4.0, alpha=0.0), row("finetuned", 2.0), steered(3.0)]))
    assert gap.closed == 0.5


def test_the_table_shows_the_strength_nearest_1_and_the_headline_metric() -> None:
    def of(alpha: float) -> ResultRow:
        return ResultRow("tofu", "large", "steered", adapter="forget", alpha=alpha,
                   metrics={"retain_rouge": 0.5, "model_utility": 0.5})  # fmt: skip

    gaps = gap_table([of(0.25), of(1.25), of(0.75), of(2.0)])
    assert len(gaps) == 8
    shown = only(main_lines(gaps))
    assert (shown.row.alpha, shown.metric) == (0.75, "model_utility")


def test_lines_come_by_task_metric_and_model_with_steered_before_its_rivals() -> None:
    rows = [
        row("lora", 3.1),
        steered(3.2),
        steered(3.3, model="small"),
        ResultRow("rouge", "large", "lora", metrics={"rouge_l_f1": 0.2}),
        ResultRow("nll", "small", "lora", metrics={"nll": 3.0}),
    ]
    seen = [(gap.row.task, gap.row.model, gap.row.arm) for gap in gap_table(rows)]
    assert seen == [
        ("nll", "large", "steered"),
        ("nll", "large", "lora"),
        ("nll", "small", "steered"),
        ("nll", "small", "lora"),
        ("rouge", "large", "lora"),
    ]


def test_only_known_gaps_are_drawn() -> None:
    gaps = gap_table([row("plain", 4.0), row("finetuned", 3.0), steered(3.5), *utility_rows()])
    assert [(key, len(of)) for key, of in known_gaps(gaps).items()] == [(("nll", "nll"), 1)]


def test_a_sweep_needs_two_strengths_and_begins_with_plain() -> None:
    rows = [
        *(row("plain", 4.0), row("finetuned", 3.0), steered(3.2, 1.0), steered(3.6, 0.5)),
        *(row("plain", 5.0, model="small"), steered(4.5, model="small")),
    ]
    (sweep,) = sweeps(rows)
    assert (sweep.task, sweep.metric, sweep.label) == ("nll", "nll", "steered (instruct)")
    assert sweep.lines == {"large": [(0.0, 4.0), (0.5, 3.6), (1.0, 3.2)]}
    assert sweep.ceilings == {"large": 3.0}


def utility_rows() -> list[ResultRow]:
    def of(alpha: float, utility: float, **metrics: float) -> ResultRow:
        return ResultRow("tofu", "large", "steered", adapter="forget", alpha=alpha,
                   metrics={"model_utility": utility, **metrics})  # fmt: skip

    return [
        of(1.0, 0.5, forget_truth_ratio=0.7, forget_rouge=0.2),
        of(0.5, 0.6, forget_truth_ratio=0.6, forget_rouge=0.4),
        of(2.0, 0.1),
    ]


def test_the_frontier_takes_the_first_measure_of_forgetting_that_there_is() -> None:
    (frontier,) = frontiers(utility_rows())
    assert (frontier.model, frontier.metric) == ("large", "forget_truth_ratio")
    assert [(one.alpha, x, y) for one, x, y in frontier.points] == [
        (0.5, 0.6, 0.6),
        (1.0, 0.5, 0.7),
    ]
    assert frontiers(utility_rows()[:1]) == []  # one point is no frontier


def test_which_way_is_better() -> None:
    assert lower_is_better("nll") is True
    assert lower_is_better("forget_rouge") is True
    assert lower_is_better("forget_quality") is False
    assert lower_is_better("retain_rouge") is False
    assert lower_is_better("tokens") is None
    assert lower_is_better("a metric of someone else's") is None


def test_rows_are_read_and_a_later_measurement_replaces_an_earlier_one() -> None:
    record = {"task": "nll", "model": "m", "arm": "steered", "adapter": "a", "alpha": 1, "count": 3}
    first = {"format": 1, "rows": [{**record, "metrics": {"nll": 4.0, "bad": float("nan")}}]}
    second = {"format": 1, "rows": [{**record, "metrics": {"nll": 3.0}}, {**record, "count": 4,
              "metrics": {"nll": 2.0}}]}  # fmt: skip
    assert [one.metrics for one in read_rows([first])] == [{"nll": 4.0}]
    assert [one.metrics for one in read_rows([first, second])] == [{"nll": 3.0}, {"nll": 2.0}]


def test_the_strength_of_an_arm_without_adapter_is_none() -> None:
    records = [
        {"task": "nll", "model": "m", "arm": arm, "alpha": 0.0, "metrics": {}}
        for arm in ("plain", "finetuned", "steered")
    ]
    assert [one.alpha for one in read_rows([{"format": 1, "rows": records}])] == [None, None, 0.0]
