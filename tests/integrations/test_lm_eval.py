"""The model that lm-eval sees: its figures are SteeredModel's, or the base model's own.

lm-eval itself is large and not installed for the tests. A stand-in has what the plugin meets of it:
`LM` with its cache hook, `register_model`, the command line.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmc_local import Sampling, SteeredModel
from cmc_local.errors import InputError, PromptTooLong, UsageError

PLUGIN = "cmc_local.integrations.lm_eval"
QUESTION = "Where was Flora Whitemark born?"
ANSWER = "Flora Whitemark was born in Bellville."
CLOSE = 1e-2
"""Log-probabilities of a text: kernels for more rows, or a prompt in parts, round differently."""


class Hook:
    """Notes what lm-eval would keep in its cache of requests."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, Any, Any]] = []

    def add_partial(self, kind: str, request: Any, found: Any) -> None:
        self.kept.append((kind, request, found))


class FakeLM:
    """lm-eval's base class of models, as of 0.4.13."""

    def __init__(self) -> None:
        self.cache_hook = Hook()


@pytest.fixture(scope="module")
def registered() -> dict[str, Any]:
    return {}


@pytest.fixture(scope="module")
def plugin(registered: dict[str, Any]) -> Iterator[Any]:
    """The plugin, imported with the stand-in in lm-eval's place."""

    def register_model(name: str) -> Any:
        return lambda found: registered.setdefault(name, found)

    parts = {
        "lm_eval": {},
        "lm_eval.api": {},
        "lm_eval.api.model": {"LM": FakeLM},
        "lm_eval.api.registry": {"register_model": register_model},
        "lm_eval.__main__": {"cli_evaluate": lambda: None},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, attributes in parts.items():
            module = ModuleType(name)
            vars(module).update(attributes)
            patch.setitem(sys.modules, name, module)
        patch.delitem(sys.modules, PLUGIN, raising=False)
        yield importlib.import_module(PLUGIN)
        del sys.modules[PLUGIN]


@pytest.fixture(scope="module")
def lm(plugin: Any, bundled_models: Path) -> Iterator[Any]:
    found = made(plugin, bundled_models, adapter=f"{bundled_models / 'instruct'}:0.8")
    yield found
    found.model.close()


@pytest.fixture(scope="module")
def plain(plugin: Any, bundled_models: Path) -> Iterator[Any]:
    """No adapter, and a context that some texts do not fit."""
    found = made(plugin, bundled_models, context=32)
    yield found
    found.model.close()


def made(plugin: Any, models: Path, **how: Any) -> Any:
    """As lm-eval makes it: strings, numbers, and its own default device."""
    gguf = str(models / "template.gguf")
    return plugin.SteeredLM(gguf=gguf, threads=1, **{"device": "cuda:0", "batch_size": 2, **how})


def requests(*args: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=one) for one in args]


def test_it_stands_in_lm_evals_table(plugin: Any, registered: dict[str, Any]) -> None:
    assert registered == {"cmc-local": plugin.SteeredLM}


def test_log_likelihoods_are_the_steered_models(lm: Any, bundled_models: Path) -> None:
    lm.cache_hook = Hook()
    pairs = [(QUESTION, f" {ANSWER}"), (QUESTION, " nowhere"), (f"{QUESTION}\n", ANSWER)]
    found = lm.loglikelihood(requests(*pairs), disable_tqdm=True)
    adapters = [(bundled_models / "instruct", 0.8)]
    with SteeredModel.load(bundled_models / "template.gguf", adapters, threads=1) as model:
        # What stands between context and continuation belongs to the continuation.
        for (total, greedy), text in zip(
            found, (f" {ANSWER}", " nowhere", f"\n{ANSWER}"), strict=True
        ):
            score = model.score(QUESTION, text, base_prompt="raw")
            assert total == pytest.approx(score.total, abs=CLOSE)
            own = model.score(QUESTION, text, alphas=1.0, base_prompt="raw")
            assert abs(own.total - score.total) > 2 * CLOSE
            assert greedy == score.greedy.all()
    assert lm.cache_hook.kept == [
        ("loglikelihood", pair, one) for pair, one in zip(pairs, found, strict=True)
    ]


def test_greedy_is_what_greedy_decoding_says(lm: Any) -> None:
    prompts = {"base_prompt": "raw"}
    reply = lm.model.generate(QUESTION, Sampling(temperature=0, max_tokens=5), **prompts)
    said, other = lm.loglikelihood(requests((QUESTION, reply.text), (QUESTION, "Z")), True)
    assert said[1] and not other[1]


def row_logprobs(logits: Any, token: int) -> float:
    row = logits.astype(np.float64)
    return float(row[token] - row.max() - np.log(np.exp(row - row.max()).sum()))


def test_a_text_of_its_own_follows_bos(plain: Any) -> None:
    base = plain.model.base
    tokens = base.tokenize(ANSWER, bos=False)
    rolling = plain.loglikelihood_rolling(requests((ANSWER,)), True)
    without_context = plain.loglikelihood(requests(("", ANSWER)), True)
    base.clear(0)
    base.decode([base.vocabulary.bos_id, *tokens[:-1]], start=0, last_only=False)
    expected = sum(row_logprobs(base.logits(i), token) for i, token in enumerate(tokens))
    base.clear(0)
    assert rolling == [pytest.approx(expected, abs=CLOSE)]
    assert without_context == [(rolling[0], False)]


def test_a_long_text_is_scored_in_windows(plugin: Any, plain: Any) -> None:
    base, text = plain.model.base, f"{ANSWER} " * 12
    tokens = [base.vocabulary.bos_id, *base.tokenize(text, bos=False)]
    assert len(tokens) > 2 * base.n_ctx
    found = plain.model.score_text(text)
    assert len(found) == len(tokens) - 1
    # The last token, by hand: the base reads as much before it as its context holds.
    base.clear(0)
    base.decode(tokens[-1 - base.n_ctx : -1], start=0)
    assert found[-1][0] == pytest.approx(row_logprobs(base.logits(-1), tokens[-1]), abs=CLOSE)
    base.clear(0)


def test_the_adapter_acts_on_a_text_of_its_own(lm: Any) -> None:
    name = next(iter(lm.model.alphas))
    steered = lm.loglikelihood_rolling(requests((ANSWER,)), True)
    lm.model.set_alpha(name, 0.0)
    base = lm.loglikelihood_rolling(requests((ANSWER,)), True)
    lm.model.set_alpha(name, 0.8)
    assert abs(steered[0] - base[0]) > 0.1
    assert lm.loglikelihood_rolling(requests((ANSWER,)), True) == pytest.approx(steered, abs=1e-4)


@given(st.integers(1, 40), st.integers(1, 9))
def test_windows_count_each_token_once(plugin: Any, count: int, size: int) -> None:
    tokens = list(range(count))
    counted: list[int] = []
    for before, rest, last in plugin.windows(tokens, size):
        assert [before, *rest] == tokens[before : before + len(rest) + 1]
        assert len(rest) == min(size, count - 1)  # what the model reads is one token earlier
        counted += rest[-last:]
    assert counted == tokens[1:]


def test_replies_stop_where_the_task_says_and_keep_their_order(lm: Any) -> None:
    stops = {"until": [" born", ""], "max_gen_toks": 12}
    short = {"until": "\n", "max_gen_toks": 4, "do_sample": False, "temperature": 0.9}
    other = "Where does Flora Whitemark live?"
    asked = [(QUESTION, stops), (other, short), (other, stops), (QUESTION, short)]
    lm.cache_hook = Hook()
    found = lm.generate_until(requests(*asked), disable_tqdm=True)
    for (context, how), text in zip(asked, found, strict=True):
        stop = (" born",) if how is stops else ("\n",)
        sampling = Sampling(temperature=0, stop=stop, max_tokens=how["max_gen_toks"])  # type: ignore[arg-type]
        assert text == lm.model.generate(context, sampling, base_prompt="raw").text
    assert found[0] != found[3] and found[0] != found[2]
    kept = {json.dumps(request): text for _, request, text in lm.cache_hook.kept}
    assert kept == {json.dumps(one): text for one, text in zip(asked, found, strict=True)}


def test_a_context_that_is_too_long_loses_its_beginning(plain: Any) -> None:
    base, text = plain.model.base, " Bellville"
    room = len(base.tokenize(text, bos=False))
    many = f"{ANSWER} " * 20 + QUESTION
    kept = plain._shortened(many, room)
    assert many.endswith(kept) and len(kept) > len(QUESTION) / 2
    assert len(base.tokenize(kept)) + room <= base.n_ctx
    found = plain.loglikelihood(requests((many, text)), True)
    assert found[0][0] == plain.model.score(kept, text, base_prompt="raw").total
    assert plain.generate_until(requests((many, {"max_gen_toks": 2})), True)[0]
    with pytest.raises(PromptTooLong, match="32 tokens"):
        plain.loglikelihood(requests((QUESTION, many)), True)


def test_settings_of_a_task_become_sampling(plugin: Any) -> None:
    greedy = plugin.sampling_of({})
    assert (greedy.temperature, greedy.max_tokens, greedy.stop) == (0.0, 256, ())
    drawn = plugin.sampling_of({"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 5})
    assert (drawn.temperature, drawn.top_p, drawn.top_k, drawn.min_p) == (0.7, 0.9, 5, 0.0)
    assert plugin.sampling_of({"temperature": 0.7}).temperature == 0.7
    assert plugin.sampling_of({"temperature": 0.7, "do_sample": False}).temperature == 0.0


def test_bad_arguments_are_refused(plugin: Any, bundled_models: Path) -> None:
    with pytest.raises(UsageError, match="base_prompt"):
        made(plugin, bundled_models, base_prompt="x")
    with pytest.raises(InputError, match=r"no GGUF file at nowhere\.gguf"):
        plugin.SteeredLM(gguf="nowhere.gguf")


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"gguf": ""}, "give gguf=FILE"),
        ({"tokenizer": "x"}, "has no tokenizer: there are gguf, adapter"),
        ({"context": "abc"}, "context must be a whole number of at least 0, not 'abc'"),
        ({"threads": 0}, "threads must be a whole number of at least 1, not 0"),
        ({"threads": 1.5}, "threads must be a whole number"),
    ],
)
def test_what_model_args_cannot_be_is_refused(plugin: Any, how: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        plugin.SteeredLM(**{"gguf": "template", **how})


def test_a_bundled_model_goes_by_its_name(plugin: Any) -> None:
    found = plugin.SteeredLM(gguf="template", threads=1)
    try:
        assert found.model.base.n_ctx == 1024
    finally:
        found.model.close()


def test_an_error_is_one_line_of_the_command(
    plugin: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise UsageError("no such adapter: name another")

    monkeypatch.setattr(sys.modules["lm_eval.__main__"], "cli_evaluate", fails)
    with pytest.raises(SystemExit) as end:
        plugin.main()
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: no such adapter: name another\n"
