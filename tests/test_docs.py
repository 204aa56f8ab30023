"""The documentation: the site builds, fetches nothing, and what it says to type exists."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

import cmc_local
from cmc_local.commands import main
from markdown_pages import PAGES, REPOSITORY, blocks, prose_code

SITE_PACKAGES = ("mkdocs", "material", "mkdocstrings_handlers.python", "mkdocs_click")

OUTSIDE = re.compile(r"\s*(?:https?:)?//", re.IGNORECASE)
OTHER_PROGRAMS = {"--batch_size", "--schema"}  # of lm-eval and llm


# --- the built site ---------------------------------------------------------------------------


def has(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors."""
    if absent := [package for package in SITE_PACKAGES if not has(package)]:
        pytest.skip(f"the site cannot be built without {', '.join(absent)}")
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Fetched(HTMLParser):
    """What a browser loads by itself when it shows a page, and which ids the page has."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            loads = name in ("src", "srcset", "poster", "data", "xlink:href")
            if value and (loads or (name == "href" and tag not in ("a", "area"))):
                self.addresses.append(value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)


def outside_of_style(text: str) -> list[str]:
    """Addresses on other hosts that a stylesheet loads."""
    bare = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    found = re.findall(r"""(?:url\(|@import)\s*["']?([^"')\s;]+)""", bare)
    return [one for one in found if OUTSIDE.match(one)]


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(PAGES) - 2  # README is no page; 404.html is one more
    loaded = {str(page): Fetched(page).addresses for page in pages}
    assert all(loaded.values())  # each has a stylesheet at least
    assert not {(p, one) for p, found in loaded.items() for one in found if OUTSIDE.match(one)}
    styles = {str(p): outside_of_style(p.read_text(encoding="utf-8")) for p in site.rglob("*.css")}
    styles |= {str(p): outside_of_style(p.read_text(encoding="utf-8")) for p in pages}
    assert not {one: found for one, found in styles.items() if found}


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://a.example/x.js"></script>',
        '<link rel="stylesheet" href="//a.example/x.css">',
        '<img src="x.png" srcset="HTTP://a.example/x.png 2x"/>',
        '<svg><image xlink:href="https://a.example/x.svg"/></svg>',
        "<style>@font-face { src: url('https://a.example/x.woff2') }</style>",
        '<style>@import "https://a.example/x.css";</style>',
    ],
)
def test_what_is_loaded_from_elsewhere_is_seen(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(f'<a href="https://a.example/">a link is no load</a>{text}')
    seen = [one for one in Fetched(page).addresses if OUTSIDE.match(one)] + outside_of_style(text)
    assert len(seen) == 1


def test_nothing_makes_the_themes_script_ask_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert 'class="mermaid"' not in text  # drawn by a script that is fetched
        assert 'data-md-component="source"' not in text  # asks GitHub for stars


def commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        ctx = click.Context(command)
        for name in command.list_commands(ctx):
            below = command.get_command(ctx, name)
            assert below is not None
            yield from commands(below, (*path, name))


def test_the_reference_has_every_command(site: Path) -> None:
    ids = Fetched(site / "reference" / "cli.html").ids
    wanted = {"-".join(path) for path in commands(main, ("cmc-local",))}
    assert {"cmc-local-chat", "cmc-local-eval-nll", "cmc-local-bench"} <= wanted
    assert not wanted - ids


def test_the_reference_has_every_public_name(site: Path) -> None:
    ids = Fetched(site / "reference" / "python.html").ids
    homes = {name: getattr(cmc_local, name).__module__ for name in cmc_local.__all__}
    assert not {n for n, home in homes.items() if not {f"cmc_local.{n}", f"{home}.{n}"} & ids}


# --- what is to be typed ----------------------------------------------------------------------


def calls(text: str) -> Iterator[list[str]]:
    """The arguments of each call of cmc-local in a shell text; `NAME="..."` is remembered."""
    known: dict[str, list[str]] = {}
    for line in text.replace("\\\n", " ").splitlines():
        if not re.search(r"cmc-local|^\$\w+ ", line):
            continue
        words: list[str] = []
        for word in [*_words(line), ";"]:
            if word and set(word) <= set(";|&"):
                yield from _call(words, known)
                words = []
            else:
                words.append(word)


def _words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return list(lexer)


def _call(words: list[str], known: dict[str, list[str]]) -> Iterator[list[str]]:
    while words and (assigned := re.fullmatch(r"(\w+)=(.*)", words[0])):
        known[assigned[1]] = assigned[2].split()
        words = words[1:]
    if words and words[0].removeprefix("$") in known:
        words = [*known[words[0][1:]], *words[1:]]
    redirected = next((i for i, word in enumerate(words) if set(word) <= set("<>")), len(words))
    if words and Path(words[0]).name == "cmc-local":
        yield words[1:redirected]


def complaint(arguments: list[str], *, whole: bool = True) -> str | None:
    """What click would say to this command line before it runs anything; `whole`: nothing lacks."""
    command: click.Command = main
    path, ctx = "cmc-local", click.Context(main, info_name="cmc-local")
    rest = [word for word in arguments if word not in ("--debug", "--offline")]  # taken anywhere
    try:
        while True:
            values, rest, _ = command.make_parser(ctx).parse_args(rest)
            for param in command.params:
                _check(param, values.get(param.name or ""), ctx, whole=whole)
            if not isinstance(command, click.Group) or not rest:
                break
            below = command.get_command(ctx, rest[0])
            if below is None:
                return f"{path} has no command {rest[0]}"
            path, command = f"{path} {rest[0]}", below
            ctx, rest = click.Context(below, info_name=rest[0], parent=ctx), rest[1:]
    except click.ClickException as error:
        return f"{path}: {error.format_message()}"
    if rest:
        return f"{path} takes no {rest[0]}"
    needs_command = isinstance(command, click.Group) and not command.invoke_without_command
    unfinished = needs_command and command is not main  # the bare program shows its help
    return f"{path} lacks a command" if whole and unfinished else None


def _check(param: click.Parameter, value: object, ctx: click.Context, *, whole: bool) -> None:
    given = value is not None and value != () and "UNSET" not in repr(value)
    if not given:
        if whole and param.required:
            raise click.MissingParameter(ctx=ctx, param=param)
        return
    if not isinstance(param.type, click.Path | click.File):
        param.type_cast_value(ctx, value)


COMMAND_LINES = [
    pytest.param(arguments, id=f"{block.place} cmc-local {' '.join(arguments)[:50]}")
    for page in PAGES
    for block in blocks(page)
    if block.language in ("", "sh")
    for arguments in calls(block.text)
]


@pytest.mark.parametrize("arguments", COMMAND_LINES)
def test_command_lines_parse(arguments: list[str]) -> None:
    assert complaint(arguments) is None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_commands_and_options_in_sentences_exist(page: Path) -> None:
    code = prose_code(page)
    spoken = [one for one in code if one.startswith("cmc-local ")]
    told = {one: complaint(shlex.split(one)[1:], whole=False) for one in spoken}
    assert not {one: why for one, why in told.items() if why}
    named = {one.split()[0] for one in code if re.match(r"-\w+( |$)|--[a-z]", one)}
    assert not named - every_option() - OTHER_PROGRAMS


def every_option() -> set[str]:
    found = {"--help"}
    for path in commands(main, ()):
        command: click.Command = main
        for name in path:
            assert isinstance(command, click.Group)
            below = command.get_command(click.Context(command), name)
            assert below is not None
            command = below
        for param in command.params:
            found |= {*param.opts, *param.secondary_opts}
    return found


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("cmc-local chat --no-such-option", "--no-such-option"),
        ("cmc-local chat --threads many", "many"),
        ("cmc-local chat --unmapped sometimes", "sometimes"),
        ("cmc-local chat question", "question"),
        ("cmc-local chatter", "chatter"),
        ("cmc-local eval", "lacks a command"),
        ("cmc-local eval nll --gguf larger", "--data"),
        ("cmc-local inspect", "PATH"),
        ("cmc-local generate --temperature", "--temperature"),
        ('S="cmc-local bench"\n$S --pears 3', "--pears"),
        ("printf hello | cmc-local chat --sytem x > answers.txt", "--sytem"),
        ("cmc-local chat \\\n  --lorra x", "--lorra"),
    ],
)
def test_wrong_command_lines_are_seen(line: str, told: str) -> None:
    said = [complaint(arguments) for arguments in calls(line)]
    assert any(one is not None and told in one for one in said)
