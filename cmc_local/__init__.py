"""One tiny trained model steers every local GGUF model.

                      delta tokens            shift (V_delta,)        map
    response text --> text/alignment.py --> delta/onnx_delta.py --------------> text/token_map.py
         ^                                                            |
         |                                                            v steer/control.py
       text <-- sampler <-- logits + alpha * map(shift) <-- logits (V_base,)
                                                                      ^
    text/prompts.py --> base tokens --> base/model.py (llama.cpp) ---------'

    >>> from cmc_local import Sampling, SteeredModel
    >>> model = SteeredModel.load("llama.gguf", adapters=["my-adapter", ("another", 0.5)])
    >>> model.generate("Who wrote Dune?", sampling=Sampling(temperature=0)).text

Names are loaded when first used: `import cmc_local` alone costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cmc_local.errors import (
        AdapterError,
        CmcError,
        DataError,
        DeviceError,
        GGUFError,
        InputError,
        MissingExtra,
        ModelClosed,
        Overloaded,
        PromptTooLong,
        TokenizerError,
        TrainingError,
        UsageError,
        WaitedTooLong,
    )
    from cmc_local.model.requests import Ask
    from cmc_local.model.shared import SharedModel
    from cmc_local.model.steered import Completion, Piece, Score, SteeredModel
    from cmc_local.settings import Control, Limits, Sampling

__version__ = "0.1.0"

__all__ = [
    "AdapterError",
    "Ask",
    "CmcError",
    "Completion",
    "Control",
    "DataError",
    "DeviceError",
    "GGUFError",
    "InputError",
    "Limits",
    "MissingExtra",
    "ModelClosed",
    "Overloaded",
    "Piece",
    "PromptTooLong",
    "Sampling",
    "Score",
    "SharedModel",
    "SteeredModel",
    "TokenizerError",
    "TrainingError",
    "UsageError",
    "WaitedTooLong",
]

_HOMES = {
    "model.requests": ("Ask",),
    "settings": ("Control", "Limits", "Sampling"),
    "model.shared": ("SharedModel",),
    "model.steered": ("Completion", "Piece", "Score", "SteeredModel"),
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'cmc_local' has no attribute {name!r}")
    home = next((home for home, names in _HOMES.items() if name in names), "errors")
    value: object = getattr(import_module(f"cmc_local.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
