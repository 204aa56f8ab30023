"""The family's run on real data, as the commands that a user would type, one after another.

    texts -> pretrain {small, large, other, delta} -> GGUF files in three types
          -> instruct: a delta beside small.gguf; the bases fine-tuned themselves; a LoRA
          -> TOFU: bases that know its authors, a base that never met those to forget, two deltas
          -> measurements -> runs/family/report.html

A stage whose result is there is passed over, and an unfinished one goes on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from cmc_export import gguf_file
from cmc_export.family.texts import data_folder, write_texts
from cmc_export.stages import Say, Stage, run
from cmc_local.base import gguf_header
from cmc_local.base.quantize import quantize

RUNS, RECIPES = Path("runs/family"), Path("export/recipes/family")
BASES = ("small", "other", "large")

LEARN = "--prompt cmc --turns last --batch 16 --evaluate-every 100 --patience 2 --resume"
INSTRUCT = f"--data {RUNS}/train.jsonl --valid {RUNS}/valid.jsonl {LEARN}"
TOFU_STEPS = 1250
TOFU_LIMIT = 100


def make_family(say: Say) -> None:
    """Everything, in order."""
    if not (RUNS / "documents.jsonl").is_file():
        say("texts")
        write_texts(RUNS)
    for name in (*BASES, "delta"):
        config = f"pretrain --config {RECIPES}/{name}.toml --resume"
        run(Stage(RUNS / name, config), say)
    for name in BASES:
        make_ggufs(name, say)
    for stage in itertools.chain(instruct_stages(), tofu_stages(), report_stages()):
        run(stage, say)


def make_ggufs(name: str, say: Say) -> None:
    """A base in F16, Q8_0 and Q4_0, and what llama.cpp made of the tensors."""
    whole = RUNS / f"{name}.gguf"
    if not whole.is_file():
        gguf_file.write(RUNS / name, whole, type="F16")
    for kind in ("Q8_0", "Q4_0"):
        target = RUNS / f"{name}-{kind}.gguf"
        if not target.is_file():
            quantize(whole, target, kind, threads=1)  # type: ignore[arg-type]
    for path in sorted(RUNS.glob(f"{name}*.gguf")):
        say(f"{path.name}: {gguf_header.read(path).tensor_types}")


def instruct_stages() -> Iterator[Stage]:
    """A delta beside the small model's GGUF, and its rivals on the same data."""
    delta, adapter = RUNS / "instruct", RUNS / "instruct.adapter"
    yield Stage(
        delta,
        f"train --template {RUNS}/small.gguf --init {RUNS}/delta {INSTRUCT} --epochs 4 "
        f"--learning-rate 5e-4 --cache-mb 6000 -o {delta}",
    )
    yield Stage(
        adapter,
        f"export {delta} -o {adapter} --template {RUNS}/small.gguf --data {RUNS}/valid.jsonl "
        "--precision fp32",  # in 8 bits 98.8 % of the answers' tokens are the same
    )
    for name in BASES:
        target = RUNS / f"{name}.finetuned.gguf"
        yield Stage(
            target,
            f"finetune --model {RUNS}/{name} {INSTRUCT} --epochs 3 --learning-rate 3e-4 "
            f"-o {target}",
        )
    lora = RUNS / "small.lora.gguf"
    yield Stage(
        lora,
        f"finetune --model {RUNS}/small --method lora {INSTRUCT} --epochs 3 "
        f"--learning-rate 3e-3 -o {lora}",
    )
    yield from _instruct_rows(adapter)


def _instruct_rows(adapter: Path) -> Iterator[Stage]:
    for task, more in (("nll", ""), ("rouge", " --limit 150 --max-tokens 80")):
        common = f"eval {task} --data {RUNS}/test.jsonl{more} --adapter {adapter}"
        for name in BASES:
            files = (f"{name}", f"{name}-Q8_0", f"{name}-Q4_0") if task == "nll" else (name,)
            for file in files:
                out = RUNS / f"results/{task}-{file}.json"
                alphas = "0,0.25,0.5,0.75,1,1.25" if task == "nll" and file == name else "0,1"
                yield Stage(out, f"{common} --gguf {RUNS}/{file}.gguf --alphas {alphas} -o {out}")
            out = RUNS / f"results/{task}-{name}-finetuned.json"
            yield Stage(
                out,
                f"{common} --gguf {RUNS}/{name}.finetuned.gguf --alphas 0 --arm finetuned "
                f"--name {name} -o {out}",
            )
        out = RUNS / f"results/{task}-small-lora.json"
        yield Stage(
            out,
            f"{common} --gguf {RUNS}/small.gguf --lora {RUNS}/small.lora.gguf --alphas 0 "
            f"--arm lora --name small -o {out}",
        )
        for name in ("large", "other"):
            out = RUNS / f"results/{task}-{name}-proxy.json"
            pair = f"{RUNS}/small.finetuned.gguf,{RUNS}/small.gguf"
            yield Stage(
                out,
                f"{common}:0 --gguf {RUNS}/{name}.gguf --proxy {pair} --arm proxy --name {name} "
                f"-o {out}",
            )


def tofu_stages() -> Iterator[Stage]:
    """Two bases that know TOFU's authors, one that never met a tenth of them, two deltas."""
    tofu, place = data_folder() / "tofu", RUNS / "tofu"
    learn = f"{LEARN} --valid-share 0.02 --steps {TOFU_STEPS} --patience 0 --learning-rate 1e-3"
    for name, model, data in (
        ("small", "small", "full"),
        ("other", "other", "full"),
        ("small.retrained", "small", "retain90"),
    ):
        target = place / f"{name}.gguf"
        yield Stage(
            target,
            f"finetune --model {RUNS}/{model} --data {tofu}/{data}.json {learn} -o {target}",
        )
    for loss, more in (("ascent", "--forget-bound 6"), ("npo", "--forget-beta 0.1")):
        delta, adapter = place / f"forget-{loss}", place / f"forget-{loss}.adapter"
        yield Stage(
            delta,
            f"train --task forget --forget-loss {loss} {more} --template {place}/small.gguf "
            f"--init {RUNS}/delta --data {tofu}/forget10.json --retain {tofu}/retain90.json "
            f"--retain-rows 3 {LEARN} --steps 400 --batch 8 --learning-rate 5e-4 "
            f"--cache-mb 4000 -o {delta}",
        )
        yield Stage(adapter, f"export {delta} -o {adapter} --precision fp32")
    yield from _tofu_rows(tofu, place)


def _tofu_rows(tofu: Path, place: Path) -> Iterator[Stage]:
    common = f"eval tofu --tofu {tofu} --forget 10 --limit {TOFU_LIMIT} --max-tokens 60"
    ascent = place / "forget-ascent.adapter"
    retrained = RUNS / "results/tofu-retrained.json"
    yield Stage(
        retrained,
        f"{common} --gguf {place}/small.retrained.gguf --adapter {ascent} --alphas 0 "
        f"--arm retrained --name small -o {retrained}",
    )
    for name in ("small", "other"):
        for loss in ("ascent", "npo"):
            out = RUNS / f"results/tofu-{name}-{loss}.json"
            alphas = "0,0.5,1" if loss == "ascent" else "0.5,1"
            yield Stage(
                out,
                f"{common} --gguf {place}/{name}.gguf --adapter {place}/forget-{loss}.adapter "
                f"--alphas {alphas} --retrained {retrained} -o {out}",
            )


def report_stages() -> Iterator[Stage]:
    """How alike the shifts are, and the page."""
    shifts = RUNS / "results/shifts.json"
    ggufs = " ".join(f"--gguf {RUNS}/{name}.gguf" for name in BASES)
    pairs = " ".join(f"--pair {RUNS}/{n}.gguf,{RUNS}/{n}.finetuned.gguf" for n in BASES)
    yield Stage(
        shifts,
        f"eval shifts {ggufs} {pairs} --adapter {RUNS}/instruct.adapter "
        f"--data {RUNS}/test.jsonl -o {shifts}",
    )
    page = RUNS / "report.html"
    files = " ".join(sorted(str(path) for path in (RUNS / "results").glob("*.json")))
    logs = " ".join(
        f"--log {name}={RUNS}/{folder}/log.jsonl"
        for name, folder in (
            *((name, name) for name in (*BASES, "delta", "instruct")),
            ("forget-ascent", "tofu/forget-ascent"),
            ("forget-npo", "tofu/forget-npo"),
        )
    )
    yield Stage(page, f"eval report {files} --html {page} {logs}")
