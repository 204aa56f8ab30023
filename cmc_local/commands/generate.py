"""`cmc-local generate`: answer a prompt, stdin, or a JSONL file of prompts.

   {"id": 7, "question": "Who wrote it?"}
-> {"id": 7, "question": "Who wrote it?", "response": "Helen Blackworth.", "tokens": 5, ...}
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import click

from cmc_local.commands import completing, generate_ray, loading, options
from cmc_local.commands.generate_output import (
    alpaca_entry,
    answered,
    opened,
    refuse_unanswered,
    target,
)
from cmc_local.commands.model_choice import ModelChoice
from cmc_local.commands.progress import progress
from cmc_local.commands.usual_model import talking
from cmc_local.errors import DataError, UsageError
from cmc_local.evaluate.alpaca import outputs
from cmc_local.evaluate.reply_measures import gained, in_order
from cmc_local.files import write_json
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import MOST_PARALLEL, Sampling
from cmc_local.text.base_prompt import BasePrompt
from cmc_local.text.prompts import Message
from cmc_local.text.records import read_records
from cmc_local.text.rows import ASKING, question

Answers = Iterator[tuple[dict[str, Any], Sequence[str]]]
"""For each row, in order, what it gains, and notices."""


@dataclass(frozen=True)
class Question:
    """One row and how the model is asked."""

    row: dict[str, Any]
    messages: list[Message]


@click.command()
@click.argument("prompt", required=False)
@click.option("--input", "-i", "source", metavar="FILE", shell_complete=completing.file,
              help="JSONL of prompts; - is stdin.")  # fmt: skip
@click.option("--output", "-o", metavar="FILE", shell_complete=completing.file,
              help="Write JSONL (or the answer) to a file.")  # fmt: skip
@click.option("--resume", is_flag=True,
              help="Keep the answers that --output holds, and answer the other rows.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Begin --output anew if it is there.")
@click.option("--alpaca", type=click.Path(path_type=Path), metavar="FILE",
              help="Write the answers as AlpacaEval's JSON too, when all are there.")  # fmt: skip
@click.option("--system", metavar="TEXT", help="A system text.")
@click.option("--parallel", "-p", type=click.IntRange(1, MOST_PARALLEL),
              help="Rows of a JSONL file that are answered at once.")  # fmt: skip
@generate_ray.cluster
@talking
@options.json_output
def command(
    prompt: str | None,
    source: str | None,
    output: str | None,
    resume: bool,
    overwrite: bool,
    alpaca: Path | None,
    system: str | None,
    ray: str | None,
    workers: int | None,
    worker_gpus: float | None,
    chosen: ModelChoice,
    base_prompt: BasePrompt | None,
    sampling: Sampling,
    as_json: bool,
) -> None:
    """Answer PROMPT, or stdin where it is left out, or every line of a JSONL file.

    The rows of a JSONL file keep their fields and gain "response", "finish_reason" and "tokens".
    A file that exists is refused, unless --resume or --overwrite says what becomes of it. After a
    stop the same command with --resume goes on; model and settings must be the same, which only you
    can know.
    """
    if source is None and (resume or alpaca is not None):
        raise UsageError("--resume and --alpaca are for JSONL files: give one with --input")
    cluster = generate_ray.chosen_cluster(ray, workers, worker_gpus, source)
    path = target(output, source, resume=resume, overwrite=overwrite)
    asked = [Question(row, question(row, system)) for row in _rows(prompt, source)]
    done = answered(path, [one.row for one in asked]) if resume and path is not None else []
    left = asked[len(done) :]
    parallel = max(min(chosen.limits.parallel, len(left)), 1)
    chosen = replace(chosen, limits=replace(chosen.limits, parallel=parallel))
    if source is None and not as_json:
        with loading.steered(chosen) as loaded, opened(path, resume=False) as out:
            _stream(loaded, asked[0].messages, sampling, base_prompt, out)
        return
    if left:
        prompts = [one.messages for one in left]
        writing = opened(path, resume=resume)  # stdout is Ray's to print on while it runs
        with (
            _here(chosen, prompts, sampling, base_prompt)
            if cluster is None
            else generate_ray.answers(cluster, chosen, prompts, sampling, base_prompt) as answers,
            writing as out,
            _bar(len(asked), shown=path is not None and source is not None) as told,
        ):
            for _ in done:
                told()
            done += _written(left, answers, out, told)
    refuse_unanswered(done)
    if alpaca is not None:
        _write_alpaca(alpaca, asked, done, _generator(chosen))


def _rows(prompt: str | None, source: str | None) -> Iterator[dict[str, Any]]:
    """The one row of a prompt (or of stdin), or the checked rows of a file; `-` is stdin."""
    if source is not None and prompt is not None:
        raise UsageError("PROMPT and --input exclude each other: give one of them")
    if source is None:
        text = sys.stdin.read() if prompt is None else prompt
        if not text.strip():
            raise UsageError("the prompt is empty: give one as PROMPT or on stdin")
        yield {"prompt": text.rstrip("\n") if prompt is None else text}
        return
    wanted, place = f"one on each line, {ASKING}", ""
    for place, row in read_records(None if source == "-" else Path(source), wanted):
        try:
            question(row)
            json.dumps(row, ensure_ascii=False).encode("utf-8")
        except UsageError as error:
            raise DataError(f"{place}: {error}: give {wanted}") from None
        except UnicodeEncodeError:  # JSON can escape half of a surrogate pair, UTF-8 cannot hold it
            raise DataError(f"{place}: a text holds half a character: write it whole") from None
        yield row
    if not place:
        raise DataError(f"{source} holds no rows: give JSON objects, {wanted}")


def _bar(total: int, *, shown: bool) -> AbstractContextManager[Callable[[], None]]:
    """A bar over the rows, unless the rows themselves go to the terminal."""
    return progress(total, "rows") if shown else nullcontext(lambda: None)


def _write_alpaca(
    path: Path, asked: Sequence[Question], done: Sequence[Mapping[str, Any]], generator: str
) -> None:
    """The answers as AlpacaEval's JSON; the question is what it calls the instruction."""
    pairs = (
        (alpaca_entry(one.row, one.messages[-1]["content"]), row["response"])
        for one, row in zip(asked, done, strict=True)
    )
    write_json(path, outputs(pairs, generator))


@contextmanager
def _here(
    chosen: ModelChoice,
    prompts: Sequence[Sequence[Message]],
    sampling: Sampling,
    base_prompt: BasePrompt | None,
) -> Iterator[Answers]:
    """The answers of a model in this process, which is open meanwhile."""
    with loading.steered(chosen) as loaded:
        replies = in_order(loaded.generate_many(prompts, sampling, base_prompt=base_prompt))
        yield ((gained(done), done.notices) for done in replies)


def _written(
    asked: Sequence[Question], answers: Answers, out: IO[str], told: Callable[[], None]
) -> list[dict[str, Any]]:
    """Write each row's answer as soon as it is there; the rows as they were written."""
    rows = []
    for one, (fields, notices) in zip(asked, answers, strict=True):
        _tell(notices)
        rows.append({**one.row, **fields})
        out.write(json.dumps(rows[-1], ensure_ascii=False) + "\n")
        out.flush()
        told()
    return rows


def _stream(
    model: SteeredModel,
    messages: list[Message],
    sampling: Sampling,
    base_prompt: BasePrompt | None,
    out: IO[str],
) -> None:
    """The answer as it comes, then a newline; nothing else on stdout."""
    for piece in model.stream(messages, sampling, base_prompt=base_prompt):
        _tell((piece.notice,) if piece.notice else ())
        out.write(piece.text)
        out.flush()
    out.write("\n")


def _tell(notices: Sequence[str]) -> None:
    for notice in notices:
        click.echo(notice, err=True)


def _generator(chosen: ModelChoice) -> str:
    """What AlpacaEval calls the model: `qwen3-4b+my-adapter`."""
    return "+".join([chosen.gguf.stem, *(one.path.name for one in chosen.acting)])
