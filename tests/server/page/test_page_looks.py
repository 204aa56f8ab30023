"""The page on scripted answers: its tokens, its look, its keys and its names."""

from __future__ import annotations

from itertools import product

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from playwright.sync_api import Page, expect

from server.page_reader import Reader, answer, ask, reload, text
from server.page_server import GONE, PageServer, Script


def test_a_token_is_tinted_by_the_shift_and_shows_what_else_could_have_been(page: Page) -> None:
    ask(page, "Who?")
    tokens = text(page, "steered").locator(".token")  # `I` x100, ` am` x1, ` steered.` x0.1
    classes = [token.get_attribute("class") for token in tokens.all()]
    assert classes == ["token more", "token", "token less"]
    # The deepest tint is a hundredfold: ln 10 / ln 100 = 0.5.
    depths = tokens.evaluate_all("all => all.map((one) => one.style.getPropertyValue('--depth'))")
    assert depths == ["1.000", "", "0.500"]
    assert text(page, "plain").locator(".more, .less").count() == 0

    tokens.nth(0).hover()
    popover = page.locator("#popover")
    expect(popover).to_contain_text("100 times as likely as plain")
    rows = [row.inner_text().split() for row in popover.locator("tbody tr").all()]
    # 0.6 / 100 before; the plain model's five most likely end with 0.6 %, ` \xe6` had 0.04 %.
    assert rows[0] == ["I", "0.6", "%", "60.0", "%"]
    assert ["20", "e6", "<", "0.6", "%", "<", "0.1", "%"] in rows
    page.locator("h1").hover()
    expect(popover).to_be_hidden()


def test_tokens_of_a_part_of_a_character_are_one_span(page: Page, server: PageServer) -> None:
    said = "né 漢 😀\nend"
    server.scripts["Bytes"] = Script(plain=said, steered=said, split=True)
    ask(page, "Bytes")
    tokens = text(page, "steered").locator(".token")
    assert tokens.evaluate_all("all => all.map((one) => one.textContent)") == [*said]
    expect(answer(page, "steered").locator(".facts")).to_contain_text("16 tokens")
    tokens.nth(3).focus()  # 漢 is tokens 4 to 6: x100 (token 4 of 0, 4, 8...), x1, x0.1
    popover = page.locator("#popover")
    expect(popover).to_contain_text("3 tokens write this character, 10 times as likely")
    assert popover.locator("tr.own th").all_inner_texts() == ["e6", "bc", "a2"]
    assert "\n" in text(page, "steered").inner_text()


STREAM = """async ([text, size]) => {
  const bytes = new TextEncoder().encode(text);
  window.fetch = async () => new Response(new ReadableStream({
    start(stream) {
      for (let at = 0; at < bytes.length; at += size) stream.enqueue(bytes.slice(at, at + size));
      stream.close();
    },
  }));
  const { complete } = await import("/server.js");
  const found = [];
  try {
    for await (const { text } of complete({}, new AbortController().signal)) found.push(text);
  } catch (error) {
    found.push(error.message);
  }
  return found;
}"""


def test_a_stream_may_be_cut_anywhere(page: Page) -> None:
    chunk = 'data: {"choices": [{"delta": {"content": "%s"}}]}'
    split = 'data: {"choices":\ndata: [{"delta": {"content": "c"}}]}'  # one event of two lines
    events = [chunk % "é漢😀", ": still here", chunk % "b", split, "data: [DONE]", chunk % "no"]
    ended = "The connection ended before the answer did."
    for size, end in product((1, 2, 5, 1000), ("\n", "\r\n", "\r")):
        wire = "".join(f"{event}\n\n" for event in events).replace("\n", end)
        assert page.evaluate(STREAM, [wire, size]) == ["é漢😀", "b", "c"]
        cut = wire[: wire.index("data: [DONE]")]
        assert page.evaluate(STREAM, [cut, size]) == ["é漢😀", "b", "c", ended]


SPANS = """async ([chunks]) => {
  const { Spans } = await import("/tokens.js");
  const spans = new Spans();
  const found = chunks.flatMap(([text, tokens]) => spans.add(text, tokens));
  return [...found, ...spans.end()].map(({ text, tokens }) => [text, tokens.length]);
}"""


CUTS: list[tuple[list[tuple[str, list[str | None]]], list[list[object]]]] = [
    # The first space of an answer is not in its text.
    ([("Paris", [" Paris"])], [["Paris", 1]]),
    # Text held back, in case it begins a stop text: its token waits for it, or for the end.
    ([("", ["ab"]), ("abc", ["c"])], [["ab", 1], ["c", 1]]),
    ([("a", ["ab"])], [["a", 0]]),
    # An end token writes nothing; without tokens there is still text.
    ([("ab", ["ab", None])], [["ab", 1]]),
    ([("ab", []), ("c", ["c"])], [["ab", 0], ["c", 1]]),
    # A token that explains nothing does not hide those after it.
    ([("ab", ["x", "ab"])], [["ab", 1]]),
]


def test_text_is_cut_where_its_tokens_end(page: Page) -> None:
    for chunks, spans in CUTS:
        entries = [
            [said, [{"token": t or "</s>", "bytes": [*t.encode()] if t else None} for t in tokens]]
            for said, tokens in chunks
        ]
        assert page.evaluate(SPANS, [entries]) == spans


def test_everything_can_be_done_with_keys(page: Page, server: PageServer) -> None:
    server.scripts["Who?"] = Script(steered="I am\nsteered, and so are you.")
    page.keyboard.type("Who?")  # the question has the focus from the start
    page.keyboard.press("Enter")
    expect(page.locator(".answer[data-state=done]")).to_have_count(2)
    for _ in range(4):  # Send, Retry, Copy: back to the tokens of the answer before
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.classList.contains('token')"):
            break
    focused = page.locator(":focus")
    popover = page.locator("#popover")
    walk = [
        ("Home", "I"),
        ("ArrowRight", " am"),
        ("ArrowDown", "steered,"),
        ("ArrowUp", "I"),
        ("End", " you."),
        ("ArrowLeft", " are"),
    ]
    for key, token in walk:
        page.keyboard.press(key)
        assert focused.text_content() == token
        expect(popover.locator("tr.own th")).to_have_text(token.replace(" ", "␣"))
        assert focused.get_attribute("aria-describedby") == "popover"
    page.keyboard.press("Escape")
    expect(popover).to_be_hidden()
    assert focused.text_content() == " are"
    outline = focused.evaluate("one => getComputedStyle(one).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Tab")
    assert focused.inner_text() == "Copy"
    for _ in range(15):
        page.keyboard.press("Shift+Tab")
        if focused.inner_text() == "Skip to the question":
            break
    assert focused.bounding_box()["width"] > 50  # type: ignore[index]  # seen while it has the focus
    page.keyboard.press("Enter")
    page.keyboard.type("x")
    assert page.input_value("#question") == "x"


def test_a_narrow_screen_stacks_the_columns_and_lays_the_settings_over(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    reload(page)
    ask(page, "Who?")
    plain, steered = (answer(page, column).bounding_box() for column in ("plain", "steered"))
    assert plain and steered
    assert steered["y"] >= plain["y"] + plain["height"] and steered["x"] == plain["x"]
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    text(page, "steered").locator(".token").nth(1).focus()
    box = page.locator("#popover").bounding_box()
    assert box and box["x"] >= 0 and box["x"] + box["width"] <= 360
    page.keyboard.press("Escape")
    assert page.locator("#panel").is_hidden()
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("instruct, alpha as a number").fill("2")
    assert page.locator("main").evaluate("main => main.inert")
    page.keyboard.press("Escape")
    expect(page.locator("#panel")).to_be_hidden()
    assert not page.locator("main").evaluate("main => main.inert")


CONTRAST = """async () => {
  const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 })
    .getContext("2d", { willReadFrequently: true });
  const paint = (colors) => {
    context.clearRect(0, 0, 1, 1);
    for (const color of colors) { context.fillStyle = color; context.fillRect(0, 0, 1, 1); }
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (rgb) => rgb
    .map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = (one, pseudo) => {
    const layers = [];
    for (let at = one; at; at = at.parentElement) {
      layers.unshift(getComputedStyle(at).backgroundColor);
    }
    const [low, high] = [paint(layers), paint([...layers, getComputedStyle(one, pseudo).color])]
      .map(luminance).sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const found = {};
  const note = (one, pseudo) => {
    const name = `${one.tagName}#${one.id}.${one.className} ${pseudo ?? ""}`;
    found[name] = Math.min(found[name] ?? 99, contrast(one, pseudo));
  };
  for (const one of document.querySelectorAll("body *")) {
    const written = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (written && one.checkVisibility() && !one.disabled) note(one);
    if (one.placeholder) note(one, "::placeholder");
    if (one.classList.contains("newline")) note(one, "::before");
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast(
    reader: Reader, page: Page, server: PageServer, scheme: str
) -> None:
    """WCAG 2.2, 1.4.3: 4.5 to 1 for text, whatever the tint under it."""
    reader.pardoned = f"429|{GONE}"
    page.emulate_media(color_scheme=scheme)
    expect(page.locator("html")).to_have_attribute("data-theme", scheme)
    server.scripts["Tints"] = Script(steered="a b c d\ne\nf g h i j\nk\nl", error="broken")
    server.scripts["busy"] = Script(status=429)
    found = page.evaluate(CONTRAST)
    ask(page, "Tints")
    ask(page, "busy")
    page.locator(".turn:first-child .steered .token").nth(0).focus()
    server.stop()
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator("#banner")).to_be_visible()
    found |= page.evaluate(CONTRAST)
    server.start()
    assert len(found) > 40 and any("unsaid" in name for name in found)
    assert {name: ratio for name, ratio in found.items() if ratio < 4.5} == {}


def test_dark_follows_the_system_until_the_reader_chooses(page: Page) -> None:
    body = page.locator("body")
    page.emulate_media(color_scheme="dark")
    expect(body).to_have_css("background-color", "rgb(23, 23, 27)")
    page.get_by_role("button", name="Light").click()
    expect(body).to_have_css("background-color", "rgb(255, 255, 255)")
    reload(page)
    expect(body).to_have_css("background-color", "rgb(255, 255, 255)")


def test_every_control_has_a_name_and_every_id_is_unique(page: Page) -> None:
    ask(page, "Who?")
    named = """all => all.filter((one) => !(one.ariaLabel || one.textContent.trim()
        || one.labels?.length)).map((one) => one.outerHTML)"""
    assert page.locator("button, input, textarea").evaluate_all(named) == []
    ids = page.locator("[id]").evaluate_all("all => all.map((one) => one.id)")
    assert len(ids) == len(set(ids))
    roles = [page.get_by_role(role).count() for role in ("main", "banner", "complementary")]
    assert roles == [1, 1, 1]
