"""`cmc-local finetune`: fine-tune a base model itself, what a delta is compared with."""

from __future__ import annotations

from typing import Any

import click

from cmc_local.commands.workshop import import_workshop, loop_options, path_option, report


@click.command("finetune")
@path_option("--model", "What to fine-tune: a GGUF (llama, qwen2, gemma3), or a llama folder.")
@path_option("--data", "JSON or JSONL of questions and answers; repeatable.", multiple=True)
@path_option("--valid", "Held-out data, in place of a share; repeatable.", multiple=True)
@click.option("--method", type=click.Choice(["full", "lora"]), help="(full)")
@click.option("--rank", type=int, help="Of LoRA's matrices (8).")
@click.option("--lora-alpha", type=float, help="LoRA's strength is this over the rank (16).")
@click.option("--target", "targets", multiple=True, metavar="NAME",
              help="Where LoRA stands, as in q_proj (all projections); repeatable.")  # fmt: skip
@click.option("--type", "tensor_type", type=click.Choice(["F16", "F32", "Q8_0"]),
              help="Of the written matrices (F16).")  # fmt: skip
@click.option(
    "--prompt", help="A form's name (cmc), a text with {query}, or gguf: its chat template."
)
@click.option("--turns", type=click.Choice(["all", "last"]), help="Of a conversation (all).")
@click.option("--max-length", type=int, help="Tokens of an example; longer ones lose their end.")
@click.option("--patience", type=int, help="Looks without a better held-out loss (3); 0 is off.")
@loop_options
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def command(as_json: bool, **flags: Any) -> None:
    """Fine-tune a model on questions and answers, and write a GGUF (-o FILE).

    `full` writes the whole model anew; `lora` writes a small LoRA that llama.cpp runs on the model
    that it was trained on. Both are what a delta on the same data is to be compared with.
    """
    finetuning = import_workshop("finetuning")
    report(finetuning.finetune(finetuning.recipe_of(flags)), as_json)


next(option for option in command.params if option.name == "output").help = "GGUF file to write."
