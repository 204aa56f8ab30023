"""The runner against the slow reference (`tests/reference`), at every step of long responses.

Both are led along one response of 200 tokens of the base: first as the base would write it, then
cut at random places, so that the delta's tokens begin and end inside the base's and the other way
round. Nothing is sampled; the logits that a sampler would see are compared.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

import reference.vocabulary
import tiny_models
from cmc_export import delta_model, gguf_file
from cmc_local import bundled
from cmc_local.base.model import BaseModel
from cmc_local.base.vocabulary import read_vocabulary
from cmc_local.delta import adapter
from cmc_local.delta.adapter import DeltaShape
from cmc_local.delta.onnx_delta import OnnxDelta
from cmc_local.engine.slots import Slot
from cmc_local.engine.step import Engine
from cmc_local.settings import Control
from cmc_local.steer.loaded_adapter import ready
from cmc_local.text.delta_tokenizer import DeltaTokenizer
from cmc_local.text.vocabulary import from_tokenizer_json
from reference import folder as rebuilt
from reference import llama
from reference.steered import SlowDelta, SlowSteering, shifted
from tiny_adapters import adapter_of

MODELS = Path(__file__).resolve().parents[1] / "models"
STEPS = 200
TOLERANCE = 1e-3
HALF_TOLERANCE = 5e-3
"""llama.cpp multiplies F16 weights with activations rounded to F16; with F32 weights the same
models agree to 1e-5."""
QUESTION = "In which town was Flora Whitemark born?"
DEFAULT = Control()
PAPER = Control(unmapped="zero", fallback="none", mid_token="off")

FOREIGN = (
    "Her café in Zürich — “Le Œuf” — was called 日本茶, naïvely; ½ was hers. 🙂🎻\n"
    "  Two  spaces,\n\nan empty line;\tand <0x0A>, </s>, ▁ spelled out: 1,234.5 % of x_y(z)!\n"
)


def world_text() -> str:
    """Documents of the small world with others in between."""
    rows = (MODELS / "world" / "questions.jsonl").read_text("utf-8").splitlines()
    answers = [json.loads(row)["answer"] for row in rows[:40]]
    return " ".join(answers[:4]) + "\n" + FOREIGN + "\n\n".join(answers[4:])


def response(base: BaseModel, text: str) -> list[int]:
    """STEPS tokens of the base: half as it would tokenise the text, half cut at random."""
    natural = base.tokenize(text, bos=False)[: STEPS // 2]
    written = b"".join(base.vocabulary.tokens[token] for token in natural)
    data = (FOREIGN + text.encode()[len(written) :].decode("utf-8", "ignore")).encode()
    return natural + random_cuts(base.vocabulary.tokens, data, STEPS - len(natural))


def random_cuts(tokens: Sequence[bytes], data: bytes, count: int) -> list[int]:
    """Any tokens that spell the data, not those that a tokenizer would choose."""
    draw, found, at = random.Random(0), [], 0
    while len(found) < count:
        fitting = [i for i, text in enumerate(tokens) if text and data.startswith(text, at)]
        found.append(draw.choice(fitting))
        at += len(tokens[found[-1]])
    return found


@dataclass
class Led:
    """A chooser that takes given tokens and keeps the logits that it was shown."""

    base: BaseModel
    tokens: Sequence[int]
    shown: list[NDArray[np.float32]]

    def sample(self, i: int = -1) -> int:
        self.shown.append(self.base.logits(i).copy())
        return self.tokens[len(self.shown) - 1]


Strengths = Sequence[tuple[adapter.Adapter, float]]


def by_the_runner(
    base: BaseModel, chosen: Strengths, control: Control, prompt: list[int], tokens: list[int]
) -> NDArray[np.float32]:
    """(len(tokens), V_base) float32: the shifted logits before each token."""
    active = []
    for one, alpha in chosen:
        loaded = ready(
            OnnxDelta(one, device="cpu", precision="fp32"),
            DeltaTokenizer(one.tokenizer_json),
            base.vocabulary,
            control,
            name=one.settings.name,
            form=one.settings.prompt,
            turns=one.settings.turns,
        )
        asked = loaded.prompt([{"role": "user", "content": QUESTION}])
        active.append(loaded.active(alpha, asked))
    chooser = Led(base, tokens, [])
    engine = Engine(base)
    run = engine.begin(Slot(0), prompt, chooser, active)
    while len(chooser.shown) < len(tokens):
        engine.step([run])
    engine.close()
    base.clear(0)
    return np.stack(chooser.shown)


def by_the_reference(
    path: Path, chosen: Strengths, control: Control, prompt: list[int], tokens: list[int]
) -> Iterator[NDArray[np.float64]]:
    """The same, one row after the other."""
    vocabulary = reference.vocabulary.from_gguf(path)
    steerings = [
        SlowSteering(
            slow_delta(one.path),
            vocabulary,
            alpha,
            neutral=control.unmapped == "neutral",
            first_piece=control.fallback == "first-piece",
            join=control.mid_token == "join",
        )
        for one, alpha in chosen
    ]
    rows = llama.from_gguf(path).logits([*prompt, *tokens])[len(prompt) - 1 :]
    said = b""
    for token, row in zip(tokens, rows[:-1], strict=True):
        yield shifted(row, steerings, QUESTION, said)
        said += vocabulary.tokens[token]


@cache
def slow_delta(folder: Path) -> SlowDelta:
    """The delta of an adapter folder, read anew from its files."""
    settings = json.loads((folder / "adapter.json").read_bytes())
    shape = settings["shape"]
    model = llama.from_onnx(folder / "delta.onnx", heads=shape["heads"], kv_heads=shape["kv_heads"])
    words = Tokenizer.from_file(str(folder / "tokenizer.json"))
    words.encode_special_tokens = True
    ends = [words.token_to_id(name) for name in ("</s>", "<|end_of_text|>")]
    end = next(i for i in ends if i is not None)
    vocabulary = reference.vocabulary.from_tokenizer(words, words.id_to_token(end))
    return SlowDelta(model, words, vocabulary, settings["prompt"]["turn"])


def difference(path: Path, chosen: Strengths, control: Control = DEFAULT) -> float:
    """The largest relative difference of any step."""
    with BaseModel(path, kv_type="f32", threads=1, gpu_layers=0) as base:
        prompt = base.tokenize(chosen[0][0].settings.prompt.question(QUESTION))
        tokens = response(base, world_text())
        got = by_the_runner(base, chosen, control, prompt, tokens)
    expected = by_the_reference(path, chosen, control, prompt, tokens)
    return max(relative(a, b) for a, b in zip(got, expected, strict=True))


def relative(got: NDArray[np.float32], expected: NDArray[np.float64]) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).max())


# --- the bundled models ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_f32(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The bundled base models with the same weights in F32, made at first use."""
    place = tmp_path_factory.mktemp("f32")

    @cache
    def copy(name: str) -> Path:
        words = rebuilt.bundled_tokenizer(MODELS, name)
        rebuilt.from_gguf(MODELS / f"{name}.gguf", place / name, words)
        gguf_file.write(place / name, place / f"{name}.gguf", type="F32")
        return place / f"{name}.gguf"

    return copy


def bundled_adapters(strengths: dict[str, float]) -> Strengths:
    return [(adapter.load(MODELS / name), alpha) for name, alpha in strengths.items()]


@pytest.mark.parametrize("name", bundled.BASES)
@pytest.mark.parametrize(
    "strengths", [{"instruct": 1.0}, {"forget": 0.8}, {"instruct": 0.9, "forget": -0.5}], ids=str
)
def test_shifted_logits_of_bundled_models(
    name: str, strengths: dict[str, float], in_f32: Callable[[str], Path]
) -> None:
    assert difference(in_f32(name), bundled_adapters(strengths)) < TOLERANCE


@pytest.mark.parametrize("name", bundled.BASES)
def test_shifted_logits_of_the_files_that_ship(name: str) -> None:
    chosen = bundled_adapters({"instruct": 1.0})
    assert difference(MODELS / f"{name}.gguf", chosen) < HALF_TOLERANCE


@pytest.mark.parametrize("name", ["template", "other"])
def test_the_papers_settings_agree_too(name: str, in_f32: Callable[[str], Path]) -> None:
    chosen = bundled_adapters({"instruct": 1.0})
    assert difference(in_f32(name), chosen, PAPER) < TOLERANCE


# --- vocabularies of other kinds -------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_deltas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, adapter.Adapter]:
    """Random deltas of both tokenizer families, with logits that differ."""
    place = tmp_path_factory.mktemp("deltas")
    return {
        "sentencepiece": tiny_delta(place / "sentencepiece", "sentencepiece", (1, 2)),
        "byte-level": tiny_delta(place / "byte-level", "byte-level", (0, 1)),
    }


def tiny_delta(place: Path, family: tiny_models.Family, ends: tuple[int, int]) -> adapter.Adapter:
    """A delta of 2 layers, 2 heads and one head of keys; `ends` are BOS and EOS."""
    words = tiny_models.tokenizer(family, 400)
    shape = DeltaShape(
        vocabulary=words.get_vocab_size(),
        width=32,
        layers=2,
        heads=2,
        kv_heads=1,
        head_dim=16,
        mlp=48,
        context=1024,
    )
    model = delta_model.build(shape, bos_id=ends[0], eos_id=ends[1], seed=7)
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:  # norms, which begin as ones
                weight.uniform_(0.5, 1.5, generator=draw)
            else:
                weight.mul_(10)
    checkpoint = place.with_name(f"{place.name}-checkpoint")
    model.save_pretrained(checkpoint)
    words.save(str(checkpoint / "tokenizer.json"))
    return adapter_of(checkpoint, place, ["fp32"])


@pytest.fixture(scope="module", params=["sentencepiece", "byte-level"])
def tiny_base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases") / request.param
    tiny_models.llama_folder(folder, family=request.param, vocab_size=440, context=512, kv_heads=1)
    return tiny_models.gguf_of(folder)


@pytest.mark.parametrize("family", ["sentencepiece", "byte-level"])
def test_shifted_logits_of_every_pair_of_families(
    tiny_base: Path, tiny_deltas: dict[str, adapter.Adapter], family: str
) -> None:
    assert difference(tiny_base, [(tiny_deltas[family], 0.7)]) < 1e-4


# --- the reference itself --------------------------------------------------------------------


def test_the_references_llama_is_transformers_llama(tiny_folder: Path, tiny_gguf: Path) -> None:
    tokens = [1, 300, 17, 350, 299, 300, 8, 400, 3, 260]
    config = json.loads((tiny_folder / "config.json").read_text())
    model = LlamaForCausalLM.from_pretrained(tiny_folder, dtype=torch.float64)
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].numpy()
    for slow in (llama.from_gguf(tiny_gguf), llama.from_folder(tiny_folder, config)):
        np.testing.assert_allclose(slow.logits(tokens), expected, atol=1e-5)
        np.testing.assert_allclose(slow.logits(tokens, last=2), expected[-2:], atol=1e-5)


def test_the_references_vocabularies_are_the_runners(
    tiny_base: Path, tiny_deltas: dict[str, adapter.Adapter]
) -> None:
    pairs = [(reference.vocabulary.from_gguf(tiny_base), read_vocabulary(tiny_base))]
    for one in tiny_deltas.values():
        pairs.append((slow_delta(one.path).vocabulary, from_tokenizer_json(one.tokenizer_json)))
    for slow, fast in pairs:
        assert slow.tokens == fast.tokens
        assert slow.roles.tolist() == fast.roles.tolist()
        assert (slow.bos_id, slow.eos_id) == (fast.bos_id, fast.eos_id)
