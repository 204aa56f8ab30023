"""The server under load: is anything lost or stuck, does memory grow, what does HTTP cost?

    python export/benchmarks/serve_load.py [--seconds 300] [--streams 32] [--leaving 0.2]
                                          [--gguf FILE --adapter FOLDER] [--slots 8] [--mixed]

Streams of chat completions, plain and steered, of many lengths; some clients leave after a while,
in the queue, in the prompt or in mid-reply. Before and after, the engine alone answers the same
questions in a process of its own (`SteeredModel.generate_many`, as many slots), so that both are
measured in one run on the same machine. Everybody who stays must get a whole stream: a finish
reason, the usage, `[DONE]`. At the end every slot must be free within a second.

Memory that was set aside and never touched counts for nothing until it is: caches of a slot, the
buffers of the longest prompt. So prompts as long as the context touch it first, as many as there
are slots, and then the growth counts. With `--mixed` the requests are of every kind, and there is
no engine to compare them with: JSON schemas, log-probabilities, stops, two replies, raw prompts
given back, adapters that come and go.

Prints one JSON line; exit code 1 where something is amiss.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import click
import httpx
from serve_asks import Draws

from cmc_local import bundled

GROWTH_MB = 5.0
SLOT_FREE_SECONDS = 1.0


@dataclass
class Counts:
    """What became of the requests."""

    whole: int = 0
    left: int = 0
    tokens: int = 0
    amiss: list[str] = field(default_factory=list)


def memory_mb(process: int) -> float:
    """Memory in use by a process; Linux."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def processor_seconds(process: int) -> float:
    """Processor time that a process has used; Linux."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def stay(client: httpx.AsyncClient, body: dict[str, Any], counts: Counts) -> None:
    """One stream to its end; its parts are checked."""
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    finished, usage, done = None, None, False
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            counts.amiss.append(f"{answer.status_code}: {(await answer.aread())[:200]!r}")
            return
        async for line in answer.aiter_lines():
            if not line.startswith("data: "):
                continue
            done = line == "data: [DONE]"
            if done:
                continue
            chunk = json.loads(line[6:])
            usage = chunk.get("usage") or usage
            for choice in chunk.get("choices", ()):
                finished = choice.get("finish_reason") or finished
    if not (done and usage and finished in ("stop", "length")):
        counts.amiss.append(f"a stream ended with {finished}, usage {usage}, done {done}")
        return
    counts.whole += 1


async def leave(client: httpx.AsyncClient, body: dict[str, Any], counts: Counts, at: float) -> None:
    """One stream that its client leaves after a while."""

    async def read() -> None:
        async with client.stream(
            "POST", "/v1/chat/completions", json={**body, "stream": True}
        ) as a:
            async for _ in a.aiter_lines():
                pass

    try:
        await asyncio.wait_for(read(), at)
    except TimeoutError:
        counts.left += 1
    else:
        counts.whole += 1


async def ask(client: httpx.AsyncClient, path: str, body: dict[str, Any], counts: Counts) -> None:
    """One whole answer, not streamed."""
    answer = await client.post(path, json=body)
    if answer.status_code == 200 and all(one["finish_reason"] for one in answer.json()["choices"]):
        counts.whole += 1
    else:
        counts.amiss.append(f"{answer.status_code}: {answer.text[:200]}")


async def one_client(
    client: httpx.AsyncClient,
    draws: Draws,
    counts: Counts,
    leaving: float,
    end: float,
    mixed: bool,
) -> None:
    while monotonic() < end:
        body = draws.request()
        try:
            if mixed and draws.random.random() < 0.5:
                await ask(client, *draws.mixed(), counts)
            elif draws.random.random() < leaving:
                await leave(client, body, counts, draws.random.choice((0.01, 0.1, 0.5, 2.0)))
            else:
                await stay(client, body, counts)
        except httpx.HTTPError as error:
            counts.amiss.append(f"{type(error).__name__}: {error}")


async def come_and_go(client: httpx.AsyncClient, adapter: Path, counts: Counts, end: float) -> None:
    """One more adapter, loaded and unloaded over and over; nobody asks for it."""
    while monotonic() < end:
        loaded = await client.post("/v1/adapters", json={"path": str(adapter)})
        if loaded.status_code != 201:
            counts.amiss.append(f"{loaded.status_code}: {loaded.text[:200]}")
            return
        await asyncio.sleep(1.0)
        gone = await client.delete(f"/v1/adapters/{loaded.json()['id']}")
        if gone.status_code != 200:
            counts.amiss.append(f"{gone.status_code}: {gone.text[:200]}")


async def touch(client: httpx.AsyncClient, adapter: str, slots: int, context: int) -> None:
    """Prompts as long as the context on all slots at once, none like another."""
    tails = {"max_tokens": 8, "cmc": [{"adapter": adapter}]}

    async def one(number: int) -> None:
        letters = random.Random(number).choices("abcdefghijklmnopqrstuvwxyz   ", k=8 * context)
        told = await client.post("/tokenize", json={"content": "".join(letters)})
        tokens = told.json()["tokens"][: context - 16]
        body = {"prompt": tokens, **tails}
        answer = await client.post("/v1/completions", json=body, timeout=600)
        answer.raise_for_status()

    await asyncio.gather(*(one(number) for number in range(slots)))


async def served_tokens(client: httpx.AsyncClient) -> float:
    """Completion tokens so far, those of clients who left among them, as the server counts them."""
    text = (await client.get("/metrics")).text
    found = re.findall(r"^cmc_completion_tokens_total(?:\{[^}]*\})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, found))


async def load(
    url: str,
    process: int,
    adapter_folder: Path,
    *,
    streams: int,
    seconds: float,
    leaving: float,
    slots: int,
    context: int,
    mixed: bool,
) -> dict[str, Any]:
    """Ask for so many seconds; what came of it."""
    counts, memory = Counts(), []
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        adapter = (await client.get("/v1/adapters")).json()["data"][0]["id"]
        await touch(client, adapter, slots, context)
        begun, before = monotonic(), await served_tokens(client)
        own, served = time.process_time(), processor_seconds(process)
        end = begun + seconds
        clients = [
            asyncio.create_task(one_client(client, Draws(i, adapter), counts, leaving, end, mixed))
            for i in range(streams)
        ]
        if mixed:
            clients.append(asyncio.create_task(come_and_go(client, adapter_folder, counts, end)))
        while monotonic() < end:
            await asyncio.sleep(min(5.0, max(end - monotonic(), 0.01)))
            memory.append(round(memory_mb(process), 1))
        tokens, spent = await served_tokens(client) - before, monotonic() - begun
        own, served = time.process_time() - own, processor_seconds(process) - served
        await asyncio.wait(clients, timeout=120)
        stuck = sum(not one.done() for one in clients)
        await asyncio.sleep(SLOT_FREE_SECONDS)
        health = (await client.get("/health")).json()
    return {
        "whole": counts.whole,
        "left": counts.left,
        "amiss": counts.amiss[:5],
        "amiss_count": len(counts.amiss),
        "stuck": stuck,
        "tokens_per_second": tokens / spent,
        "processor_share": {"clients": own / spent, "server": served / spent},
        "memory_mb": memory,
        "health": health,
    }


def engine_alone(
    gguf: Path, adapter: Path, slots: int, context: int, threads: int, seconds: float
) -> float:
    """Tokens per second of `generate_many` on the same questions, in a process of its own."""
    arguments = [str(one) for one in (gguf, adapter, slots, context, threads, seconds)]
    done = subprocess.run(
        [sys.executable, __file__, "engine", *arguments], stdout=subprocess.PIPE, check=True
    )
    return float(json.loads(done.stdout))


def run_engine(
    gguf: str, adapter: str, slots: int, context: int, threads: int, seconds: float
) -> None:
    """The engine's own tokens per second, printed."""
    from cmc_local.model.requests import Ask
    from cmc_local.model.steered import SteeredModel
    from cmc_local.settings import Limits, Sampling

    draws, tokens = Draws(0, "any"), 0
    limits = Limits(parallel=slots, context=context)
    with (
        SteeredModel.load(gguf, [adapter], limits=limits, threads=threads or None) as model,
        model.alone(),
    ):
        batch = model.batch()
        begun = monotonic()
        while monotonic() < begun + seconds:
            while batch.active + batch.waiting < slots:
                body = draws.request()
                sampling = Sampling(
                    temperature=1.0, seed=body["seed"], max_tokens=body["max_tokens"]
                )
                ask = Ask(prompt=body["messages"], sampling=sampling)
                batch.submit(model.request(ask))
            tokens += sum(len(piece.tokens) for _, piece in batch.step())  # type: ignore[union-attr]
        spent = monotonic() - begun
        batch.clear()
    print(json.dumps(tokens / spent))


def serving(
    gguf: Path, adapter: Path, slots: int, context: int, threads: int
) -> tuple[subprocess.Popen[str], str]:
    """A server of its own on a free port; the process and its address."""
    command = [sys.executable, "-m", "cmc_local", "serve", "--port", "0", "--parallel", str(slots)]
    command += ["--gguf", str(gguf), "--adapter", str(adapter), "--context", str(context)]
    command += ["--threads", str(threads)] if threads else []
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"(http://\S+?)/v1", line):
            return process, found[1]
    raise SystemExit("the server ended before it listened")


async def ready(url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        while (await client.get("/health")).status_code != 200:
            await asyncio.sleep(0.1)


@click.command()
@click.option("--gguf", type=click.Path(path_type=Path), default=None)
@click.option("--adapter", type=click.Path(path_type=Path), default=None)
@click.option("--seconds", default=300.0)
@click.option("--streams", default=32)
@click.option("--leaving", default=0.2, help="Share of the clients that leave.")
@click.option("--slots", default=8)
@click.option("--context", default=512)
@click.option("--threads", default=0, help="Of the base model, in both; 0 leaves it to them.")
@click.option("--engine-seconds", default=60.0, help="Before and after, for the engine alone.")
@click.option("--mixed", is_flag=True, help="Requests of every kind; no engine beside them.")
def main(
    gguf: Path | None,
    adapter: Path | None,
    seconds: float,
    streams: int,
    leaving: float,
    slots: int,
    context: int,
    threads: int,
    engine_seconds: float,
    mixed: bool,
) -> None:
    """Engine, server, engine again."""
    gguf, adapter = gguf or bundled.base(), adapter or bundled.adapter()
    engine = () if mixed else (gguf, adapter, slots, context, threads, engine_seconds)
    alone = [engine_alone(*engine)] if engine else []
    process, url = serving(gguf, adapter, slots, context, threads)
    try:
        asyncio.run(ready(url))
        found = asyncio.run(
            load(
                url,
                process.pid,
                adapter,
                streams=streams,
                seconds=seconds,
                leaving=leaving,
                slots=slots,
                context=context,
                mixed=mixed,
            )
        )
    finally:
        process.terminate()
        process.wait(30)
    if engine:
        alone.append(engine_alone(*engine))
        found |= {
            "engine_tokens_per_second": alone,
            "share": found["tokens_per_second"] / (sum(alone) / len(alone)),
        }
    memory = found["memory_mb"]
    growth = memory[-1] - memory[len(memory) // 2] if memory else 0.0
    found |= {"memory_growth_mb": growth, "exit_code": process.returncode}
    print(json.dumps(found))
    idle = (found["health"].get("active"), found["health"].get("waiting")) == (0, 0)
    good = not (found["amiss_count"] or found["stuck"]) and idle and growth < GROWTH_MB
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["engine"]:
        gguf, adapter, *numbers, seconds = sys.argv[2:]
        run_engine(gguf, adapter, *map(int, numbers), float(seconds))
    else:
        main()
