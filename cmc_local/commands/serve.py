"""`cmc-local serve`: a steered model for OpenAI's clients and a browser.

Safe by default: only this machine can ask. Another address needs a key, which is better given in a
file or in CMC_API_KEY than on the command line, where every user of the machine can read it.
"""

from __future__ import annotations

import os
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cmc_local.commands import loading
from cmc_local.commands.model_choice import ModelChoice
from cmc_local.commands.usual_model import talking
from cmc_local.errors import InputError, MissingExtra, UsageError
from cmc_local.model.shared import SharedModel
from cmc_local.settings import MOST_PARALLEL, Sampling
from cmc_local.text.base_prompt import BasePrompt

if TYPE_CHECKING:
    from cmc_local.server.guard import Policy
    from cmc_local.server.limits import RequestLimits
    from cmc_local.server.served import Models
    from cmc_local.server.service import Service

KEY_VARIABLE = "CMC_API_KEY"


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True,
              help="0 takes a free one, which is printed.")  # fmt: skip
@click.option("--api-key", metavar="KEY", help="What clients must show; others can see it here.")
@click.option("--api-key-file", type=click.Path(path_type=Path), metavar="FILE",
              help=f"The key from a file; or set {KEY_VARIABLE}.")  # fmt: skip
@click.option("--allow-host", multiple=True, metavar="NAME",
              help="A further name that this server is called by; repeatable.")  # fmt: skip
@click.option("--allow-origin", multiple=True, metavar="ORIGIN",
              help="An origin whose pages may ask, https://host:port; repeatable.")  # fmt: skip
@click.option("--parallel", "-p", type=click.IntRange(1, MOST_PARALLEL), default=4,
              show_default=True, help="Replies written at once.")  # fmt: skip
@click.option("--queue", type=click.IntRange(1), help="Replies that may wait for a slot.")
@click.option("--patience", type=float, help="Seconds that a reply may wait for a slot.")
@click.option("--max-body", type=click.IntRange(1), metavar="BYTES", help="Largest request.")
@click.option("--models", "models_file", type=click.Path(path_type=Path), metavar="FILE",
              help="A TOML file of several base models with their adapters; each is loaded when "
              "first asked for.")  # fmt: skip
@talking
def command(
    host: str,
    port: int,
    allow_host: tuple[str, ...],
    allow_origin: tuple[str, ...],
    queue: int | None,
    patience: float | None,
    max_body: int | None,
    models_file: Path | None,
    chosen: ModelChoice,
    base_prompt: BasePrompt | None,
    sampling: Sampling,
    api_key: str | None,
    api_key_file: Path | None,
) -> None:
    """Serve a steered model to OpenAI clients and a browser.

    A client chooses what steers it by the model's name, BASE+instruct@0.8, or by the field
    "cmc": [{"adapter": "instruct", "alpha": 0.8}].
    """
    key = chosen_key(api_key, api_key_file)
    try:
        from cmc_local.server.limits import RequestLimits
        from cmc_local.server.running import listen, serve
        from cmc_local.server.served import Entry, Models
        from cmc_local.server.service import Service
    except ImportError as error:
        raise MissingExtra(
            f'serving needs {error.name}: install it with `pip install "cmc-local[serve]"`'
        ) from error
    policy = chosen_policy(host, key, allow_host, allow_origin)
    given = {"queue": queue, "patience": patience, "body_bytes": max_body}
    bounds = RequestLimits(**{name: one for name, one in given.items() if one is not None})  # type: ignore[arg-type]

    def load() -> SharedModel:
        model = loading.steered(chosen)
        return SharedModel(model, queue=bounds.queue, patience=bounds.patience)

    if models_file is None:
        models = Models([Entry(name=chosen.gguf.stem, load=load)])
    else:
        models = several(models_file, chosen, bounds)
    service = Service(models=models, limits=bounds, sampling=sampling, base_prompt=base_prompt)
    with listen("127.0.0.1" if host == "localhost" else host, port) as listening:
        place = address(listening.getsockname())
        click.echo(f"page http://{place}/  API http://{place}/v1")
        serve(
            service,
            policy,
            listening,
            ready=lambda: _tell(service),
            on_demand=models_file is not None,
        )


def several(file: Path, chosen: ModelChoice, bounds: RequestLimits) -> Models:
    """The models of a file. Raises UsageError where the command line names a model too."""
    from cmc_local.commands import serve_models

    given = click.get_current_context().params
    named = [name for name in ("gguf", "hf_repo", "adapters", "proxy", "loras") if given.get(name)]
    if named:
        option = {"hf_repo": "-hf", "adapters": "--adapter", "loras": "--lora"}.get(
            named[0], f"--{named[0]}"
        )
        raise UsageError(f"--models and {option} exclude each other: the file names the models")
    return serve_models.read(file, chosen, queue=bounds.queue, patience=bounds.patience)


def chosen_key(given: str | None, file: Path | None) -> str | None:
    """The key: from the option, the file, or the environment; None where there is none."""
    if given is not None and file is not None:
        raise UsageError("--api-key and --api-key-file exclude each other: give one of them")
    if file is not None:
        try:
            given = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            told = getattr(error, "strerror", None) or "it is no text"
            raise InputError(f"cannot read the key in {file}: {told}") from error
    key = given if given is not None else os.environ.get(KEY_VARIABLE)
    if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
        raise UsageError("an API key is one word of printable ASCII characters: give such a one")
    return key


def chosen_policy(
    host: str, key: str | None, hosts: tuple[str, ...], origins: tuple[str, ...]
) -> Policy:
    """Who may ask. Raises UsageError for another address without a key."""
    from cmc_local.server.guard import Policy
    from cmc_local.server.origins import LOOPBACK, parse_host, parse_origin

    local = is_loopback(host)
    if not local and key is None:
        raise UsageError(
            f"--host {host} lets other machines ask: give a key with --api-key-file, "
            f"{KEY_VARIABLE} or --api-key"
        )
    names = {host.lower().removesuffix(".")}
    for one in hosts:
        parsed = parse_host(one)
        if parsed is None or parsed.port is not None:
            raise UsageError(f"--allow-host {one}: give a host's name without a port")
        names.add(parsed.name)
    for one in origins:
        if parse_origin(one) is None:
            raise UsageError(f"--allow-origin {one}: give it as browsers do, https://host:port")
    allowed = frozenset(one.lower() for one in origins)
    return Policy(hosts=LOOPBACK | names, any_address=not local, origins=allowed, key=key)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; a name other than localhost may be any."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address(name: tuple[Any, ...]) -> str:
    """A socket's address as it stands in a URL."""
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _tell(service: Service) -> None:
    for entry in service.models.entries:
        acting = ", ".join(f"{name} {alpha:g}" for name, alpha in entry.alphas.items())
        click.echo(f"model {entry.served_name}  adapters {acting or 'none'}")
