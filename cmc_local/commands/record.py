"""`cmc-local record`: ask a template once about all rows, so that training needs it no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cmc_local.commands import completing
from cmc_local.commands.workshop import import_workshop, path_option, report


@click.command("record")
@path_option("--config", "A recipe: TOML, section [train].")
@path_option("--template", "The model to ask: a GGUF file or a Hugging Face folder.")
@path_option("--data", "JSON or JSONL of questions and answers; repeatable.", multiple=True)
@path_option("--retain", "With --task forget: what must stay; repeatable.", multiple=True)
@path_option("--valid", "Held-out data; repeatable.", multiple=True)
@path_option("--plain", "Texts on which a delta is to change nothing; repeatable.", multiple=True)
@click.option("--task", type=click.Choice(["instruct", "forget"]), help="(instruct)")
@path_option("--refusals", "Of the forget losses dpo and idk: a text file, one refusal a line.")
@click.option("--forget-loss", type=click.Choice(["ascent", "npo", "simnpo", "dpo", "idk"]),
              help="dpo and idk ask about refusals too (ascent).")  # fmt: skip
@click.option("--prompt", help="Prompt form: a name (cmc) or a text that holds {query}.")
@click.option("--turns", type=click.Choice(["all", "last"]), help="Of a conversation (all).")
@path_option("--init", "The delta to be trained later: its tokenizer and context.")
@path_option("--tokenizer", "The delta's tokenizer: tokenizer.json or a GGUF (the template's).")
@click.option("--context", type=int, help="The delta's longest text in tokens (1,024).")
@click.option("--max-length", type=int, help="Tokens of an example; longer ones lose their end.")
@click.option("--with-adapter", multiple=True, metavar="FOLDER[:ALPHA]",
              shell_complete=completing.adapter,
              help="A delta or adapter on the template; repeatable.")  # fmt: skip
@click.option("--template-prompt", type=click.Choice(["adapter", "gguf"]),
              help="How it is asked: as the delta, or in its chat template (adapter).")  # fmt: skip
@click.option("--template-precision", type=click.Choice(["auto", "fp32", "bf16"]))
@click.option("--template-device-map", help="accelerate's, as in auto: layers over several GPUs.")
@click.option("--template-threads", type=int, help="Of a GGUF template (all cores).")
@click.option("--template-gpu-layers", type=int, help="Of a GGUF template (-1: all).")
@click.option("--answers-precision", type=click.Choice(["fp16", "fp32"]), help="(fp16)")
@click.option("--device", type=click.Choice(["auto", "cpu"]))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write.")
@click.option(
    "--resume/--no-resume",
    default=None,
    help="Go on with an unfinished table, or add rows to a finished one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
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
