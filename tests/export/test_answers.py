"""Tables of answers: what is written comes back, damage is refused, a kill loses nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cmc_export import answers
from cmc_export.answers import Answers, Made, Writer, key
from cmc_export.sums import Sums
from cmc_local.errors import InputError, TrainingError

MADE = Made(
    template="t", template_sha256="a", template_vocabulary="b", template_context=9,
    template_parameters=7, template_tokens=5, map_sha256="c", tokenizer_sha256="d", delta_tokens=3,
)  # fmt: skip
KEYS = [key([1, 2]), key([3])]
COUNTS = [2, 1]


def sums(seed: int = 0, count: int = 3) -> Sums:
    rng = torch.Generator().manual_seed(seed)
    mass = torch.randn(count, 4, generator=rng)
    mass[:, 1] = -torch.inf
    mass = torch.log_softmax(mass, -1)
    return Sums(mass, torch.arange(count) % 4, -torch.rand(count, generator=rng))


def table(folder: Path, made: Made = MADE) -> Answers:
    writer = Writer(folder, made, b"{}")
    writer.add(KEYS, COUNTS, sums())
    writer.finish()
    return Answers(folder)


def test_rows_come_back_in_any_order(tmp_path: Path) -> None:
    found, written = table(tmp_path / "t", replace(MADE, precision="fp32")), sums()
    torch.testing.assert_close(found.of(KEYS[::-1]).log_mass, written.log_mass[[2, 0, 1]])
    assert found.of(KEYS).targets.tolist() == [0, 1, 2]
    torch.testing.assert_close(found.of(KEYS).target_logprobs, written.target_logprobs)
    assert (found.positions, found.name, found.template_tokens) == (3, "t", 5)
    assert found.missing([*KEYS, key([9])]) == 1


def test_half_precision_keeps_masses_to_a_part_in_two_thousand(tmp_path: Path) -> None:
    found, written = table(tmp_path / "t").of(KEYS), sums()
    torch.testing.assert_close(found.log_mass, written.log_mass, rtol=2**-11, atol=1e-3)
    assert (tmp_path / "t" / answers.MASS).stat().st_size == 3 * 4 * 2 == 3 * MADE.stride()


def test_what_was_written_before_a_kill_is_not_asked_again(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    Writer(folder, MADE, b"{}").add(KEYS[:1], COUNTS[:1], sums(count=2))
    with (folder / answers.MASS).open("ab") as file:
        file.write(b"half a row")  # what a kill leaves between two writes
    with pytest.raises(InputError, match="--resume"):
        Answers(folder)
    again = Writer(folder, MADE, b"{}")
    assert again.known() == {KEYS[0]}
    again.add(KEYS[1:], COUNTS[1:], sums(seed=1, count=1))
    again.finish()
    found = Answers(folder).of(KEYS)
    torch.testing.assert_close(
        found.log_mass[2], sums(seed=1, count=1).log_mass[0], rtol=1e-3, atol=0
    )
    assert not (folder / answers.UNFINISHED).exists()


def test_an_unfinished_table_of_another_map_is_not_continued(tmp_path: Path) -> None:
    Writer(tmp_path, MADE, b"{}")
    with pytest.raises(InputError, match="token map"):
        Writer(tmp_path, replace(MADE, map_sha256="other"), b"{}")


@pytest.mark.parametrize("name", [answers.MASS, answers.TARGETS, answers.ROWS, answers.TOKENIZER])
@pytest.mark.parametrize("how", ["changed", "gone"])
def test_damage_is_refused(tmp_path: Path, name: str, how: str) -> None:
    table(tmp_path)
    place = tmp_path / name
    if how == "gone":
        place.unlink()
    else:
        data = bytearray(place.read_bytes())
        data[-1] ^= 1
        place.write_bytes(data)
    with pytest.raises(InputError, match=name):
        Answers(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", '{"format": 99}', '{"format": 1}'])
def test_a_table_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    table(tmp_path)
    (tmp_path / answers.TABLE).write_text(text, "utf-8")
    with pytest.raises(InputError, match="record the answers again"):
        Answers(tmp_path)


def test_what_differs_is_named() -> None:
    assert MADE.difference(MADE) == ""
    assert "tokenizer" in MADE.difference(replace(MADE, tokenizer_sha256="x"))
    assert "adapters" in MADE.difference(replace(MADE, with_adapter=("x 1.0",)))


def test_a_full_disk_ends_the_run_and_keeps_what_is_whole(tmp_path: Path) -> None:
    writer = Writer(tmp_path, MADE, b"{}")
    writer.add(KEYS[:1], COUNTS[:1], sums(count=2))

    class Full:
        def __init__(self, file: object) -> None:
            self.file = file

        def write(self, data: object) -> None:
            raise OSError(28, "No space left on device")

    writer._files[2] = Full(writer._files[2])
    with pytest.raises(TrainingError, match="make room"):
        writer.add(KEYS[1:], COUNTS[1:], sums(count=1))
    again = Writer(tmp_path, MADE, b"{}")
    assert again.known() == {KEYS[0]}
    assert json.loads((tmp_path / answers.UNFINISHED).read_text("utf-8"))["positions"] == 2
