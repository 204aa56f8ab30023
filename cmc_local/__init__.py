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
    from cmc_local.engine.logprobs import TokenDetail
    from cmc_local.engine.scoring import Score
    from cmc_local.engine.timings import Timings
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
    from cmc_local.model.replies import Completion, Piece
    from cmc_local.model.requests import Ask
    from cmc_local.model.shared import SharedModel, State
    from cmc_local.model.steered import SteeredModel
    from cmc_local.settings import Control, Limits, Sampling
    from cmc_local.text.prompts import Message

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
    "Message",
    "MissingExtra",
    "ModelClosed",
    "Overloaded",
    "Piece",
    "PromptTooLong",
    "Sampling",
    "Score",
    "SharedModel",
    "State",
    "SteeredModel",
    "Timings",
    "TokenDetail",
    "TokenizerError",
    "TrainingError",
    "UsageError",
    "WaitedTooLong",
]

_HOMES = {
    "engine.logprobs": ("TokenDetail",),
    "engine.scoring": ("Score",),
    "engine.timings": ("Timings",),
    "model.replies": ("Completion", "Piece"),
    "model.requests": ("Ask",),
    "model.shared": ("SharedModel", "State"),
    "model.steered": ("SteeredModel",),
    "settings": ("Control", "Limits", "Sampling"),
    "text.prompts": ("Message",),
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
