"""The report's plots, as SVG to stand inside a page: text stays text, colours are the page's.

Each function takes numbers and returns one `<svg>` element. Nothing is drawn in a colour of its
own: matplotlib draws in stand-in colours, and these become the page's CSS variables, so that one
drawing is legible in light, in dark and on paper. Knows matplotlib; nothing of HTML pages.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from cmc_local.evaluate.optional_imports import import_optional
from cmc_local.evaluate.report_gaps import (
    Frontier,
    Gap,
    Sweep,
    lower_is_better,
    measure_name,
    metric_name,
)

Panel = TypeVar("Panel")
Axes = Any
Curve = tuple[str, Sequence[Mapping[str, float]]]

SERIES: Final = 6
"""The page's `--series-1` to `--series-6`."""
SMALLEST_P: Final = 1e-12
"""p-values are drawn no lower than this."""

_INK, _MUTED, _LINE, _PAPER = "#000001", "#000002", "#000003", "#000004"
_COLOURS: Final = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _LINE: "var(--line)",
    _PAPER: "var(--paper)",
    **{f"#0000{i}a": f"var(--series-{i})" for i in range(1, SERIES + 1)},
}
_MARKERS: Final = "osD^vP"
_WIDTH, _HEIGHT = 3.5, 2.7  # inches, of one panel
_LONGEST_NAME: Final = 35
_SHOWN_GAPS: Final = (-1.0, 1.5)

_STYLE: Final[dict[str, Any]] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a model's name may hold dollar signs
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _MUTED,
    "axes.titlecolor": _INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "text.color": _INK,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "legend.frameon": False,
}


def gap_bars(panels: Mapping[tuple[str, str], Sequence[Gap]]) -> str:
    """Gap closed, a bar for each model and arm: one panel for each (task, metric)."""
    labels = _ordered(gap.row.label for gaps in panels.values() for gap in gaps)
    most_models = max(len({gap.row.model for gap in gaps}) for gaps in panels.values())
    thick = 0.8 / max(len({gap.row.label for gap in gaps}) for gaps in panels.values())

    def paint(axes: Axes, panel: tuple[tuple[str, str], Sequence[Gap]]) -> None:
        measure, gaps = panel
        models = _ordered(gap.row.model for gap in gaps)
        here = [label for label in labels if any(gap.row.label == label for gap in gaps)]
        low, high = _SHOWN_GAPS
        for gap in gaps:
            label, closed = gap.row.label, gap.closed or 0.0
            aside = here.index(label) - (len(here) - 1) / 2
            place = models.index(gap.row.model) + thick * aside
            length, colour = min(max(closed, low), high), _colour(labels.index(label))
            axes.barh(place, length, thick * 0.9, color=colour, label=label)
            axes.text(high + 0.08, place, f"{closed:.2f}", va="center", fontsize=8)
        axes.axvline(0.0, color=_MUTED, linewidth=0.8)
        axes.axvline(1.0, color=_MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(models)), map(_short, models))
        axes.set_ylim(most_models - 0.4, -0.6)
        left = low if any((gap.closed or 0.0) < 0 for gap in gaps) else 0.0
        axes.set_xlim(left, high)
        axes.set_xticks([x for x in (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5) if x >= left])
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0, labelcolor=_INK)
        axes.set_title(measure_name(*measure))

    height = 0.6 + most_models * max(0.3, 0.17 / thick)
    return _draw("bars", list(panels.items()), paint, height)


def alpha_sweeps(panels: Sequence[Sweep]) -> str:
    """A metric against alpha, a line for each model; dotted, that model's fine-tune."""
    models = _ordered(model for sweep in panels for model in sweep.lines)

    def paint(axes: Axes, sweep: Sweep) -> None:
        values = [value for points in sweep.lines.values() for _, value in points]
        for model, points in sweep.lines.items():
            look = _look(models.index(model))
            alphas, heights = zip(*points, strict=True)
            axes.plot(alphas, _drawn(sweep.metric, heights, values), label=_short(model), **look)
            if model in sweep.ceilings:
                colour = look["color"]
                axes.axhline(sweep.ceilings[model], color=colour, linewidth=1.2, linestyle=":")
        if is_logarithmic(sweep.metric, values):
            _logarithmic(axes)
        axes.set_xlabel(f"alpha, {sweep.label}")
        axes.set_title(measure_name(sweep.task, sweep.metric))

    return _draw("sweep", panels, paint)


def frontier_plot(panels: Sequence[Frontier]) -> str:
    """Forgetting against utility, a panel for each model; points of one adapter are joined."""
    labels = _ordered(row.label for panel in panels for row, _, _ in panel.points)
    every = [y for panel in panels for _, _, y in panel.points]

    def paint(axes: Axes, panel: Frontier) -> None:
        for label in _ordered(row.label for row, _, _ in panel.points):
            of = [point for point in panel.points if point[0].label == label]
            heights = _drawn(panel.metric, [y for _, _, y in of], every)
            axes.plot([x for _, x, _ in of], heights, label=label, **_look(labels.index(label)))
            for (row, x, _), y in zip(of, heights, strict=True):
                if row.alpha is not None:
                    axes.annotate(
                        f"{row.alpha:g}",
                        (x, y),
                        xytext=(5, 5),
                        textcoords="offset points",
                        fontsize=8,
                        color=_MUTED,
                    )
        if is_logarithmic(panel.metric, every):
            _logarithmic(axes)
        axes.margins(0.15)
        axes.set_xlabel("model utility (kept)")
        lower = " (lower: more forgotten)" if lower_is_better(panel.metric) else ""
        axes.set_ylabel(metric_name(panel.metric) + lower)
        axes.set_title(_short(panel.model))

    return _draw("frontier", panels, paint)


def training_curves(curves: Sequence[Curve]) -> str:
    """Loss by step, a panel for each run: training thin, held-out with its points."""

    def paint(axes: Axes, curve: Curve) -> None:
        name, points = curve
        for key, label, look in (
            ("loss", "training", {"color": _MUTED, "linewidth": 1.0}),
            ("held_out_loss", "held-out", _look(0)),
        ):
            line = [(point["step"], point[key]) for point in points if key in point]
            if line:
                axes.plot(*zip(*line, strict=True), label=label, **look)
        axes.set_xlabel("step")
        axes.set_ylabel("loss, nats per token")
        axes.set_title(_short(name))

    return _draw("curves", curves, paint)


def _draw(
    name: str,
    panels: Sequence[Panel],
    paint: Callable[[Axes, Panel], None],
    height: float = _HEIGHT,
) -> str:
    """The panels side by side, three at most, under one legend."""
    matplotlib = import_optional("matplotlib")
    figures = import_optional("matplotlib.figure")
    import_optional("matplotlib.backends.backend_svg")
    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    width = _WIDTH * (columns if columns > 1 else 1.4)
    # The salt makes the same figures the same bytes, and keeps two drawings' names apart.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser's fonts will have it
        figure = figures.Figure(figsize=(width, height * lines + 0.4), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.06)
        for place, panel in enumerate(panels, 1):
            paint(figure.add_subplot(lines, columns, place), panel)
        _legend(figure)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    return _inline(drawn.getvalue(), name)


def _legend(figure: Any) -> None:
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if len(entries) > 1:
        figure.legend(
            entries.values(), entries.keys(), loc="outside lower left", ncols=min(4, len(entries))
        )


def _inline(svg: str, name: str) -> str:
    """matplotlib's file as an element: the page's colours and fonts, names of its own, no links."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    box = re.search(r'viewBox="0 0 ([\d.]+) [\d.]+"', head)
    if box is None:
        raise AssertionError("matplotlib's SVG has a viewBox")
    natural = float(box[1]) * 4 / 3  # points to CSS pixels
    size = f"width: {natural:.0f}px; min-width: {0.75 * natural:.0f}px"
    head = f'<svg {box.group()} style="{size}" aria-hidden="true"'
    rest = re.sub(r'\bid="', f'id="{name}-', rest)
    rest = re.sub(r'(url\(|href=")#', rf"\1#{name}-", rest)
    rest = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 system-ui, sans-serif", rest)
    rest = re.sub(r"#[0-9a-f]{6}\b", lambda found: _COLOURS.get(found[0], found[0]), rest)
    return f"{head}>{rest}".strip()


def _colour(number: int) -> str:
    return f"#0000{number % SERIES + 1}a"


def _look(number: int) -> dict[str, Any]:
    """A colour, and a marker to tell it by where colours do not."""
    return {
        "color": _colour(number),
        "marker": _MARKERS[number % len(_MARKERS)],
        "markeredgecolor": _PAPER,
        "linestyle": "-" if number < SERIES else "--",
    }


def is_logarithmic(metric: str, values: Sequence[float]) -> bool:
    """Whether values are drawn on a logarithmic scale: p-values, where one of them is small."""
    return metric == "forget_quality" and min(values) < 0.01


def _drawn(metric: str, values: Sequence[float], every: Sequence[float]) -> list[float]:
    floor = SMALLEST_P if is_logarithmic(metric, every) else -math.inf
    return [max(value, floor) for value in values]


def _logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(
        lambda value, _: f"{value:.0e}" if value < 0.01 else f"{value:g}"
    )
    axes.yaxis.set_minor_locator(import_optional("matplotlib.ticker").NullLocator())


def _short(name: str) -> str:
    """With its middle left out: a file's name ends in what tells it from its siblings."""
    half = (_LONGEST_NAME - 1) // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[:half]}…{name[-half:]}"


def _ordered(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
