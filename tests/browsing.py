"""The book, built once for all tests, and a browser to read it with."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from purifier_core.files import ROOT

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCREENS = {"desk": (1280, 900, "light"), "phone": (390, 844, "dark")}

needs_browser = pytest.mark.skipif(
    BROWSER is None and not os.environ.get("CI"), reason="no Chromium or Chrome is installed"
)


@pytest.fixture(scope="session")
def book(tmp_path_factory, pytestconfig) -> Path:
    """The book as `make book` builds it, warnings as errors, from the committed records alone; or that of --book."""
    if given := pytestconfig.getoption("--book"):
        return Path(given)
    out = tmp_path_factory.mktemp("book")
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", ".", "-W", "-n", "--keep-going"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PURIFIER_", "GITHUB_"))}
    done = subprocess.run(
        [*command, "--path-output", str(out)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out / "_build" / "html"


@pytest.fixture(scope="session")
def browser():
    """A headless browser without the connections that it makes on its own."""
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=[*quiet, "--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def opened(
    browser: Browser, book: Path, page: str, screen: str = "desk", address: str = "", **options: Any
) -> tuple[Page, list[str]]:
    """A page of the book on a screen, and what went wrong while it loaded. address: what follows the page's name;
    options: further ones of a browser's context."""
    width, height, mode = SCREENS[screen]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=mode, **options)
    context.add_init_script(f"localStorage.setItem('mode', '{mode}'); localStorage.setItem('theme', '{mode}')")
    tab, wrong = context.new_page(), []
    tab.on("console", lambda m: wrong.append(f"console: {m.text}") if m.type == "error" else None)
    tab.on("pageerror", lambda e: wrong.append(f"script: {e}"))
    tab.on("requestfailed", lambda r: wrong.append(f"failed: {r.url}"))
    tab.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else wrong.append(f"outside: {r.url}"))
    tab.goto((book / page).with_suffix(".html").as_uri() + address)
    tab.wait_for_load_state("networkidle")
    return tab, wrong
