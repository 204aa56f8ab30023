"""The documentation's Python: it compiles, and what it takes from the library exists and fits."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator

import pytest

from markdown_pages import PAGES, REPOSITORY, blocks

GUEST_LIBRARIES = {"transformers", "lm_eval", "ray", "llm"}  # slow to import, or not there

SNIPPETS = [
    pytest.param(block.text, id=block.place)
    for page in PAGES
    for block in blocks(page)
    if block.language == "python"
]


def faults(snippet: str) -> Iterator[str]:
    """Imports of cmc_local that fail, and calls of what was imported with other arguments."""
    tree = ast.parse(snippet)
    objects: dict[str, object] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cmc_local"):
            for alias in node.names:
                try:
                    objects[alias.asname or alias.name] = _imported(str(node.module), alias.name)
                except (AttributeError, ModuleNotFoundError) as error:
                    yield str(error)
    kinds = dict(_variables(tree, objects))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = objects.get(node.value.id) or kinds.get(node.value.id)
            if inspect.isclass(owner) and not _has(owner, node.attr):
                yield f"{owner.__name__} has no {node.attr}"
        if isinstance(node, ast.Call) and (why := _misfit(node, objects, kinds)):
            yield why


def _imported(module: str, name: str) -> object:
    """The object; None in a module of a guest library, where its name in the source must do."""
    if module.rpartition(".")[2] not in GUEST_LIBRARIES:
        return getattr(importlib.import_module(module), name)
    source = REPOSITORY / f"{module.replace('.', '/')}.py"
    if not source.is_file():
        raise ModuleNotFoundError(f"there is no {module}")
    defined: set[str] = set()
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        given = node.names if isinstance(node, ast.ImportFrom) else []
        defined |= {getattr(node, "name", ""), *(one.asname or one.name for one in given)}
    if name not in defined:
        raise AttributeError(f"{module} has no {name}")
    return None


def _has(owner: type, name: str) -> bool:
    """Whether a class has an attribute; what `__init__` alone sets is looked for in its source."""
    fields = {key for kind in owner.__mro__ for key in getattr(kind, "__annotations__", {})}
    if hasattr(owner, name) or name in fields:
        return True
    return any(
        kind.__module__.startswith("cmc_local") and f"self.{name}" in inspect.getsource(kind)
        for kind in owner.__mro__
    )


def _variables(tree: ast.AST, objects: dict[str, object]) -> Iterator[tuple[str, type]]:
    """Variables that hold an instance of an imported class, made by it or by its `load`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            pairs = [(node.targets[0], node.value)]
        elif isinstance(node, ast.With | ast.AsyncWith):
            pairs = [
                (one.optional_vars, one.context_expr) for one in node.items if one.optional_vars
            ]
        else:
            continue
        for target, value in pairs:
            if isinstance(target, ast.Name) and isinstance(value, ast.Call):
                maker = value.func.value if isinstance(value.func, ast.Attribute) else value.func
                made = objects.get(maker.id) if isinstance(maker, ast.Name) else None
                by_load = not isinstance(value.func, ast.Attribute) or value.func.attr == "load"
                if inspect.isclass(made) and by_load:
                    yield target.id, made


def _misfit(call: ast.Call, objects: dict[str, object], kinds: dict[str, type]) -> str | None:
    """What Python would say to the arguments of a call of something known."""
    called: object = None
    bound: list[None] = []
    match call.func:
        case ast.Name(id=name):
            called = objects.get(name)
        case ast.Attribute(value=ast.Name(id=name), attr=method) if name in kinds:
            called, bound = getattr(kinds[name], method, None), [None]
        case ast.Attribute(value=ast.Name(id=name), attr=method):
            called = getattr(objects.get(name), method, None)
    starred = any(isinstance(one, ast.Starred) for one in call.args)
    if not callable(called) or starred or any(one.arg is None for one in call.keywords):
        return None
    given: dict[str, None] = {str(one.arg): None for one in call.keywords}
    try:
        inspect.signature(called).bind(*bound, *[None] * len(call.args), **given)
    except TypeError as error:
        return f"{ast.unparse(call)}: {error}"
    return None


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_python_snippets_compile_and_fit_the_library(snippet: str) -> None:
    compile(snippet, "snippet", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    assert not [*faults(snippet)]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("from cmc_local import Steered", "Steered"),
        ("from cmc_local.nowhere import x", "nowhere"),
        ("from cmc_local.integrations.transformers import Nobody", "Nobody"),
        ("from cmc_local import Sampling\nSampling(heat=1)", "heat"),
        (
            "from cmc_local import SteeredModel\nm = SteeredModel.load('a', ['b'], ['c'])",
            "too many",
        ),
        ("from cmc_local import SteeredModel\nwith SteeredModel.load('a') as m: m.talk()", "talk"),
        ("from cmc_local import SteeredModel\nm = SteeredModel.load('a')\nm.generate(n=2)", "n"),
    ],
)
def test_wrong_snippets_are_seen(line: str, told: str) -> None:
    assert any(told in one for one in faults(line))
