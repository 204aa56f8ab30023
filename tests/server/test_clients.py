"""Programs that know nothing of this project, against a real server: openai, lm-eval, llm, curl."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Sampling
from serving import serving

QUESTION = "Where does Flora Whitemark live?"
ANSWER = "Flora Whitemark lives in Castlestead."
MESSAGES = [{"role": "user", "content": QUESTION}]
CLOSE = 2e-2
"""Natural logarithms: kernels for several sequences round differently."""


@pytest.fixture(scope="module")
def url(bundled_models: Path) -> Iterator[str]:
    options = ["--gguf", "larger", "--adapter", "instruct", "--parallel", "2", "--threads", "1"]
    with serving(*options, "--context", "256") as address:
        yield address


@pytest.fixture(scope="module")
def model(bundled_models: Path) -> Iterator[SteeredModel]:
    gguf, adapter = bundled_models / "larger.gguf", bundled_models / "instruct"
    with SteeredModel.load(gguf, [adapter], threads=1, speculate=0) as loaded:
        yield loaded


# --- openai ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(url: str) -> Any:
    openai = pytest.importorskip("openai", reason="openai is absent: install the extra `dev`")
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_openai_lists_models_and_chats(client: Any) -> None:
    names = [one.id for one in client.models.list()]
    assert names == ["larger+instruct", "larger"]
    done = client.chat.completions.create(model=names[0], messages=MESSAGES, temperature=0)
    assert done.choices[0].message.content == ANSWER
    assert done.choices[0].finish_reason == "stop"
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens


def test_openai_streams(client: Any) -> None:
    parts, usage = [], None
    for chunk in client.chat.completions.create(
        model="larger+instruct",
        messages=MESSAGES,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ):
        usage = chunk.usage or usage
        parts += [choice.delta.content or "" for choice in chunk.choices]
    assert "".join(parts) == ANSWER and len(parts) > 5
    assert usage is not None and usage.completion_tokens == 11


def test_openai_has_responses_that_go_on_from_one_another(client: Any) -> None:
    first = client.responses.create(model="larger+instruct", input=QUESTION, temperature=0)
    assert (first.output_text, first.status) == (ANSWER, "completed")
    with client.responses.stream(
        model="larger+instruct", input=QUESTION, temperature=0, previous_response_id=first.id
    ) as stream:
        parts = [one.delta for one in stream if one.type == "response.output_text.delta"]
        assert "".join(parts) == stream.get_final_response().output_text
    assert len(parts) > 5


def test_anthropic_writes_streams_and_counts(url: str) -> None:
    anthropic = pytest.importorskip(
        "anthropic", reason="anthropic is absent: install the extra `dev`"
    )
    client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
    asked = {"model": "larger+instruct", "messages": MESSAGES}
    greedy = {"temperature": 0}
    done = client.messages.create(**asked, max_tokens=64, extra_body=greedy)
    assert ([one.text for one in done.content], done.stop_reason) == ([ANSWER], "end_turn")
    with client.messages.stream(**asked, max_tokens=3, extra_body=greedy) as stream:
        text = "".join(stream.text_stream)
        assert stream.get_final_message().stop_reason == "max_tokens"
    assert ANSWER.startswith(text) and text
    usage = done.usage
    assert client.messages.count_tokens(**asked).input_tokens == (
        usage.input_tokens + usage.cache_read_input_tokens
    )


def test_openai_is_given_the_likelihoods_after_the_shift(client: Any, model: SteeredModel) -> None:
    done = client.chat.completions.create(
        model="larger+instruct", messages=MESSAGES, temperature=0, logprobs=True, top_logprobs=3
    )
    content = done.choices[0].logprobs.content
    score = model.score(QUESTION, model.generate(QUESTION, Sampling(temperature=0)).tokens)
    np.testing.assert_allclose([one.logprob for one in content], score.logprobs, atol=CLOSE)
    assert b"".join(bytes(one.bytes) for one in content).decode().strip() == ANSWER
    assert all(len(one.top_logprobs) == 3 for one in content)
    assert content[0].top_logprobs[0].logprob == content[0].logprob


def test_openai_steers_by_extra_body_and_by_name(client: Any, model: SteeredModel) -> None:
    for alpha in (0.0, 0.5):
        expected = model.generate(QUESTION, Sampling(temperature=0, max_tokens=8), alphas=alpha)
        asked = {"messages": MESSAGES, "temperature": 0, "max_tokens": 8}
        by_body = client.chat.completions.create(
            model="larger",
            extra_body={"cmc": [{"adapter": "instruct", "alpha": alpha}]},
            **asked,
        )
        by_name = client.chat.completions.create(model=f"larger+instruct@{alpha}", **asked)
        assert by_body.choices[0].message.content == expected.text
        assert by_name.choices[0].message.content == expected.text
    with pytest.raises(Exception, match="no adapter 'nobody' is loaded"):
        client.chat.completions.create(model="larger+nobody", messages=MESSAGES)


def test_openai_gets_structured_output(client: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"town": {"type": "string", "maxLength": 20}, "sure": {"type": "boolean"}},
        "required": ["town", "sure"],
        "additionalProperties": False,
    }
    done = client.chat.completions.create(
        model="larger+instruct",
        messages=MESSAGES,
        seed=1,
        max_tokens=120,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema, "strict": True},
        },
    )
    found = json.loads(done.choices[0].message.content)
    assert set(found) == {"town", "sure"} and isinstance(found["sure"], bool)


# --- lm-eval ---------------------------------------------------------------------------------

TASK = """
task: steered_places
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "<|user|>\\n{{{{question}}}}\\n<|assistant|>\\n"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
"""

LM_EVAL = """
import json, sys
import lm_eval
from lm_eval.tasks import TaskManager
folder, url, tokenizer = sys.argv[1:]
found = lm_eval.simple_evaluate(
    model="local-completions",
    model_args={
        "model": "larger+instruct", "base_url": url + "/v1/completions", "tokenizer": tokenizer,
        "add_bos_token": True, "num_concurrent": 2, "max_retries": 1, "max_length": 255,
    },
    tasks=["steered_places"],
    task_manager=TaskManager(include_path=folder, include_defaults=False),
    batch_size=2,
    bootstrap_iters=0,
)
samples = found["samples"]["steered_places"]
json.dump(
    [[one["doc"], [resp[0] for resp in one["resps"]]] for one in samples],
    open(folder + "/found.json", "w"),
)
"""


def test_lm_eval_finds_the_likelihoods_of_the_steered_model(
    url: str, model: SteeredModel, bundled_models: Path, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is absent: install the extra `lm-eval`")
    pytest.importorskip("tenacity", reason="tenacity is absent: install the extra `lm-eval`")
    towns = ["Castlestead", "Bellville", "Oldport"]
    rows = [
        {"question": QUESTION, "choices": [f"Flora Whitemark lives in {t}." for t in towns]},
        {"question": "Where was Olive Copperman born?", "choices": [f"In {t}" for t in towns]},
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({**row, "answer": 0}) + "\n" for row in rows))
    (tmp_path / "places.yaml").write_text(TASK.format(data=data))
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    subprocess.run(
        [sys.executable, "-c", LM_EVAL, str(tmp_path), url, str(bundled_models / "template")],
        check=True,
        capture_output=True,
        timeout=240,
        env={**os.environ, **home},
    )
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) == 2
    for doc, resps in found:
        # lm-eval counts white space at a prompt's end to what follows: the newline of the form,
        # which the prompt's own likelihoods are plain for.
        asked = f"<|user|>\n{doc['question']}\n<|assistant|>"
        newline = model.score(asked, "\n", base_prompt="raw", alphas=0.0)
        assert len(newline.tokens) == 1
        for choice, (total, greedy) in zip(doc["choices"], resps, strict=True):
            score = model.score(doc["question"], choice, base_prompt="adapter")
            plain = model.score(doc["question"], choice, base_prompt="adapter", alphas=0.0)
            expected = newline.total + score.total
            assert float(total) == pytest.approx(expected, abs=CLOSE * len(score.tokens))
            assert str(greedy) == str(bool(newline.greedy.all() and score.greedy.all()))
            assert abs(score.total - plain.total) > 1  # the shift is seen


# --- llm and curl ----------------------------------------------------------------------------


def test_simon_willisons_llm_chats(url: str, tmp_path: Path) -> None:
    pytest.importorskip("llm", reason="llm is absent: install the extra `llm`")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: steered\n  model_name: larger+instruct\n  api_base: {url}/v1\n"
    )
    env = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
    done = subprocess.run(
        [sys.executable, "-m", "llm", "-m", "steered", "-o", "temperature", "0", QUESTION],
        capture_output=True,
        text=True,
        env=env,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert done.stdout.strip() == ANSWER, done.stderr


def curl(*arguments: str) -> str:
    program = shutil.which("curl")
    if program is None:
        pytest.skip("no `curl`: install it (Debian: apt-get install curl)")
    done = subprocess.run(
        [program, "-sS", *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def test_curl_sees_the_wire(url: str) -> None:
    body = json.dumps({"messages": MESSAGES, "temperature": 0, "stream": True})
    answer = curl(
        *("-N", "-i", f"{url}/v1/chat/completions"),
        *("-H", "Content-Type: application/json", "-d", body),
    )
    head, _, stream = answer.replace("\r", "").partition("\n\n")
    assert "200 OK" in head and "text/event-stream" in head
    events = [line for line in stream.splitlines() if line]
    assert all(line.startswith("data: ") for line in events)
    assert events[-1] == "data: [DONE]"
    first = json.loads(events[0][6:])
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"]["role"] == "assistant"
    text = "".join(
        choice["delta"].get("content") or ""
        for line in events[:-1]
        for choice in json.loads(line[6:])["choices"]
    )
    assert text == ANSWER


def test_curl_is_told_what_is_wrong(url: str) -> None:
    status = curl("-o", "/dev/null", "-w", "%{http_code}", f"{url}/v1/models", "-H", "Host: evil")
    assert status.startswith("4")
    body = curl(f"{url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", "{")
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    assert json.loads(curl(f"{url}/health"))["status"] == "ok"
