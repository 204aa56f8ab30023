"""`cmc-local inspect`: what a GGUF file or an adapter folder is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from cmc_local import bundled
from cmc_local.commands import completing, options
from cmc_local.delta.adapter import SETTINGS_FILE
from cmc_local.errors import UsageError
from cmc_local.hub import files as hub
from cmc_local.hub import places


@click.command("inspect")
@click.argument("path", shell_complete=completing.place)
@options.json_output
def command(path: str, as_json: bool) -> None:
    """Say what PATH is: a GGUF file, an adapter folder, a bundled one, or hf:USER/REPO."""
    if not path.strip():
        raise UsageError("the path is empty: give a GGUF file or an adapter folder")
    found = (
        describe_adapter(places.adapter_path(path))
        if _is_adapter(path)
        else describe_gguf(places.gguf_path(path))
    )
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    width = max(len(name) for name, _ in _lines(found))
    for name, value in _lines(found):
        click.echo(f"{name:<{width}}  {value}")


def _is_adapter(path: str) -> bool:
    if Path(path).exists():
        return Path(path).is_dir()
    if path.startswith(hub.PREFIX):
        found = hub.look_up(hub.parse(path))
        return any(SETTINGS_FILE in snapshot.files for snapshot in found)
    return path in bundled.ADAPTERS


def describe_gguf(path: Path) -> dict[str, Any]:
    """Everything worth knowing about a GGUF, in JSON's types. Raises GGUFError."""
    from cmc_local.base import gguf_header
    from cmc_local.base import vocabulary as base_vocabulary

    header = gguf_header.read(path)
    metadata = header.metadata
    architecture = str(metadata.get("general.architecture", "unknown"))
    vocabulary = base_vocabulary.read_vocabulary(path)
    return {
        "kind": "GGUF model" if header.tensors else "GGUF vocabulary, no weights",
        "path": str(path),
        "name": metadata.get("general.name"),
        "architecture": architecture,
        "bytes": path.stat().st_size,
        "parameters": header.parameters,
        "tensor_types": header.tensor_types,
        "context": metadata.get(f"{architecture}.context_length"),
        "layers": metadata.get(f"{architecture}.block_count"),
        "width": metadata.get(f"{architecture}.embedding_length"),
        "chat_template": "tokenizer.chat_template" in metadata,
        "vocabulary": {
            "size": len(vocabulary),
            "kind": base_vocabulary.kind_of(metadata),
            "begins_with": None
            if vocabulary.bos_id is None
            else vocabulary.names[vocabulary.bos_id],
            "ends_with": _end_names(vocabulary),
            "fingerprint": vocabulary.fingerprint,
        },
    }


def _end_names(vocabulary: Any) -> list[str]:
    from cmc_local.text.vocabulary import Role

    roles = vocabulary.roles.tolist()
    return [name for name, role in zip(vocabulary.names, roles, strict=True) if role == Role.EOS]


def describe_adapter(path: Path) -> dict[str, Any]:
    """Everything worth knowing about an adapter, in JSON's types. Raises AdapterError."""
    from cmc_local.delta import adapter
    from cmc_local.text.vocabulary import from_tokenizer_json

    found = adapter.load(path)
    settings = found.settings
    return {
        "kind": "adapter",
        "path": str(path),
        "name": settings.name,
        "format": settings.format,
        "precisions": {
            precision: settings.files[found.graph(precision).name].bytes
            for precision in found.precisions
        },
        "shape": asdict(settings.shape),
        "prompt": asdict(settings.prompt),
        "turns": settings.turns,
        "alpha": settings.alpha,
        "normalization": settings.normalization,
        "template": asdict(settings.template),
        "vocabulary": {"fingerprint": from_tokenizer_json(found.tokenizer_json).fingerprint},
        "training": dict(settings.training),
        "verification": dict(settings.verification),
        "license": settings.license,
    }


def _lines(found: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Name and value of each line; a mapping of mappings is flattened, empty values left out."""
    return list(_flat(found, above))


def _flat(found: Mapping[str, Any], above: str) -> Iterator[tuple[str, str]]:
    for key, value in found.items():
        name = f"{above} {key}".strip().replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        elif value not in (None, "", []):
            yield name, _shown(value)


def _shown(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.6g}"
        case list():
            return ", ".join(str(item) for item in value)
        case _:
            return repr(value)[1:-1] if isinstance(value, str) and "\n" in value else str(value)
