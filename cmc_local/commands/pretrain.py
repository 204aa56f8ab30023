"""`cmc-local pretrain`: a plain language-model pass over text files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cmc_local.commands.workshop import (
    import_workshop,
    loop_options,
    path_option,
    report,
    shape_options,
)


@click.command("pretrain")
@path_option("--config", "A recipe: TOML, section [pretrain].")
@path_option("--text", "Text to learn; repeatable.", multiple=True)
@path_option("--valid-text", "Held-out text; repeatable.", multiple=True)
@path_option("--tokenizer", "The model's: a tokenizer.json, or a GGUF that has it.")
@click.option("--vocabulary", type=int, help="Instead: tokens of a new one, made of the text.")
@click.option("--document-separator", type=click.Choice(["blank-line", "line", "file"]),
              help="What ends a document in a text file (.jsonl: a line, `text`).")  # fmt: skip
@click.option("--row-length", type=int, help="Tokens of a training row.")
@click.option("--compile/--no-compile", default=None, help="torch.compile: for longer runs.")
@path_option("--teacher", "A llama to learn from as well: what heals a thinned --init.")
@click.option("--teacher-weight", type=float, help="The teacher's share of the loss (0.5).")
@shape_options
@loop_options
@click.option("--dry-run", is_flag=True, help="Print what would be trained, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def command(config: Path | None, dry_run: bool, as_json: bool, **flags: Any) -> None:
    """Train a llama on plain text: a delta before `train`, or a model from scratch."""
    recipes = import_workshop("recipe")
    recipe = recipes.build_recipe(recipes.PretrainRecipe, "pretrain", config, flags)
    pretraining = import_workshop("pretraining")
    report(pretraining.plan(recipe) if dry_run else pretraining.pretrain(recipe), as_json)
