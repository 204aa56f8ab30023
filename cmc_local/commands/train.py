"""`cmc-local train`: train a delta beside a frozen template model."""

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
    template_options,
)

NORMALIZATIONS = ("basenormalization", "normalization", "add")


@click.command("train")
@path_option("--config", "A recipe: TOML, section [train].")
@path_option("--template", "Frozen model to learn beside: a GGUF file or a Hugging Face folder; "
             "repeatable.", multiple=True)  # fmt: skip
@template_options
@path_option("--valid", "Held-out data, in place of a share; repeatable.", multiple=True)
@click.option("--normalization", type=click.Choice(NORMALIZATIONS), help="Of the objective.")
@path_option(
    "--tokenizer", "The delta's own tokenizer: tokenizer.json or a GGUF (the first template's)."
)
@click.option("--template-threads", type=int, help="Of a GGUF template (half of the cores).")
@path_option("--answers", "What a template answered (cmc-local record), in place of --template; "
             "repeatable.", multiple=True)  # fmt: skip
@click.option("--answers-gb", type=float,
              help="Disk for the templates' answers (32); 0 asks them each epoch.")  # fmt: skip
@click.option("--patience", type=int, help="Looks without a better held-out loss (3); 0 is off.")
@click.option("--dropout", type=float, help="In the delta while it trains (0).")
@click.option("--entity", help="Field of the data: hold out whole values of it, as in author.")
@click.option("--plain-weight", type=float, help="Of the KL to the template on them (1).")
@click.option("--forget-beta", type=float, help="Of npo, simnpo and dpo (0.1).")
@click.option("--forget-gamma", type=float, help="Margin of simnpo, nats a token (0).")
@click.option("--retain-loss", type=click.Choice(["nll", "kl"]), help="On what must stay (nll).")
@click.option("--retain-weight", type=float, help="Of that loss (1).")
@click.option("--forget-bound", type=float, help="Nats at which a token counts as forgotten.")
@click.option("--retain-rows", type=int, help="Examples to keep beside each one to forget (1).")
@click.option("--group-by-length/--no-group-by-length", default=None,
              help="Rows of like length in a batch (no).")  # fmt: skip
@click.option("--name", help="The delta's name (the output folder's).")
@click.option("--alpha", type=float, help="The strength that the adapter will suggest (1).")
@shape_options
@loop_options
@click.option("--dry-run", is_flag=True, help="Print what would be trained, and stop.")
def command(config: Path | None, dry_run: bool, as_json: bool, **flags: Any) -> None:
    """Train a delta: a tiny model whose logits, added to the template's, give the answers.

    Everything can stand in a recipe instead (--config): same names, underscores for dashes. The
    result is a checkpoint folder for `cmc-local export`.
    """
    recipes = import_workshop("recipe")
    recipe = recipes.build_recipe(recipes.TrainRecipe, "train", config, flags)
    training = import_workshop("training")
    report(training.plan(recipe) if dry_run else training.train(recipe), as_json)
