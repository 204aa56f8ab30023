"""The rivals: stock `Llama` writes what is forced, its processor adds the shift that it should."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_adapters
import tiny_models
from cmc_local.base.vocabulary import read_vocabulary
from cmc_local.bench import stock as module
from cmc_local.bench.arms import Place
from cmc_local.bench.passages import Passage
from cmc_local.bench.stock import Processor, RivalArm, Stock, naive_delta
from cmc_local.delta.adapter import Adapter
from cmc_local.delta.onnx_delta import OnnxDelta
from cmc_local.text import token_map
from cmc_local.text.delta_tokenizer import DeltaTokenizer
from cmc_local.text.token_map import TokenMap

PLACE = Place("naive", "text", 4)
QUESTION = (1, 40, 41, 42)


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REST", 0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    place = tmp_path_factory.mktemp("deltas")
    checkpoint = tiny_adapters.checkpoint(place / "delta", context=16)
    return tiny_adapters.adapter_of(checkpoint, place / "adapter", ("fp32",))


@pytest.fixture(scope="module")
def stock(tiny_gguf: Path) -> Iterator[Stock]:
    made = Stock(tiny_gguf, 256, 64, 1)
    yield made
    made.close()


@pytest.fixture
def processor(tiny_gguf: Path, folder: Adapter, tmp_path: Path) -> Processor:
    return make(tiny_gguf, folder, tmp_path)


def make(gguf: Path, folder: Adapter, cache: Path, alpha: float = 0.5) -> Processor:
    delta, tokenizer = naive_delta(folder), DeltaTokenizer(folder.tokenizer_json)
    vocabulary = read_vocabulary(gguf)
    found = mapped(gguf, delta, tokenizer, cache)
    return Processor(delta, tokenizer, found, alpha, vocabulary.tokens)


def mapped(gguf: Path, delta: OnnxDelta, tokenizer: DeltaTokenizer, cache: Path) -> TokenMap:
    return token_map.load_or_build(
        read_vocabulary(gguf),
        delta.vocabulary,
        encode=tokenizer.encode,
        tokenizer_sha256=tokenizer.sha256,
        cache_dir=cache,
    )


def passage(gguf: Path) -> Passage:
    words = tiny_models.tokenizer().encode("Maria wrote seven novels; the best known is").ids
    return Passage("text", (1, *words[:6]), tuple(words[6:12]), "Maria")


def test_stock_writes_the_text_and_times_all_but_the_first_token(
    stock: Stock, tiny_gguf: Path
) -> None:
    wanted = passage(tiny_gguf)
    arm = RivalArm(PLACE, stock, wanted)
    for _ in range(2):
        sample = arm.run()
        assert sample.emitted == (wanted.reply,)
        assert sample.tokens == len(wanted.reply) - 1
        assert sample.seconds > 0
    llama: Any = stock._llama
    written = llama.input_ids[: llama.n_tokens].tolist()
    assert written == [*wanted.prompt, *wanted.reply[:-1]]


def test_a_second_run_evaluates_the_prompts_last_token_and_no_more_of_it(
    stock: Stock, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = passage(tiny_gguf)
    stock.write(wanted)
    llama: Any = stock._llama
    evaluated: list[int] = []
    real = llama.eval
    monkeypatch.setattr(llama, "eval", lambda tokens: (evaluated.extend(tokens), real(tokens)))
    stock.write(wanted)
    assert evaluated == [wanted.prompt[-1], *wanted.reply[:-1]]


def test_the_processor_adds_alpha_times_the_mapped_shift(
    stock: Stock, processor: Processor, folder: Adapter, tiny_gguf: Path, tmp_path: Path
) -> None:
    wanted = passage(tiny_gguf)
    seen: list[np.ndarray] = []
    honest = processor.__call__

    class Watching:
        calls = 0
        error = None

        def __call__(self, ids: Any, scores: Any) -> Any:
            shifted = honest(ids, scores)
            seen.append(shifted - scores)
            Watching.calls += 1
            return shifted

    processor.begin(QUESTION, len(wanted.prompt))
    stock.write(wanted, Watching())  # type: ignore[arg-type]

    delta, tokenizer = naive_delta(folder), DeltaTokenizer(folder.tokenizer_json)
    ids = mapped(tiny_gguf, delta, tokenizer, tmp_path).ids
    texts = read_vocabulary(tiny_gguf).tokens
    for i, added in enumerate(seen):
        reply = [t for token in wanted.reply[:i] for t in tokenizer.encode(texts[token].decode())]
        delta.truncate(0, 0)
        row = delta.feed(0, [*QUESTION, *reply])[0]
        expected = np.where(ids >= 0, 0.5 * row[np.maximum(ids, 0)], 0)
        np.testing.assert_allclose(added, expected, atol=1e-4)


def test_the_naive_arm_goes_back_to_the_question_each_time(
    stock: Stock, processor: Processor, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = passage(tiny_gguf)
    fed: list[int] = []
    delta = processor._delta
    real = delta.feed
    monkeypatch.setattr(delta, "feed", lambda slot, t: (fed.append(len(t)), real(slot, t))[1])
    arm = RivalArm(PLACE, stock, wanted, processor, QUESTION)
    assert arm.run().emitted == (wanted.reply,)
    steps = list(fed)
    assert steps[0] == len(QUESTION)
    assert set(steps[1:]) == {1}  # one token a call
    fed.clear()
    arm.run()
    assert fed == steps[1:]  # the question is in the cache
    assert delta.length(0) == sum(steps)  # and the first reply no longer


def test_a_full_context_of_the_delta_is_no_end(
    stock: Stock, processor: Processor, tiny_gguf: Path
) -> None:
    long = tuple(range(40, 54))  # 14 of 16 tokens
    arm = RivalArm(PLACE, stock, passage(tiny_gguf), processor, long)
    assert len(arm.run().emitted[0]) == 6


def test_what_goes_wrong_in_the_processor_is_raised(
    stock: Stock, processor: Processor, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(processor, "_mapped", broken)
    with pytest.raises(MemoryError, match="no room"):
        RivalArm(PLACE, stock, passage(tiny_gguf), processor, QUESTION).run()


def test_the_rivals_options_are_the_librarys_own() -> None:
    options = module.default_options(1)
    assert options.intra_op_num_threads == 0  # as many as there are cores
    with pytest.raises(Exception, match="allow_spinning"):
        options.get_session_config_entry("session.intra_op.allow_spinning")
