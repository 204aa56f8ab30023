"""Training on a GPU: the delta there, the GGUF template there too if llama.cpp can, as on the CPU.

    python tests/gpu/train_check.py [--template FILE_OR_FOLDER] [--steps 20]

Run by hand on a machine with a GPU and the extra `train`. Trains the same delta twice, on the CPU
and on the GPU, and compares the loss curves; beside a GGUF the template is offloaded where this
build of llama.cpp offloads. Exit code 1 unless PyTorch has a GPU and the curves agree. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch

from cmc_export.recipe import TrainRecipe
from cmc_export.training import train
from cmc_local import bundled
from cmc_local.base.library import offloads_to_gpu

LARGEST_DIFFERENCE = 2e-2  # nats; a quantised or 16-bit template rounds otherwise on a GPU


def curve(template: Path, folder: Path, steps: int, device: str) -> list[float]:
    """The loss of every step."""
    data = folder / "data.jsonl"
    names = ("Flora", "Olive", "Carl", "Walter", "Celia", "Oscar", "Lucy", "Bruno")
    rows = [
        {"question": f"Where does {n} live?", "answer": f"{n} lives by the sea."} for n in names
    ]
    data.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    train(
        TrainRecipe(
            template=(template,),
            data=(data,),
            output=folder / device,
            steps=steps,
            batch=4,
            log_every=1,
            valid_share=0.0,
            precision="fp32",
            template_precision="fp32",
            device=device,
            template_gpu_layers=0 if device == "cpu" else -1,
            shape="nano-s",
            context=256,
            seed=1,
        )
    )
    lines = (folder / device / "log.jsonl").read_text("utf-8").splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


def main() -> int:
    """Compare and print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--template", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        print("tests/gpu/train_check.py: failed: PyTorch sees no GPU", file=sys.stderr)
        return 1
    template = chosen.template or bundled.base("template")
    with tempfile.TemporaryDirectory() as place:
        curves = {d: curve(template, Path(place), chosen.steps, d) for d in ("cpu", "auto")}
    difference = max(abs(a - b) for a, b in zip(*curves.values(), strict=True))
    found = {
        "device": torch.cuda.get_device_name(),
        "template_offloaded": offloads_to_gpu(),
        "largest_difference": round(difference, 5),
        "first_and_last_loss": [curves["auto"][0], curves["auto"][-1]],
    }
    print(json.dumps(found))
    return 0 if difference <= LARGEST_DIFFERENCE else 1


if __name__ == "__main__":
    sys.exit(main())
