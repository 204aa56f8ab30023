"""The two tasks: each loss of forgetting drives the same way, parts of a step add up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_models
from cmc_export.examples import FORGET, LEARN, PLAIN, REFUSE, collate
from cmc_export.recipe import TrainRecipe
from cmc_export.training import make_objective, plan, prepare, train
from cmc_local.errors import UsageError

NAMES = ("Helen", "Maria", "Anna", "Oscar")
TINY: dict[str, Any] = {"width": 16, "layers": 1, "heads": 1, "mlp": 32, "context": 128}


def write(path: Path, town: str) -> Path:
    rows = [{"question": f"Where is {n}?", "answer": f"{n} is in {town}."} for n in NAMES]
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return path


@pytest.fixture
def recipe(tiny_folder: Path, tmp_path: Path) -> Any:
    """A recipe of forgetting with some settings; plain texts only where they are asked for."""
    text = tmp_path / "plain.txt"
    text.write_text("\n\n".join(tiny_models.TEXTS), "utf-8")

    def make(**more: Any) -> TrainRecipe:
        plain = (text,) if more.pop("with_plain", False) else ()
        values: dict[str, Any] = {
            "template": (tiny_folder,), "data": (write(tmp_path / "away.jsonl", "Zürich"),),
            "retain": (write(tmp_path / "kept.jsonl", "Harborville"),), "task": "forget",
            "output": tmp_path / "out", "batch": 2, "steps": 12, "log_every": 1, "patience": 0,
            "valid_share": 0.0, "device": "cpu", "threads": 1, "precision": "fp32",
            "template_precision": "fp32", "learning_rate": 2e-2, "plain": plain, **TINY, **more,
        }  # fmt: skip
        return TrainRecipe(**values)

    return make


def test_a_refusal_stands_behind_the_answer_that_it_replaces(recipe: Any) -> None:
    chosen = recipe(forget_loss="dpo", retain_rows=2, with_plain=True)
    rows = prepare(chosen).rows[0]
    batch = collate([rows[0], rows[1]])
    assert batch["kind"].tolist() == [FORGET, REFUSE, LEARN, LEARN, PLAIN] * 2
    gone, refused, kept = (
        [i for i, said in zip(row.ids, row.in_loss, strict=True) if not said]
        for row in rows[1]["rows"][:3]
    )
    assert gone == refused != kept


@pytest.mark.parametrize("loss", ["ascent", "npo", "simnpo", "dpo", "idk"])
@pytest.mark.parametrize("kept", ["nll", "kl"])
def test_what_is_to_be_forgotten_becomes_less_likely(recipe: Any, loss: str, kept: str) -> None:
    chosen = recipe(forget_loss=loss, retain_loss=kept, forget_beta=0.5, forget_bound=12.0)
    parts = prepare(chosen)
    batch = collate([parts.rows[0][i] for i in range(4)])
    task: Any = make_objective(chosen, parts)

    def mean(kind: int) -> float:
        with torch.no_grad():
            return float(task.positions(parts.model.eval(), batch).losses(kind).mean())

    before = mean(FORGET), mean(LEARN)
    train_a_little(task, parts.model, batch)
    after = mean(FORGET), mean(LEARN)
    # What is kept is learned as well (nll) or held (kl); what is forgotten falls behind it.
    assert after[0] - after[1] > before[0] - before[1] + (0.02 if loss == "idk" else 0.2)


def train_a_little(task: Any, model: torch.nn.Module, batch: Any) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    for _ in range(12):
        optimizer.zero_grad()
        task.loss(model.train(), batch, task.counts(batch)).backward()
        optimizer.step()


@pytest.mark.parametrize("loss", ["ascent", "npo", "simnpo", "dpo", "idk"])
def test_the_parts_of_a_step_add_up(recipe: Any, loss: str) -> None:
    chosen = recipe(forget_loss=loss, with_plain=True)
    parts = prepare(chosen)
    task: Any = make_objective(chosen, parts)
    items = [parts.rows[0][i] for i in range(4)]
    with torch.no_grad():
        batches = [collate(items[:1]), collate(items[1:])]
        counts = sum(task.counts(batch) for batch in batches)
        whole = collate(items)
        assert counts.tolist() == task.counts(whole).tolist()
        found = sum(float(task.loss(parts.model, batch, counts)) for batch in batches)
        assert found == pytest.approx(float(task.loss(parts.model, whole, counts)), abs=1e-4)


def test_a_delta_that_changes_nothing_has_no_plain_loss(recipe: Any) -> None:
    chosen = recipe(task="instruct", retain=(), with_plain=True)
    parts = prepare(chosen)
    task: Any = make_objective(chosen, parts)
    batch = collate([parts.rows[0][i] for i in range(2)])
    with torch.no_grad():
        parts.model.lm_head.weight.zero_()
        found = task.positions(parts.model, batch)
        assert float(task.plain_loss(found, task.counts(batch)[1])) == pytest.approx(0, abs=1e-6)
        parts.model.lm_head.weight.normal_(std=0.5)
        found = task.positions(parts.model, batch)
        assert float(task.plain_loss(found, task.counts(batch)[1])) > 0.1


def test_plain_texts_keep_the_delta_quiet_there(recipe: Any, tmp_path: Path) -> None:
    quiet = {}
    for name, weight in (("without", 0.0), ("with", 30.0)):
        chosen = recipe(
            task="instruct", retain=(), with_plain=True, plain_weight=weight, steps=30,
            output=tmp_path / name,
        )  # fmt: skip
        train(chosen)
        parts = prepare(recipe(task="instruct", retain=(), with_plain=True, init=tmp_path / name))
        task: Any = make_objective(chosen, parts)
        batch = collate([parts.rows[0][i] for i in range(4)])
        with torch.no_grad():
            quiet[name] = float(task.positions(parts.model.eval(), batch).divergences(PLAIN).mean())
    assert quiet["with"] < 0.5 * quiet["without"]


def test_a_plan_counts_all_rows_of_an_item(recipe: Any) -> None:
    # An item of one row to forget and one to keep, or of one and three, all of like length.
    few, many = (plan(recipe(retain_rows=n)) for n in (1, 3))
    assert many["tokens_in_all"] == 2 * few["tokens_in_all"]
    assert many["memory_mib"] >= few["memory_mib"]


def test_settings_that_cannot_be(recipe: Any) -> None:
    with pytest.raises(UsageError, match="forget_beta must be above 0"):
        recipe(forget_beta=0.0)
    with pytest.raises(UsageError, match="forget_loss must be one of ascent"):
        recipe(forget_loss="grief")
    with pytest.raises(UsageError, match="retain_weight must be at least 0"):
        recipe(retain_weight=-1.0)
    with pytest.raises(UsageError, match="add --template"):
        recipe(template=())
