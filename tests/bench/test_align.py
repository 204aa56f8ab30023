"""The alignment's measurement: what it counts by hand, and that it notices a wrong token."""

from __future__ import annotations

import pytest

import fakes
from cmc_local.bench import align
from cmc_local.bench.align import Alignment
from cmc_local.text.alignment import Aligner, Edit
from cmc_local.text.delta_tokenizer import DeltaTokenizer
from small_tokenizers import FAMILIES, small


def test_counts_by_hand() -> None:
    # Tokens a, b and ab, and no border anywhere: "a" is fed, "b" turns it into "ab", and so on.
    tokenizer = DeltaTokenizer(fakes.tokenizer_json())
    found = align.measure("base", [b"a", b"b", b"a", b"b"], "delta", tokenizer, 2)
    assert (found.base_tokens, found.characters, found.delta_tokens) == (4, 4, 2)
    assert found.fed == 4  # a, ab, a, ab
    assert (found.fed_per_token, found.again_per_token) == (1.0, 0.5)
    assert len(found.incremental) == len(found.full) == len(found.faster) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_any_family_is_followed(family: str) -> None:
    text = "Helen wrote 7 novels; “Zürich” (1957) is the best.\n\n  She said: 😀!"
    pieces = [bytes([byte]) for byte in text.encode()]
    found = align.measure("bytes", pieces, family, small(family), 1)
    assert found.characters == len(text)
    assert found.fed >= found.delta_tokens > 0
    assert 0 < found.longest_tail <= len(text)


def test_a_stream_that_goes_astray_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    push = Aligner.push

    def astray(self: Aligner, data: bytes) -> Edit:
        edit = push(self, data)
        if data == b"is":
            self.tokens[-1] += 1
        return edit

    monkeypatch.setattr(Aligner, "push", astray)
    with pytest.raises(RuntimeError, match="after piece 1, b'is', the tail's tokens are others"):
        align.measure("base", [b"Par", b"is"], "delta", small("sentencepiece"), 1)


def test_the_table_and_the_json() -> None:
    one = Alignment("gpt-2", "llama2", 10, 40, 8, 12, 21, [1e-5] * 3, [2e-4, 3e-4, 4e-4])
    head, row = align.as_lines([one])
    assert head.split() == "base delta tokens fed again tail us/token full faster".split()
    assert row.split() == "gpt-2 llama2 10 1.20 0.40 21 10.0 300.0 30.0x".split()
    (found,) = align.as_json([one])
    assert (found["fed_per_token"], found["again_per_token"]) == (1.2, 0.4)
    assert (found["incremental_vs_full"], found["spread"]) == (30.0, [25.0, 35.0])
