"""The chat on a real (pseudo) terminal: streaming, Ctrl-C, history, columns, Tab, Ctrl-D."""

from __future__ import annotations

import json
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
from cmc_local.model.steered import SteeredModel
from fakes import FakeBase, always

class Slow(FakeBase):
    def decode_spans(self, spans):
        time.sleep(0.02)
        super().decode_spans(spans)

base = Slow(always(0, 1, 0, 0, 0), n_ctx=100_000)
model = SteeredModel(base, base.sampler)
sampling = Sampling(max_tokens=90_000)
talk(ChatSession(model, screen := TerminalScreen(), sampling, name="fake.gguf"), screen)
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
    for name in ("COLUMNS", "LINES"):  # some library sets them, and they hide the terminal's size
        environment.pop(name, None)
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


def answers(chat) -> None:  # type: ignore[no-untyped-def]
    """Three tokens at most to each answer from here on."""
    expect_prompt(chat)
    chat.send("/set max_tokens 3\r")
    expect_prompt(chat)


def test_two_answers_stand_side_by_side_where_there_is_room(chat) -> None:  # type: ignore[no-untyped-def]
    chat.setwinsize(24, 80)  # columns of (80 - 3) // 2 = 38
    answers(chat)
    chat.send("/compare b\r")
    row = "{:<38} │ {}\r\n".format
    chat.expect_exact("\x1b[?25l")  # the cursor is hidden while the page is redrawn
    chat.expect_exact(row("plain", "plain"))  # no adapter is loaded: the second is plain, too
    chat.expect_exact("\x1b[?25h")
    chat.expect_exact(row("plain", "plain") + row("aaa", "aaa"))
    chat.expect("3 tokens, .* │ 3 tokens")


def test_a_narrow_terminal_shows_them_one_after_the_other(chat) -> None:  # type: ignore[no-untyped-def]
    chat.setwinsize(24, 79)
    answers(chat)
    chat.send("/compare b\r")
    for _ in range(2):
        chat.expect(r"\[plain\]\S*\r\n\S*aaa\r\n\S*3 tokens")


def test_ctrl_c_in_a_comparison_keeps_the_question_and_what_was_written(
    chat, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    chat.setwinsize(24, 80)
    expect_prompt(chat)
    chat.send("/compare b\r")
    chat.expect("aaa")
    chat.sendintr()
    chat.expect(r"a *│ *\r\n\d+ tokens")  # wherever in its line the answer had come to
    chat.expect("stopped: the conversation goes on from the plain answer")
    expect_prompt(chat)
    chat.send(f"/save {tmp_path}/talk.json\r")
    chat.expect("saved 1 answered question")
    chat.expect_exact(">")
    messages = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert messages[0] == {"role": "user", "content": "b"}
    assert set(messages[1]["content"]) == {"a"}


def test_tab_completes_commands_and_files(chat, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    answers(chat)
    chat.send("b\r")
    chat.expect("3 tokens")
    expect_prompt(chat)
    chat.send("/sa\t" + f"{tmp_path}/talk.json\r")
    chat.expect(r"saved 1 answered question in \S+talk.json")
    expect_prompt(chat)
    chat.send(f"/load {tmp_path}/ta\t\r")
    chat.expect(r"loaded 1 answered question from \S+talk.json")
