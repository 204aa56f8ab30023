"""Stock and steered `Llama`s for the tests of integrations/llama_cpp.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cmc_local.integrations.llama_cpp import LlamaSteering, SteeredLlama
from steered_llamas import opened, steered


@pytest.fixture(scope="module")
def llm(bundled_models: Path) -> Iterator[SteeredLlama]:
    """The template, steered; `logits_all` gives log-probabilities."""
    made = steered(bundled_models, overlap="on", logits_all=True)
    yield made
    made.close()


@pytest.fixture
def stock(bundled_models: Path) -> Iterator[tuple[Any, LlamaSteering]]:
    """An ordinary `Llama`, and its steering."""
    llm = opened(bundled_models)
    with LlamaSteering(llm, [bundled_models / "instruct"], device="cpu") as steering:
        yield llm, steering
    llm.close()
