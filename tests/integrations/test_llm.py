"""The bundled models inside `llm`: its Python interface and its command line, without a network."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from click.testing import CliRunner, Result

from cmc_local import SteeredModel

llm = pytest.importorskip("llm")

from llm.cli import cli  # noqa: E402
from llm.plugins import load_plugins, pm  # noqa: E402

from cmc_local.integrations import llm as plugin  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]
QUESTION = "Where was Flora Whitemark born?"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, bundled_models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """llm's own folder, empty, with the plugin in place and no way out."""

    def refuse(*_: Any) -> NoReturn:
        raise AssertionError("llm asked for the network")

    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    load_plugins()
    there = pm.is_registered(plugin)  # an installation has the entry point
    if not there:
        pm.register(plugin, "cmc-local")
    yield tmp_path
    if not there:
        pm.unregister(plugin)


@pytest.fixture(scope="module")
def expected(bundled_models: Path) -> Iterator[dict[str, str]]:
    """What the library itself answers, greedily, at most 24 tokens."""
    from cmc_local import Sampling

    sampling = Sampling(temperature=0, max_tokens=24)
    with SteeredModel.load(bundled_models / "larger.gguf", [bundled_models / "instruct"]) as model:
        first = [{"role": "user", "content": QUESTION}]
        steered = model.chat(first, sampling).text
        second = [
            {"role": "system", "content": "Answer."},
            *first,
            {"role": "assistant", "content": steered},
            {"role": "user", "content": "When was Flora Whitemark born?"},
        ]
        with SteeredModel.load(bundled_models / "larger.gguf") as larger:
            alone = larger.chat(first, sampling).text
        yield {
            "alone": alone,
            "steered": steered,
            "plain": model.chat(first, sampling, alphas=0.0).text,
            "second": model.chat(second, sampling).text,
        }


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, [*words])


def ids() -> list[str]:
    models = [one.model.model_id for one in llm.get_models_with_aliases() if one.model]
    return [name for name in models if name.startswith("cmc-local")]


def test_an_installation_tells_llm_of_the_plugin() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["llm"] == {"cmc-local": plugin.__name__}


def test_the_bundled_models_are_listed() -> None:
    assert ids()[:5] == [
        "cmc-local",
        "cmc-local/template",
        "cmc-local/template+instruct",
        "cmc-local/template+forget",
        "cmc-local/larger",
    ]
    shown = run("models", "list", "-q", "cmc-local/other", "--options").stdout
    assert "SteeredChat: cmc-local/other+forget" in shown
    assert "Strength of every adapter; 0 is plain." in shown


def test_a_reply_is_streamed_and_is_the_librarys(expected: dict[str, str]) -> None:
    response = llm.get_model("cmc-local").prompt(QUESTION, max_tokens=24)
    pieces = [piece for piece in response if piece]
    assert "".join(pieces) == expected["steered"] == "Flora Whitemark was born in Bellville."
    assert len(pieces) > 3
    usage = response.usage()
    assert usage.input > 10 and usage.output == 10


def test_alpha_and_the_id_choose_what_steers(expected: dict[str, str]) -> None:
    model = llm.get_model("cmc-local")
    assert model.prompt(QUESTION, max_tokens=24, alpha=0).text() == expected["plain"]
    assert expected["plain"] != expected["steered"]
    alone = llm.get_model("cmc-local/larger").prompt(QUESTION, max_tokens=24).text()
    assert alone == expected["alone"] != expected["steered"]


def test_a_conversation_goes_on_under_its_system_text(expected: dict[str, str]) -> None:
    talk = llm.get_model("cmc-local").conversation()
    talk.prompt(QUESTION, system="Answer.", max_tokens=24).text()
    second = talk.prompt("When was Flora Whitemark born?", max_tokens=24)
    assert second.text() == expected["second"]


def test_a_schema_shapes_the_reply() -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    reply = llm.get_model("cmc-local").prompt(QUESTION, schema=schema)
    assert json.loads(reply.text())["ok"] in (True, False)


def test_a_model_is_loaded_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Any] = []
    load = SteeredModel.load
    monkeypatch.setattr(SteeredModel, "load", lambda *given: loads.append(given) or load(*given))
    plugin._loaded.cache_clear()
    for _ in range(2):
        llm.get_model("cmc-local/template").prompt("hi", max_tokens=1).text()
    assert len(loads) == 1


def test_the_users_list_has_files_by_their_names(
    home: Path, bundled_models: Path, expected: dict[str, str]
) -> None:
    (home / "copy").symlink_to(bundled_models / "instruct")
    (home / "large.gguf").symlink_to(bundled_models / "larger.gguf")
    wanted = [f"{home}/large.gguf+{home}/copy@0.9", f"{home}/copy/../large.gguf", "other+instruct"]
    (home / "cmc-local.json").write_text(json.dumps(wanted))
    assert ids()[-3:] == ["cmc-local/large+copy@0.9", "cmc-local/large", "cmc-local/other+instruct"]
    steered = llm.get_model("cmc-local/large+copy@0.9").prompt(
        QUESTION, temperature=0, max_tokens=24
    )
    assert steered.text() == expected["steered"]


def test_two_models_of_one_name_go_by_their_paths(home: Path) -> None:
    (home / "cmc-local.json").write_text('["/a/one.gguf", "/b/one.gguf"]')
    assert ids()[-2:] == ["cmc-local/one", "cmc-local//b/one.gguf"]


@pytest.mark.parametrize("text", ["{", '{"a": 1}', "[1]", '"larger"'])
def test_a_bad_list_is_told_of_and_harms_nobody(
    home: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "cmc-local.json").write_text(text)
    assert "cmc-local/larger" in ids()
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"{home}/cmc-local.json is left out: ")


def test_what_goes_wrong_is_one_line(home: Path) -> None:
    (home / "cmc-local.json").write_text(
        '["/no/such.gguf", "larger+nothing", "larger+instruct@1.2.3"]'
    )
    for name, told in (
        ("such", "no GGUF file at /no/such.gguf"),
        ("larger+nothing", "no adapter at nothing"),
        ("larger+instruct@1.2.3", "'1.2.3' is no strength"),
    ):
        with pytest.raises(llm.ModelError, match=told):
            llm.get_model(f"cmc-local/{name}").prompt("hi").text()
    for options, told in (
        (("-o", "max_tokens", "0"), "max_tokens must be at least 1, not 0"),
        (("-o", "seed", "-1"), "seed must be between 0 and"),
        (("-o", "alpha", "nan"), "must be a finite number"),
    ):
        done = run("-m", "cmc-local", "hi", *options)
        assert done.exit_code == 1
        assert done.stderr.startswith("Error: ") and told in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_the_command_line_answers_and_goes_on(expected: dict[str, str]) -> None:
    first = run("-m", "cmc-local", QUESTION, "-s", "Answer.", "-o", "max_tokens", "24")
    assert first.exit_code == 0, first.stderr
    second = run("-c", "When was Flora Whitemark born?", "-o", "max_tokens", "24", "--no-stream")
    assert second.stdout == expected["second"] + "\n"


def test_listing_models_loads_none() -> None:
    program = (
        "import sys, llm, cmc_local.integrations.llm as plugin\n"
        "plugin.register_models(lambda model: None)\n"
        "print({'llama_cpp', 'onnxruntime', 'cmc_local.model.steered'} & {*sys.modules})"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "set()\n"
