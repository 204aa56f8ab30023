"""The page on scripted answers: conversations, settings, storage and the connection."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from playwright.sync_api import Page, expect

from server.page_reader import Reader, answer, ask, reload, send, settled, text
from server.page_server import GONE, PageServer, Script


def test_both_columns_are_asked_at_once_and_stream_side_by_side(
    page: Page, server: PageServer
) -> None:
    server.scripts["Who?"] = Script(plain="I am nobody. " * 9, steered="I am you. " * 9, pause=0.05)
    page.fill("#question", "Wh")
    page.press("#question", "Shift+Enter")  # a new line: not sent
    send(page, "Who?")
    expect(page.locator(".answer[data-state=writing] .token:nth-child(3)")).to_have_count(2)
    assert page.locator("#send").is_hidden()
    settled(page)
    expect(text(page, "plain")).to_have_text("I am nobody. " * 9)
    expect(text(page, "steered")).to_have_text("I am you. " * 9)
    plain, steered = *server.of("plain"), *server.of("steered")
    assert (plain["cmc"], steered["cmc"]) == ([], [{"adapter": "instruct", "alpha": 1}])
    assert (plain.get("cmc_plain"), steered["cmc_plain"]) == (None, True)
    assert plain["stream"] and plain["logprobs"] and plain["top_logprobs"] == 5
    assert plain["seed"] == steered["seed"] >= 0
    assert plain["messages"] == steered["messages"] == [{"role": "user", "content": "Who?"}]
    expect(page.locator("#status")).to_have_text(re.compile("answer done"))


def test_stop_keeps_what_was_written_and_frees_the_server(page: Page, server: PageServer) -> None:
    server.scripts["Go on"] = Script(plain="on and on " * 99, steered="and on " * 99, pause=0.02)
    send(page, "Go on")
    expect(text(page, "steered").locator(".token:nth-child(2)")).to_be_visible()
    page.keyboard.press("Escape")
    settled(page)
    assert {one.get_attribute("data-state") for one in page.locator(".answer").all()} == {"stopped"}
    written = text(page, "steered").inner_text()
    assert written.startswith("and on") and len(written) < 300
    page.wait_for_function("document.querySelector('#send').checkVisibility()")
    for _ in range(100):
        if server.cancelled == 2:
            break
        page.wait_for_timeout(20)
    assert server.cancelled == 2
    ask(page, "And?")
    assert server.of("steered")[-1]["messages"][1]["content"].strip() == written.strip()


def test_one_of_several_models_is_chosen_and_steered_by_its_own_adapters(
    page: Page, reader: Reader, server: PageServer
) -> None:
    reader.pardoned = "503"  # while the model is loaded
    expect(page.locator("#models")).to_be_hidden()
    ask(page, "One")
    assert server.asked[-1]["model"] == "default"
    server.models = [
        {"id": "small+instruct", "base": "small", "alphas": {"instruct": 1.0}},
        {"id": "small", "base": "small", "alphas": {"instruct": 1.0}},
        {"id": "large+polite", "base": "large", "alphas": {"polite": 0.5}},
    ]
    reload(page)
    expect(page.locator("#models option")).to_have_text(["small", "large"])
    page.select_option("#models", "large")
    expect(page.locator("#model")).to_have_text("large+polite")
    expect(page.locator("#adapters label")).to_have_text(["polite"])
    server.loads = 3  # both columns are told to wait, one of them twice
    send(page, "Two")
    expect(page.locator(".answer.steered .facts").last).to_contain_text("being loaded")
    settled(page)
    assert server.of("steered")[-1]["cmc"] == [{"adapter": "polite", "alpha": 0.5}]
    assert {one["model"] for one in server.asked[-2:]} == {"large"}
    reload(page)
    expect(page.locator("#models")).to_have_value("large")


def test_thoughts_are_told_and_not_shown_as_the_answer(page: Page, server: PageServer) -> None:
    server.scripts["Why?"] = Script(steered="So. " * 40, thinking="Hm.", pause=0.05)
    send(page, "Why?")
    settled(page)
    expect(text(page, "steered")).to_have_text("So. " * 40)
    expect(page.locator(".answer.steered .facts")).not_to_contain_text("thinking")


def test_each_column_goes_on_with_its_own_answers(page: Page, server: PageServer) -> None:
    ask(page, "One")
    page.fill("#system", "Be brief.")
    ask(page, "Two")
    for column, said in (("plain", "I am the model alone."), ("steered", "I am steered.")):
        turns = [(m["role"], m["content"]) for m in server.of(column)[-1]["messages"]]
        assert turns == [
            ("system", "Be brief."),
            ("user", "One"),
            ("assistant", said),
            ("user", "Two"),
        ]


def test_a_moved_slider_acts_on_the_next_answer_and_retry_stands_out(
    page: Page, server: PageServer
) -> None:
    ask(page, "Who?")
    steered = answer(page, "steered")
    page.get_by_label("instruct", exact=True).focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.get_by_label("forget, alpha as a number").fill("0.5")
    expect(page.locator("#recipe")).to_have_text("instruct 0.9 + forget 0.5")
    expect(steered).to_have_attribute("data-stale", "true")
    steered.get_by_role("button", name="Retry").click()
    settled(page)
    two = [{"adapter": "instruct", "alpha": 0.9}, {"adapter": "forget", "alpha": 0.5}]
    assert server.of("steered")[-1]["cmc"] == two
    assert len(server.of("plain")) == 1
    expect(steered).to_have_attribute("data-stale", "false")
    expect(steered.locator(".facts")).to_contain_text("instruct 0.9 + forget 0.5 · 3 tokens")
    assert page.locator(".turn").count() == 1

    page.get_by_label("instruct, alpha as a number").fill("0")  # off: not sent at all
    page.keyboard.press("Alt+r")
    settled(page)
    assert server.of("steered")[-1]["cmc"] == [{"adapter": "forget", "alpha": 0.5}]
    assert len(server.of("plain")) == 2


def test_sampling_is_sent_where_it_was_chosen_and_checked_first(
    page: Page, server: PageServer
) -> None:
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Top k").fill("20")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Top p").fill("1.5")
    send(page, "Who?")
    assert page.locator(".turn").count() == 0 and page.input_value("#question") == "Who?"
    page.get_by_label("Top p").fill("")
    ask(page, "Who?")
    for body in server.asked:
        assert (body["temperature"], body["top_k"], body["seed"]) == (0, 20, 7)
        assert not {"top_p", "min_p", "max_tokens"} & set(body)


def test_a_reload_keeps_conversation_draft_and_settings(page: Page, server: PageServer) -> None:
    ask(page, "Who?")
    page.get_by_label("instruct, alpha as a number").fill("0.25")
    page.get_by_label("Temperature").fill("0.5")
    server.scripts["Go on"] = Script(plain="on and on " * 99, steered="and on " * 99, pause=0.02)
    send(page, "Go on")
    expect(text(page, "steered").locator(".token:nth-child(2)")).to_be_visible()
    page.fill("#question", "half a quest")
    reload(page)
    expect(page.locator("#recipe")).to_have_text("instruct 0.25")
    assert page.input_value("#question") == "half a quest"
    assert page.get_by_label("Temperature").input_value() == "0.5"
    assert page.locator(".turn").count() == 2
    assert page.locator(".turn:first-child .steered .more").inner_text() == "I"
    expect(answer(page, "steered")).to_have_attribute("data-state", "stopped")
    expect(text(page, "steered")).to_contain_text("and on")
    page.locator(".turn:first-child .steered .token").nth(0).hover()
    expect(page.locator("#popover")).to_contain_text("certainly")
    ask(page, "Next")
    assert len(server.of("plain")[-1]["messages"]) == 5


def test_two_tabs_hold_two_conversations(reader: Reader, server: PageServer) -> None:
    server.scripts["Left"] = Script(steered="left " * 20, pause=0.02)
    left, right = reader.open(), reader.open()
    send(left, "Left")
    ask(right, "Right")
    settled(left)
    reload(left)
    reload(right)
    assert reader.open().locator(".turn").count() == 0  # a new tab is a new conversation
    assert left.locator(".question").all_inner_texts() == ["Left"]
    assert right.locator(".question").all_inner_texts() == ["Right"]
    expect(text(left, "steered")).to_have_text("left " * 20)


def test_a_server_that_goes_and_comes_back(reader: Reader, page: Page, server: PageServer) -> None:
    reader.pardoned = GONE
    server.scripts["Go on"] = Script(plain="on and on " * 99, steered="and on " * 99, pause=0.02)
    send(page, "Go on")
    expect(text(page, "steered").locator(".token:nth-child(2)")).to_be_visible()
    server.stop()
    banner = page.locator("#banner")
    expect(banner).to_contain_text("The server does not answer.")
    settled(page)
    expect(answer(page, "steered").locator(".problem")).to_have_text("The connection broke.")
    send(page, "Still there?")
    expect(answer(page, "plain").locator(".problem")).to_have_text("The server does not answer.")
    server.start()
    expect(banner).to_be_hidden()  # by itself
    expect(page.locator("#health")).to_have_text("ready")
    answer(page, "plain").get_by_role("button", name="Retry").click()
    settled(page)
    expect(text(page, "plain")).to_have_text("I am the model alone.")
    expect(answer(page, "plain").locator(".problem")).to_be_hidden()


def test_a_model_that_is_not_ready_is_waited_for(
    reader: Reader, page: Page, server: PageServer
) -> None:
    reader.pardoned = "503"
    server.health = "loading"
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator("#banner")).to_contain_text("The model is being loaded.")
    server.health = "ok"
    page.locator("#banner").get_by_role("button", name="Retry").click()
    expect(page.locator("#banner")).to_be_hidden()


def test_errors_are_said_plainly(reader: Reader, page: Page, server: PageServer) -> None:
    reader.pardoned = "429|503"
    server.scripts["break"] = Script(error="a step failed")
    server.scripts["busy"] = Script(status=429)
    server.scripts["closed"] = Script(status=503)
    for question, problem in (
        ("break", "The server gave up: a step failed"),
        ("busy", "The server has too much to do: 32 requests are waiting"),
        ("closed", "The server cannot answer now: 32 requests are waiting"),
    ):
        ask(page, question)
        expect(answer(page, "steered").locator(".problem")).to_have_text(problem)
        expect(answer(page, "steered").get_by_role("button", name="Retry")).to_be_visible()
    ask(page, "Who?")
    # What came before the error counts; a question that got no answer is left out.
    assert [m["content"] for m in server.of("plain")[-1]["messages"]] == [
        "break",
        "I am the model alone.",
        "Who?",
    ]


def test_adapters_that_were_unloaded_leave_the_settings(
    reader: Reader, page: Page, server: PageServer
) -> None:
    reader.pardoned = "404"
    server.scripts["Who?"] = Script(status=404)
    del server.adapters[0]
    ask(page, "Who?")
    expect(page.locator(".adapter label")).to_have_text(["forget"])
    page.get_by_label("forget, alpha as a number").fill("1")
    ask(page, "And now?")
    assert server.of("steered")[-1]["cmc"] == [{"adapter": "forget", "alpha": 1}]
    server.adapters.clear()
    ask(page, "Who?")
    expect(page.locator("#adapters")).to_contain_text("None is loaded")


def test_what_a_model_says_is_text(page: Page, server: PageServer) -> None:
    evil = "<img src=x onerror=alert(1)> <script>alert(2)</script> </span><b>bold</b>"
    server.scripts[evil] = Script(plain=evil, steered=evil)
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    ask(page, evil)
    expect(text(page, "steered")).to_have_text(evil)
    expect(page.locator(".question")).to_have_text(evil)
    text(page, "steered").locator(".token").nth(0).hover()
    expect(page.locator("#popover")).to_contain_text("<img")
    reload(page)
    expect(text(page, "plain")).to_have_text(evil)
    assert page.locator("#turns img, #turns script, #turns b, #popover img").count() == 0


def test_copy_and_export_give_what_is_there(reader: Reader, page: Page) -> None:
    reader.context.grant_permissions(["clipboard-read", "clipboard-write"])
    assert page.get_by_role("button", name="Export").is_disabled()
    page.get_by_label("Seed").fill("7")
    ask(page, "Who?")
    answer(page, "steered").get_by_role("button", name="Copy").click()
    expect(answer(page, "steered").get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "I am steered."
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    assert re.fullmatch(r"conversation-[\dT-]+\.json", download.value.suggested_filename)
    content: dict[str, Any] = json.loads(download.value.path().read_bytes())
    assert content["format"] == "cmc-local conversation 1"
    assert (content["model"], content["settings"]["sampling"]) == ("tiny+instruct", {"seed": 7})
    (turn,) = content["turns"]
    steered = turn["steered"]
    assert (turn["question"], steered["sampling"]["seed"]) == ("Who?", 7)
    assert steered["alphas"] == [{"adapter": "instruct", "alpha": 1}]
    assert "".join(span["text"] for span in steered["spans"]) == "I am steered."
    assert steered["spans"][0]["tokens"][0]["cmc"]["logprob"] == pytest.approx(-5.116, abs=1e-3)

    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="New").click()
    expect(page.get_by_role("heading", name="See what steering does")).to_be_visible()
    reload(page)
    assert page.locator(".turn").count() == 0


@pytest.mark.parametrize("how", ["forbidden", "full"])
def test_storage_that_is_forbidden_or_full_does_no_harm(
    reader: Reader, server: PageServer, how: str
) -> None:
    scripts = {
        "forbidden": """for (const name of ["localStorage", "sessionStorage"])
            Object.defineProperty(window, name, { get() { throw new DOMException("no"); } });""",
        "full": """const set = Storage.prototype.setItem;
            Storage.prototype.setItem = function (key, value) {
              if (value.length > 6000) throw new DOMException("full", "QuotaExceededError");
              set.call(this, key, value);
            };""",
    }
    reader.context.add_init_script(scripts[how])
    page = reader.open()
    for question in ("One", "Two", "Three"):
        ask(page, question)
    expect(text(page, "steered")).to_have_text("I am steered.")
    reload(page)
    assert page.locator(".turn").count() == (3 if how == "full" else 0)
    if how == "full":  # the texts and tints are there, the alternatives went
        assert page.locator(".steered .more").count() == 3
