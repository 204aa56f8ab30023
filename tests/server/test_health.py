"""`/health` watches the worker; `/metrics` counts; what is not there is refused in one shape."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace

import pytest

from cmc_local.errors import UsageError
from cmc_local.server.guard import Policy
from cmc_local.server.limits import RequestLimits
from server.conftest import Served
from server.small import Gate, Small

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "ab"}]


def health(small: Small) -> tuple[int, str]:
    answer = small.client.get("/health")
    return answer.status_code, answer.json()["status"]


def sample(small: Small, name: str) -> float:
    lines = small.client.get("/metrics").text.splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + " "))


def test_loading_ready_draining(served: Served) -> None:
    small = served(loaded=False)
    assert health(small) == (503, "loading")
    error = small.refused(CHAT, 503, messages=HELLO)
    assert error["code"] == "loading"
    assert small.client.get("/v1/models").headers["retry-after"]
    small.service.ready(small.model)
    answer = small.client.get("/health")
    assert answer.json() == {"status": "ok", "active": 0, "waiting": 0}
    small.service.phase = "draining"
    assert health(small) == (503, "draining")
    assert small.refused(CHAT, 503, messages=HELLO)["code"] == "draining"


def test_a_model_that_comes_while_the_server_ends_does_not_make_it_ready(served: Served) -> None:
    small = served(loaded=False)
    small.service.phase = "draining"
    small.service.ready(small.model)
    assert health(small) == (503, "draining")


def test_a_worker_that_is_no_more_is_noticed(served: Served) -> None:
    small = served()
    small.model.close()
    assert health(small) == (503, "failed")
    assert small.refused(CHAT, 503, messages=HELLO)["code"] == "stopped"


def test_a_model_that_does_not_move_is_stuck(served: Served) -> None:
    gate = Gate()
    small = served(gate, limits=RequestLimits(stuck_seconds=0.05))
    asking = threading.Thread(
        target=small.client.post, args=[CHAT], kwargs={"json": {"messages": HELLO}}
    )
    asking.start()
    assert gate.reached.wait(5)
    assert health(small) == (200, "ok")  # seen busy for the first time, after any idle time
    threading.Event().wait(0.1)
    stuck = health(small)
    gate.open.set()
    asking.join()
    assert stuck == (503, "stuck")
    small.wait("idle")
    assert health(small) == (200, "ok")


def test_a_slow_model_is_not_stuck_while_its_steps_go_on(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = served(limits=RequestLimits(stuck_seconds=10))
    told = []
    for now, busy, steps in [
        (0, True, 1), (9, True, 1), (11, True, 2), (20, True, 2), (22, True, 2),
        (23, False, 2), (24, True, 2), (33, True, 2), (35, True, 2),
    ]:  # fmt: skip
        state = replace(small.model.state, busy=busy, steps=steps)
        monkeypatch.setattr(type(small.model), "state", state)
        monkeypatch.setattr(time, "monotonic", lambda now=now: now)
        told.append(small.service.health())
    monkeypatch.undo()
    # Step 2 was seen at 11 and again at 22; then the model rested, and began anew at 24.
    assert told == ["ok"] * 4 + ["stuck"] + ["ok"] * 3 + ["stuck"]


def test_tokens_requests_and_steps_are_counted(served: Served) -> None:
    small = served(adapters={"x": 1.0})
    small.post(CHAT, messages=HELLO)
    small.events(CHAT, messages=HELLO, n=2)
    small.refused(CHAT, 400, messages=[])
    small.client.get("/nothing")
    assert sample(small, "cmc_completion_tokens_total") == 9
    assert sample(small, "cmc_prompt_tokens_total") == 6
    assert sample(small, 'cmc_requests_total{route="/v1/chat/completions",status="200"}') == 2
    assert sample(small, 'cmc_requests_total{route="/v1/chat/completions",status="400"}') == 1
    assert sample(small, 'cmc_requests_total{route="other",status="404"}') == 1
    assert sample(small, "cmc_time_to_first_token_seconds_count") == 2
    assert sample(small, "cmc_steps_total") >= 6
    assert sample(small, "cmc_queue_length") == sample(small, "cmc_active_slots") == 0
    delta = sample(small, 'cmc_step_seconds_total{part="delta"}')
    assert 0 < delta <= sample(small, 'cmc_step_seconds_total{part="total"}')


def test_what_is_not_there_or_not_taken_has_the_same_shape(served: Served) -> None:
    small = served()
    assert small.client.get("/nothing").json()["error"]["type"] == "not_found_error"
    answer = small.client.get(CHAT)
    assert (answer.status_code, "error" in answer.json()) == (405, True)


def test_a_fault_of_the_server_says_nothing_of_its_inside(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small = served()

    def broken() -> str:
        raise ValueError("a secret")

    monkeypatch.setattr(small.service, "health", broken)
    answer = small.client.get("/health")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "a secret" in caplog.text


def test_an_error_of_the_library_is_one_of_the_request(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = served()

    def broken() -> str:
        raise UsageError("not so")

    monkeypatch.setattr(small.service, "health", broken)
    assert small.client.get("/health").json()["error"]["message"] == "not so"


def test_logs_have_a_line_a_request_and_no_words_of_it(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cmc_local")
    messages = [{"role": "user", "content": "abababa"}]
    served().client.post(CHAT + "?key=secret", json={"messages": messages})
    lines = [one.message for one in caplog.records if one.name.startswith("cmc_local")]
    assert len(lines) == 1
    assert lines[0].startswith("POST /v1/chat/completions 200 ")
    assert "secret" not in lines[0] and "abababa" not in lines[0]


def test_everything_stands_behind_the_guard(served: Served) -> None:
    small = served(policy=Policy(key="k"))
    for path in ("/", "/health", "/metrics", "/v1/models", "/nothing"):
        assert small.client.get(path).status_code == 401
        answer = small.client.get(path, headers={"authorization": "Bearer k"})
        assert answer.status_code in (200, 404)


def test_routes_are_there_without_v1_too(served: Served) -> None:
    small = served()
    for path in ("/chat/completions", "/v1/chat/completions"):
        assert small.client.post(path, json={"messages": HELLO}).status_code == 200
    assert small.client.get("/v1/health").json()["status"] == "ok"
    assert small.client.get("/models").json() == small.client.get("/v1/models").json()
    props = small.client.get("/props").json()
    assert props["default_generation_settings"] == {"n_ctx": small.base.n_ctx}
    assert props["total_slots"] == 2
