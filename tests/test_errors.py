"""The error tree: its drawing, and its exit codes."""

from __future__ import annotations

import inspect
import re

import pytest

from cmc_local import errors
from cmc_local.errors import CmcError, InputError, UsageError

TREE = {n: c for n, c in vars(errors).items() if isinstance(c, type) and issubclass(c, CmcError)}


def test_drawing_shows_every_error_under_its_parent() -> None:
    drawn: dict[str, str] = {}
    branch: list[str] = []  # the names from the root to the last line
    for line in inspect.cleandoc(errors.__doc__ or "").splitlines():
        found = re.match(r"\s*((?:[|`] {3}| {4}|[|`]-- )*)([A-Z]\w+)", line)
        if found and found[2] in TREE:
            branch[len(found[1]) // 4 :] = [found[2]]  # four columns a level
            drawn[found[2]] = branch[-2] if len(branch) > 1 else "Exception"
    assert drawn == {name: kind.__bases__[0].__name__ for name, kind in TREE.items()}


@pytest.mark.parametrize("kind", TREE.values(), ids=TREE)
def test_exit_code_tells_wrong_use_from_wrong_input(kind: type[CmcError]) -> None:
    assert kind.exit_code == (2 if issubclass(kind, UsageError) else 1)


@pytest.mark.parametrize("kind", TREE.values(), ids=TREE)
def test_every_error_says_when_it_is_raised(kind: type[CmcError]) -> None:
    assert (kind.__doc__ and kind.__doc__ != CmcError.__doc__) or kind is CmcError


def test_one_except_clause_catches_every_bad_file() -> None:
    for kind in (errors.GGUFError, errors.AdapterError, errors.TokenizerError, errors.DataError):
        assert issubclass(kind, InputError)
