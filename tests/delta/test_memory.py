"""What opening a delta adds to a process, of the paper's smallest shape in 8 bits; Linux alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tiny_adapters
import tiny_models
from cmc_local.delta import adapter
from cmc_local.delta.adapter import Adapter, AdapterSettings
from cmc_local.text.prompts import named_form

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps_rollup"),
]

PROGRAM = """
import gc, sys
from cmc_local.delta import adapter
from cmc_local.delta.onnx_delta import OnnxDelta

def private():
    with open("/proc/self/smaps_rollup") as lines:
        return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_"))

OnnxDelta(adapter.load(sys.argv[1]), device="cpu").feed(0, [1, 2, 3])  # the library's own load
found = adapter.load(sys.argv[2])
gc.collect()
before = private()
delta = OnnxDelta(found, device="cpu", slots=2)
print(private() - before)

def steps(count):
    for token in range(count):
        delta.truncate(token % 2, 290)
        delta.feed(token % 2, range(1 + token % 3))
    gc.collect()
    return private()

for slot in (0, 1):
    delta.feed(slot, range(300))  # the cache's pages and the activations of a chunk
before = steps(50)
print(steps(500) - before)

def shapes(rows):
    for length in range(12, 100, 2):
        for row in rows:
            delta.truncate(0, 0)
            delta.feed(0, range(length), row)
    gc.collect()
    return private()

before = shapes([10])
print(shapes(range(1, 10)) - before)
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    folder = tiny_adapters.checkpoint(tmp_path_factory.mktemp("deltas") / "tiny")
    return tiny_adapters.adapter_of(folder, folder.with_name("adapter"), ["int8"])


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    """Random weights of 15M parameters; more rows in the table than its tokenizer has tokens."""
    from cmc_export import delta_model, graph, quantize

    shape = delta_model.preset("15m", vocabulary=32_000, context=512)
    model = delta_model.build(shape, bos_id=1, eos_id=2)
    words = tiny_models.tokenizer("sentencepiece", 480)
    files: dict[str, bytes | Path] = {
        adapter.GRAPHS["int8"]: graph.to_onnx(model, shape.context, quantize.INT8),
        "tokenizer.json": words.to_str().encode(),
    }
    settings = AdapterSettings(name="paper", shape=shape, prompt=named_form("cmc"))
    return adapter.write(tmp_path_factory.mktemp("adapters") / "paper", settings, files)


def test_a_session_adds_little_more_than_its_file_and_feeds_add_nothing(
    small: Adapter, paper: Adapter
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(small.path), str(paper.path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stderr
    created, grown, by_shapes = map(int, done.stdout.split())
    size = paper.graph("int8").stat().st_size
    assert size < created < 1.5 * size + 15e6
    assert grown < 1e6
    assert by_shapes < 1e6  # nothing is kept for each of 396 shapes: it was 9 MB
