"""The bundled texts: long enough, each as repetitive as its measurement asks, and in the wheel."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from cmc_local.bench import texts
from cmc_local.errors import UsageError

REPOSITORY = Path(__file__).resolve().parents[2]
Triples = list[tuple[str, ...]]


def triples(text: str) -> Triples:
    """All sequences of three words, in order; punctuation marks are words of their own."""
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    return list(zip(words, words[1:], words[2:], strict=False))


def repeated(text: str) -> float:
    """The share of three-word sequences that the text had before."""
    counted = Counter(triples(text))
    return 1 - len(counted) / counted.total()


def found_in_prompt(sample: texts.Sample) -> float:
    """The share of the reply's three-word sequences that its prompt has too."""
    reply, prompt = triples(sample.reply), set(triples(sample.prompt))
    return sum(triple in prompt for triple in reply) / len(reply)


def test_prose_is_long_and_hardly_repeats_itself() -> None:
    prose = texts.sample("prose")
    assert 8_500 < len(prose.text) < 10_000
    assert 1_000 < len(prose.prompt) < 2_000
    assert repeated(prose.text) < 0.02
    assert found_in_prompt(prose) < 0.02
    assert prose.prompt.endswith("\n\n")  # prompt and reply are paragraphs of one text
    assert prose.reply[0].isupper()


@pytest.mark.parametrize("name", texts.REPEATING)
def test_replies_that_repeat_are_found_in_their_prompts(name: texts.Name) -> None:
    sample = texts.sample(name)
    assert found_in_prompt(sample) > 0.85
    assert repeated(sample.reply) < 0.1  # in the prompt, not in itself
    assert len(sample.reply) > 700


def test_another_name_is_refused() -> None:
    with pytest.raises(UsageError, match="'poem'"):
        texts.sample("poem")  # type: ignore[arg-type]


def test_the_wheel_carries_them() -> None:
    """It takes what lies in `cmc_local`, less what git ignores."""
    target = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]
    wheel = target["build"]["targets"]["wheel"]
    assert "cmc_local" in wheel["only-include"]
    assert not {"exclude", "packages"} & {*wheel, *target["build"]}
    files = [f"cmc_local/bench/{name}.txt" for name in texts.NAMES]
    assert all((REPOSITORY / file).is_file() for file in files)
    if not (REPOSITORY / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no git checkout to ask what is ignored")
    ask = ["git", "check-ignore", "--no-index", *files]
    ignored = subprocess.run(ask, cwd=REPOSITORY, capture_output=True, text=True)
    assert (ignored.stdout, ignored.returncode) == ("", 1), ignored.stderr
