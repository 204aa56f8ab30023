"""`cmc-local train`: train a delta beside a frozen template model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cmc_local.commands import completing
from cmc_local.commands.workshop import (
    import_workshop,
    loop_options,
    path_option,
    report,
    shape_options,
)

NORMALIZATIONS = ("basenormalization", "normalization", "add")


@click.command("train")
@path_option("--config", "A recipe: TOML, section [train].")
@path_option("--template", "Frozen model to learn beside: a GGUF file or a Hugging Face folder; "
             "repeatable.", multiple=True)  # fmt: skip
@path_option("--data", "JSON or JSONL of questions and answers; repeatable.", multiple=True)
@path_option("--retain", "With --task forget: what must stay; repeatable.", multiple=True)
@path_option("--valid", "Held-out data, in place of a share; repeatable.", multiple=True)
@click.option("--task", type=click.Choice(["instruct", "forget"]), help="(instruct)")
@click.option("--prompt", help="Prompt form: a name (cmc) or a text that holds {query}.")
@click.option("--turns", type=click.Choice(["all", "last"]), help="Of a conversation (all).")
@click.option("--normalization", type=click.Choice(NORMALIZATIONS), help="Of the objective.")
@path_option(
    "--tokenizer", "The delta's own tokenizer: tokenizer.json or a GGUF (the first template's)."
)
@click.option("--with-adapter", multiple=True, metavar="FOLDER[:ALPHA]",
              shell_complete=completing.adapter,
              help="A delta or adapter on the template, frozen too; repeatable.")  # fmt: skip
@click.option("--template-prompt", type=click.Choice(["adapter", "gguf"]),
              help="How it is asked: as the delta, or in its chat template (adapter).")  # fmt: skip
@click.option("--template-precision", type=click.Choice(["auto", "fp32", "bf16"]))
@click.option("--template-device-map", help="accelerate's, as in auto: layers over several GPUs.")
@click.option("--template-threads", type=int, help="Of a GGUF template (half of the cores).")
@click.option("--template-gpu-layers", type=int, help="Of a GGUF template (-1: all).")
@path_option("--answers", "What a template answered (cmc-local record), in place of --template; "
             "repeatable.", multiple=True)  # fmt: skip
@click.option(
    "--answers-gb",
    type=float,
    help="Disk for the templates' answers while it runs (32); 0 asks them each epoch.",
)
@click.option("--answers-precision", type=click.Choice(["fp16", "fp32"]), help="(fp16)")
@click.option("--max-length", type=int, help="Tokens of an example; longer ones lose their end.")
@click.option("--patience", type=int, help="Looks without a better held-out loss (3); 0 is off.")
@click.option("--dropout", type=float, help="In the delta while it trains (0).")
@click.option("--entity", help="Field of the data: hold out whole values of it, as in author.")
@path_option("--plain", "Texts on which the delta is to change nothing; repeatable.", multiple=True)
@click.option("--plain-weight", type=float, help="Of the KL to the template on them (1).")
@click.option("--forget-loss", type=click.Choice(["ascent", "npo", "simnpo", "dpo", "idk"]),
              help="(ascent)")  # fmt: skip
@click.option("--forget-beta", type=float, help="Of npo, simnpo and dpo (0.1).")
@click.option("--forget-gamma", type=float, help="Margin of simnpo, nats a token (0).")
@click.option("--retain-loss", type=click.Choice(["nll", "kl"]), help="On what must stay (nll).")
@click.option("--retain-weight", type=float, help="Of that loss (1).")
@path_option("--refusals", "Of dpo and idk: a text file, one refusal a line.")
@click.option("--forget-bound", type=float, help="Nats at which a token counts as forgotten.")
@click.option("--retain-rows", type=int, help="Examples to keep beside each one to forget (1).")
@click.option("--group-by-length/--no-group-by-length", default=None,
              help="Rows of like length in a batch (no).")  # fmt: skip
@click.option("--name", help="The delta's name (the output folder's).")
@click.option("--alpha", type=float, help="The strength that the adapter will suggest (1).")
@shape_options
@loop_options
@click.option("--dry-run", is_flag=True, help="Print what would be trained, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def command(config: Path | None, dry_run: bool, as_json: bool, **flags: Any) -> None:
    """Train a delta: a tiny model whose logits, added to the template's, give the answers.

    Everything can stand in a recipe instead (--config): same names, underscores for dashes. The
    result is a checkpoint folder for `cmc-local export`.
    """
    recipes = import_workshop("recipe")
    recipe = recipes.build_recipe(recipes.TrainRecipe, "train", config, flags)
    training = import_workshop("training")
    report(training.plan(recipe) if dry_run else training.train(recipe), as_json)
