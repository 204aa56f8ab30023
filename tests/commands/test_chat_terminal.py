"""The chat on a real (pseudo) terminal: streaming, Ctrl-C, history, Ctrl-D."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

pexpect = pytest.importorskip("pexpect")

TESTS = Path(__file__).resolve().parents[1]

# A base model that says "a" for ever, a token every 20 ms.
PROGRAM = """
import time
from cmc_local.commands.chat import talk
from cmc_local.commands.chat_session import ChatSession
from cmc_local.commands.chat_terminal import TerminalScreen
from cmc_local.settings import Sampling
from cmc_local.steered import SteeredModel
from fakes import FakeBase, always

class Slow(FakeBase):
    def decode(self, tokens, *, start, sequence=0):
        time.sleep(0.02)
        super().decode(tokens, start=start, sequence=sequence)

base = Slow(always(0, 1, 0, 0, 0), n_ctx=100_000)
model = SteeredModel(base, base.sampler)
talk(ChatSession(model, screen := TerminalScreen(), Sampling(max_tokens=90_000)), screen)
print("left", flush=True)
"""


@pytest.fixture
def chat(tmp_path: Path):  # type: ignore[no-untyped-def]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
        "TERM": "xterm",
        "PROMPT_TOOLKIT_NO_CPR": "1",
        "XDG_STATE_HOME": str(tmp_path),
        "NO_COLOR": "1",
    }
    child = pexpect.spawn(
        sys.executable, ["-c", PROGRAM], env=environment, encoding="utf-8", timeout=120
    )
    yield child
    child.close(force=True)


def expect_prompt(chat) -> None:  # type: ignore[no-untyped-def]
    chat.expect_exact(">")
    chat.expect_exact("\x1b[?25h")  # the cursor is shown again: it reads


def test_ctrl_c_stops_a_reply_and_ctrl_d_leaves(chat, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    expect_prompt(chat)
    chat.send("b\r")
    chat.expect("aaa")
    chat.sendintr()
    chat.expect(r"\d+ tokens, [\d.]+ tokens/s; base \d+% of the time, delta 0%")
    expect_prompt(chat)
    chat.send("/nothing\r")
    chat.expect("no command /nothing")
    expect_prompt(chat)
    chat.send("half a question\x03")
    chat.expect("Ctrl-D leaves")
    expect_prompt(chat)
    chat.send("\x04")
    chat.expect("left")
    chat.expect(pexpect.EOF)
    chat.close()
    assert chat.exitstatus == 0
    assert "+b" in (tmp_path / "cmc-local" / "chat-history").read_text().splitlines()
