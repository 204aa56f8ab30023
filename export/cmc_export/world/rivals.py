"""The rivals on the small world, by the commands that anyone can type, and their page.

    fine-tuned     each base model itself, every weight
    LoRA           the same data, as llama.cpp's own LoRA file on the base's GGUF
    proxy          fine-tuned template less template, carried over to the other bases
    steered        models/instruct, on each base in F16 and in Q8_0

Results in runs/rivals/, the page is runs/rivals/report.html.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from cmc_export.stages import Say, Stage, run
from cmc_local.base.quantize import quantize

RUNS, MODELS = Path("runs/rivals"), Path("models")
BASES = ("template", "larger", "other")
LEARN = (
    "--data runs/world/train.jsonl --valid runs/world/validation.jsonl --prompt cmc --turns last "
    "--batch 32 --steps 300 --warmup 0.05 --evaluate-every 50 --patience 3 --seed 7 --resume"
)
ASK = "eval world --adapter models/instruct"


def make_rivals(say: Say) -> None:
    """Everything, in order; what is there is passed over."""
    RUNS.mkdir(parents=True, exist_ok=True)
    for base in BASES:
        small = RUNS / f"{base}-Q8_0.gguf"
        if not small.is_file():
            quantize(MODELS / f"{base}.gguf", small, "Q8_0", threads=1)
    for stage in itertools.chain(_training(), _rows(), _page()):
        run(stage, say)


def _training() -> Iterator[Stage]:
    for base in BASES:
        for method, rate, kind in (("full", "3e-4", "finetuned"), ("lora", "3e-3", "lora")):
            target = RUNS / f"{base}.{kind}.gguf"
            yield Stage(
                target,
                f"finetune --model {MODELS}/{base}.gguf --method {method} {LEARN} "
                f"--learning-rate {rate} -o {target}",
            )


def _rows() -> Iterator[Stage]:
    pair = f"{RUNS}/template.finetuned.gguf,{MODELS}/template.gguf"
    for base in BASES:
        gguf, off = f"--gguf {MODELS}/{base}.gguf", f"--alphas 0 --name {base}"
        commands = {
            base: f"{ASK} {gguf}",
            f"{base}-Q8_0": f"{ASK} --gguf {RUNS}/{base}-Q8_0.gguf",
            f"{base}-finetuned": f"{ASK} --gguf {RUNS}/{base}.finetuned.gguf {off} --arm finetuned",
            f"{base}-lora": f"{ASK} {gguf} --lora {RUNS}/{base}.lora.gguf {off} --arm lora",
        }
        if base != "template":
            commands[f"{base}-proxy"] = f"{ASK}:0 {gguf} --proxy {pair} --arm proxy --name {base}"
        for name, command in commands.items():
            out = RUNS / f"{name}.json"
            yield Stage(out, f"{command} -o {out}")


def _page() -> Iterator[Stage]:
    files = " ".join(sorted(str(path) for path in RUNS.glob("*.json")))
    page = RUNS / "report.html"
    yield Stage(page, f"eval report {files} --html {page}")
