"""`cmc-local eval tofu`: what a model forgot, and what it kept, by TOFU's measures."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from cmc_local.commands import eval_options, eval_rows
from cmc_local.commands.eval_rows import Findings, Task, Values
from cmc_local.evaluate import tofu_run
from cmc_local.evaluate.journal import fingerprint
from cmc_local.evaluate.results import Strength, forget_ratios
from cmc_local.evaluate.rouge import check_installed
from cmc_local.evaluate.tofu import check_comparable, forget_quality
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Sampling


@click.command("tofu", cls=eval_options.Recorded)
@click.option("--tofu", "folder", type=click.Path(path_type=Path), metavar="FOLDER", required=True,
              help="Where TOFU's JSON files lie.")  # fmt: skip
@click.option("--forget", type=click.Choice(["01", "05", "10"]), required=True,
              help="The forget set: 1, 5 or 10 % of the authors.")  # fmt: skip
@click.option("--retrained", type=click.Path(path_type=Path), metavar="RESULTS",
              help="Results of a model trained without the forget set: gives the forget quality.",
              )  # fmt: skip
@eval_options.limit
@eval_options.greedy
@eval_options.measured
def tofu(
    setup: eval_options.Setup,
    folder: Path,
    forget: tofu_run.Forget,
    retrained: Path | None,
    limit: int | None,
    sampling: Sampling,
) -> None:
    """ROUGE-L recall, probability and truth ratio on TOFU's sets, model utility, forget quality.

    Measure the model that never saw the forget set first, with --arm retrained, and give its
    results as --retrained.
    """
    check_installed()
    sets = tofu_run.read_sets(folder, forget, limit)
    split = f"forget{forget}"
    reference = None if retrained is None else forget_ratios(retrained, split)
    if reference is not None:
        check_comparable(len(sets["forget"]), reference)

    def measure(model: SteeredModel, strength: Strength, values: Values) -> Findings:
        found = tofu_run.tofu_measures(
            model, sets, sampling, values, alphas=strength.alphas, base_prompt=setup.base_prompt
        )
        ratios = found["forget"].truth_ratio
        quality = {} if reference is None else {"forget_quality": forget_quality(ratios, reference)}
        return Findings({**quality, **tofu_run.tofu_metrics(found)}, {split: ratios})

    files = {name: fingerprint(tofu_run.set_file(folder, name, forget)) for name in sets}
    task = Task(
        name="tofu",
        settings={"data": files, "limit": limit, "sampling": asdict(sampling)},
        count=sum(map(len, sets.values())),
        steps=tofu_run.count_values(sets),
        measure=measure,
    )
    eval_rows.show(setup, eval_rows.run(setup, task))
