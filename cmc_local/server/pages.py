"""The page at `/`: the files of a folder in this package, which ask for nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import FileResponse, Response

FOLDER: Final = Path(__file__).with_name("page")
_KINDS: Final = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def page_files() -> dict[str, Path]:
    """Paths of URLs and the files that are served there."""
    files = sorted(file for file in FOLDER.iterdir() if file.suffix in _KINDS)
    return {"/" if file.name == "index.html" else f"/{file.name}": file for file in files}


async def page(request: Request) -> Response:
    """One of the files; routes lead here for these alone."""
    file = page_files()[request.url.path]
    return FileResponse(file, media_type=_KINDS[file.suffix], headers=_HEADERS)
