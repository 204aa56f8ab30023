"""The page's files, and what a browser is told about them."""

from __future__ import annotations

import re

import pytest
from starlette.testclient import TestClient

from cmc_local.server.pages import FOLDER, page_files


@pytest.mark.parametrize("path", sorted(page_files()))
def test_files_are_served_with_strict_headers(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.content == page_files()[path].read_bytes()
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-security-policy"].startswith("default-src 'self';")


def test_the_page_is_there_with_its_script_and_style() -> None:
    assert {"/", "/page.js", "/page.css"} <= set(page_files())


def test_kinds_are_those_that_a_browser_runs(client: TestClient) -> None:
    kinds = {path: client.get(path).headers["content-type"] for path in ("/", "/page.js")}
    assert kinds["/"].startswith("text/html")
    assert kinds["/page.js"].startswith("text/javascript")


def test_nothing_else_of_the_folder_or_above_is_served(client: TestClient) -> None:
    for path in ("/index.html", "/../app.py", "/%2e%2e/app.py", "/page/page.js"):
        assert client.get(path).status_code == 404


def test_no_file_asks_for_anything_from_elsewhere() -> None:
    for file in FOLDER.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/", "")
        assert not re.search(r"""(src|href|url|fetch|import)\W{1,3}https?:""", text)
