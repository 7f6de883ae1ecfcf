"""The browsers to read the book with."""

import os
import shutil
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from firefox import HERE, Firefox
from playwright.sync_api import Browser, Page, sync_playwright

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FIREFOX = next(filter(None, map(shutil.which, ("firefox-esr", "firefox"))), None)
SCREENS = {"desk": (1280, 900, "light"), "phone": (390, 844, "dark")}


def _needs(program: str | None, name: str) -> pytest.MarkDecorator:
    """Skip where there is no such browser, but not in CI, which installs it."""
    return pytest.mark.skipif(program is None and not os.environ.get("CI"), reason=f"no {name} is installed")


needs_browser, needs_firefox = _needs(BROWSER, "Chromium or Chrome"), _needs(FIREFOX, "Firefox")


@pytest.fixture(scope="session")
def browser():
    """A headless browser without the connections that it makes on its own."""
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=[*quiet, "--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def firefoxes():
    """The Firefox in use, alone in a list; empty before the first."""
    running: list[Firefox] = []
    yield running
    for one in running:
        one.close()


def answering(running: list[Firefox], start: Callable[[], Firefox]) -> Firefox:
    """The Firefox in the list; a new one takes its place where it has hung, or where there is none."""
    if running and running[0].hung:
        running.pop().close()
    if not running:
        running.append(start())
    return running[0]


@pytest.fixture
def firefox(firefoxes, tmp_path_factory):
    """A headless Firefox, the same for all tests until it hangs: so a hang fails one test."""
    assert FIREFOX, "no Firefox is installed"
    return answering(firefoxes, lambda: Firefox(FIREFOX, tmp_path_factory.mktemp("firefox")))


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder and prints nothing."""

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="session")
def served(book):
    """The address of the book on a server of this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=book)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class ChromiumPage:
    """A page open in Chromium, as a hand finds it: what `firefox.FirefoxPage` is for Firefox."""

    def __init__(self, browser: Browser, address: str, width: int, height: int, mode: str) -> None:
        self._tab, self.wrong = visited(browser, address, {"width": width, "height": height}, mode, has_touch=True)

    def evaluate(self, script: str, given: Any = None) -> Any:
        """The value of an expression, or of a function of `given`; a promise's value once it is there."""
        return self._tab.evaluate(script, given)

    def press(self, key: str) -> None:
        """Press a key by its name in the DOM."""
        self._tab.keyboard.press(key)

    def stroke(self, points: list[tuple[float, float]], kind: str) -> None:
        """Press the "mouse", or put a finger down ("touch"), at the first point; move over the others; let go."""
        (x, y), *moves = points
        if kind == "mouse":
            self._tab.mouse.move(x, y)
            self._tab.mouse.down()
            for x, y in moves:
                self._tab.mouse.move(x, y)
            return self._tab.mouse.up()
        if not moves:
            return self._tab.touchscreen.tap(x, y)  # both events at once: half a second between them is a long press
        finger = self._tab.context.new_cdp_session(self._tab)
        for event, at in [("touchStart", (x, y)), *(("touchMove", at) for at in moves), ("touchEnd", None)]:
            touched = [{"x": at[0], "y": at[1]}] if at else []
            finger.send("Input.dispatchTouchEvent", {"type": event, "touchPoints": touched})

    def close(self) -> None:
        """Close the page."""
        self._tab.context.close()


def opened(
    browser: Browser, book: Path, page: str, screen: str = "desk", address: str = "", **options: Any
) -> tuple[Page, list[str]]:
    """A page of the book on a screen, and what went wrong while it loaded. address: what follows the page's name;
    options: further ones of a browser's context."""
    width, height, mode = SCREENS[screen]
    place = (book / page).with_suffix(".html").as_uri() + address
    return visited(browser, place, {"width": width, "height": height}, mode, **options)


def visited(browser: Browser, address: str, size: Any, mode: Any, **options: Any) -> tuple[Page, list[str]]:
    """An address in a context of its own, light or dark, and what went wrong while it loaded."""
    context = browser.new_context(viewport=size, color_scheme=mode, **options)
    context.add_init_script(f"localStorage.setItem('mode', '{mode}'); localStorage.setItem('theme', '{mode}')")
    tab, wrong = context.new_page(), []
    tab.on("console", lambda m: wrong.append(f"console: {m.text}") if m.type == "error" else None)
    tab.on("pageerror", lambda e: wrong.append(f"script: {e}"))
    tab.on("requestfailed", lambda r: wrong.append(f"failed: {r.url}"))
    tab.on("request", lambda r: None if r.url.startswith(HERE) else wrong.append(f"outside: {r.url}"))
    tab.goto(address)
    tab.wait_for_load_state("networkidle")
    return tab, wrong
