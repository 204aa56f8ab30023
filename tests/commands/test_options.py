"""What the shared options become."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from cmc_local.commands import options
from cmc_local.errors import UsageError


@click.command()
@options.devices
def shown(devices: options.Devices) -> None:
    click.echo(devices.speculate)


@pytest.mark.parametrize(
    ("given", "drafts", "told"),
    [((), 0, ""), (("0",), 0, ""), (("off",), 0, ""), (("3",), 3, ""), (("auto",), 4, "old word")],
)
def test_speculate_takes_a_number_and_the_old_words(
    given: tuple[str, ...], drafts: int, told: str
) -> None:
    done = CliRunner().invoke(shown, ["--speculate", *given] if given else [])
    assert (done.exit_code, int(done.stdout)) == (0, drafts)
    assert (told in done.stderr) if told else not done.stderr


@pytest.mark.parametrize("given", ["-1", "65", "often", "4.5"])
def test_other_drafts_are_refused(given: str) -> None:
    done = CliRunner().invoke(shown, ["--speculate", given])
    assert isinstance(done.exception, UsageError)
