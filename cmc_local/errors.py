"""Every error that a user can meet, one line each: what is wrong, where, what to do next.

CmcError
|-- UsageError          what was asked for cannot be done (exit code 2)
|   `-- PromptTooLong   a prompt that does not fit the base model's context
|-- InputError          a file is missing, damaged or of the wrong kind (exit code 1)
|   |-- GGUFError
|   |-- AdapterError
|   |-- TokenizerError
|   `-- DataError       training or evaluation data; names the file and the line
|-- DeviceError         a device or its libraries cannot do what was asked
|-- Overloaded          too much is waiting already
|   `-- WaitedTooLong   no slot became free in time
|-- ModelClosed         a model takes no more requests
|-- TrainingError       a run that cannot go on (diverged, no data left, ...)
`-- MissingExtra        an optional part of the installation is absent
"""

from __future__ import annotations

from typing import ClassVar


class CmcError(Exception):
    """Base of the tree; `exit_code` is what the command line ends with."""

    exit_code: ClassVar[int] = 1


class UsageError(CmcError):
    """What was asked for cannot be done."""

    exit_code: ClassVar[int] = 2


class PromptTooLong(UsageError):
    """A prompt does not fit the base model's context."""


class InputError(CmcError):
    """A file is missing, damaged or of the wrong kind."""


class GGUFError(InputError):
    """A GGUF file cannot be used."""


class AdapterError(InputError):
    """An adapter folder cannot be used."""


class TokenizerError(InputError):
    """A tokenizer.json cannot be used."""


class DataError(InputError):
    """Training or evaluation data cannot be used."""


class DeviceError(CmcError):
    """A device or its libraries cannot do what was asked."""


class Overloaded(CmcError):
    """Too much is waiting already."""


class WaitedTooLong(Overloaded):
    """No slot became free in time."""


class ModelClosed(CmcError):
    """A model takes no more requests."""


class TrainingError(CmcError):
    """A training run cannot go on."""


class MissingExtra(CmcError):
    """An optional part of the installation is absent."""
