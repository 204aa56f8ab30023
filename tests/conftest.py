"""What every test may ask for: shared data, tiny models made once, few threads, few examples."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads only get in the way
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from hypothesis import HealthCheck, settings

import tiny_models

settings.register_profile(
    "quick",
    deadline=None,  # a first call compiles, loads or shares the processor
    derandomize=True,  # the same run twice gives the same result; "thorough" looks further
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile(
    "thorough", settings.get_profile("quick"), max_examples=1000, derandomize=False
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in a line each what was not tested and, after the colon, how to have it tested."""
    reasons = Counter(
        str(report.longrepr[2]).removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", ())
    )
    if reasons:
        terminalreporter.section("not tested here")
    for reason, count in sorted(reasons.items()):
        terminalreporter.line(f"{count:4} of the tests: {reason}")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Public data beside the checkout; the test is skipped where there is none."""
    place = Path(os.environ.get("CMC_DATA", REPOSITORY.parent / "shared" / "data"))
    if not place.is_dir():
        pytest.skip(f"no test data in {place}: set CMC_DATA")
    return place


@pytest.fixture(scope="session")
def bundled_models() -> Path:
    """The folder of the bundled models; the test is skipped before `make models`."""
    from cmc_local import bundled
    from cmc_local.errors import InputError

    try:
        return bundled.folder()
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face llama folder, SentencePiece-style vocabulary."""
    return tiny_models.llama_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_gguf(tiny_folder: Path) -> Path:
    """The same model as an F32 GGUF."""
    return tiny_models.gguf_of(tiny_folder)


@pytest.fixture(scope="session")
def other_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model, with a byte-level vocabulary of another size, as an F32 GGUF."""
    folder = tmp_path_factory.mktemp("models") / "other"
    tiny_models.llama_folder(folder, family="byte-level", vocab_size=420, seed=1)
    return tiny_models.gguf_of(folder)
