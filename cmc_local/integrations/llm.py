"""Steered models in `llm` (simonw/llm): `llm -m cmc-local "Where was Flora Whitemark born?"`

    cmc-local                            the bundled model with its adapter
    cmc-local/GGUF[+ADAPTER[@ALPHA]...]  every bundled one, and those of your list

The list is `cmc-local.json` in llm's folder (`dirname "$(llm logs path)"`): with
`["~/llama.gguf+~/poet@0.8"]` there is a cmc-local/llama+poet@0.8. A model is loaded once a process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import llm
from click import echo
from llm.parts import TextPart
from pydantic import Field

from cmc_local import bundled
from cmc_local.errors import CmcError
from cmc_local.settings import Sampling


class SteeredChat(llm.Model):  # type: ignore[misc]
    """A GGUF model and the adapters that steer it, `GGUF[+ADAPTER[@ALPHA]...]`."""

    can_stream = supports_schema = True

    class Options(llm.Options):  # type: ignore[misc]
        temperature: float | None = Field(None, description="0 is greedy.")
        max_tokens: int | None = Field(None, description="At most so many tokens of answer.")
        seed: int | None = Field(None, description="The same seed gives the same text.")
        alpha: float | None = Field(None, description="Strength of every adapter; 0 is plain.")

    def __init__(self, model_id: str, text: str) -> None:
        self.model_id, self._text = model_id, text

    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: object
    ) -> Iterator[str]:
        """The reply as it comes; llm.ModelError says in a line why there is none."""
        given = prompt.options.model_dump(exclude_none=True)
        alpha = given.pop("alpha", None)
        given |= {"json_schema": json.dumps(prompt.schema)} if prompt.schema else {}
        messages = [
            {"role": one.role, "content": "".join(p.text for p in one.parts if type(p) is TextPart)}
            for one in prompt.messages
        ]
        try:
            model, sampling = _loaded(self._text)
            for piece in model.stream(messages, replace(sampling, **given), alphas=alpha):
                if piece.notice:
                    echo(piece.notice, err=True)
                yield piece.text
                if (done := piece.timings) is not None:
                    response.set_usage(input=done.prompt_tokens, output=done.generated_tokens)
        except CmcError as error:
            raise llm.ModelError(str(error)) from error


@cache
def _loaded(text: str) -> tuple[Any, Sampling]:
    from cmc_local.hub import places
    from cmc_local.model.steered import SteeredModel  # with numpy and llama.cpp

    gguf, *adapters = (str(Path(part).expanduser()) for part in text.split("+"))
    chosen = [places.parse_adapter(re.sub(r"@(-?[\d.]+)$", r":\1", one)) for one in adapters]
    model = SteeredModel.load(path := places.gguf_path(gguf), [(a.path, a.alpha) for a in chosen])
    return model, Sampling(temperature=0) if bundled.holds(path) else Sampling()


def _listed() -> list[str]:
    file = llm.user_dir() / "cmc-local.json"
    try:
        found = json.loads(file.read_text("utf-8")) if file.exists() else []
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            raise ValueError('it is no list of texts such as ["model.gguf+adapter@0.8"]')
        return found
    except (OSError, ValueError) as error:
        echo(f"{file} is left out: {error}", err=True)
        return []  # and llm's other models go on


@llm.hookimpl  # type: ignore[untyped-decorator]
def register_models(register: Callable[..., None]) -> None:
    """What llm calls to learn of the models."""
    register(SteeredChat("cmc-local", f"{bundled.DEFAULT_BASE}+{bundled.DEFAULT_ADAPTER}"))
    texts = [f"{base}{more}" for base in bundled.BASES for more in ("", "+instruct", "+forget")]
    known: set[str] = set()
    for text in (*texts, *_listed()):
        short = "+".join(Path(part).name.removesuffix(".gguf") for part in text.split("+"))
        register(SteeredChat(f"cmc-local/{text if short in known else short}", text))
        known.add(short)  # another one of the name goes by its path
