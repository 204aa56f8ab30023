"""Recorded answers: trained with as with the template itself, shared, resumed, refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tiny_models
from cmc_export import answers, recording
from cmc_export.examples import collate
from cmc_export.recipe import TrainRecipe
from cmc_export.template_set import own_table
from cmc_export.training import make_objective, plan, prepare, record, train
from cmc_local.errors import InputError, TrainingError, UsageError

NAMES = ("Helen", "Maria", "Anna", "Oscar", "Peter", "Lina")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.llama_folder(tmp_path_factory.mktemp("t") / "base", family="byte-level")


@pytest.fixture(scope="module")
def gguf(folder: Path) -> Path:
    return tiny_models.gguf_of(folder)


@pytest.fixture
def make(tiny_folder: Path, gguf: Path, tmp_path: Path) -> Any:
    """A recipe beside a GGUF of another vocabulary than the delta's."""
    data = tmp_path / "qa.jsonl"
    rows = [{"question": f"Where is {n}?", "answer": f"{n} is in Harborville."} for n in NAMES]
    data.write_text("\n".join(map(json.dumps, rows)), "utf-8")

    def recipe(output: str = "out", **more: Any) -> TrainRecipe:
        values: dict[str, Any] = {
            "template": (gguf,), "data": (data,), "tokenizer": tiny_folder / "tokenizer.json",
            "output": tmp_path / output, "batch": 2, "epochs": 3.0, "log_every": 1,
            "valid_share": 0.2, "device": "cpu", "threads": 1, "precision": "fp32",
            "template_precision": "fp32", "learning_rate": 1e-2, "width": 16, "layers": 1,
            "heads": 1, "mlp": 32, "context": 128, "patience": 0,
        }  # fmt: skip
        return TrainRecipe(**{**values, **more})

    return recipe


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "log.jsonl").read_text("utf-8").splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def test_a_recorded_run_has_the_curve_of_one_that_asks_each_time(make: Any, folder: Path) -> None:
    curves = []
    for more in ({"answers_gb": 0.0}, {"answers_precision": "fp32"}, {}):
        chosen = make(f"out{len(curves)}", template=(folder,), **more)
        train(chosen)
        curves.append(losses(chosen.output))
    asked, recorded, half = curves
    assert len(asked) == 9
    assert recorded == pytest.approx(asked, abs=1e-4)
    assert half == pytest.approx(asked, abs=1e-3)


def test_one_table_serves_other_seeds_and_rates_without_the_template(
    make: Any, tmp_path: Path
) -> None:
    summary = record(make("table"))
    assert summary["rows"] == len(NAMES)
    table = tmp_path / "table"
    for seed, rate in ((1, 1e-2), (2, 3e-3)):
        more = {"seed": seed, "learning_rate": rate}
        train(make(f"a{seed}", answers=(table,), template=(), **more))
        train(make(f"b{seed}", **more))
        with_table, alone = losses(tmp_path / f"a{seed}"), losses(tmp_path / f"b{seed}")
        assert with_table == pytest.approx(alone, abs=1e-5)


def test_tables_of_several_templates_mix(make: Any, tiny_folder: Path, tmp_path: Path) -> None:
    record(make("one"))
    record(make("two", template=(tiny_folder,)))
    both = make("out", template=(), answers=(tmp_path / "one", tmp_path / "two"), epochs=8.0)
    train(both)
    templates = json.loads((both.output / "cmc.json").read_text("utf-8"))["training"]["templates"]
    assert templates == ["base-F32", "tiny"]
    assert losses(both.output)[-1] < losses(both.output)[0]


def test_a_table_that_is_whole_needs_no_template_on_resume(
    make: Any, gguf: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "base.gguf"
    copy.write_bytes(gguf.read_bytes())
    first = make(template=(copy,))
    make_objective(first, prepare(first))  # records, and takes no step
    assert answers.is_whole(own_table(first, 0))
    copy.unlink()
    train(make(template=(copy,), resume=True))
    assert losses(first.output)
    with pytest.raises(InputError, match="no folder and no file"):
        prepare(make("other", template=(copy,)))


@pytest.mark.parametrize(
    "more, word",
    [
        ({"prompt": "Q: {query}\nA: "}, "--prompt"),
        ({"with_adapter": True}, "adapters under it"),
        ({"tokenizer": True}, "tokenizer"),
    ],
)
def test_a_table_made_of_something_else_is_refused(
    make: Any, tmp_path: Path, more: dict[str, Any], word: str
) -> None:
    record(make("table"))
    other = tiny_models.llama_folder(tmp_path / "other", vocab_size=440)
    if more.get("tokenizer"):
        more = {"tokenizer": other / "tokenizer.json"}
    if more.get("with_adapter"):
        more = {"with_adapter": (str(tiny_models.llama_folder(tmp_path / "same")),)}
    with pytest.raises(InputError, match=word):
        train(make(template=(), answers=(tmp_path / "table",), **more))


def test_other_data_is_refused(make: Any, tmp_path: Path) -> None:
    record(make("table"))
    data = tmp_path / "more.jsonl"
    data.write_text(json.dumps({"question": "Who is she?", "answer": "Nobody."}), "utf-8")
    chosen = make(template=(), answers=(tmp_path / "table",))
    with pytest.raises(InputError, match="lacks 1 of the run's 7 rows"):
        train(make(template=(), answers=(tmp_path / "table",), data=(*chosen.data, data)))


def test_rows_are_added_to_a_finished_table(make: Any, tmp_path: Path) -> None:
    record(make("table"))
    data = tmp_path / "more.jsonl"
    data.write_text(json.dumps({"question": "Who is she?", "answer": "Nobody."}), "utf-8")
    both = make("table", data=(*make().data, data), resume=True)
    assert record(both)["rows"] == len(NAMES) + 1
    with pytest.raises(UsageError, match="--resume"):
        record(make("table"))
    with pytest.raises(InputError, match="tokenizer"):
        record(make("table", tokenizer=None, resume=True))
    train(make(template=(), answers=(tmp_path / "table",), data=both.data))
    assert losses(make().output)


def test_a_folder_without_answers_is_refused(make: Any, tiny_folder: Path) -> None:
    with pytest.raises(InputError, match="cmc-local record"):
        prepare(make(template=(), answers=(tiny_folder,)))
    with pytest.raises(UsageError, match="--template once"):
        record(make(template=(), answers=(tiny_folder,)))


def test_ctrl_c_keeps_what_is_recorded(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MOST_ROWS", 1)
    real, asked = answers.Writer.add, []

    def add(self: Any, keys: Any, counts: Any, sums: Any) -> None:
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(keys[0])
        real(self, keys, counts, sums)

    monkeypatch.setattr(answers.Writer, "add", add)
    with pytest.raises(TrainingError, match="stopped after 3 of 6 rows"):
        record(make("table"))
    monkeypatch.setattr(answers.Writer, "add", lambda *a: (asked.append(a[1][0]), real(*a))[1])
    record(make("table", resume=True))
    assert len(asked) == len(set(asked)) == len(NAMES)  # none was asked twice


def test_a_killed_recording_goes_on(make: Any, tmp_path: Path) -> None:
    chosen = make("table")
    words = [
        "record", "--template", chosen.template[0], "--data", chosen.data[0], "--tokenizer",
        chosen.tokenizer, "--context", "128", "--device", "cpu", "-o", chosen.output,
    ]  # fmt: skip
    slow = (
        "import sys, time; from cmc_export import answers, recording; recording.MOST_ROWS = 1\n"
        "real = answers.Writer.add\n"
        "def add(*a): real(*a); print('row', flush=True); time.sleep(0.5)\n"
        "answers.Writer.add = add; from cmc_local.commands import main; main(sys.argv[1:])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-c", slow, *map(str, words)],
        stdout=subprocess.PIPE, text=True, env=environment,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        assert running.stdout.readline() == "row\n"
        running.send_signal(signal.SIGKILL)
    time.sleep(0.01)
    assert not answers.is_whole(chosen.output)
    done = json.loads((chosen.output / answers.UNFINISHED).read_text("utf-8"))["rows"]
    assert 1 <= done < len(NAMES)
    record(make("table", resume=True))
    whole, fresh = answers.Answers(chosen.output), record(make("fresh"))
    assert whole.positions == fresh["positions"]


def test_a_disk_without_room_is_said_before_it_begins(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording.shutil, "disk_usage", lambda place: SimpleNamespace(free=10))
    with pytest.raises(InputError, match="make room"):
        train(make())


def test_a_run_that_sees_its_rows_once_asks_the_template(make: Any) -> None:
    chosen = make(epochs=1.0)
    make_objective(chosen, prepare(chosen))
    assert not own_table(chosen, 0).exists()
    assert plan(chosen)["answers_mib"] >= 0


def test_the_table_is_gone_when_the_run_is_done(make: Any) -> None:
    chosen = make()
    train(chosen)
    assert not own_table(chosen, 0).exists()


def test_batches_stay_within_their_memory(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = make()
    parts = prepare(chosen)
    rows = [item for i in range(len(parts.rows[0])) for item in parts.rows[0][i]["rows"]]
    tokens = 1000
    monkeypatch.setattr(recording, "LOGITS_BYTES", 4 * tokens * 2 * rows[0].loss_tokens())
    found = list(recording._batches(rows, 0, tokens))
    assert [row for batch in found for row in batch] == rows
    assert len(found) > 1
    batch = collate([{"input_ids": (), "rows": found[0]}])
    assert int(batch["keep"].sum()) <= 2 * rows[0].loss_tokens()
    assert torch.is_tensor(batch["keys"])


CHAT = (
    "{% for m in messages %}<turn>{{ m['role'] }}: {{ m['content'] }}</turn>{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant: {% endif %}"
)


def test_a_template_may_be_asked_in_its_own_chat_template(make: Any, tmp_path: Path) -> None:
    own = tiny_models.llama_folder(
        tmp_path / "chat", family="byte-level", chat_template=CHAT, context=256
    )
    gguf = tiny_models.gguf_of(own)
    chosen = make("table", template=(gguf,), template_prompt="gguf")
    parts = prepare(chosen)
    view = parts.rows[0][0]["rows"][0].views[0]
    assert view is not None
    texts = parts.sides[0].tokenizer.vocabulary.tokens
    said = b"".join(texts[i] for i in view.ids).decode("utf-8")
    assert "<turn>user: Where is" in said and "<turn>assistant: " in said
    answer = b"".join(texts[i] for i in view.targets).decode("utf-8")
    assert answer.strip() and answer in said.rpartition("<turn>assistant: ")[2]

    record(chosen)
    gguf.unlink()  # neither the template nor its file is needed any more
    train(make("a", template=(), answers=(tmp_path / "table",)))
    assert losses(tmp_path / "a")
    data = tmp_path / "more.jsonl"
    data.write_text(json.dumps({"question": "Who is she?", "answer": "Nobody."}), "utf-8")
    with pytest.raises(InputError, match="lack 1 of the conversations"):
        train(make("b", template=(), answers=(tmp_path / "table",), data=(*chosen.data, data)))


def test_a_template_without_a_chat_template_cannot_be_asked_in_it(make: Any) -> None:
    with pytest.raises(UsageError, match="no chat template"):
        prepare(make(template_prompt="gguf"))
