"""The base models of a server: loaded when first asked for, put away when idle or in the way.

    a request's model name --find--> Entry --want--> loaded: its SharedModel
                                                `--> not loaded: a thread loads it, 503 meanwhile

Within a budget of memory the one that was not used for the longest time makes room, if no reply
needs it. All of it belongs to the event loop's thread, but for the loading itself. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from cmc_local.errors import CmcError
from cmc_local.model.replies import Piece
from cmc_local.model.requests import Ask
from cmc_local.server import names
from cmc_local.server.errors import Refusal, quoted, unavailable
from cmc_local.server.metrics import Watched
from cmc_local.text.vocabulary import Vocabulary

State = Literal["unloaded", "loading", "loaded", "failed"]
_CLAIM_SECONDS: Final = 15.0
"""How long a model that was just loaded waits for whoever asked for it: else two clients whose
models do not fit together could put each other's away for ever."""
_AGAIN_SECONDS: Final = 10.0
"""How long a model that could not be loaded is not tried again."""


class ServedBase(Protocol):
    """What is asked of a base model here."""

    @property
    def vocabulary(self) -> Vocabulary: ...
    @property
    def n_ctx(self) -> int: ...
    @property
    def chat_template(self) -> str | None: ...
    def tokenize(
        self, text: str, *, special: bool = False, bos: bool | None = None
    ) -> list[int]: ...


class ServedState(Watched, Protocol):
    """How the model's thread is doing."""

    @property
    def alive(self) -> bool: ...
    @property
    def busy(self) -> bool: ...
    @property
    def slots(self) -> int: ...


class ServedModel(Protocol):
    """A model that many threads may ask: a `SharedModel`, or a test's fake."""

    @property
    def base(self) -> ServedBase: ...
    @property
    def alphas(self) -> Mapping[str, float]: ...
    @property
    def state(self) -> ServedState: ...
    def astream(self, ask: Ask, *, group: Hashable = None) -> AsyncIterator[Piece]: ...
    def in_use(self, name: str) -> int: ...
    def add(self, folder: str | Path, alpha: float | None = None) -> str: ...
    def remove(self, name: str) -> None: ...
    def detokenize(self, tokens: Sequence[int]) -> bytes: ...
    def count_prompt(self, ask: Ask) -> int: ...
    def embed(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]: ...
    def close(self) -> None: ...


@dataclass(eq=False, kw_only=True)
class Entry:
    """One base model with its adapters, loaded or not."""

    name: str
    load: Callable[[], ServedModel] | None = None
    """How it is loaded; None where somebody else does it."""
    told: Mapping[str, float] = field(default_factory=dict)
    """The adapters that it will have, and their strengths."""
    megabytes: float = 0.0
    """The memory that it will take."""
    model: ServedModel | None = None
    state: State = "unloaded"
    error: BaseException | None = None
    """Why it could not be loaded."""
    text_bytes: int = 0
    """Bytes: a longer text would not fit the context if all its tokens were the longest ones."""
    used: float = field(default_factory=time.monotonic)
    """When somebody last needed it, or it changed its state."""
    _users: int = 0
    _unclaimed: bool = False  # loaded, and nobody has used it yet

    @property
    def alphas(self) -> Mapping[str, float]:
        """Its adapters and their strengths, loaded or not."""
        return self.told if self.model is None else dict(self.model.alphas)

    @property
    def served_name(self) -> str:
        """Its name with all its adapters."""
        return names.served(self.name, self.alphas)

    @property
    def serving(self) -> ServedModel:
        """The model. Raises Refusal (503) while it is not loaded."""
        if self.model is None:
            raise unavailable("the model is being loaded: try again in a moment", "loading")
        return self.model

    @property
    def in_use(self) -> bool:
        """Whether a request needs it now, or is about to come for it."""
        awaited = self._unclaimed and time.monotonic() - self.used < _CLAIM_SECONDS
        return awaited or self._users > 0 or (self.model is not None and self.model.state.busy)

    @contextmanager
    def held(self) -> Iterator[ServedModel]:
        """The model, which is not put away meanwhile."""
        self.take()
        try:
            yield self.serving
        finally:
            self.give_back()

    def take(self) -> None:
        """A request needs it from now on."""
        self._users += 1
        self._unclaimed = False

    def give_back(self) -> None:
        """The request is over."""
        self._users -= 1
        self.used = time.monotonic()

    def ready(self, model: ServedModel) -> None:
        """It has been loaded."""
        vocabulary = model.base.vocabulary
        spelled = (*vocabulary.tokens, *(name.encode() for name in vocabulary.names))
        self.text_bytes = model.base.n_ctx * max(map(len, spelled))
        self.model, self.state, self.error, self.used = model, "loaded", None, time.monotonic()
        self._unclaimed = True


@dataclass(eq=False)
class Models:
    """All base models of a server; the first one is asked where a request names none."""

    entries: Sequence[Entry]
    megabytes: float = float("inf")
    """What all that are loaded may take together."""
    idle_seconds: float = float("inf")
    """After so long without use a model is put away."""
    loader: threading.Thread | None = None
    """The last thread that loaded one."""
    ended: Callable[[Entry], None] = lambda entry: None
    """Called after each loading, whether it went well or not."""

    @property
    def loaded(self) -> list[Entry]:
        """Those that are loaded."""
        return [one for one in self.entries if one.model is not None]

    def find(self, name: str | None) -> Entry:
        """The entry that a request's model name begins with. Raises Refusal (404)."""
        first, *others = self.entries
        if not name or name in (names.AS_STARTED, names.BASE) or not others:
            return first
        found = [one for one in self.entries if name == one.name or name.startswith(f"{one.name}+")]
        if found:
            return max(found, key=lambda one: len(one.name))
        if name.startswith(f"{names.BASE}+"):
            return first
        known = ", ".join(one.name for one in self.entries)
        told = f"there is no model {quoted(name)}: there are {known}"
        raise Refusal(404, told, param="model", code="model_not_found")

    def want(self, entry: Entry) -> None:
        """See to it that an entry is loaded. Raises Refusal (503) until it is."""
        if entry.model is not None:
            return
        if entry.state == "failed" and time.monotonic() - entry.used < _AGAIN_SECONDS:
            raise unavailable(_why(entry), "failed")
        if entry.load is not None and not self._loading():
            self.begin(entry)
        told = f"the model {entry.name} is being loaded: try again in a moment"
        if entry.state != "loading" and self._loading():
            told = f"another model is being loaded, then {entry.name}: try again in a moment"
        raise unavailable(told, "loading")

    def begin(self, entry: Entry) -> None:
        """Begin to load an entry, in a thread. Raises Refusal (503) where memory is short."""
        away = self._room_for(entry)
        closing = [one.model for one in away if one.model is not None]
        for one in away:
            one.model, one.state = None, "unloaded"
        entry.state = "loading"
        work = (entry, closing, asyncio.get_running_loop())
        self.loader = threading.Thread(target=self._load, args=work, name="cmc-loader", daemon=True)
        self.loader.start()

    def put_away_idle(self) -> None:
        """Put those away that nobody has used for a while."""
        idle = [one for one in self.loaded if self._is_idle(one)]
        for one in idle:
            assert one.model is not None
            threading.Thread(target=one.model.close, name="cmc-closer").start()
            one.model, one.state = None, "unloaded"

    def close(self) -> None:
        """Free all of them."""
        for one in self.loaded:
            assert one.model is not None
            one.model.close()

    def _is_idle(self, entry: Entry) -> bool:
        unused = time.monotonic() - entry.used > self.idle_seconds
        return entry.load is not None and unused and not entry.in_use

    def _loading(self) -> bool:
        return any(one.state == "loading" for one in self.entries)

    def _room_for(self, entry: Entry) -> list[Entry]:
        """Whom to put away for it: the one that was not used for the longest time first."""
        taken = sum(one.megabytes for one in self.loaded)
        away: list[Entry] = []
        for one in sorted(self.loaded, key=lambda one: one.used):
            if taken + entry.megabytes <= self.megabytes:
                break
            if not one.in_use:
                away.append(one)
                taken -= one.megabytes
        if taken + entry.megabytes > self.megabytes:
            told = (
                f"{entry.name} takes {entry.megabytes:.0f} MB, and models that are in use have "
                f"{taken:.0f} of {self.megabytes:.0f} MB: try again when they are done"
            )
            raise unavailable(told, "no_memory")
        return away

    def _load(
        self, entry: Entry, closing: Sequence[ServedModel], loop: asyncio.AbstractEventLoop
    ) -> None:
        try:
            for one in closing:
                one.close()
            assert entry.load is not None
            model = entry.load()
        except BaseException as error:
            loop.call_soon_threadsafe(self._failed, entry, error)
        else:
            loop.call_soon_threadsafe(self._loaded, entry, model)

    def _loaded(self, entry: Entry, model: ServedModel) -> None:
        entry.ready(model)
        self.ended(entry)

    def _failed(self, entry: Entry, error: BaseException) -> None:
        entry.state, entry.error, entry.used = "failed", error, time.monotonic()
        if not isinstance(error, CmcError):
            logging.getLogger(__name__).error("loading %s failed", entry.name, exc_info=error)
        self.ended(entry)


def _why(entry: Entry) -> str:
    error = entry.error
    told = str(error) if isinstance(error, CmcError) else "see the server's log"
    return f"the model {entry.name} could not be loaded: {told}"
