"""The delta on a CUDA GPU: parity with the CPU, latency of a step, one steered answer.

    python tests/gpu/check.py [--adapter FOLDER] [--gguf FILE] [--device cuda:0]

Run by hand on a machine with a GPU (`pip install "cmc-local[cuda]"`); the adapter needs an fp16
graph (`cmc-local export ... --precision fp32,int8,fp16`; those of `cmc-local bench --synthetic`
have it). Ends with exit code 1 unless the first provider of the session is CUDA, so that no silent
fallback passes for a GPU.
Prints one line a check, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmc_local import Sampling, SteeredModel, bundled
from cmc_local.delta import adapter
from cmc_local.delta.adapter import Adapter
from cmc_local.delta.onnx_delta import OnnxDelta
from cmc_local.errors import CmcError, DeviceError

CUDA = "CUDAExecutionProvider"
LARGEST_ERROR = 2e-2  # fp16 against fp32, relative to the largest logit
LEAST_AGREEMENT = 0.99
STEPS = 200


@dataclass(frozen=True)
class Parity:
    """Logits on the GPU (fp16) against the CPU (fp32)."""

    error: float
    agreement: float


def on_gpu(found: Adapter, device: str) -> OnnxDelta:
    """The delta on the GPU; DeviceError where ONNX Runtime would run it elsewhere."""
    source = OnnxDelta(found, device=device, slots=2)
    if source.providers[0] != CUDA:
        raise DeviceError(f"the first provider is {source.providers[0]}, not {CUDA}")
    return source


def tokens_for(source: OnnxDelta) -> list[int]:
    """As many tokens as the context holds, at most 400; any, but always the same."""
    count = min(400, source.context)
    return [int(i) for i in np.random.default_rng(0).integers(0, len(source.vocabulary), count)]


def parity(gpu: OnnxDelta, cpu: OnnxDelta) -> Parity:
    """A chunk, a roll-back, single steps and a chunk on a filled cache, in the second slot."""
    tokens = tokens_for(cpu)
    third = len(tokens) // 3
    expected = cpu.feed(0, tokens, rows=len(tokens))
    gpu.feed(0, tokens[::-1])  # the neighbour must not be seen
    parts = [gpu.feed(1, tokens[:third], rows=third)]
    gpu.feed(1, tokens[:7])
    gpu.truncate(1, third)
    parts += [gpu.feed(1, [token]) for token in tokens[third : 2 * third]]
    rest = tokens[2 * third :]
    found = np.concatenate([*parts, gpu.feed(1, rest, rows=len(rest))])
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    return Parity(error, float((found.argmax(1) == expected.argmax(1)).mean()))


def step_ms(source: OnnxDelta) -> float:
    """Median of single steps at a third of the context, in milliseconds."""
    source.truncate(0, 0)
    source.feed(0, tokens_for(source)[: source.context // 3])
    start_length, times = source.length(0), []
    for _ in range(STEPS):
        source.truncate(0, start_length)
        start = time.perf_counter()
        source.feed(0, [1])
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def answer(gguf: Path, folder: Path, device: str) -> str:
    """One greedy answer that the delta on the device has steered."""
    with SteeredModel.load(gguf, [folder], delta_device=device) as model:
        source = next(iter(model.adapters.values())).source
        if device != "cpu" and getattr(source, "providers", ("",))[0] != CUDA:
            raise DeviceError("the steered model's delta is not on the GPU")
        question = "Where was the author born?"
        return model.generate(question, sampling=Sampling(temperature=0, max_tokens=24)).text


def check(folder: Path, gguf: Path, device: str) -> dict[str, object]:
    """All checks; raises CmcError at the first that fails."""
    found = adapter.load(folder)
    gpu, cpu = on_gpu(found, device), OnnxDelta(found, device="cpu", precision="fp32")
    print(f"providers  {', '.join(gpu.providers)}")
    same = parity(gpu, cpu)
    print(f"parity     error {same.error:.1e}, same greedy token {same.agreement:.2%}")
    if not (same.error <= LARGEST_ERROR and same.agreement >= LEAST_AGREEMENT):
        raise DeviceError(f"the GPU disagrees with the CPU: {same}")
    times = {"gpu_step_ms": step_ms(gpu), "cpu_step_ms": step_ms(cpu)}
    print(f"step       {times['gpu_step_ms']:.3f} ms, CPU fp32 {times['cpu_step_ms']:.3f} ms")
    texts = {"gpu_answer": answer(gguf, folder, device), "cpu_answer": answer(gguf, folder, "cpu")}
    print(f"answer     {texts['gpu_answer']!r}")
    if not texts["gpu_answer"].strip():
        raise DeviceError("the steered answer is empty")
    return {"error": same.error, "agreement": same.agreement, **times, **texts}


def main() -> int:
    """The exit code: 0 only where the delta ran on the GPU and agrees."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--adapter", type=Path, help="default: the bundled one")
    parser.add_argument("--gguf", type=Path, help="default: the bundled one")
    parser.add_argument("--device", default="cuda")
    chosen = parser.parse_args()
    try:
        figures = check(
            chosen.adapter or bundled.adapter(), chosen.gguf or bundled.base(), chosen.device
        )
    except CmcError as error:
        print(f"tests/gpu/check.py: failed: {error}", file=sys.stderr)
        return 1
    print(json.dumps(figures, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
