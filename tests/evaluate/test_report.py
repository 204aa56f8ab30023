"""The report page, as a parser and a browser would read it."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from cmc_local.errors import DataError, InputError, MissingExtra
from cmc_local.evaluate.report import write_page

ROWS = [
    {"task": "nll", "model": model, "vocabulary": 8000, "arm": arm, "adapter": adapter,
     "alpha": alpha, "metrics": {"nll": nll}, "count": 300,
     "command": f"cmc-local eval nll --gguf {model} --alphas {alpha:g}"}
    for model in ("large", 'a<script>"&$x$')
    for arm, adapter, alpha, nll in (
        ("plain", None, 0.0, 4.0),
        ("steered", "instruct", 0.5, 3.6),
        ("steered", "instruct", 1.0, 3.25),
        ("finetuned", None, 0.0, 3.0),
    )
]  # fmt: skip
TOFU = [
    {"task": "tofu", "model": "large", "arm": arm, "adapter": "forget", "alpha": alpha,
     "metrics": {"forget_quality": p, "model_utility": utility}}
    for arm, alpha, p, utility in (("steered", 0.5, 1e-20, 0.6), ("steered", 1.0, 0.3, 0.5))
]  # fmt: skip
EVERYTHING: dict[str, Any] = {
    "format": 1,
    "rows": [*ROWS, *TOFU],
    "curves": [{"name": "run", "points": [{"step": 10, "loss": 2.1}, {"step": 20, "loss": 2.0},
                                          {"step": 20, "eval_loss": 1.9}]}],
    "shifts": {"models": ["large", "small"], "cosine": [[1, 0.83], [0.83, 1]],
               "sinkhorn": [[0, 0.21], [0.21, 0]]},
    "moved": [{"token": " the", "mean_shift": 1.3, "count": 40},
              {"token": "\n<b>\ud800", "mean_shift": -2.5, "count": 7}],
}  # fmt: skip


VOID = {"meta", "br"}


class Reader(HTMLParser):
    """Tags, their attributes, and the text of each table cell and heading."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data.strip()))

    def inside(self, tag: str) -> list[str]:
        return [text for where, text in self.texts if where == tag]


def page_of(tmp_path: Path, *results: Mapping[str, Any]) -> str:
    write_page(tmp_path / "page.html", results, title="A <title>")
    assert [one.name for one in tmp_path.iterdir()] == ["page.html"]
    return (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(tmp_path_factory.mktemp("report"), EVERYTHING)


def test_every_section_stands_in_its_order(page: str) -> None:
    assert Reader(page).inside("h2") == [
        "How much of a fine-tune",
        "Gap closed, model by model",
        "Strength",
        "Forget against retain",
        "How alike the shifts of different models are",
        "Tokens moved most",
        "Training",
        "How each row was made",
    ]


def test_the_page_asks_nothing_of_anybody(page: str) -> None:
    assert not re.search(r"(?i)https?:|\bsrc=|@import|//[a-z]", page)
    assert set(re.findall(r"url\(\s*(.)", page)) <= {"#"}
    tags = Reader(page).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "img", "iframe", "object", "base"}
    links = [a.get("href") or a.get("xlink:href") or "#" for _, a in tags]
    assert all(link.startswith("#") for link in links)


def test_names_are_text_and_not_markup(page: str) -> None:
    reader = Reader(page)
    assert "A <title>" in reader.inside("h1")
    assert 'a<script>"&$x$' in reader.inside("th")
    assert 'a<script>"&$x$' in reader.inside("text")  # in a plot
    assert "\\n<b>?" in reader.inside("code")


def test_half_a_character_in_a_name_becomes_a_question_mark(tmp_path: Path) -> None:
    rows = [{**one, "model": "half \ud800"} for one in ROWS[:4]]
    reader = Reader(page_of(tmp_path, {"format": 1, "rows": rows}))
    assert "half ?" in reader.inside("th")
    assert "half ?" in reader.inside("text")


def test_the_table_says_what_was_measured(page: str) -> None:
    cells = Reader(page).texts
    at = cells.index(("th", "large"))
    assert [text for _, text in cells[at : at + 9]] == (
        ["large", "8,000", "steered (instruct)", "1", "4.000", "3.250", "3.000", "0.75", "300"]
    )
    assert ("th", "NLL (lower is better)") in cells
    assert ("td", "1e-20") in cells


def test_numbers_commands_and_tokens_are_there(page: str) -> None:
    reader = Reader(page)
    assert reader.inside("td").count("0.83") == 2
    assert {"␣the", "cmc-local eval nll --gguf large --alphas 0.5"} <= set(reader.inside("code"))
    assert "+1.30" in reader.inside("td")
    assert "nll: large, steered (instruct), alpha 0.5" in reader.inside("td")


def test_plots_are_in_the_pages_colours_and_their_names_do_not_clash(page: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(drawings) == 4
    for drawing in drawings:
        assert "var(--series-1)" in drawing
        assert set(re.findall(r"(?:fill|stroke): (#[0-9a-f]+)", drawing)) == set()
        names = set(re.findall(r'\bid="([^"]+)"', drawing))
        assert set(re.findall(r'(?:url\(|href=")#([^")]+)', drawing)) <= names
    every = re.findall(r'\bid="([^"]+)"', page)
    assert len(every) == len(set(every))


def test_p_values_are_drawn_on_a_logarithmic_scale(page: str) -> None:
    assert {"1e-12", "1e-06"} <= set(Reader(page).inside("text"))


def test_the_same_results_make_the_same_page(tmp_path: Path, page: str) -> None:
    assert page_of(tmp_path, EVERYTHING) == page


@pytest.mark.parametrize(
    ("results", "headings"),
    [
        ({"rows": ROWS[:1]}, ["How much of a fine-tune", "How each row was made"]),
        ({"curves": EVERYTHING["curves"]}, ["Training"]),
        ({"moved": EVERYTHING["moved"][:1]}, ["Tokens moved most"]),
    ],
)
def test_a_section_without_data_is_left_out(
    tmp_path: Path, results: dict[str, Any], headings: list[str]
) -> None:
    assert Reader(page_of(tmp_path, {"format": 1, **results})).inside("h2") == headings


def test_the_held_out_loss_may_be_called_as_in_the_log(tmp_path: Path) -> None:
    curves = [{"name": "run", "points": [{"step": 1, "loss": 2.0}, {"step": 2, "eval_loss": 1.5}]}]
    reader = Reader(page_of(tmp_path, {"format": 1, "curves": curves}))
    assert {"training", "held-out", "run"} <= set(reader.inside("text"))


def test_several_documents_make_one_page(tmp_path: Path) -> None:
    one, other = {"format": 1, "rows": ROWS[:3]}, {"format": 1, "rows": ROWS[3:4]}
    assert "0.75" in Reader(page_of(tmp_path, one, other)).inside("td")


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"format": 2}, "results 1 have the format 2, not 1"),
        ({"format": 1}, "nothing to show"),
        ({"format": 1, "rows": 7}, "results 1: 'rows' is not a list"),
        ({"format": 1, "rows": ["x"]}, "results 1, row 1: expected a JSON object"),
        ({"format": 1, "rows": [{"task": "nll", "model": "m"}]}, "row 1: 'arm' is not a text"),
        ({"format": 1, "rows": [{**ROWS[0], "metrics": 3}]}, "'metrics' is not an object"),
        ({"format": 1, "rows": [{**ROWS[0], "alpha": "1"}]}, "'alpha' is not a number"),
        ({"format": 1, "curves": {"name": "x"}}, "'curves' is not a list"),
        ({"format": 1, "curves": [{"name": "x"}]}, "curves: expected objects with a name"),
        ({"format": 1, "curves": [{"name": "x", "points": [{}]}]}, "a point has no step"),
        ({"format": 1, "shifts": [1]}, "shifts: expected an object"),
        (
            {"format": 1, "shifts": {"models": ["a"], "cosine": [[1, 2]], "sinkhorn": [[0]]}},
            "'cosine' is not 1 rows of 1 numbers",
        ),
        ({"format": 1, "moved": [{"token": "a"}]}, "moved: expected objects with token"),
    ],
)
def test_results_that_are_none_are_named_and_leave_no_page(
    tmp_path: Path, results: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        write_page(tmp_path / "page.html", [results])
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "page.html").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        write_page(tmp_path / "page.html", [{"format": 1, "rows": ROWS[:1]}])
    assert [one.name for one in tmp_path.iterdir()] == ["page.html"]


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r'pip install "cmc-local\[eval\]"'):
        write_page(tmp_path / "page.html", [EVERYTHING])
    assert not list(tmp_path.iterdir())
