"""The rendered book, as a reader's browser sees it: whole, self-contained, and showing the records' numbers."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import Browser, Page, sync_playwright

from purifier_core.files import ROOT
from purifier_core.lab.experiments import EXPERIMENTS
from purifier_core.lab.experiments.beyond import Attacks
from purifier_core.lab.records import Store
from purifier_core.lab.results import look_up
from purifier_core.pages import anomaly, gallery, overview, report

TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [TOC["root"], *(chapter["file"] for chapter in TOC["chapters"])]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCREENS = {"desk": (1280, 900, "light"), "phone": (390, 844, "dark")}

needs_browser = pytest.mark.skipif(
    BROWSER is None and not os.environ.get("CI"), reason="no Chromium or Chrome is installed"
)


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Path:
    """The book as `make book` builds it, warnings as errors, from the committed records alone."""
    out = tmp_path_factory.mktemp("book")
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", ".", "-W", "-n", "--keep-going"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PURIFIER_", "GITHUB_"))}
    done = subprocess.run(
        [*command, "--path-output", str(out)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out / "_build" / "html"


@pytest.fixture(scope="module")
def browser():
    """A headless browser without the connections that it makes on its own."""
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=[*quiet, "--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def opened(browser: Browser, book: Path, page: str, screen: str = "desk") -> tuple[Page, list[str]]:
    """A page of the book on a screen, and what went wrong while it loaded."""
    width, height, mode = SCREENS[screen]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=mode)
    context.add_init_script(f"localStorage.setItem('mode', '{mode}'); localStorage.setItem('theme', '{mode}')")
    tab, wrong = context.new_page(), []
    tab.on("console", lambda m: wrong.append(f"console: {m.text}") if m.type == "error" else None)
    tab.on("pageerror", lambda e: wrong.append(f"script: {e}"))
    tab.on("requestfailed", lambda r: wrong.append(f"failed: {r.url}"))
    tab.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else wrong.append(f"outside: {r.url}"))
    tab.goto((book / page).with_suffix(".html").as_uri())
    tab.wait_for_load_state("networkidle")
    return tab, wrong


@needs_browser
@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_opens_whole_and_asks_nothing_of_the_net(browser, book, page, screen):
    tab, wrong = opened(browser, book, page, screen)
    assert wrong == []
    assert tab.evaluate("document.documentElement.dataset.theme") == SCREENS[screen][2]
    assert tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, "the page scrolls sideways"
    images = tab.evaluate("[...document.querySelectorAll('article img')].map(i => [i.alt, i.naturalWidth])")
    assert all(alt and width for alt, width in images), images
    assert tab.evaluate("[...document.querySelectorAll('article a[href]')].length") >= 1
    text = tab.inner_text("article")
    assert not re.search(r"\bTraceback\b|\{glue|\{numref|\{cite", text)
    tab.context.close()


@needs_browser
def test_links_between_pages_lead_somewhere(browser, book):
    for page in PAGES:
        tab, _ = opened(browser, book, page)
        links = tab.evaluate("[...document.querySelectorAll('article a[href]')].map(a => a.href)")
        tab.context.close()
        for link in filter(lambda link: link.startswith("file:"), links):
            assert Path(re.sub(r"[#?].*", "", link.removeprefix("file://"))).exists(), f"{page}: {link}"


@needs_browser
@pytest.mark.parametrize(
    ("page", "table"),
    [
        ("notebooks/table3", "rows"),
        ("notebooks/table4", "rows"),
        ("notebooks/figure10", "numbers"),
        ("notebooks/figure11", "numbers"),
        ("notebooks/figure12", "numbers"),
        ("book/attacks", "attacks"),
        ("book/intro", "overview"),
    ],
)
def test_tables_hold_the_records_numbers(browser, book, page, table, monkeypatch):
    monkeypatch.setenv("PURIFIER_RECORDS_ONLY", "1")
    store, name = Store(ROOT / "data"), Path(page).name
    if table == "overview":
        wanted = overview.table(store)
    elif table == "attacks":
        wanted = gallery.table(look_up(Attacks(), store))
    else:
        view = report if table == "rows" else anomaly
        wanted = view.table(look_up(EXPERIMENTS[name](), store))
    tab, _ = opened(browser, book, page)
    cells = f"[...document.querySelectorAll('#T_{table} tbody tr')].map(r => [...r.querySelectorAll('td')]"
    shown = tab.evaluate(f"{cells}.map(d => d.textContent.trim()))")
    tab.context.close()
    plain = [[re.sub(r"<.*?>", "", value).strip() for value in row] for row in wanted.to_numpy().tolist()]
    assert shown == plain
    assert any(re.search(r"\d", value) for row in plain for value in row)


@needs_browser
def test_search_finds_a_page(browser, book):
    context = browser.new_context()
    tab = context.new_page()
    tab.goto((book / "search.html").as_uri() + "?q=granularity")
    tab.wait_for_selector("#search-results li a", timeout=20_000)
    found = tab.evaluate("[...document.querySelectorAll('#search-results li a')].map(a => a.href)")
    context.close()
    assert any("book/method" in link for link in found)
