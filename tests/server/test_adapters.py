"""`/v1/adapters` and `/v1/models`: what is loaded, and how it is named."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from fakes import FakeShift, adapter
from server.conftest import Served
from server.small import SHIFT_TO_B, Gate, Small

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "ab"}]


def with_loader(small: Small, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, float | None]]:
    """Lets a server load any folder; what it loaded."""
    loaded: list[tuple[Path, float | None]] = []

    def add(folder: Path, alpha: float | None = None) -> str:
        loaded.append((folder, alpha))
        one = adapter(FakeShift(SHIFT_TO_B), name=folder.name)
        return small.model._order(lambda: small.model._model.attach(one, alpha))

    monkeypatch.setattr(small.model, "add", add)
    return loaded


def test_what_is_loaded_is_listed(served: Served) -> None:
    small = served(adapters={"x": 1.0, "y": 0.5})
    told = small.client.get("/v1/adapters").json()
    assert told["data"] == [
        {"id": "x", "object": "adapter", "model": "tiny", "alpha": 1.0, "in_use": 0},
        {"id": "y", "object": "adapter", "model": "tiny", "alpha": 0.5, "in_use": 0},
    ]


def test_one_comes_and_goes(
    served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small = served()
    loaded = with_loader(small, monkeypatch)
    folder = tmp_path / "new"
    folder.mkdir()
    answer = small.client.post("/v1/adapters", json={"path": str(folder), "alpha": 1.0})
    assert answer.status_code == 201
    assert answer.json() == {
        "id": "new",
        "object": "adapter",
        "model": "tiny",
        "alpha": 1.0,
        "in_use": 0,
    }
    assert loaded == [(folder, 1.0)]
    assert small.post(CHAT, messages=HELLO)["choices"][0]["message"]["content"] == "bbb"
    gone = small.client.delete("/v1/adapters/new")
    assert gone.json() == {"id": "new", "object": "adapter", "deleted": True}
    assert small.post(CHAT, messages=HELLO)["choices"][0]["message"]["content"] == "aaa"


def test_a_bundled_one_by_its_name(
    served: Served, monkeypatch: pytest.MonkeyPatch, bundled_models: Path, tmp_path: Path
) -> None:
    small = served()
    loaded = with_loader(small, monkeypatch)
    monkeypatch.chdir(tmp_path)
    small.client.post("/v1/adapters", json={"path": "forget"})
    assert loaded == [(bundled_models / "forget", None)]


def test_one_that_is_no_adapter_is_refused(served: Served, tmp_path: Path) -> None:
    answer = served().client.post("/v1/adapters", json={"path": str(tmp_path)})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["x" * 9000, "a\nb", "a\0b"])
def test_a_path_that_is_none_is_refused_in_a_line(served: Served, path: str) -> None:
    answer = served().client.post("/v1/adapters", json={"path": path})
    assert answer.status_code == 400
    told = answer.json()["error"]["message"]
    assert told.isprintable()
    assert len(told) < 250


def test_a_strength_that_is_none_is_refused(served: Served) -> None:
    answer = served().client.post("/v1/adapters", json={"path": "x", "alpha": -101})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "alpha")


def test_one_that_is_not_there_cannot_go(served: Served) -> None:
    answer = served().client.delete("/v1/adapters/x")
    assert answer.status_code == 404


def test_one_that_replies_need_stays(served: Served) -> None:
    gate = Gate()
    small = served(gate, adapters={"x": 1.0, "idle": 0.0})
    asking = threading.Thread(
        target=small.client.post, args=[CHAT], kwargs={"json": {"messages": HELLO}}
    )
    asking.start()
    small.wait("active")
    entries: list[dict[str, Any]] = small.client.get("/v1/adapters").json()["data"]
    refused = small.client.delete("/v1/adapters/x")
    gate.open.set()
    asking.join()
    assert [one["in_use"] for one in entries] == [1, 0]
    assert refused.status_code == 409
    assert small.client.delete("/v1/adapters/x").status_code == 200


def test_models_are_listed_as_started_first(served: Served) -> None:
    small = served(adapters={"x": 1.0, "y": 0.5})
    client = OpenAI(base_url="http://localhost:8080/v1", api_key="x", http_client=small.client)
    assert [one.id for one in client.models.list()] == ["tiny+x+y", "tiny", "tiny+x", "tiny+y"]
    assert client.models.retrieve("tiny+y@0.5").id == "tiny+y@0.5"
    assert small.client.get("/v1/models/").json() == small.client.get("/v1/models").json()
    answer = small.client.get("/v1/models/gpt-4")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_the_fingerprint_changes_with_what_is_loaded(served: Served) -> None:
    with_x, without = served(adapters={"x": 1.0}), served()
    prints = [small.post(CHAT, messages=HELLO)["system_fingerprint"] for small in (with_x, without)]
    assert len(set(prints)) == 2
