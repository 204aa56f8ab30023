"""Responses that are kept, up to a number."""

from __future__ import annotations

import pytest

from cmc_local.server.errors import Refusal
from cmc_local.server.remembered import Remembered


def test_the_oldest_goes_first() -> None:
    kept = Remembered(2)
    for name in "abc":
        kept.keep({"id": name}, [{"role": "user", "content": name}])
    assert kept.find("b", "x") == ({"id": "b"}, [{"role": "user", "content": "b"}])
    with pytest.raises(Refusal, match="no response 'a'") as caught:
        kept.find("a", "previous_response_id")
    assert (caught.value.status, caught.value.param) == (404, "previous_response_id")
    kept.drop("b")
    with pytest.raises(Refusal):
        kept.drop("b")
