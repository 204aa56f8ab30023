"""The results as a page (runs/real/report.html), as Markdown, and as a page of the documentation.

Knows lines (results.py) and how they look; nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from statistics import stdev
from typing import Final

from cmc_export.real import results
from cmc_export.real.places import FULL_NAMES
from cmc_export.real.results import METRIC_NAMES, PRIMARY, TITLES, Line
from cmc_export.real.statistics import DRAWS, LEVEL
from cmc_local.errors import DataError
from cmc_local.evaluate.html_pages import render
from cmc_local.files import write_text

Say = Callable[[str], None]
HEAD: Final = (
    *("arm", "{metric}", "also", "NLL", "tokens", "cut off", "refusals", "ms a token"),
    *("beats prompting", "gap to LoRA"),
)
MARK: Final = "<!-- What follows is written by `python -m cmc_export.real docs`. -->"
_AT_ONE, _AT_TUNED = "delta, alpha 1", "delta, tuned (alpha)"
_COLUMNS: Final = {
    ("plain", False): "plain",
    ("prompted", False): "prompted",
    (PRIMARY, False): _AT_ONE,
    (PRIMARY, True): _AT_TUNED,
    ("lora", False): "LoRA",
    ("proxy", False): "proxy-tuning",
}
"""Of the overview: (arm, whether its alpha is the tuned one) -> column."""
_LEAD: Final = (
    f"Each figure is a mean over held-out examples, with the interval that holds {LEVEL:.0%} of "
    f"{DRAWS:,} redrawn samples of them (bootstrap) in brackets; seeds, where there are several, "
    "with their standard deviation. Replies are greedy. `Prompted` is the best of several system "
    "texts and sets of examples, chosen on validation data by the task's own metric, as a tuned "
    "alpha is. Gap to LoRA is (value - plain) / (LoRA - plain). `Met` means that the mean is above "
    "prompting's, and `within the noise` that the interval of the difference holds 0. In the first "
    "table a bold figure is above prompting's by more than that."
)


def write(runs: Path, say: Say) -> None:
    """report.html and table.md of all results that are there."""
    made = results.lines(results.outcomes(results.read(runs)))
    if not made:
        say("no results yet")
        return
    write_text(runs / "table.md", markdown(made))
    write_text(runs / "report.html", page(made))
    say(f"{runs / 'report.html'}: {len(made)} lines")


def write_docs(runs: Path, target: Path, say: Say) -> None:
    """The Markdown as a page of the documentation; DataError where nothing is measured.

    What stands in the page above MARK was written by hand and stays.
    """
    made = results.lines(results.outcomes(results.read(runs)))
    if not made:
        raise DataError(f"no results in {runs}: run `python -m cmc_export.real` first")
    before = target.read_text(encoding="utf-8") if target.is_file() else ""
    above = before.partition(MARK)[0] if MARK in before else "# Real models\n\n"
    write_text(target, f"{above}{MARK}\n\n{markdown(made)}")
    say(f"{target}: {len(made)} lines")


def markdown(made: Sequence[Line]) -> str:
    """A table for each task and base, what it adds up to, and the commands."""
    parts = [_LEAD.replace("%", " %"), *summary(made), overview(made)]
    for title, metric, some in tables(made):
        head = [name.format(metric=metric) for name in HEAD]
        rows = [cells(line) for line in some]
        shown = [i for i in range(len(head)) if i < 2 or any(row[i] for row in rows)]
        parts.append(f"## {title}")
        table = [
            "| " + " | ".join(row[i].replace("|", "\\|") for i in shown) + " |"
            for row in [head, *rows]
        ]
        table.insert(1, "|" + "---|" + "---:|" * (len(shown) - 1))
        parts.append("\n".join(table))
    commands = "\n".join(
        dict.fromkeys(command for line in made for command in line.outcome.commands)
    )
    parts.append(f"## The command behind each line\n\n```\n{commands}\n```")
    return "\n\n".join(parts) + "\n"


def page(made: Sequence[Line]) -> str:
    """The same as one self-contained HTML page."""
    shown = []
    for title, metric, some in tables(made):
        first, *rest = (name.format(metric=metric) for name in HEAD)
        columns = [(first, "name"), *((name, "number") for name in rest)]
        shown.append((title, columns, [[cell or "-" for cell in cells(line)] for line in some]))
    commands = [
        ("\n".join(line.outcome.commands), (_place(line), line.outcome.label)) for line in made
    ]
    columns = [("command", "command"), ("line", "lines")]
    lead = " ".join((_LEAD.replace("`", ""), *summary(made)))
    tail = ("How each line was made", columns, commands)
    return render("tables.html", title="Real models", lead=lead, tables=[*shown, tail])


def tables(made: Sequence[Line]) -> Iterator[tuple[str, str, list[Line]]]:
    """Title, metric's name and lines of each task and base."""
    for (task, _), some in groupby(made, lambda line: (line.outcome.task, line.outcome.base)):
        lines = list(some)
        yield f"{TITLES[task]}: {lines[0].outcome.base_name}", METRIC_NAMES[task], lines


def summary(made: Sequence[Line]) -> list[str]:
    """What the lines add up to: where the one delta that counts beats prompting."""
    found = []
    for at_home, where in ((True, "On Gemma, its template,"), (False, "On the other two bases")):
        said = []
        for tuned, strength in ((True, "its tuned alpha"), (False, "alpha 1")):
            some = results.counted(made, at_home=at_home, tuned=tuned)
            won, of = results.beaten(made, at_home=at_home, tuned=tuned)
            sure = sum(
                line.over_prompted is not None and line.over_prompted.low > 0 for line in some
            )
            said.append(f"at {strength} on {won} of {of} ({sure} of them beyond the noise)")
        if of:
            found.append(f"{where} the delta beside Gemma beats prompting {', '.join(said)}.")
    return found


def overview(made: Sequence[Line]) -> str:
    """One row a task and base: plain, its rivals, and the delta that counts."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for line in made:
        one = line.outcome
        column = _COLUMNS.get((one.arm, one.tuned))
        if column is None:
            continue
        row = found.setdefault((one.task, one.base), {})
        sure = line.over_prompted is not None and line.over_prompted.low > 0
        text = f"**{line.value.mean:.2f}**" if sure else f"{line.value.mean:.2f}"
        alpha = f" ({one.alphas[0]:g})" if one.tuned and len(set(one.alphas)) == 1 else ""
        row[column] = text + alpha
        if column == _AT_ONE:  # where validation chose 1, the tuned line is this one
            row.setdefault(_AT_TUNED, f"{text} (1)")
    names = [
        name
        for name in dict.fromkeys(_COLUMNS.values())
        if any(name in row for row in found.values())
    ]
    rows = [
        f"{TITLES[task]}, {METRIC_NAMES[task]} | {FULL_NAMES[base]} | "
        + " | ".join(row.get(name, "") for name in names)
        for (task, base), row in found.items()
    ]
    head = "| task | base | " + " | ".join(names) + " |\n|---|---|" + "---:|" * len(names)
    return "\n".join((head, *(f"| {row} |" for row in rows)))


def cells(line: Line) -> list[str]:
    """The texts of a line, in HEAD's order; empty where nothing was measured."""
    one, value = line.outcome, line.value
    figure = f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"
    if len(one.by_seed) > 1:
        figure += f" ±{stdev(one.by_seed):.3f} ({len(one.by_seed)} seeds)"
    return [
        one.label,
        figure,
        ", ".join(f"{name} {one.metrics[name]:.2f}" for name in results.ALSO[one.task]),
        _number(line, "nll", "{:.3f}"),
        _number(line, "tokens", "{:.0f}"),
        _number(line, "cut_off", "{:.2f}"),
        _number(line, "refusals", "{:.2f}"),
        _number(line, "seconds_per_token", "{:.1f}", 1000),
        line.verdict,
        line.gap_verdict,
    ]


def _number(line: Line, name: str, form: str, times: float = 1) -> str:
    value = line.outcome.metrics.get(name)
    return "" if value is None else form.format(value * times)


def _place(line: Line) -> str:
    return f"{TITLES[line.outcome.task]}: {line.outcome.base_name}"
