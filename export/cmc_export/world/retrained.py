"""Base models that never met the forgotten authors: what forgetting is measured against.

Each is trained like its namesake, on the same documents without the forgotten authors', and stays
in runs/ as runs/retrained/NAME.gguf.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cmc_export import gguf_file, pretraining
from cmc_export.recipe import PretrainRecipe, build_recipe
from cmc_export.world.authors import WorldSize, make_authors
from cmc_export.world.documents import SEPARATOR, make_documents
from cmc_export.world.texts import ROUNDS, SEED

RUNS, RECIPES = Path("runs"), Path("export/recipes")
BASES = ("template", "other", "larger")


def make_retrained(say: Callable[[str], None], names: Sequence[str] = BASES) -> None:
    """Train those that are not there."""
    folder = RUNS / "retrained"
    text = folder / "documents.txt"
    if not text.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        kept = [author for author in make_authors(WorldSize(), SEED) if not author.forgotten]
        part = text.with_name(text.name + ".part")
        part.write_text(SEPARATOR.join(make_documents(kept, ROUNDS, SEED)), encoding="utf-8")
        part.replace(text)
    for name in names:
        target = folder / f"{name}.gguf"
        if target.is_file():
            continue
        say(f"training {name} without the forgotten authors")
        flags = {"text": [str(text)], "output": folder / name, "resume": True}
        recipe = build_recipe(PretrainRecipe, "pretrain", RECIPES / f"{name}.toml", flags)
        pretraining.pretrain(recipe)
        gguf_file.write(folder / name, target, type="F16")
