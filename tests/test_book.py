"""The rendered book, as a reader's browser sees it: whole, legible, self-contained, with the records' numbers."""

import re
from pathlib import Path

import pandas as pd
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
    check_links(tab.evaluate("[...document.querySelectorAll('article a[href]')].map(a => a.href)"))
    text = tab.inner_text("article")
    assert not re.search(r"\bTraceback\b|\{glue|\{numref|\{cite|<Figure size", text)
    if page == "book/intro":
        assert tab.query_selector("article .figure-drawn"), "the landing page shows a picture"
    last = tab.evaluate("[...document.querySelectorAll('article section')].at(-1).innerText")
    assert re.match(r"What this page does not show#?\s+\S.{80}", last, flags=re.S), f"the page ends with: {last[:80]}"
    check_figures(tab, page)
    check_tables(tab, SCREENS[screen][0])
    tab.context.close()


def check_links(links):
    """Those between pages lead somewhere."""
    assert links
    inside = [re.sub(r"[#?].*", "", link.removeprefix("file://")) for link in links if link.startswith("file:")]
    assert [path for path in inside if not Path(path).exists()] == []


TEXTS = """() => {
    const glyphs = [...document.querySelectorAll(".figure-drawn g[transform*='scale(']")];
    const plain = [...document.querySelectorAll("article svg text")];
    const scale = (node) => { const { a, b } = node.getScreenCTM(); return Math.hypot(a, b); };
    const seen = (node, size) => ({
        size, fill: getComputedStyle(node).fill, figure: node.closest("figure, .cell_output")?.id ?? "",
    });
    return [
        ...glyphs.map((node) => seen(node, 100 * scale(node))),
        ...plain.map((node) => seen(node, parseFloat(getComputedStyle(node).fontSize) * scale(node))),
    ];
}"""
"""Every text of the page's drawings: matplotlib's, which are glyphs of 100 units, and our own."""

ON_COLOURS = ("fig-defenses", "fig-figure11")
"""Heat maps: their texts stand on cells, not on the page."""


def check_figures(tab, page):
    """Every figure is drawn in the page, its texts are 10 pixels high, and stand out from the page."""
    images = tab.evaluate("[...document.querySelectorAll('article img')].map(i => i.currentSrc.split('?')[0])")
    assert page in ("notebooks/own_model", "book/try") or not [image for image in images if image.endswith(".png")]
    texts = tab.evaluate(TEXTS)
    assert [text for text in texts if text["size"] < 9.9] == []
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    for text in texts:
        if text["figure"] not in ON_COLOURS:
            assert contrast(text["fill"], paper) > 3, text


def contrast(*colours):
    """WCAG's ratio of two colours as a browser tells them: rgb(...), or color(srgb ...)."""
    lights = []
    for colour in colours:
        channels = [float(value) for value in re.findall(r"[\d.]+", colour.replace("srgb", ""))[:3]]
        channels = [value / 255 if colour.startswith("rgb") else value for value in channels]
        linear = [value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


TABLES = """[...document.querySelectorAll(".results-scroll")].filter((box) => box.offsetParent).map((box) => {
    const hidden = box.scrollWidth - box.clientWidth;
    box.scrollTo(1e6, 1e6);
    const place = (node) => node.getBoundingClientRect();
    const frame = place(box);
    const name = [...box.querySelectorAll("tbody tr:last-child th")].at(-1);
    return {
        id: box.querySelector("table").id,
        hidden,
        head: Math.abs(place(box.querySelector("thead")).top - frame.top),
        name: name ? [place(name).left - frame.left, frame.right - place(name).right] : [0, 0],
    };
})"""


def check_tables(tab, width):
    """A long table keeps its head and the names of its rows in sight; on a desk no column is out of it."""
    for table in tab.evaluate(TABLES):
        assert table["head"] <= 2, table
        assert min(table["name"]) >= -1, table
        assert width < 1280 or table["hidden"] <= 1, table


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
    told = [[plain(value) for value in row] for row in wanted.to_numpy().tolist()]
    assert shown == told
    assert any(re.search(r"\d", value) for row in told for value in row)


def plain(text):
    """A cell's text without its tags."""
    return re.sub(r"<.*?>", "", text).strip()


@needs_browser
def test_search_finds_a_page(browser, book):
    context = browser.new_context()
    tab = context.new_page()
    tab.goto((book / "search.html").as_uri() + "?q=granularity")
    tab.wait_for_selector("#search-results li a", timeout=20_000)
    found = tab.evaluate("[...document.querySelectorAll('#search-results li a')].map(a => a.href)")
    context.close()
    assert any("book/method" in link for link in found)


@needs_browser
def test_a_table_can_be_taken_away(browser, book, monkeypatch):
    monkeypatch.setenv("PURIFIER_RECORDS_ONLY", "1")
    tab, _ = opened(browser, book, "notebooks/table3")
    with tab.expect_download() as waiting:
        tab.click(".results-download a >> nth=0")
    taken = pd.read_csv(waiting.value.path(), dtype=str, keep_default_na=False)
    tab.context.close()
    wanted = report.table(look_up(EXPERIMENTS["table3"](), Store(ROOT / "data")))
    assert waiting.value.suggested_filename == "table3-rows.csv"
    names = wanted.index.nlevels
    assert taken.iloc[:, names:].to_numpy().tolist() == [[plain(value) for value in row] for row in wanted.to_numpy()]
    assert taken.iloc[:, :names].to_numpy().tolist() == [[str(part) for part in row] for row in wanted.index]
