"""Models that are no llamas: PyTorch computes what llama.cpp does, before and after fine-tuning.

The GGUFs hold random numbers, written without the code under test. The three real models are read
too, where CMC_REAL names their folder.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

import tiny_models
from cmc_export import asked_examples, finetuning, gguf_reader
from cmc_local.base.model import BaseModel
from cmc_local.errors import GGUFError, UsageError
from cmc_local.text.base_prompt import choose_form, fit
from cmc_local.text.history import read_history

NEAR = {"qwen2": 1e-4, "gemma3": 2e-3}
"""llama.cpp looks gemma3's GELU up in a table of half precision."""
KINDS = tuple(NEAR)
TOKENS = [1, 300, 17, 350, 299, 300, 8, 340, 3, 260, 7, 9]
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "qa.jsonl"
    records = [{"question": f"Where is {n}?", "answer": f"{n} is here."} for n in ("Ann", "Bob")]
    path.write_text("\n".join(map(json.dumps, records)), "utf-8")
    return path


def by_llama_cpp(
    path: Path, tokens: list[int], loras: list[tuple[Path, float]] | None = None
) -> NDArray[np.float32]:
    """(T, V) float32, logits."""
    with BaseModel(path, kv_type="f32", threads=1, gpu_layers=0, loras=loras or []) as base:
        base.decode(tokens, start=0, last_only=False)
        return np.stack([base.logits(i).copy() for i in range(len(tokens))])


@torch.no_grad()
def by_pytorch(model: PreTrainedModel, tokens: list[int]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = model.eval()(torch.tensor([tokens])).logits[0].numpy()
    return found


def difference(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.abs(one - other).max() / np.abs(other).max())


def train(monkeypatch: pytest.MonkeyPatch, **values: Any) -> PreTrainedModel:
    """Fine-tune by a recipe; the model that learned, as PyTorch has it."""
    seen: list[PreTrainedModel] = []
    real = finetuning.read_base

    def note(recipe: finetuning.FinetuneRecipe) -> finetuning.Base:
        base = real(recipe)
        seen.append(base.model)
        return base

    monkeypatch.setattr(finetuning, "read_base", note)
    usual = {"steps": 4, "batch": 2, "threads": 1, "device": "cpu", "precision": "fp32"}
    finetuning.finetune(finetuning.recipe_of({**usual, "tensor_type": "F32", **values}))
    return seen[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_ggufs_model_has_llama_cpps_logits(tmp_path: Path, kind: Any) -> None:
    path = tiny_models.gguf_of_kind(tmp_path / "m.gguf", kind)
    got = by_pytorch(gguf_reader.read(path), TOKENS)
    assert difference(got, by_llama_cpp(path, TOKENS)) < NEAR[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", finetuning.METHODS)
def test_what_was_learned_is_what_llama_cpp_runs(
    tmp_path: Path, data: Path, kind: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_models.gguf_of_kind(tmp_path / "m.gguf", kind)
    output = tmp_path / "tuned.gguf"
    what = {"model": base, "data": (data,), "valid": (data,), "output": output, "method": method}
    trained = train(monkeypatch, **what, learning_rate=3e-2, patience=0)
    before = by_llama_cpp(base, TOKENS)
    if method == "lora":
        after = by_llama_cpp(base, TOKENS, [(output, 1.0)])
    else:
        after = by_llama_cpp(output, TOKENS)
    assert difference(after, by_pytorch(trained, TOKENS)) < NEAR[kind]
    assert difference(after, before) > 0.05


def test_in_bf16_what_learns_and_what_is_looked_up_stays_float32(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_models.gguf_of_kind(tmp_path / "m.gguf", "qwen2")
    what = {"model": base, "data": (data,), "output": tmp_path / "l.gguf", "method": "lora"}
    trained = train(monkeypatch, **what, precision="bf16", learning_rate=1e-2)
    kinds = {name: weight.dtype for name, weight in trained.named_parameters()}
    block = "model.layers.0.self_attn.q_proj."
    assert kinds[block + "base_layer.weight"] == torch.bfloat16
    assert kinds[block + "base_layer.bias"] == torch.float32
    assert kinds[block + "lora_A.default.weight"] == torch.float32
    assert kinds["model.embed_tokens.weight"] == torch.float32


# --- the prompts that it is trained on ------------------------------------------------------------

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where?"},
    {"role": "assistant", "content": " In town."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Helen."},
]


def test_an_example_is_asked_as_the_runner_asks(tmp_path: Path) -> None:
    path = tiny_models.gguf_of_kind(tmp_path / "m.gguf", "qwen2", TEMPLATE)
    first, second = asked_examples.encode(path, [TALK], 100)  # type: ignore[list-item]
    with BaseModel(path, threads=1, gpu_layers=0) as base:
        pieces, eos = base.vocabulary.tokens, base.vocabulary.eos_id
        asked = fit(
            base, choose_form(base, None, None), read_history(TALK[:4]), context=128, reserve=8
        )  # type: ignore[arg-type]
    answers = []
    for item in (first, second):
        learned = [
            i for i, wanted in zip(item["input_ids"], item["in_loss"], strict=True) if wanted
        ]
        assert learned[-1] == eos
        answers.append(b"".join(pieces[i] for i in learned[:-1]))
    assert answers == [b"In town.", b"Helen."]
    prompt = second["input_ids"][: len(asked.tokens)]
    assert prompt == asked.tokens
    assert not any(second["in_loss"][: len(prompt)])
    text = b"".join(pieces[i] for i in prompt)
    assert text.endswith(
        b"[system] Be brief.\n[user] Where?\n[assistant]  In town.\n[user] Who?\n[assistant] "
    )
    (cut, _) = asked_examples.encode(path, [TALK], 3)  # type: ignore[list-item]
    assert cut["input_ids"] == first["input_ids"][:3]


def test_a_loss_in_the_models_own_template_falls(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_models.gguf_of_kind(tmp_path / "m.gguf", "gemma3", TEMPLATE)
    (item, *_) = asked_examples.encode(
        path,
        [
            [
                {"role": "user", "content": "Where is Ann?"},
                {"role": "assistant", "content": "Ann is here."},
            ]
        ],
        100,  # type: ignore[list-item]
    )
    what = {"model": path, "data": (data,), "valid": (data,), "method": "lora", "prompt": "gguf"}
    trained = train(monkeypatch, **what, output=tmp_path / "l.gguf", learning_rate=3e-2, steps=12)

    def loss(logits: NDArray[np.float32]) -> float:
        rows = torch.log_softmax(torch.from_numpy(logits), -1)
        places = [i for i, wanted in enumerate(item["in_loss"][1:]) if wanted]
        return -float(np.mean([float(rows[i, item["input_ids"][i + 1]]) for i in places]))

    tokens = list(item["input_ids"])
    before, after = loss(by_llama_cpp(path, tokens)), loss(by_pytorch(trained, tokens))
    assert after < 0.5 * before


def test_mistakes_are_told_before_anything_is_trained(
    tmp_path: Path, data: Path, tiny_folder: Path
) -> None:
    bare = tiny_models.gguf_of_kind(tmp_path / "m.gguf", "qwen2")
    common = {"data": (data,), "output": tmp_path / "o.gguf", "method": "lora", "prompt": "gguf"}
    for model, told in ((bare, "carries no chat template"), (tiny_folder, "is a folder")):
        with pytest.raises(UsageError, match=told):
            finetuning.finetune(finetuning.recipe_of({**common, "model": model}))
    with pytest.raises(GGUFError, match="kind qwen2: a delta is a llama"):
        gguf_reader.read_llama(bare)


# --- real models ---------------------------------------------------------------------------------


def real_model(beginning: str) -> Path:
    """A real GGUF of CMC_REAL; the test is skipped where there is none."""
    folder = Path(os.environ.get("CMC_REAL", ""))
    found = sorted(folder.glob(f"{beginning}*.gguf")) if "CMC_REAL" in os.environ else []
    if not found:
        pytest.skip(f"no {beginning} in CMC_REAL: set it to the folder of the real models")
    return found[0]


REAL_TEXTS = (
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))  # 5\n",
    "Rewrite the sentence in the passive voice: The chef cooks the meal every day. The meal is "
    "cooked by the chef every day.",
    "Grüße aus Zürich! 東京は日本の首都です。 1234567 tokens",
)


@pytest.mark.parametrize("model", ["smollm2", "qwen25", "gemma3"])
def test_a_real_models_next_token_is_llama_cpps(model: str) -> None:
    """Quantised weights, so not the same: `pytest -s` prints what the log of experiments has."""
    path = real_model(model)
    ours = gguf_reader.read(path)
    with BaseModel(path, kv_type="f32", threads=1, gpu_layers=0) as base:
        for text in REAL_TEXTS:
            tokens = base.tokenize(text)
            base.clear(0)
            base.decode(tokens, start=0, last_only=False)
            theirs = np.stack([base.logits(i).copy() for i in range(len(tokens))])
            mine = by_pytorch(ours, tokens)
            p, q = (torch.log_softmax(torch.from_numpy(one), -1) for one in (theirs, mine))
            apart = (p.exp() * (p - q)).sum(-1)
            alike = float((theirs.argmax(-1) == mine.argmax(-1)).mean())
            print(f"{model}: KL {apart.mean():.4f}, at most {apart.max():.4f}, alike {alike:.2f}")
            assert float(apart.mean()) < 0.03
            assert alike > 0.8
