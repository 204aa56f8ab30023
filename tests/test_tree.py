"""The borders of docs/design.md, read off the source: who imports whom, and how long things are."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import cmc_local

REPOSITORY = Path(__file__).resolve().parents[1]
RUNTIME = REPOSITORY / "cmc_local"
WORKSHOP = REPOSITORY / "export" / "cmc_export"

# From the bottom up: a file imports its own layer and those before it in this list. "" is every
# file that lies beside the rooms.
LAYERS = (
    ("",),
    ("text",),
    ("base", "delta"),
    ("steer",),
    ("engine",),
    ("model",),
    ("hub",),
    ("evaluate", "server", "bench"),
    ("integrations",),
    ("commands",),
)
HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}

ONE_HOME = {"llama_cpp": "base/*.py", "onnxruntime": "delta/session.py"}
WORKSHOP_ONLY = {
    *("torch", "transformers", "accelerate", "peft"),
    *("onnx", "gguf", "safetensors"),
}
EVALUATION = {"matplotlib", "rapidfuzz", "scipy", "rouge_score", "nltk"}  # the extra `eval`
GUESTS = {  # in other people's code: what they write today, and what works inside of it
    RUNTIME / "bench" / "stock.py",
    RUNTIME / "integrations" / "llama_cpp.py",
}
MAY_CALL_THE_WORKSHOP = {"train", "record", "pretrain", "finetune", "export", "workshop", "bench"}

RUNTIME_FILES = sorted(RUNTIME.rglob("*.py"))
ALL_FILES = [*RUNTIME_FILES, *sorted(WORKSHOP.rglob("*.py"))]


def imports(tree: ast.AST) -> Iterator[str]:
    """The dotted names that a syntax tree imports, `from a import b` as `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError("relative import: write it in full")


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def room(path: Path) -> str:
    """The room of a file; "" beside the rooms."""
    return path.relative_to(RUNTIME).parts[0] if path.parent != RUNTIME else ""


def file_of(module: str) -> Path | None:
    """The file of the runtime that a dotted name, or what stands before its last dot, names."""
    for dotted in (module, module.rpartition(".")[0]):
        path = REPOSITORY.joinpath(*dotted.split("."))
        for found in (path.with_suffix(".py"), path / "__init__.py"):
            if found.is_file() and dotted.startswith("cmc_local"):
                return found
    return None


@cache
def needs(path: Path) -> frozenset[Path]:
    """The runtime's files that a file imports, inside of functions too."""
    found = {file_of(module) for module in imports(parse(path))}
    return frozenset(one for one in found if one not in (None, path, RUNTIME / "__init__.py"))


@pytest.mark.parametrize("path", RUNTIME_FILES, ids=name)
def test_runtime_never_imports_the_workshops_libraries(path: Path) -> None:
    found = {module.split(".")[0] for module in imports(parse(path))}
    if path == RUNTIME / "integrations" / "transformers.py":  # a guest in its caller's library
        found -= {"torch", "transformers"}
    assert not found & WORKSHOP_ONLY


@pytest.mark.parametrize("library", sorted(ONE_HOME))
def test_a_foreign_library_has_one_home(library: str) -> None:
    users = {p for p in RUNTIME_FILES if library in {m.split(".")[0] for m in imports(parse(p))}}
    strangers = {name(p) for p in users if not p.match(f"cmc_local/{ONE_HOME[library]}")}
    assert not strangers - {*map(name, GUESTS)}


@pytest.mark.parametrize("path", RUNTIME_FILES, ids=name)
def test_imports_go_one_way(path: Path) -> None:
    if path.name in ("__init__.py", "__main__.py") and path.parent == RUNTIME:
        return  # names only, loaded when used: the tests below
    assert room(path) in HEIGHT, f"{room(path)} has no layer: give it its place in LAYERS"
    assert not {name(one) for one in needs(path) if HEIGHT[room(one)] > HEIGHT[room(path)]}


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {path: needs(path) for path in RUNTIME_FILES if path != RUNTIME / "__init__.py"}
    while graph:
        free = {path for path, needed in graph.items() if not needed & set(graph)}
        assert free, f"a circle among {sorted(map(name, graph))}"
        graph = {path: needed for path, needed in graph.items() if path not in free}


def test_the_engine_loads_no_llama_cpp() -> None:
    modules = [f"cmc_local.engine.{path.stem}" for path in (RUNTIME / "engine").glob("[!_]*.py")]
    assert not loaded_by(f"import {', '.join(modules)}") & {"llama_cpp", "onnxruntime"}


@pytest.mark.parametrize("path", RUNTIME_FILES, ids=name)
def test_only_the_training_commands_call_the_workshop_and_only_when_called(path: Path) -> None:
    tree = parse(path)
    if not calls_the_workshop(tree):
        return
    assert path.parent == RUNTIME / "commands"
    assert path.stem in MAY_CALL_THE_WORKSHOP
    outside = [node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert not any(calls_the_workshop(node) for node in outside if not is_type_check(node))


def calls_the_workshop(tree: ast.AST) -> bool:
    """By an import statement, or by `import_module("cmc_export.loop")`."""
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    spelled = any(isinstance(word, str) and word.startswith("cmc_export.") for word in words)
    return spelled or any(module.split(".")[0] == "cmc_export" for module in imports(tree))


def is_type_check(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


@pytest.mark.parametrize("path", ALL_FILES, ids=name)
def test_files_and_functions_fit_on_a_few_screens(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 400
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    long = {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(parse(path))
        if isinstance(node, functions) and (node.end_lineno or 0) - node.lineno >= 60
    }
    assert not long


@pytest.mark.parametrize("path", ALL_FILES, ids=name)
def test_every_file_says_what_it_is_for(path: Path) -> None:
    if path.stat().st_size > 0:
        assert ast.get_docstring(parse(path))


def test_no_file_is_a_drawer_for_odds_and_ends() -> None:
    words = {"util", "utils", "helper", "helpers", "common", "manager", "misc"}
    assert not {name(p) for p in ALL_FILES if words & set(p.stem.split("_"))}


def loaded_by(statement: str) -> set[str]:
    """The top-level modules in a fresh process after a statement."""
    program = f"import sys\n{statement}\nprint(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


HEAVY = (
    WORKSHOP_ONLY
    | EVALUATION
    | {
        *("starlette", "uvicorn", "pydantic", "huggingface_hub", "httpx"),
        *("rich", "prompt_toolkit", "jinja2"),
        *("lm_eval", "llm", "ray", "pyarrow", "pandas"),
    }
)
HEAVY_AT_REST = HEAVY | {"numpy", "llama_cpp", "onnxruntime", "tokenizers", "cmc_export"}


@pytest.mark.parametrize(
    "statement",
    [
        "import cmc_local",
        "from cmc_local import Sampling, Control, Limits, CmcError",
        "import cmc_local.commands",
        "from cmc_local.commands import main\n"
        "try: main(['--help'])\nexcept SystemExit as end: assert not end.code",
    ],
)
def test_names_and_help_load_nothing_heavy(statement: str) -> None:
    assert not loaded_by(statement) & HEAVY_AT_REST


def test_what_the_evaluation_needs_is_loaded_when_it_is_used() -> None:
    evaluation = sorted((RUNTIME / "evaluate").glob("[!_]*.py"))
    names = [f"cmc_local.evaluate.{path.stem}" for path in evaluation]
    assert not loaded_by(f"import cmc_local.commands.eval, {', '.join(names)}") & EVALUATION


def test_the_model_class_loads_neither_workshop_nor_terminal() -> None:
    loaded = loaded_by("from cmc_local import SteeredModel")
    assert {"numpy", "llama_cpp"} <= loaded
    assert not loaded & (HEAVY - {"jinja2"})


def test_type_checkers_and_programs_see_the_same_names() -> None:
    typed = [node for node in parse(RUNTIME / "__init__.py").body if is_type_check(node)]
    assert len(typed) == 1
    seen = {module.rsplit(".", 1)[1] for module in imports(typed[0])}
    assert seen == set(cmc_local.__all__)


def test_exported_names_are_honest() -> None:
    assert sorted(cmc_local.__all__) == cmc_local.__all__
    for exported in cmc_local.__all__:
        value = getattr(cmc_local, exported)
        assert value.__name__ == exported
        assert value.__module__.startswith("cmc_local.")


def test_every_error_is_exported() -> None:
    from cmc_local import errors

    public = {
        n
        for n, v in vars(errors).items()
        if isinstance(v, type) and v.__module__ == errors.__name__
    }
    assert public <= set(cmc_local.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'cmc_local' has no attribute 'Nothing'"):
        _ = cmc_local.Nothing  # type: ignore[attr-defined]
