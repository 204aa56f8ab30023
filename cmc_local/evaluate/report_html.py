"""What a report page is made of: the frame with its style, sections, tables, heat maps.

Every text is escaped here; only what these functions return counts as `Markup`. The page names no
other file and no host, and runs no script. Knows nothing of what the numbers mean.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Final, NewType

Markup = NewType("Markup", str)
"""Text that is already HTML."""

_STYLE: Final = """
:root { color-scheme: light; --paper: #ffffff; --ink: #1c2024; --muted: #5c6670; --line: #d7dce1;
  --shade: #f4f6f8; --series-1: #1f5fae; --series-2: #c4570c; --series-3: #1c7c54;
  --series-4: #8746a8; --series-5: #b3304f; --series-6: #7a6a00; }
@media screen and (prefers-color-scheme: dark) { :root { color-scheme: dark; --paper: #14171a;
  --ink: #e6e9ec; --muted: #9ba5af; --line: #363d44; --shade: #1d2226; --series-1: #6aaaf2;
  --series-2: #f0964f; --series-3: #5bc795; --series-4: #c592e0; --series-5: #f08299;
  --series-6: #cdbb4b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.25rem 4rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .25rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .35rem; }
p { max-width: 46rem; margin: .25rem 0 .9rem; color: var(--muted); }
.scroll { overflow-x: auto; max-width: 100%; margin: .5rem 0 1rem; }
.side { display: flex; flex-wrap: wrap; gap: 0 3rem; align-items: flex-start; }
.side > div { max-width: 100%; min-width: 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; text-align: left; white-space: nowrap; vertical-align: top;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--muted); font-weight: 500; border-bottom-width: 2px; }
tbody th { font-weight: 500; }
th.group { background: var(--shade); font-weight: 600; padding-top: .45rem; }
.number { text-align: right; }
td.strong { font-weight: 700; }
table.heat td { text-align: center; min-width: 4.5rem; border: 2px solid var(--paper);
  background: color-mix(in srgb, var(--series-1) var(--heat), var(--shade)); }
table.heat th { border: 0; }
table.heat thead th { text-align: center; }
code { font: .85rem/1.5 ui-monospace, monospace; white-space: pre; }
td.wrap { white-space: normal; min-width: 20rem; }
td.wrap code { white-space: pre-wrap; overflow-wrap: anywhere; }
figure { margin: .5rem 0 1rem; overflow-x: auto; }
svg { display: block; height: auto; max-width: 100%; }
summary { cursor: pointer; color: var(--muted); }
footer { margin-top: 3rem; color: var(--muted); font-size: .85rem; }
@media print {
  @page { margin: 14mm; }
  body { max-width: none; padding: 0; font-size: 9.5pt; }
  h2, h3, section > p { break-after: avoid; }
  figure, tr, .side > div { break-inside: avoid; }
  .scroll, figure { overflow: visible; }
  svg { min-width: 0 !important; }
  table, code { font-size: 8pt; }
  th, td { padding: .2rem .5rem; }
  * { print-color-adjust: exact; }
}
"""


def page(title: str, lead: str, sections: Sequence[Markup], footer: str) -> str:
    """The whole document."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{text(title)}</h1>\n<p>{text(lead)}</p>\n"
        + "\n".join(sections)
        + f"\n<footer>{text(footer)}</footer>\n</body>\n</html>\n"
    )


def section(title: str, lead: str, *parts: Markup) -> Markup:
    """A heading, what it shows, and the parts."""
    inner = "\n".join(parts)
    return Markup(f"<section>\n<h2>{text(title)}</h2>\n<p>{text(lead)}</p>\n{inner}\n</section>")


def figure(svg: str, description: str) -> Markup:
    """A drawing; the description is for readers who do not see it."""
    return Markup(f'<figure role="img" aria-label="{text(description)}">\n{svg}\n</figure>')


def fold(summary: str, inner: Markup) -> Markup:
    """Parts that open on a click."""
    return Markup(f"<details>\n<summary>{text(summary)}</summary>\n{inner}\n</details>")


def side_by_side(*blocks: tuple[str, Markup]) -> Markup:
    """Titled blocks, beside each other where there is room."""
    inner = "".join(f"<div><h3>{text(title)}</h3>{block}</div>\n" for title, block in blocks)
    return Markup(f'<div class="side">\n{inner}</div>')


def table(head: Sequence[str], lines: Sequence[Sequence[Markup] | str]) -> Markup:
    """Lines of cells; a line that is a text is the heading of those after it."""
    body = []
    for line in lines:
        if isinstance(line, str):
            body.append(f'<tr><th class="group" colspan="{len(head)}">{text(line)}</th></tr>')
        else:
            body.append(f"<tr>{''.join(line)}</tr>")
    names = "".join(
        f'<th scope="col"{" class=number" if name.endswith("#") else ""}>'
        f"{text(name.removesuffix('#'))}</th>"
        for name in head
    )
    return _scroll(
        f"<table>\n<thead><tr>{names}</tr></thead>\n<tbody>\n" + "\n".join(body) + "\n</tbody>"
    )


def cell(words: str) -> Markup:
    """A cell of text."""
    return Markup(f"<td>{text(words)}</td>")


def heading_cell(words: str) -> Markup:
    """The cell that names its line."""
    return Markup(f'<th scope="row">{text(words)}</th>')


def code_cell(code: str, *, wrap: bool = False) -> Markup:
    """A cell of code."""
    return Markup(f"<td{' class=wrap' if wrap else ''}><code>{text(code)}</code></td>")


def lines_cell(words: Sequence[str]) -> Markup:
    """A cell of texts, a line each."""
    return Markup(f"<td>{'<br>'.join(map(text, words))}</td>")


def number_cell(words: str, *, strong: bool = False) -> Markup:
    """A cell of a number."""
    return Markup(f'<td class="number{" strong" if strong else ""}">{text(words)}</td>')


def heat_map(names: Sequence[str], values: Sequence[Sequence[float]]) -> Markup:
    """A square of numbers, the darker the farther from 0; 1 and above are darkest."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in names)
    lines = []
    for name, row in zip(names, values, strict=True):
        # At most 60 %, so that the number stays legible in light and in dark.
        shades = (round(60 * min(abs(value), 1.0)) for value in row)
        cells = "".join(
            f'<td style="--heat: {shade}%">{value:.2f}</td>'
            for shade, value in zip(shades, row, strict=True)
        )
        lines.append(f'<tr><th scope="row">{text(name)}</th>{cells}</tr>')
    return _scroll(
        f'<table class="heat">\n<thead><tr><td style="background: none"></td>{head}</tr></thead>\n'
        "<tbody>\n" + "\n".join(lines) + "\n</tbody>"
    )


def text(words: str) -> str:
    """Escaped, for element contents and quoted attributes."""
    return html.escape(words, quote=True)


def _scroll(opened: str) -> Markup:
    return Markup(f'<div class="scroll" tabindex="0">{opened}\n</table></div>')
