"""What a command's options say of the model: which one, what steers it, where it runs.

Plain data, so that `--help` loads no library; `loading.py` makes a model of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cmc_local import bundled
from cmc_local.hub.places import AdapterChoice, LoraChoice, ProxyChoice
from cmc_local.settings import Control, Limits, Overlap


@dataclass(frozen=True, slots=True)
class Devices:
    """Where the two models run, on how many threads, and how; None lets the library choose."""

    delta_device: str = "auto"
    gpu_layers: int = -1
    threads: int | None = None
    delta_threads: int | None = None
    overlap: Overlap = "auto"
    speculate: int = 0
    rpc: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """A base model with its LoRA files, and what steers it: what `steered` loads."""

    gguf: Path
    adapters: tuple[AdapterChoice, ...] = ()
    proxies: tuple[ProxyChoice, ...] = ()
    loras: tuple[LoraChoice, ...] = ()
    control: Control = field(default_factory=Control)
    limits: Limits = field(default_factory=Limits)
    devices: Devices = field(default_factory=Devices)
    profile: bool = False
    """Whether an adapter without a strength takes the one that `tune-alpha` found."""

    @property
    def acting(self) -> tuple[AdapterChoice, ...]:
        """The adapters that are named; where nothing is, a bundled model's bundled one."""
        if self.adapters or self.proxies or self.loras or not bundled.holds(self.gguf):
            return self.adapters
        return (AdapterChoice(bundled.adapter()),)

    @property
    def takes_profile(self) -> bool:
        """LoRA files make another model of the base than the one that was tuned."""
        return self.profile and not self.loras
