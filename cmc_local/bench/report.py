"""What was measured, for people and for programs: a header, the table, the parts, one JSON line.

    arm        text   after  ms/token  spread  tokens/s  to plain
    plain      prose    300     67.40    0.31     14.84
    steered    prose    300     69.10    0.40     14.47     0.975

`spread` is the width of the middle half of the rounds; `to plain` the median of the rounds' ratios.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cmc_local.bench.arms import Place, digest
from cmc_local.bench.paired import Spread, median_parts, milliseconds, spread
from cmc_local.bench.ratios import Main, Samples, ratios, to_plain

_MODES = {True: "overlapped here", False: "serial here", None: "not measured"}
PARTS = ("decode", "delta", "align", "session", "wait", "map", "sample", "python")
"""Of a step; `align` and `session` are parts of `delta`, and no more than that."""


@dataclass(frozen=True, slots=True)
class PromptTime:
    """From a prompt, nothing of it cached, to the first token of the reply; in seconds."""

    tokens: int
    seconds: Spread

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds.median


@dataclass(frozen=True)
class Result:
    """All that a measurement found."""

    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    base: Mapping[str, Any]
    adapter: Mapping[str, Any] | None
    main: Main
    samples: Samples
    prompts: Mapping[str, PromptTime] = field(default_factory=dict)
    """By `plain` and `steered`."""
    memory: Mapping[str, int] = field(default_factory=dict)
    """Bytes: the peak, and what was added by each part."""
    notices: Sequence[str] = ()


def as_lines(result: Result) -> Iterator[str]:
    """Everything but the JSON line."""
    yield from _header(result)
    yield ""
    yield from _table(result)
    parts = list(_parts(result))
    if parts:
        yield from ("", *parts)
    yield ""
    if result.adapter is not None:
        yield (
            f"token map made in {result.adapter['map_s']:.3f} s, nothing cached;"
            f" the base's vocabulary read in {result.adapter['vocabulary_s']:.3f} s"
        )
    for kind, time in result.prompts.items():
        yield (
            f"prompt of {time.tokens} tokens, {kind}: {time.tokens_per_second:.0f} tokens/s,"
            f" first token after {time.seconds.median:.3f} s"
        )
    if result.memory:
        sizes = (f"{name.replace('_', ' ')} {n / 1e6:.1f}" for name, n in result.memory.items())
        yield f"memory, MB: {', '.join(sizes)}"
    yield ""
    for name, values in ratios(result.samples, result.main).items():
        found = spread(values)
        yield f"{name:<27} {found.median:.3f}   ({found.low:.3f} to {found.high:.3f})"
    yield from result.notices


def as_json(result: Result) -> dict[str, Any]:
    """Everything, in JSON's types; the medians of the ratios under `ratios`."""
    found = {name: spread(v) for name, v in ratios(result.samples, result.main).items()}
    return {
        "ratios": {name: round(one.median, 4) for name, one in found.items()},
        "ratio_spreads": {
            name: [round(one.low, 4), round(one.high, 4)] for name, one in found.items()
        },
        "arms": [_arm(result, place) for place in result.samples],
        "prompts": {
            kind: {
                "tokens": time.tokens,
                "tokens_per_second": round(time.tokens_per_second, 1),
                "first_token_s": round(time.seconds.median, 4),
            }
            for kind, time in result.prompts.items()
        },
        "memory_mb": {name: round(size / 1e6, 1) for name, size in result.memory.items()},
        "settings": dict(result.settings),
        "base": dict(result.base),
        "adapter": None if result.adapter is None else dict(result.adapter),
        "machine": dict(result.machine),
        "notices": list(result.notices),
    }


def _arm(result: Result, place: Place) -> dict[str, Any]:
    samples = result.samples[place]
    times = milliseconds(samples)
    ratio = to_plain(result.samples, place)
    return {
        "arm": place.kind,
        "text": place.text,
        "context": place.context,
        "sequences": place.sequences,
        "tokens": samples[-1].tokens,
        "ms_per_token": round(times.median, 4),
        "spread_ms": round(times.width, 4),
        "tokens_per_second": round(1000 / times.median, 2),
        "to_plain": None if ratio is None else round(spread(ratio).median, 4),
        "parts_ms": {name: round(value, 4) for name, value in median_parts(samples).items()},
        "emitted": digest(samples[-1].emitted),
    }


def _header(result: Result) -> Iterator[str]:
    base, adapter, machine = result.base, result.adapter, result.machine
    types = ", ".join(f"{n} {name}" for name, n in base["tensor_types"].items())
    yield (
        f"base     {base['name']}, {base['mb']:,} MB, {base['parameters']:,} weights"
        f" (tensors: {types}), {base['vocabulary']:,} tokens"
    )
    if adapter is not None:
        yield (
            f"adapter  {adapter['name']}, {adapter['precision']}, {adapter['mb']:,} MB,"
            f" on {adapter['device']}, {adapter['vocabulary']:,} tokens, alpha {adapter['alpha']}"
        )
    memory = machine["memory_gb"]
    yield (
        f"machine  {machine['cores']} cores"
        + ("" if memory is None else f", {memory} GB")
        + (", base on a GPU" if machine["gpu_offload"] and result.settings["gpu_layers"] else "")
        + f", {machine['system']}; cmc-local {machine['cmc_local']},"
        f" llama-cpp-python {machine['llama_cpp_python']}, ONNX Runtime {machine['onnxruntime']}"
    )
    settings = result.settings
    yield (
        f"run      {settings['tokens']} tokens forced from the text, {settings['pairs']} rounds;"
        f" threads: base {settings['threads']}, delta {settings['delta_threads']};"
        f" steered is {_MODES[settings['overlapped']]}"
    )


def _table(result: Result) -> Iterator[str]:
    wide = max(len(_name(place)) for place in result.samples)
    text = max(len(place.text) for place in result.samples)
    head = f"{'arm':<{wide}}  {'text':<{text}}  {'after':>5}"
    yield f"{head}  {'ms/token':>9}  {'spread':>7}  {'tokens/s':>9}  {'to plain':>8}"
    for place, samples in result.samples.items():
        times = milliseconds(samples)
        ratio = to_plain(result.samples, place)
        shown = "" if ratio is None else f"{spread(ratio).median:.3f}"
        yield (
            f"{_name(place):<{wide}}  {place.text:<{text}}  {place.context:>5}"
            f"  {times.median:>9.3f}  {times.width:>7.3f}  {1000 / times.median:>9.2f}  {shown:>8}"
        ).rstrip()


def _parts(result: Result) -> Iterator[str]:
    """Milliseconds a token of each part of a step, for the arms that tell them apart."""
    rows = {
        place: median_parts(samples)
        for place, samples in result.samples.items()
        if samples[0].parts and place.text == result.main.text
        if place.context == result.main.context
    }
    if not rows:
        return
    wide = max(len(_name(place)) for place in rows)
    yield f"{'ms/token':<{wide}}" + "".join(f"  {name:>7}" for name in PARTS)
    for place, parts in rows.items():
        shown = (f"{parts[name]:>7.3f}" if name in parts else " " * 7 for name in PARTS)
        yield f"{_name(place):<{wide}}" + "".join(f"  {one}" for one in shown)


def _name(place: Place) -> str:
    return f"{place.kind} x {place.sequences}" if place.sequences > 1 else place.kind
