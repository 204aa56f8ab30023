"""Which file of a repository is meant: quantisations, split models, what is no model."""

from __future__ import annotations

import pytest

from cmc_local.errors import InputError
from cmc_local.hub import gguf as hub_gguf

MANY = ["README.md", "m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-UD-Q4_K_XL.gguf", "mmproj-F16.gguf"]
SPLIT = [f"BF16/m-BF16-0000{number}-of-00003.gguf" for number in (3, 1, 2)]


@pytest.mark.parametrize(
    ("files", "quant", "chosen"),
    [
        (MANY, "", ["m-Q4_K_M.gguf"]),
        (MANY, "q8_0", ["m-Q8_0.gguf"]),
        (MANY, "Q4_K_XL", ["m-UD-Q4_K_XL.gguf"]),
        (MANY, "m-Q8_0.gguf", ["m-Q8_0.gguf"]),
        (["b-Q5_0.gguf", "a-IQ2_XS.gguf", "mmproj-a-Q4_K_M.gguf"], "", ["a-IQ2_XS.gguf"]),
        (SPLIT, "", sorted(SPLIT)),
        ([*SPLIT, "m-Q8_0.gguf"], "bf16", sorted(SPLIT)),
        ([*SPLIT, "m-Q8_0.gguf"], "", ["m-Q8_0.gguf"]),
        (["Q6_K/model.gguf", "Q2_K/model.gguf"], "Q6_K", ["Q6_K/model.gguf"]),
    ],
)
def test_the_gguf_is_chosen_by_its_name(files: list[str], quant: str, chosen: list[str]) -> None:
    assert hub_gguf.choose(files, quant) == chosen


@pytest.mark.parametrize("quant", ["Q4_K", "Q4_0", "Q8", "0", "F16"])
def test_an_unknown_quantisation_lists_those_there(quant: str) -> None:
    files = [*MANY, "plain.gguf"]
    with pytest.raises(InputError) as error:
        hub_gguf.choose(files, quant)
    there = "choose one of Q4_K_M, Q8_0, UD-Q4_K_XL, plain.gguf"
    assert str(error.value) == f"no GGUF of {quant!r} is there: {there}"


def test_a_split_model_without_a_part_and_a_repository_without_models() -> None:
    with pytest.raises(InputError, match=r"BF16-00002-of-00003\.gguf is missing, a part of"):
        hub_gguf.choose([name for name in SPLIT if "00002" not in name])
    with pytest.raises(InputError, match="no GGUF model is there"):
        hub_gguf.choose(["mmproj-F16.gguf", "imatrix.gguf", "model.safetensors"])
