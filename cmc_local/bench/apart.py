"""Runs arms in a process of their own, turn by turn.

Two copies of a model in one process do not run alike: where a copy lies in memory moves its speed
by a tenth, and libraries share settings and threads. So what is compared as two programs would be,
our plain loop and stock `Llama`, gets a process each, fed turn by turn:

    parent   Apart(make, ...)  --place-->  child   make(...)(place).run()
                               <-Sample--

`make` is a module's function, its arguments and what goes wrong are pickled. Knows arms, no model.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from cmc_local.bench.arms import Arm, Place, Sample

ArmOf = Callable[[Place], Arm]
"""Makes the arm of a place, at its first turn."""


class Apart:
    """A process that holds arms; it ends when closed, or with this one."""

    def __init__(self, make: Callable[..., ArmOf], *arguments: Any) -> None:
        context = get_context("spawn")  # a fork would inherit the models that are loaded here
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self._process.start()
        theirs.close()

    def run(self, place: Place) -> Sample:
        """One turn of an arm there; what goes wrong there is raised here."""
        try:
            self._pipe.send(place)
            found: Sample | Exception = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            raise RuntimeError(f"{place}: its process ended by itself (exit code {code})") from None
        if isinstance(found, Exception):
            raise found
        return found

    def close(self) -> None:
        """End the process; more than once is fine."""
        self._pipe.close()
        self._process.join()


class ApartArm:
    """An arm whose model is in another process."""

    def __init__(self, place: Place, apart: Apart) -> None:
        self.place = place
        self._apart = apart

    def run(self) -> Sample:
        return self._apart.run(self.place)


def _serve(pipe: Connection, make: Callable[..., ArmOf], arguments: tuple[Any, ...]) -> None:
    """The child: an answer for each place that is asked for, until the pipe is closed."""
    arm_of: ArmOf | None = None
    arms: dict[Place, Arm] = {}
    while True:
        try:
            place = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            arm_of = arm_of or make(*arguments)
            if place not in arms:
                arms[place] = arm_of(place)
            pipe.send(arms[place].run())
        except KeyboardInterrupt:
            return
        except Exception as error:
            pipe.send(error)
