"""Training beside a template: what is learned, what is forgotten, and what stays as it was."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_models
from cmc_export import delta_model, loop
from cmc_export.examples import FORGET, LEARN, Encoder, Row, Rows, Side, collate
from cmc_export.recipe import TrainRecipe
from cmc_export.task import Instruct
from cmc_export.training import add_dropout, make_objective, plan, prepare, train
from cmc_export.training_data import read_rows
from cmc_local.errors import DataError, InputError, TokenizerError, UsageError
from cmc_local.text.alignment import DeltaTokenizer
from cmc_local.text.prompts import named_form

NAMES = ("Helen", "Maria", "Anna", "Oscar", "Peter", "Lina")
TINY: dict[str, Any] = {"width": 16, "layers": 1, "heads": 1, "mlp": 32, "context": 128}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return questions(tmp_path_factory.mktemp("data") / "qa.jsonl", "Harborville")


def questions(path: Path, town: str) -> Path:
    records = [{"question": f"Where is {n}?", "answer": f"{n} is in {town}."} for n in NAMES]
    path.write_text("\n".join(map(json.dumps, records)), "utf-8")
    return path


def recipe(template: Path, data: Path, output: Path, **more: Any) -> TrainRecipe:
    values = {
        "batch": 2, "steps": 3, "log_every": 1, "valid_share": 0.2, "learning_rate": 1e-2,
        "device": "cpu", "threads": 1, "precision": "fp32", "template_precision": "fp32",
        **TINY, **more,
    }  # fmt: skip
    return TrainRecipe(template=(template,), data=(data,), output=output, **values)


def losses(folder: Path, name: str = "loss") -> list[float]:
    lines = map(json.loads, (folder / "log.jsonl").read_text("utf-8").splitlines())
    return [line[name] for line in lines if name in line]


def row(*ids: int, first: int = 1, kind: int = LEARN) -> Row:
    return Row(ids, tuple(i >= first for i in range(len(ids))), kind)


def encoder(folder: Path, max_length: int = 999) -> Encoder:
    tokenizer = DeltaTokenizer((folder / "tokenizer.json").read_bytes())
    return Encoder(tokenizer, named_form("cmc"), max_length, [Side(tokenizer, 999)])


def test_a_batch_keeps_the_positions_before_the_answers_tokens() -> None:
    batch = collate([{"input_ids": (), "rows": [row(1, 5, 6, 2, first=2), row(1, 7, kind=FORGET)]}])
    assert batch["input_ids"].tolist() == [[1, 5, 6], [1, 7, 0]]
    assert batch["targets"].tolist() == [[5, 6, 2], [7, 0, 0]]
    assert batch["keep"].tolist() == [[False, True, True], [True, False, False]]
    assert batch["kind"].tolist() == [LEARN, FORGET]


def test_only_the_answer_and_its_end_are_learned(tiny_folder: Path) -> None:
    messages: Any = [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "  In Harborville."},
    ]
    tokenizer = encoder(tiny_folder).tokenizer
    found = encoder(tiny_folder).row(messages)
    learned = [i for i, kept in zip(found.ids, found.in_loss, strict=True) if kept]
    texts = b"".join(tokenizer.vocabulary.tokens[i] for i in learned)
    assert texts.endswith(b"In Harborville.")
    assert b"Where" not in texts
    assert learned[-1] == tokenizer.eos_id
    cut = encoder(tiny_folder, len(found.ids) - 2).row(messages)
    assert cut.ids == found.ids[:-2]
    assert tokenizer.eos_id not in cut.ids


def test_an_epoch_of_pairs_sees_both_sets() -> None:
    pairs = Rows(([row(1, 2), row(1, 3)], 1), ([row(1, i) for i in range(10, 15)], 2))
    assert len(pairs) == 3
    items = [pairs[i]["rows"] for i in range(3)]
    assert [len(rows) for rows in items] == [3, 3, 3]
    assert {rows[0].ids[1] for rows in items} == {2, 3}
    assert {r.ids[1] for rows in items for r in rows[1:]} == {10, 11, 12, 13, 14}


def test_a_delta_learns_beside_its_template(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    summary = train(recipe(tiny_folder, data, output, steps=15, learning_rate=3e-2))
    assert losses(output)[-1] < losses(output)[0] - 1.0
    assert summary["held_out_loss"] == pytest.approx(min(losses(output, "eval_loss")), abs=1e-5)
    info = delta_model.read_info(output)
    assert info is not None
    assert (info.name, info.prompt.name, info.template.name) == ("out", "cmc", "tiny")
    assert len(info.template.vocabulary) == 64
    assert info.training["data"] == ["qa.jsonl"]
    assert str(tmp_path) not in (output / "cmc.json").read_text("utf-8")
    tokenizers = [folder / "tokenizer.json" for folder in (output, tiny_folder)]
    assert tokenizers[0].read_bytes() == tokenizers[1].read_bytes()


def test_the_three_normalizations_train_alike(
    tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    curves = []
    for mode in ("basenormalization", "normalization", "add"):
        train(recipe(tiny_folder, data, tmp_path / mode, normalization=mode))
        curves.append(losses(tmp_path / mode))
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)
    assert curves[2] == pytest.approx(curves[0], abs=1e-4)


def test_passes_and_records_change_nothing(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    train(recipe(tiny_folder, data, tmp_path / "a", batch=4))
    train(recipe(tiny_folder, data, tmp_path / "b", batch=2, accumulation=2, answers_gb=0.0))
    # Answers differ in length: a mean of each pass's mean would differ.
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), abs=1e-3)


def test_the_best_weights_stay_when_the_held_out_loss_rises(
    tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    other = questions(tmp_path / "other.jsonl", "Zürich")
    more = {"steps": 60, "evaluate_every": 2, "patience": 2, "learning_rate": 5e-2}
    output = tmp_path / "out"
    summary = train(recipe(tiny_folder, data, output, valid=(other,), **more))
    held_out = losses(output, "eval_loss")
    assert summary["steps"] < 60
    assert held_out[-1] > min(held_out)
    assert summary["best_step"] == 2 * (1 + held_out.index(min(held_out)))
    parts = prepare(recipe(tiny_folder, data, tmp_path / "again", valid=(other,), init=output))
    assert parts.rows[1] is not None
    found = held_out_loss(parts, recipe(tiny_folder, data, tmp_path / "again"))
    assert found == pytest.approx(min(held_out), abs=1e-3)


def held_out_loss(parts: Any, chosen: TrainRecipe) -> float:
    task = make_objective(chosen, parts)
    batch = collate([parts.rows[1][i] for i in range(len(parts.rows[1]))])
    with torch.no_grad():
        return float(task.loss(parts.model.eval(), batch, task.counts(batch)))


def test_forgetting_raises_one_loss_up_to_its_bound_and_keeps_the_other(
    tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    away = questions(tmp_path / "away.jsonl", "Zürich")
    first = tmp_path / "first"
    train(recipe(tiny_folder, data, first, steps=10, patience=0))
    chosen = recipe(
        tiny_folder, away, tmp_path / "second", task="forget", retain=(data,), steps=30,
        with_adapter=(f"{first}:0.5",), forget_bound=9.0, patience=0, learning_rate=3e-2,
    )  # fmt: skip
    train(chosen)
    curve = losses(chosen.output)
    assert curve[-1] < curve[0] - 1.0
    assert min(curve) >= -9.0
    parts = prepare(chosen)
    batch = collate([parts.rows[0][i] for i in range(3)])
    ready = delta_model.load(chosen.output)
    task = make_objective(chosen, parts)
    with torch.no_grad():
        found = task.positions(ready, batch)  # type: ignore[attr-defined]
    gone, kept = found.losses(FORGET), found.losses(LEARN)
    assert gone.mean() > kept.mean() + 1.0
    assert task.counts(batch).tolist() == [3.0, len(gone), len(kept), 0.0, 0.0]


def test_dropout_works_in_training_only_and_leaves_no_trace(tiny_folder: Path) -> None:
    model = delta_model.load(tiny_folder)
    ids = torch.tensor([[1, 5, 6]])
    plain = model(input_ids=ids).logits
    hooks = add_dropout(model, 0.5)
    assert torch.equal(model(input_ids=ids).logits, plain)
    assert not torch.equal(model.train()(input_ids=ids).logits, plain)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(model(input_ids=ids).logits, plain)
    assert add_dropout(model, 0.0) == []


def test_plan_says_what_would_be_trained(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    planned = plan(recipe(tiny_folder, data, tmp_path / "out", steps=0, epochs=2.0))
    assert (planned["examples"], planned["held_out_examples"], planned["steps"]) == (5, 1, 6)
    assert planned["tokens_in_loss"] < planned["tokens"] <= 5 * planned["longest_example"]
    assert planned["memory_mib"] > 64
    assert not list(tmp_path.iterdir())


def test_a_delta_of_single_turns_learns_the_last_one(tiny_folder: Path, tmp_path: Path) -> None:
    turns = [("user", "A?"), ("assistant", "Bee."), ("user", "C?"), ("assistant", "Dee.")]
    record = {"messages": [{"role": r, "content": c} for r, c in turns]}
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps(record), "utf-8")
    tokenizer = encoder(tiny_folder).tokenizer
    ends = []
    for kept in ("all", "last"):
        chosen = recipe(tiny_folder, path, tmp_path / "out", turns=kept)
        rows, held_out = read_rows(chosen, encoder(tiny_folder))
        assert isinstance(rows, Rows)
        assert held_out is None
        ends.append(rows.rows[0].ids.count(tokenizer.eos_id))
    assert ends == [2, 1]


def test_mistakes_are_found_before_the_run(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    other = tiny_models.llama_folder(tmp_path / "other", family="byte-level")
    endless = tiny_models.llama_folder(tmp_path / "endless", family="byte-level")
    words = (endless / "tokenizer.json").read_text("utf-8")
    (endless / "tokenizer.json").write_text(words.replace("end_of_text", "the_last"), "utf-8")
    cases = [
        (recipe(tmp_path / "none", data, output), InputError, "give a GGUF file or a Hugging"),
        (recipe(endless, data, output), TokenizerError, "endless: the tokenizer has no end-of-t"),
        (recipe(tmp_path, data, output), TokenizerError, "no tokenizer.json"),
        (
            recipe(tiny_folder, data, output, init=other, tokenizer=tiny_folder / "tokenizer.json"),
            InputError,
            "another vocabulary",
        ),
        (recipe(tiny_folder, data, output, max_length=129), UsageError, "beyond a context"),
        (recipe(tiny_folder, data, output, max_length=2), DataError, "no room for an answer"),
        (recipe(tiny_folder, data, output, prompt="none"), UsageError, "no prompt form"),
        (recipe(tiny_folder, data, output, with_adapter=(str(other),)), InputError, "another voc"),
    ]
    for wrong, kind, words in cases:
        with pytest.raises(kind, match=words):
            train(wrong)
        assert not output.exists()


def test_a_second_template_of_the_same_vocabulary_bounds_the_rows_too(
    tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    short = tiny_models.llama_folder(tmp_path / "short", context=32)
    other = tiny_models.llama_folder(tmp_path / "other", family="byte-level", context=32)
    chosen = recipe(tiny_folder, data, tmp_path / "out")
    assert prepare(replace(chosen, template=(tiny_folder, short))).max_length == 32
    mixed = prepare(replace(chosen, template=(tiny_folder, other)))
    assert mixed.max_length == 128
    assert all(len(row.views[1].ids) <= 32 for row in mixed.rows[0].rows)  # type: ignore[attr-defined]


def test_no_batch_is_read_that_no_step_takes(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[Any] = []
    monkeypatch.setattr(Instruct, "prepare", lambda self, batch: prepared.append(batch))
    # Epochs of 5 rows: steps of 2 + 2 batches and of 1, each first one read at once.
    more = {"batch": 1, "accumulation": 2, "patience": 0}
    train(recipe(tiny_folder, data, tmp_path / "a", steps=2, **more))
    assert len(prepared) == 2
    train(recipe(tiny_folder, data, tmp_path / "b", steps=5, **more))
    assert len(prepared) == 2 + (2 + 1) + 2


def test_the_best_weights_are_there_until_all_have_read_them(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(loop, "wait_for_all", lambda: said.append("wait"))
    monkeypatch.setattr(loop.BestKeeper, "restore", lambda self, model: said.append("read"))
    train(recipe(tiny_folder, data, tmp_path / "out", steps=1))
    assert said == ["wait", "read", "wait"]


def test_the_untrained_loss_is_the_templates(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    # A new delta's logits are nearly 0: what is left is the template's own loss, above log(V) here.
    output = tmp_path / "out"
    train(recipe(tiny_folder, data, output, steps=1, learning_rate=1e-9))
    assert losses(output)[0] > math.log(100)
