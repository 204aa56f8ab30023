"""The rivals on the command line: `--proxy` and `--lora`, their parts and what they load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

import tiny_models
from cmc_local import bundled
from cmc_local.commands import loading, main, options
from cmc_local.commands.model_choice import Devices, ModelChoice
from cmc_local.errors import GGUFError, UsageError
from cmc_local.hub.places import LoraChoice, ProxyChoice
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Limits
from cmc_local.text.prompts import named_form
from tiny_loras import lora_gguf, pairs

DEVICES = Devices(threads=1, gpu_layers=0, speculate=0, delta_device="cpu")


@pytest.fixture(scope="module")
def expert_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs") / "expert"
    return tiny_models.gguf_of(tiny_models.llama_folder(folder, seed=7))


@pytest.fixture(scope="module")
def lora(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora_gguf(tmp_path_factory.mktemp("loras") / "lora.gguf", pairs(tiny_folder))


def made(option: Any, name: str, *words: str) -> Any:
    """What a command with this option gets under the name."""
    found: dict[str, Any] = {}

    @click.command()
    @option
    def command(**values: Any) -> None:
        found.update(values)

    command.main(list(words), standalone_mode=False)
    return found[name]


def test_a_pair_of_files_and_a_strength(tmp_path: Path) -> None:
    one, other, odd = tmp_path / "one.gguf", tmp_path / "other.gguf", tmp_path / "odd:2b.gguf"
    for path in (one, other, odd):
        path.touch()
    both = f"{one},{other}"
    assert made(options.proxies, "proxies") == ()
    assert made(options.proxies, "proxies", "--proxy", f"{both}:0.5", "--proxy", both) == (
        ProxyChoice(one, other, 0.5),
        ProxyChoice(one, other, 1.0),
    )
    prompt = "Q: {query}\nA:"
    (found,) = made(options.proxies, "proxies", "--proxy", f"{one},{odd}", "--proxy-prompt", prompt)
    assert found == ProxyChoice(one, odd, 1.0, prompt)


def test_an_unknown_prompt_form_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(UsageError, match="'chat'"):
        made(options.proxies, "proxies", "--proxy-prompt", "chat")


def test_lora_files_and_their_scales(tmp_path: Path) -> None:
    path = tmp_path / "a:b.gguf"
    path.touch()
    assert made(options.loras, "loras") == ()
    assert made(options.loras, "loras", "--lora", f"{path}:-0.5", "--lora", str(path)) == (
        LoraChoice(path, -0.5),
        LoraChoice(path, 1.0),
    )


def load(gguf: Path, **rivals: Any) -> SteeredModel:
    return loading.steered(
        ModelChoice(gguf=gguf, limits=Limits(context=128), devices=DEVICES, **rivals)
    )


def test_a_pair_acts_with_its_strength_and_form(tiny_gguf: Path, expert_gguf: Path) -> None:
    pair = ProxyChoice(expert_gguf, tiny_gguf, 0.5)
    with load(tiny_gguf, proxies=(pair,)) as model:
        assert dict(model.alphas) == {"proxy-expert-F32": 0.5}
        assert model.adapters["proxy-expert-F32"].form == named_form("cmc")
    first = ProxyChoice(expert_gguf, tiny_gguf, 1.0, "Q: {query}\nA:")
    with load(
        tiny_gguf,
        proxies=(
            first,
            pair,
        ),
    ) as model:
        assert list(model.adapters) == ["proxy-expert-F32", "proxy-expert-F32-2"]
        assert [one.form.turn for one in model.adapters.values()] == ["Q: {query}\nA:"] * 2


def test_a_lora_changes_the_base_itself(tiny_gguf: Path, lora: Path) -> None:
    def logprobs(*loras: LoraChoice) -> Any:
        with load(tiny_gguf, loras=loras) as model:
            return model.score("Where?", "In Harborville.").logprobs

    plain = logprobs()
    assert np.abs(logprobs(LoraChoice(lora)) - plain).max() > 0.1
    np.testing.assert_array_equal(logprobs(LoraChoice(lora, 0.0)), plain)


def test_a_bundled_base_takes_no_adapter_beside_a_rival(
    tiny_gguf: Path, lora: Path, expert_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundled, "folder", lambda: tiny_gguf.parent)
    with load(tiny_gguf, loras=(LoraChoice(lora),)) as model:
        assert not model.adapters
    with load(tiny_gguf, proxies=(ProxyChoice(expert_gguf, tiny_gguf),)) as model:
        assert list(model.adapters) == ["proxy-expert-F32"]


def test_files_that_do_not_fit_end_in_one_line(
    tiny_folder: Path, tiny_gguf: Path, other_gguf: Path, tmp_path: Path
) -> None:
    with pytest.raises(GGUFError, match="different vocabularies"):
        load(tiny_gguf, proxies=(ProxyChoice(tiny_gguf, other_gguf),))
    lora = lora_gguf(tmp_path / "lora.gguf", pairs(tiny_folder), architecture="qwen2")
    with pytest.raises(GGUFError, match="does not fit"):
        load(tiny_gguf, loras=(LoraChoice(lora),))


def test_the_chat_takes_both(tiny_gguf: Path, expert_gguf: Path, lora: Path) -> None:
    def answer(*words: str) -> str:
        usual = ["--threads", "1", "--speculate", "off", "--context", "128", "-t", "0", "-n", "12"]
        done = CliRunner().invoke(
            main, ["chat", "--gguf", str(tiny_gguf), *usual, *words], input="Where?\n"
        )
        assert done.exit_code == 0, done.output
        return done.stdout

    pair = ("--proxy", f"{expert_gguf},{tiny_gguf}", "--proxy-prompt", "plain")
    answers = [answer(), answer(*pair), answer("--lora", f"{lora}:2")]
    assert len(set(answers)) == 3
    assert answer("--lora", f"{lora}:0") == answers[0]
    done = CliRunner().invoke(main, ["chat", "--gguf", str(tiny_gguf), "--lora", str(tiny_gguf)])
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "is no LoRA" in done.stderr


def test_rpc_is_network(bundled_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match="--rpc"):
        loading.steered(
            ModelChoice(gguf=bundled_models / "larger.gguf", devices=Devices(rpc=("there:1",)))
        )
