"""The bundled models: the same numbers and tokens as their PyTorch sources, small, with cards.

The template ships as a Hugging Face folder too; the other two are rebuilt from their GGUF files.
"""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from cmc_export import gguf_file
from cmc_local import bundled
from cmc_local.base.model import BaseModel
from cmc_local.delta import adapter
from reference import folder as rebuilt
from reference import llama

MODELS = Path(__file__).resolve().parents[1] / "models"
TEMPLATE = MODELS / "template"
MOST_BYTES = 30_000_000
TOLERANCE = 1e-3
TEXTS = 1000

# Of each script some letters, with marks that combine; spaces and signs that tokenizers split at.
ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789",
    " .,;:!?'\"-()[]{}<>|/\\@#$%^&*_+=~`\n",
    "  \n\n\t\r",
    "äöüßéèêñçøåÆœ ÀÉÎ½²€£",
    "абвгдежз ИЙКЛ",
    "αβγδε Ωλ",
    "日本語の文字 漢字カタカナ、。",
    "한국어 글자",
    "عربي שלום",
    "हिन्दी ไทย",
    "🙂🎻👩‍👩‍👧🇨🇭",
    "e\u0301a\u0308\u200b\u00a0\u2028\ufeff\u0000\u007f\U0010ffff",
    "\u2581\u0120\u010a<0x0A></s><s>",
)
SAMPLES = ("", " ", "  ", "\n", " \n ", "don't we'LL I've", "a  b   c", "</s>", "<0x41>", "x\n\ny ")


@cache
def world_rows() -> list[dict[str, str]]:
    lines = (MODELS / "world" / "questions.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


@cache
def texts() -> list[str]:
    """Texts of the small world, and of all characters that make trouble."""
    draw = random.Random(0)
    chosen = draw.sample(world_rows(), 300)
    found = [
        *SAMPLES,
        *(f"<|user|>\n{r['question']}\n<|assistant|>\n{r['answer']}" for r in chosen),
    ]
    while len(found) < TEXTS:
        alphabets = draw.choices(ALPHABETS, k=draw.randint(1, 4))
        pieces = ["".join(draw.choices(a, k=draw.randint(1, 12))) for a in alphabets]
        if draw.random() < 0.5:
            pieces.insert(1, draw.choice(chosen)["answer"])
        found.append(draw.choice(("", " ", "\n")).join(pieces))
    return found


@cache
def words_of(name: str) -> Tokenizer:
    """The tokenizer of a bundled base model; special spellings are plain text to it."""
    words = rebuilt.bundled_tokenizer(MODELS, name)
    words.encode_special_tokens = True
    return words


@pytest.mark.parametrize("name", bundled.BASES)
def test_f32_has_the_logits_of_its_source(name: str, tmp_path: Path) -> None:
    if name == "template":
        source, place = LlamaForCausalLM.from_pretrained(TEMPLATE, dtype=torch.float32), TEMPLATE
    else:
        place = tmp_path / name
        source = rebuilt.from_gguf(MODELS / f"{name}.gguf", place, words_of(name))
    gguf_file.write(place, tmp_path / "f32.gguf", type="F32")
    text = " ".join(row["answer"] for row in world_rows()[:60])
    with BaseModel(tmp_path / "f32.gguf", kv_type="f32", threads=1, gpu_layers=0) as base:
        tokens = base.tokenize(text)[:300]
        base.decode(tokens, start=0, last_only=False)
        got = torch.from_numpy(np.stack([base.logits(i) for i in range(len(tokens))]))
    assert len(tokens) == 300
    assert rebuilt.largest_difference(source, tokens, got) < TOLERANCE


def test_the_templates_two_forms_hold_the_same_weights() -> None:
    config = json.loads((TEMPLATE / "config.json").read_text())
    folder, file = llama.from_folder(TEMPLATE, config), llama.from_gguf(MODELS / "template.gguf")
    assert folder.weights.keys() == file.weights.keys()
    assert all(torch.equal(folder.weights[name], file.weights[name]) for name in folder.weights)
    assert (folder.heads, folder.kv_heads) == (file.heads, file.kv_heads)


@pytest.mark.parametrize("name", bundled.BASES)
def test_token_ids_of_a_thousand_texts(name: str) -> None:
    words = words_of(name)
    assert rebuilt.same_spellings(MODELS / f"{name}.gguf", words)
    with BaseModel(MODELS / f"{name}.gguf", context=256, threads=1, gpu_layers=0) as base:
        different = [text for text in texts() if base.tokenize(text) != words.encode(text).ids]
    assert len(texts()) == TEXTS
    assert different == []


def test_everything_together_is_small() -> None:
    sizes = {path.name: path.stat().st_size for path in MODELS.rglob("*") if path.is_file()}
    assert {"template.gguf", "larger.gguf", "other.gguf", "delta.onnx"} <= sizes.keys()
    assert sum(p.stat().st_size for p in MODELS.rglob("*") if p.is_file()) <= MOST_BYTES


@pytest.mark.parametrize("name", bundled.ADAPTERS)
def test_adapters_are_whole_and_have_cards(name: str) -> None:
    one = adapter.load(MODELS / name)
    assert one.settings.name == name
    assert "int8" in one.precisions
    assert one.settings.license == "Apache-2.0"
    card = one.read("README.md").decode()
    assert name in card
    assert "template" in card


@pytest.mark.parametrize("name", bundled.BASES)
def test_base_models_have_cards(name: str) -> None:
    cards = [path.read_text("utf-8") for path in MODELS.glob("*.md")]
    assert any(f"{name}.gguf" in card for card in cards)
