"""README.md of an adapter: what it was trained on, with what result, for people and model hubs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cmc_export.verification import Figures
from cmc_local.delta.adapter import AdapterSettings

_USE = """\
A *delta* for Cross-model Control (arXiv 2410.17599): a tiny language model whose logits are added
to those of any GGUF model, which stays untouched.

```sh
cmc-local chat --gguf MODEL.gguf --adapter FOLDER
```"""


def card(settings: AdapterSettings, figures: Sequence[Figures], *, asked: str) -> str:
    """Markdown; `settings.files` must list the graphs and the tokenizer, `asked` the texts."""
    parts = [
        _front_matter(settings),
        f"# {settings.name}",
        _USE,
        "## The delta",
        _table(("", ""), _facts(settings)),
        "Prompt form:",
        f"```\n{settings.prompt.turn}\n```",
        "## Training",
        _training(settings.training),
        "## Against PyTorch",
        _compared(figures, asked),
        _figures(figures),
        "## Files",
        _table(
            ("file", "bytes", "sha256"),
            [(n, f"{r.bytes:,}", f"`{r.sha256}`") for n, r in settings.files.items()],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(settings: AdapterSettings) -> str:
    license_name = json.dumps(settings.license or "unknown", ensure_ascii=False)
    return (
        f"---\nlicense: {license_name}\nlibrary_name: cmc-local\n"
        "tags:\n- cmc-local\n- cross-model-control\n---"
    )


def _facts(settings: AdapterSettings) -> list[tuple[str, str]]:
    s = settings.shape
    template = settings.template
    heads = f"{s.heads}" if s.heads == s.kv_heads else f"{s.heads} ({s.kv_heads} for keys, values)"
    return [
        ("architecture", f"llama, width {s.width}, {s.layers} layers, {heads} heads, mlp {s.mlp}"),
        ("vocabulary", f"{s.vocabulary:,} tokens"),
        ("context", f"{s.context:,} tokens"),
        ("template model", template.name or "not stated"),
        ("template's vocabulary", f"`{template.vocabulary}`" if template.vocabulary else "-"),
        ("normalization", settings.normalization),
        ("alpha", f"{settings.alpha:g}"),
        ("prompt", f"{settings.prompt.name}, turns: {settings.turns}"),
        ("license", settings.license or "not stated"),
    ]


def _training(summary: Mapping[str, Any]) -> str:
    if not summary:
        return "The checkpoint says nothing of its training."
    return _table(("", ""), [(name, _plain(value)) for name, value in summary.items()])


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _compared(figures: Sequence[Figures], asked: str) -> str:
    template = figures[0].beside if figures else ""
    what = f"{template}'s tokens as each graph steers them" if template else "its own tokens"
    return (
        f"All logits of each graph, and the likelihoods of {what}, on {asked}; the KL is a mean "
        "over the answers' positions, in nats."
    )


def _figures(figures: Sequence[Figures]) -> str:
    return _table(
        ("precision", "bytes", "positions", "largest relative error", "KL", "same greedy token"),
        [
            (
                f.precision,
                f"{f.bytes:,}",
                f"{f.positions:,}",
                f"{f.error:.1e}",
                f"{f.kl:.1e}",
                f"{f.agreement:.2%}",
            )
            for f in figures
        ],
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
