"""Pages from the templates beside this file; every text is escaped.

    templates/page.html      the frame, with page.css; a page that stands alone extends it
    templates/parts.html     tables, heat maps, figures
    templates/report.html    the page of `cmc-local eval report`
    templates/tables.html    nothing but tables: (heading, columns, lines) of each

Knows nothing of what is shown.
"""

from __future__ import annotations

from typing import Any

from cmc_local import __version__


def render(template: str, **values: Any) -> str:
    """The page that a template makes of these values; each wants `title` and `lead`."""
    import jinja2

    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("cmc_local.evaluate"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return pages.get_template(template).render(values, version=__version__) + "\n"
