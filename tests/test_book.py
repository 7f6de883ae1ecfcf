"""The rendered book, as a reader's browser sees it: whole, self-contained, and showing the records' numbers."""

import re
from pathlib import Path

import pytest
import yaml
from browsing import SCREENS, needs_browser, opened

from purifier_core.files import ROOT
from purifier_core.lab.experiments import EXPERIMENTS
from purifier_core.lab.experiments.comparison import Attacks
from purifier_core.lab.records import Store
from purifier_core.lab.results import look_up
from purifier_core.pages import anomaly, gallery, overview, report

TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [TOC["root"], *(chapter["file"] for chapter in TOC["chapters"])]


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
