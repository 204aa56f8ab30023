"""Recipes: TOML, flags over it, and what a wrong name is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cmc_export.recipe import PretrainRecipe, TrainRecipe, as_json, build_recipe, from_mapping
from cmc_local.errors import CmcError, InputError, UsageError

NEEDED = {"template": "t", "data": ["d"], "output": "o"}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text, "utf-8")
    return path


def train(**more: Any) -> TrainRecipe:
    return from_mapping(TrainRecipe, {**NEEDED, **more}, where="test")


def test_flags_stand_over_the_file(tmp_path: Path) -> None:
    text = """
        [train]
        template = "t"
        data = "d"
        output = "o"
        learning_rate = 1
        steps = 7
        tied = false
    """
    flags = {"steps": 9, "data": (), "seed": None, "retain": ()}
    recipe = build_recipe(TrainRecipe, "train", written(tmp_path, text), flags)
    assert (recipe.template, recipe.data, recipe.steps) == ((Path("t"),), (Path("d"),), 9)
    assert (recipe.learning_rate, recipe.tied, recipe.seed) == (1.0, False, 0)


def test_flags_alone_are_enough() -> None:
    flags = {"text": (Path("a"), Path("b")), "tokenizer": Path("t"), "output": Path("o")}
    recipe = build_recipe(PretrainRecipe, "pretrain", None, {**flags, "epochs": None})
    assert recipe.text == (Path("a"), Path("b"))
    assert recipe.epochs == 1.0


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="'learning_rat': did you mean 'learning_rate'"):
        train(learning_rat=1e-3)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"steps": "many"}, "steps must be int, not 'many'"),
        ({"steps": True}, "steps must be int"),
        ({"steps": 1.5}, "steps must be int"),
        ({"epochs": 0}, "epochs must be above 0"),
        ({"warmup": 1.0}, "warmup must be at least 0, below 1"),
        ({"task": "learn"}, "task must be one of instruct, forget"),
        ({"precision": "fp8"}, "precision must be one of auto, fp32, bf16"),
        ({"task": "forget"}, "give --retain"),
        ({"retain": ["r"]}, "--retain belongs to --task forget"),
        ({"data": []}, "give --data"),
        ({"compile": True}, "compile is for `pretrain`"),
        ({"device": "gpu"}, "device must be one of auto, cpu"),
        ({"batch": 0}, "batch must be at least 1, not 0"),
    ],
)
def test_wrong_values_are_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        train(**values)
    assert words in str(caught.value)


def test_what_is_missing_is_named_as_a_flag() -> None:
    with pytest.raises(UsageError, match="add --template"):
        from_mapping(TrainRecipe, {"data": ["d"], "output": "o"}, where="test")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[train", "cannot be read as TOML"),
        ("[trian]\nsteps = 1", "no section [trian]"),
        ("[pretrain]\nsteps = 1", "has no section [train]"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(CmcError) as caught:
        build_recipe(TrainRecipe, "train", written(tmp_path, text), {})
    assert words in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        build_recipe(TrainRecipe, "train", tmp_path / "none.toml", {})


def test_a_recipe_is_kept_as_json_values() -> None:
    values = as_json(train(init="i", steps=3))
    assert (values["data"], values["init"], values["steps"]) == (["d"], "i", 3)


def test_the_projects_own_recipes_can_be_read() -> None:
    folder = Path(__file__).parents[2] / "export" / "recipes"
    for path in sorted(folder.glob("*.toml")):
        kind = TrainRecipe if "[train]" in path.read_text("utf-8") else PretrainRecipe
        section = "train" if kind is TrainRecipe else "pretrain"
        assert build_recipe(kind, section, path, {}).output.name
