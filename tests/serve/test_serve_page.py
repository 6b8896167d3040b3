"""The chat page in a real browser."""

import os
from pathlib import Path

import pytest
from served import TOKEN, Gate, serving, settings, until

CHROMIUM = Path(os.environ.get("KEEL_CHROMIUM", "/usr/bin/chromium"))
ARGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync"]
HOSTILE = "<img src=x onerror=alert(1)><b>cat</b>"
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def chromium():
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed; KEEL_CHROMIUM names another")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=ARGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(settings(tmp_path_factory.mktemp("page"), limits={"max_length": 100, "max_messages": 400})) as running:
        running.engine._desk.stop_ids = frozenset()  # replies go on until somebody stops them
        yield running


class Opened:
    """The page, with everything it said to the console and everything it asked for."""

    def __init__(self, chromium, served, width=1280, theme="light", key=f"#token={TOKEN}"):
        self.said, self.asked = [], []
        self.context = chromium.new_context(viewport={"width": width, "height": 844}, color_scheme=theme)
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append("dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.extend([request]))
        self.page.goto(f"{served.address}/{key}")
        if key:
            self.page.wait_for_selector("#state:text-is('ready')")

    def say(self, text, wait=True):
        self.page.fill("#said", text)
        self.page.keyboard.press("Enter")
        if wait:
            self.page.wait_for_selector("#send:not([hidden])")

    def bodies(self):
        return [request.post_data_json for request in self.asked if request.url.endswith("/completions")]

    def overflow(self):
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def test_a_conversation_is_drawn_as_it_goes_and_the_cap_can_be_switched_on(chromium, served):
    opened = Opened(chromium, served)
    page = opened.page
    assert TOKEN not in page.url and page.title() == "tiny \u2013 keel chat"
    page.click("#gear")
    page.fill("#longest", "8")
    page.keyboard.press("Escape")
    assert page.locator("#settings").is_hidden()
    opened.say(HOSTILE)
    opened.say("yes no")
    page.check("#cap")
    opened.say("hello cat")
    assert page.locator(".turn").count() == 6 and page.locator(".turn.user .text").first.inner_text() == HOSTILE
    page.wait_for_selector("#turns circle.dot >> nth=5")
    assert page.locator("#turns rect.band").count() == 1 and page.locator("#turns circle.ring").count() == 1
    assert "Projection by turn: 6 turns measured" in page.locator("#turns").get_attribute("aria-label")
    assert "7 tokens" in page.locator("#reply").get_attribute("aria-label")
    assert "cap acted on" in page.locator(".told").last.inner_text()
    assert page.locator("#verdict").inner_text().startswith("This reply was at")
    caps = [body["axis"]["cap"] for body in opened.bodies()]
    assert caps[:2] == [None, None] and caps[2] in ("floor", "beside")
    assert opened.said == [] and all(request.url.startswith((served.address, "data:")) for request in opened.asked)
    assert "unsafe" not in served.http.get("/").headers["content-security-policy"]
    opened.context.close()


def test_a_phone_shows_it_too_and_a_reply_can_be_stopped_in_the_middle(chromium, served):
    opened = Opened(chromium, served, width=360, theme="dark")
    page, gate = opened.page, Gate(served.engine)
    opened.say("hello cat", wait=False)
    page.wait_for_selector("#stop:not([hidden])")
    gate.let(3)
    page.wait_for_selector("#turns circle.live")  # drawn while it is written
    page.locator("#verdict", has_text="Now at").wait_for()
    assert page.locator("#state").inner_text() == "writing"
    page.click("#stop")
    page.wait_for_selector("#send:not([hidden])")
    assert "stopped" in page.locator(".told").last.inner_text()
    assert until(lambda: (gate.let(1), served.engine.counts == (0, 0))[1])
    gate.off()
    assert opened.overflow() == 0 and opened.said == []
    box = page.locator("#send").bounding_box()
    assert box["height"] >= 44 and box["x"] + box["width"] <= 360
    page.click("#gear")
    assert opened.overflow() == 0 and page.locator("#steer").is_visible()
    opened.context.close()


def test_what_goes_wrong_is_said_and_can_be_mended(chromium, served):
    opened = Opened(chromium, served, key="")
    page = opened.page
    page.fill("#token", "not the token at all")
    page.keyboard.press("Enter")
    page.wait_for_selector("#wrong:text('not the server')")
    page.fill("#token", TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_selector("#state:text-is('ready')")

    def burst():
        raise MemoryError("full")

    served.engine._desk.step = burst
    opened.say("hello cat", wait=False)
    page.wait_for_selector(".trouble:has-text('MemoryError: full')")
    page.click(".trouble button:has-text('Try again')")
    page.wait_for_selector("#send:not([hidden])")
    assert page.locator(".turn").count() == 2 and page.locator(".trouble").count() == 0
    opened.say("cat " * 80)
    page.wait_for_selector(".trouble:has-text('prompt and response together')")
    page.click(".trouble button:has-text('Leave out the oldest')")
    page.wait_for_selector(".turn.left-out >> nth=1")
    page.wait_for_selector("#send:not([hidden])")
    assert [len(body["messages"]) for body in opened.bodies()] == [1, 1, 3, 1]
    page.click("#fresh")
    assert page.locator(".turn").count() == 0 and page.locator("#empty").is_visible()
    opened.context.close()


def test_without_an_axis_the_page_is_a_plain_chat(chromium, served):
    control, served.engine._control = served.engine._control, None
    opened = Opened(chromium, served, key="")
    opened.context.route("**/v1/axis", lambda route: route.fulfill(json={"object": "axis", "available": False}))
    page = opened.page
    page.fill("#token", TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_selector("#state:text-is('ready')")
    try:
        opened.say("hello cat")
    finally:
        served.engine._control = control
    assert page.locator("#watch").is_hidden() and "axis" not in opened.bodies()[0] and opened.overflow() == 0
    assert page.locator(".turn").count() == 2
    opened.context.close()
