import base64
import fcntl
import importlib.util
import io
import json
import os
import re
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image

from stages.page import render

CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome", "chrome") if (p := shutil.which(n))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH: the page is not opened in a browser")
FLAGS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync"
OFFLINE = ["--host-resolver-rules=MAP * ~NOTFOUND", "--no-proxy-server"]  # what Chromium itself would ask for finds nobody either


class Browser:
    """Headless Chromium, driven over its DevTools pipe: the page itself runs no script."""

    def __init__(self, home: Path):
        command_out, self.commands = _pipe()
        self.answers, answers_in = _pipe()

        def wire():  # Chromium reads commands from 3 and writes answers to 4
            os.dup2(command_out, 3)
            os.dup2(answers_in, 4)

        flags = [*FLAGS.split(), *OFFLINE, f"--user-data-dir={home}", "--remote-debugging-pipe", "about:blank"]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen([CHROMIUM, *flags], preexec_fn=wire, close_fds=False, stdin=quiet, stdout=quiet, stderr=quiet)
        os.close(command_out)
        os.close(answers_in)
        self.rest, self.events, self.count, self.session = b"", [], 0, None
        target = next(t for t in self.ask("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.ask(f"{domain}.enable")

    def ask(self, method, **params):
        self.count += 1
        message = {"id": self.count, "method": method, "params": params} | ({"sessionId": self.session} if self.session else {})
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def open(self, page: Path, width: int, dark: bool = False):
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 700)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.events.clear()
        self.ask("Page.navigate", url=page.as_uri())
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self._next())

    def value(self, expression):
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]

    def screenshot(self) -> Image.Image:
        shot = self.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        return Image.open(io.BytesIO(base64.b64decode(shot))).convert("RGB")

    def close(self):
        self.session = None
        self.ask("Browser.close")
        self.process.wait(20)
        os.close(self.commands)
        os.close(self.answers)

    def _next(self) -> dict:
        until = time.monotonic() + 60
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.answers], [], [], max(0, until - time.monotonic()))
            assert ready, "Chromium does not answer"
            part = os.read(self.answers, 1 << 20)
            assert part, "Chromium ended"
            self.rest += part
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)


def _pipe():
    """Both ends at descriptors of 10 and above, clear of the two that Chromium expects."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return moved


def _drawn_by(test: str):
    """A module of tests, for the runs that it draws."""
    spec = importlib.util.spec_from_file_location(f"drawn_for_{test}", Path(__file__).with_name(f"{test}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    file = folder / "page.html"
    file.write_text(render(*_drawn_by("test_page").fake_run(folder))[0], encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """The page of a run whose gate a class has broken."""
    folder = tmp_path_factory.mktemp("broken")
    file = folder / "page.html"
    file.write_text(render(*_drawn_by("test_page_changes").changed_run(folder, many=2))[0], encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


def requested(browser):
    return {e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"}


WORDS = """[...document.querySelectorAll(`p, td, th, h1, h2, h3, h4, h4 span, .mark-word,
    .sub, .tick, .axis, .label, small, figcaption, summary`)].map(e => {
    const s = getComputedStyle(e); let b = e;
    while (b && getComputedStyle(b).backgroundColor === 'rgba(0, 0, 0, 0)') b = b.parentElement;
    b = getComputedStyle(b || document.body).backgroundColor;
    return [e instanceof SVGElement ? s.fill : s.color, b, e.textContent.slice(0, 30)] })"""
VIEWS = pytest.mark.parametrize("width, dark", [(1280, False), (390, False), (1280, True)], ids=["desktop", "phone", "dark"])


@VIEWS
def test_every_picture_loads_and_nothing_is_requested_from_outside(browser, page, width, dark):
    browser.open(page, width, dark)
    sizes = browser.value("[...document.images].map(i => [i.complete, i.naturalWidth, i.getBoundingClientRect().width])")
    assert len(sizes) == 16
    assert all(complete and natural == 256 and shown > 100 for complete, natural, shown in sizes), sizes
    assert {u for u in requested(browser) if not u.startswith("data:image/")} == {page.as_uri()}


@VIEWS
def test_nothing_is_blocked_and_nothing_sticks_out(browser, page, width, dark):
    browser.open(page, width, dark)
    browser.value("[...document.querySelectorAll('details')].map(d => d.open = true)")
    assert [e["params"] for e in browser.events if e["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")] == []
    assert browser.value("document.documentElement.scrollWidth <= innerWidth")
    assert browser.value("document.scripts.length") == 1
    inside = "[...document.querySelectorAll('svg.chart text')].every(t => { const b = t.getBoundingClientRect(), c ="
    assert browser.value(inside + " t.ownerSVGElement.getBoundingClientRect(); return b.left >= c.left - 1 && b.right <= c.right + 1 })")


@VIEWS
def test_the_screen_shows_the_pictures(browser, page, width, dark):
    browser.open(page, width, dark)
    places = browser.value(
        "[...document.querySelectorAll('img.map')].slice(0, 5).map(i => { const b = i.getBoundingClientRect();"
        "return [b.left + scrollX, b.top + scrollY, b.right + scrollX, b.bottom + scrollY].map(Math.round) })"
    )
    screen = browser.screenshot()
    for place in places:
        colours = {c for _, c in screen.crop(place).getcolors(1 << 20)}
        assert {(70, 130, 180), (70, 70, 70), (128, 64, 128), (244, 35, 232)} <= colours, "sky, building, road, sidewalk"
    paper = screen.getpixel((2, 2))
    assert (sum(paper) < 150) == dark


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_words_stand_out_from_their_background(browser, page, dark):
    browser.open(page, 1280, dark)
    found = browser.value(WORDS)
    assert len(found) > 150
    for ink, paper, text in found:
        assert _contrast(ink, paper) >= 4.5, (ink, paper, text)


@VIEWS
def test_a_broken_gate_stands_first_with_every_picture_in_its_place(browser, broken, width, dark):
    browser.open(broken, width, dark)
    sizes = browser.value(
        "[...document.images].map(i => { const b = i.getBoundingClientRect(); return [i.naturalWidth, b.width, b.right] })"
    )
    assert len(sizes) == 12 and all(natural > 20 and wide > 100 and right <= width for natural, wide, right in sizes), sizes
    assert browser.value("document.documentElement.scrollWidth <= innerWidth")
    assert browser.value("document.querySelector('h2').textContent") == "Gate"
    inside = "[...document.querySelectorAll('.gate td')].every(t => t.getBoundingClientRect().right <= innerWidth)"
    assert browser.value(inside)
    for ink, paper, text in browser.value(WORDS):
        assert _contrast(ink, paper) >= 4.5, (ink, paper, text)


def test_a_page_that_does_load_something_would_be_noticed(browser, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text("<!doctype html><img src='https://example.invalid/x.png'><p>text")
    browser.open(page, 1280)
    assert "https://example.invalid/x.png" in requested(browser)


def _contrast(one: str, other: str) -> float:
    """WCAG 2 contrast of two CSS colours."""
    light = sorted(_luminance(c) for c in (one, other))
    return (light[1] + 0.05) / (light[0] + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
