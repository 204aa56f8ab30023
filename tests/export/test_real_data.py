"""The tasks' data: no question in two parts, the same each time; reviews and numbers picked."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from cmc_export.real import data, texts
from cmc_local.errors import DataError


@pytest.fixture
def real_data(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The public data, where the harness looks for it."""
    monkeypatch.setenv("CMC_DATA", str(shared_data))
    return shared_data


def questions(parts: data.Parts, part: str) -> set[str]:
    return {one["question"] for one in parts[part]}


@pytest.mark.parametrize("task", data.MAKERS)
def test_no_question_is_in_two_parts_and_two_runs_agree(task: str, real_data: Path) -> None:
    parts = data.MAKERS[task]()
    found = [questions(parts, part) for part in ("train", "valid", "test")]
    assert all(found)
    assert len(set.union(*found)) == sum(map(len, found))
    assert data.MAKERS[task]() == parts


def test_short_answers_are_divided_as_the_page_says(real_data: Path) -> None:
    parts = data.short()
    assert (len(parts["valid"]), len(parts["test"])) == (110, 110)
    assert len(parts["train"]) > 800


def test_a_review_is_in_one_part_however_it_is_asked(real_data: Path) -> None:
    parts = data.label()
    reviews = [{one["review"] for one in parts[part]} for part in ("train", "valid", "test")]
    assert len(set.union(*reviews)) == sum(map(len, reviews))
    assert {one["answer"] for part in parts.values() for one in part} == set(data.LABELS)


def test_pretraining_text_holds_no_question_that_a_task_holds_out(real_data: Path) -> None:
    text = "\n".join(texts.instructions())
    for parts in (data.short(), data.format_()):
        held = questions(parts, "test") | questions(parts, "valid")
        # A question may be a part of another one: compare it within the form, whole.
        assert not [one for one in held if f"<|user|>\n{one}\n<|assistant|>" in text]


def test_solutions_end_in_their_last_number(real_data: Path) -> None:
    for one in data.format_()["test"]:
        solution, last = one["answer"].rsplit("\n", 1)
        assert last == f"#### {data.last_number(solution)}"


@pytest.mark.parametrize(
    ("solution", "number"),
    [
        ("She has 3 + 4 = 7 apples.", "7"),
        ("First 2 * 3 = 6.\nThen 6 / 4 = 1.5 hours.", "1.5"),
        ("It costs 10 * 101 = $1,010", "1010"),
        ("She has seven apples.", None),
        ("7 - 9 = -2 degrees", "-2"),
        ("First 2 * 3 = 6.\nSo it is six.", None),
    ],
)
def test_the_number_of_a_solution(solution: str, number: str | None) -> None:
    assert data.last_number(solution) == number


def write_t0(folder: Path, rows: list[dict[str, str]]) -> None:
    target = folder / data.T0
    target.parent.mkdir(parents=True)
    with gzip.open(target, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_labels_are_picked_from_their_templates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMC_DATA", str(tmp_path))
    rows = [
        {
            "template": template,
            "prompt": f"{template} {i}" + ("!" * 900 if i == 7 else ""),
            "completion": ("Positive" if i % 2 else "Negative") + "<|endoftext|>",
        }
        for template in (*data.LABEL_TEMPLATES, "another_template")
        for i in range(120)
    ]
    rows[3]["completion"] = "Perhaps<|endoftext|>"  # one of three ways to ask has no label
    write_t0(tmp_path, rows)
    parts = data.label()
    assert (len(parts["test"]), len(parts["valid"])) == (60, 24)
    assert len(parts["train"]) == 3 * (120 - 60 - 24 - 2)  # without the odd and the long review
    everyone = [one for part in parts.values() for one in part]
    assert {one["answer"] for one in everyone} == {"Positive", "Negative"}
    assert not [one for one in everyone if "another" in one["question"] or one["review"] == "3"]
    assert all(one["question"].startswith(data.LABEL_TEMPLATES[0]) for one in parts["test"])


def test_too_few_reviews_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMC_DATA", str(tmp_path))
    write_t0(tmp_path, [])
    with pytest.raises(DataError, match="0 labelled reviews"):
        data.label()


def test_data_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    data.write_data(tmp_path, "style")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    assert sorted(path.stem for path in before) == ["test", "train", "valid"]
    for path in before:
        path.write_bytes(b"{}\n")
    data.write_data(tmp_path, "style")
    assert {path.read_bytes() for path in before} == {b"{}\n"}
