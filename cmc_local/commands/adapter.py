"""`cmc-local adapter`: share adapters by a model hub, and see which were fetched."""

from __future__ import annotations

from pathlib import Path

import click

from cmc_local.commands import completing
from cmc_local.hub import adapters as hub_adapter


@click.group("adapter")
def command() -> None:
    """Share adapters: push to and pull from a Hugging Face hub.

    HF_TOKEN is who you are, HF_ENDPOINT another hub than the usual one.
    """


@command.command("push", short_help="Check an adapter and upload it.")
@click.argument("folder", type=click.Path(path_type=Path), shell_complete=completing.folder)
@click.argument("repo", metavar="USER/REPO")
@click.option("--public", is_flag=True, help="Let everybody see it; else only you may.")
def push(folder: Path, repo: str, public: bool) -> None:
    """Check the adapter in FOLDER and upload it to USER/REPO, which is made if it is not there."""
    click.echo(hub_adapter.push(folder, repo, public=public))


@command.command("pull", short_help="Fetch an adapter, and check it.")
@click.argument("repo", metavar="USER/REPO[@REVISION]")
@click.option("--to", type=click.Path(path_type=Path), metavar="FOLDER", help="Put it there.",
              shell_complete=completing.folder)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace an adapter that is already there.")
def pull(repo: str, to: Path | None, overwrite: bool) -> None:
    """Fetch an adapter into the cache, or into a folder, and check it; prints where it lies.

    From the cache it is used as --adapter hf:USER/REPO.
    """
    click.echo(hub_adapter.pull(repo, to, overwrite=overwrite).path)


@command.command("list", short_help="List the adapters in the cache.")
def show() -> None:
    """List the adapters in the cache, with the folder of each."""
    for name, folder in hub_adapter.in_cache():
        click.echo(f"{name}\t{folder}")
