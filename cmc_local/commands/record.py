"""`cmc-local record`: ask a template once about all rows, so that training needs it no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cmc_local.commands.workshop import (
    import_workshop,
    path_option,
    report,
    template_options,
)


@click.command("record")
@path_option("--config", "A recipe: TOML, section [train].")
@path_option("--template", "The model to ask: a GGUF file or a Hugging Face folder.")
@template_options
@path_option("--valid", "Held-out data; repeatable.", multiple=True)
@path_option("--init", "The delta to be trained later: its tokenizer and context.")
@path_option("--tokenizer", "The delta's tokenizer: tokenizer.json or a GGUF (the template's).")
@click.option("--context", type=int, help="The delta's longest text in tokens (1,024).")
@click.option("--template-threads", type=int, help="Of a GGUF template (all cores).")
@click.option("--device", type=click.Choice(["auto", "cpu"]))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--resume/--no-resume", default=None,
              help="Go on with an unfinished table, or add rows to a finished one.")  # fmt: skip
def command(config: Path | None, template: Path | None, as_json: bool, **flags: Any) -> None:
    """Write down what a template says to every row of some data.

    `cmc-local train --answers FOLDER` then needs no template in memory, and an epoch costs what the
    delta costs; runs of any rate, size, seed and split share one folder. Give the data, prompt and
    tokenizer that the training will have. Several templates: a folder each.
    """
    recipes = import_workshop("recipe")
    flags["template"] = (template,) if template is not None else None
    recipe = recipes.build_recipe(recipes.TrainRecipe, "train", config, flags)
    report(import_workshop("training").record(recipe), as_json)
