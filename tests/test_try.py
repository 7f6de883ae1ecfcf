"""The page "Try it": its arithmetic is torch's, and it can be used by mouse, touch and keyboard, offline."""

import json
import os
import signal
import time

import pytest
import torch
from browsing import FIREFOX, SCREENS, ChromiumPage, answering, needs_browser, needs_firefox, opened
from firefox import Firefox, FirefoxPage

from purifier_core.evaluation import evaluate, to_float
from purifier_core.lab import data, live, zoo
from purifier_core.lab.cells import TARGET_CLASS

PAGE = "book/try"
NAMES = sorted(path.name for path in live.FOLDER.iterdir())
NETWORKS = [(name, repair) for name in NAMES for repair in ("none", *live.PAGE[name])]
CLOSE = 2e-3
CANVAS = ".try-left > canvas"

BROWSERS = [
    pytest.param((ChromiumPage, "browser"), id="chromium", marks=needs_browser),
    pytest.param((FirefoxPage, "firefox"), id="firefox", marks=needs_firefox),
]


class Tab:
    """The page in a browser, with its state, its answer, and a reader's hands. A control is found by how its name
    begins."""

    def __init__(self, page):
        self.page = page
        until = time.monotonic() + 120
        while not page.evaluate("document.querySelector('.try').handle?.last()?.milliseconds ?? 0"):
            assert time.monotonic() < until, "the page does not start"

    def idle(self):
        """Wait until what was asked for is shown."""
        self.page.evaluate("document.querySelector('.try').handle.idle()")

    @property
    def state(self):
        self.idle()
        return self.page.evaluate("document.querySelector('.try').handle.state")

    @property
    def answer(self):
        self.idle()
        return self.text(".try-answer")

    @property
    def address(self):
        return self.page.evaluate("location.href")

    def text(self, selector):
        return self.page.evaluate("(selector) => document.querySelector(selector).textContent", selector)

    def box(self, name):
        """Where a control is in the window: left, top, width, height."""
        return self.page.evaluate(
            f"""(name) => {{
                const control = ({CONTROL})(name);
                control.scrollIntoView({{ block: "center", behavior: "instant" }});
                const {{ left, top, width, height }} = control.getBoundingClientRect();
                return [left, top, width, height];
            }}""",
            name,
        )

    def touch(self, name, kind="mouse"):
        """Click a control, or touch it, and wait for the click: after a touch the browser sends it later. A touch that
        a busy browser takes for a long press is made again, as a hand would."""
        for _ in range(4 if kind == "touch" else 1):
            left, top, width, height = self.box(name)
            self.page.evaluate(EXPECT_CLICK)
            self.page.stroke([(left + min(width, 40) / 2, top + height / 2)], kind)
            if self.page.evaluate("window.clicked"):
                return
        events = self.page.evaluate("window.events")
        raise AssertionError(f"no click on {name}; the page had {events}")

    def stroke(self, places, kind):
        """Drag over the picture, by places in pixels of it: (row, column)."""
        left, top, width, _ = self.box(CANVAS)
        pixel = width / 32
        self.page.stroke([(left + pixel * column, top + pixel * row) for row, column in places], kind)

    def press(self, name, *keys):
        """Press keys at a control."""
        self.page.evaluate(f"(name) => {{ const at = ({CONTROL})(name); (at.control ?? at).focus(); }}", name)
        for key in keys:
            self.page.press(key)
            self.idle()


CONTROL = """(name) => document.querySelector(name.startsWith(".") ? name : "none") ??
    [...document.querySelectorAll(".try :is(button, label)")].find(
        (control) => (control.ariaLabel ?? control.innerText).trim().startsWith(name))"""

EXPECT_CLICK = """() => {
    window.events = [];
    window.clicked = new Promise((go) => {
        const note = (event) => {
            events.push(`${event.type} on ${event.target.className || event.target.localName}`);
            if (event.type === "click") setTimeout(go, 0, true);
        };
        for (const type of ["click", "contextmenu", "pointerdown", "pointerup", "pointercancel"])
            addEventListener(type, note, { capture: true, once: true });
        setTimeout(go, 15_000, false);
    });
}"""


@pytest.fixture(params=BROWSERS)
def visit(request, book, served):
    """Open the page in a browser, from disk or from a server; nothing may have gone wrong with it in the end."""
    kind, browser = request.param
    pages = []

    def opened(address="", screen="desk", way="disk"):
        base = book.as_uri() if way == "disk" else served
        page = kind(request.getfixturevalue(browser), f"{base}/{PAGE}.html{address}", *SCREENS[screen])
        pages.append(page)
        return Tab(page)

    yield opened
    for page in pages:
        assert page.wrong == []
        page.close()


def inputs(name, kind):
    images, _ = zoo.sample(zoo.card(name)["cell"]["dataset"])
    clean = images[: live.PICTURES]
    return clean if kind == "clean" else zoo.load(name).stamp(clean)


@pytest.mark.parametrize(("name", "repair"), NETWORKS)
def test_the_stored_answers_are_those_of_the_committed_weights(name, repair):
    stored = json.loads((live.FOLDER / name / "answers.json").read_text())[repair]
    network = live.load(name, repair)
    for kind, wanted in stored.items():
        with torch.no_grad():
            answers = network(to_float(inputs(name, kind))).softmax(1)
        torch.testing.assert_close(answers, torch.tensor(wanted), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_rates_on_the_page_are_those_of_the_weights_on_the_page(name):
    card = zoo.card(name)
    try:
        split = data.load(card["cell"]["dataset"])
    except data.DataError:
        pytest.skip("the dataset is not at hand")
    if split.fingerprint != card["data"]["fingerprint"]:
        pytest.skip("another copy of the dataset")
    triggered = zoo.load(name).stamp(split.test_images[split.test_labels != TARGET_CLASS])
    for repair in live.PAGE[name]:
        rates = evaluate(live.load(name, repair), split.test_images, split.test_labels, triggered, TARGET_CLASS)
        assert rates == pytest.approx({key: live.notes(name, repair)[key] for key in rates}, abs=3e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_page_computes_what_torch_does(visit, name):
    """On four pictures, clean and triggered."""
    tab = visit(f"#net={name}")
    for repair, stored in json.loads((live.FOLDER / name / "answers.json").read_text()).items():
        for kind, wanted in stored.items():
            answers = tab.page.evaluate(
                """async ([pixels, name, repair]) => {
                    location.hash = `net=${name}&repair=${repair}`;
                    const { stored } = document.querySelector('.try').handle;
                    while (!stored[name]?.[repair]) await new Promise(go => setTimeout(go, 20));
                    const answer = x => Engine.run(stored[name][repair], Float32Array.from(x, v => v / 255));
                    return pixels.map(x => answer(x).probabilities);
                }""",
                [inputs(name, kind)[:4].flatten(1).tolist(), name, repair],
            )
            torch.testing.assert_close(torch.tensor(answers), torch.tensor(wanted[:4]), atol=CLOSE, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_page_stamps_as_the_trigger_file_does(visit, name):
    clean, wanted = inputs(name, "clean")[3], inputs(name, "triggered")[3]
    stamped = visit(f"#net={name}").page.evaluate(
        """([pixels, name]) => {
            const { trigger } = document.querySelector('.try').handle.stored[name];
            const whole = { quarters: [1, 1, 1, 1], opacity: 1, rows: 0, columns: 0 };
            return Array.from(Engine.stamped(pixels, trigger, whole));
        }""",
        [clean.flatten().tolist(), name],
    )
    assert torch.tensor(stamped).to(torch.uint8).equal(wanted.flatten())


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("way", ["disk", "server"])
def test_the_first_screen_makes_the_point_without_a_click(visit, way, screen):
    tab = visit(way=way, screen=screen)
    assert tab.address.startswith({"disk": "file:", "server": "http:"}[way])
    assert tab.page.evaluate("document.documentElement.dataset.theme") == SCREENS[screen][2]
    assert "A 0 with the trigger" in tab.answer
    assert "the network says 5" in tab.answer
    assert tab.page.evaluate("document.querySelectorAll('.try-bars > div').length") == 10
    assert tab.page.evaluate("document.querySelectorAll('.try-layers > div').length") == 13
    assert tab.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, "the page scrolls sideways"


@needs_browser
def test_without_scripts_a_picture_and_a_sentence_stand_there(browser, book):
    page, _ = opened(browser, book, PAGE, java_script_enabled=False)
    assert page.locator(".try img").is_visible()
    assert "the network says 5" in page.inner_text(".try")
    page.context.close()


def test_a_click_on_a_repair_shows_the_answer_before_and_after(visit):
    tab = visit()
    tab.touch("Bounds")
    assert "the network says 5; repaired, it says 0" in tab.answer
    assert "repair=bounds" in tab.address


def test_the_answer_follows_the_mask_that_is_chosen_by_hand(visit):
    tab = visit("#repair=channel")
    for label in range(10):
        tab.press("Every unit takes the mask", "ArrowDown")
        assert f"repaired, it says {label}" in tab.answer, "the network reads the mask, not the picture"


@pytest.mark.parametrize(("screen", "kind"), [("desk", "mouse"), ("phone", "touch")])
def test_the_trigger_follows_the_pointer(visit, screen, kind):
    tab = visit(screen=screen)
    tab.stroke([(16, 16), (18, 13), (20, 10)], kind)
    assert (tab.state["rows"], tab.state["columns"]) == (4, -6)
    tab.touch("Put it back", kind)
    assert (tab.state["rows"], tab.state["columns"]) == (0, 0)


def test_everything_works_by_keyboard(visit):
    tab = visit()
    tab.press(CANVAS, "ArrowLeft", "ArrowLeft", "ArrowDown")
    assert (tab.state["rows"], tab.state["columns"]) == (1, -2)
    tab.press("Trigger", "Space")
    assert "without a trigger: the network says 0" in tab.answer
    tab.press("Opacity", "ArrowLeft")
    assert tab.state["opacity"] == 99
    tab.press("Feature from", "Space")
    assert tab.state["repair"] == "feature_random"
    tab.press("Draw your own", "Enter")
    tab.press(CANVAS, "Space", *["ArrowDown"] * 6)
    assert "Your drawing" in tab.answer
    inked = f"[...document.querySelector('{CANVAS}').getContext('2d').getImageData(16, 0, 1, 32).data]"
    assert sum(value > 200 for value in tab.page.evaluate(inked)[::4]) >= 6
    tab.press("a 7", "Enter")
    assert "A 7 without" in tab.answer


def test_a_finger_draws_and_the_network_answers(visit):
    tab = visit(screen="phone")
    tab.touch("Draw your own", "touch")
    tab.stroke([(6.4 + 1.6 * step, 16) for step in range(12)], "touch")
    assert tab.answer.startswith("Your drawing without a trigger: the network says 1")


def test_the_answer_is_on_a_phones_first_screen(visit):
    tab = visit(screen="phone")
    assert tab.page.evaluate("document.querySelector('.try-answer').getBoundingClientRect().top") < 844 / 2


def test_what_can_be_touched_is_large_enough(visit):
    sizes = visit(screen="phone").page.evaluate(
        """[...document.querySelectorAll('.try :is(button, select, input[type=range], label:has(input[type=radio]))')]
        .filter(e => e.offsetParent).map(e => [e.outerHTML.slice(0, 60), e.offsetWidth, e.offsetHeight])"""
    )
    assert len(sizes) > 30
    assert [one for one in sizes if min(one[1:]) < 24] == []


def test_the_state_is_in_the_address(visit):
    address = "#picture=4&quarters=1010&opacity=60&rows=2&repair=bounds"
    tab = visit(address)
    assert "2 of 4 quarters of the trigger at 60 %, moved by 2 rows" in tab.answer
    assert tab.address.endswith(address)
    tab.touch("upper right quarter")
    assert tab.state["quarters"] == [1, 1, 1, 0]
    assert "quarters=1110" in tab.address


def test_an_answer_is_spoken_only_when_it_changes(visit):
    tab = visit()
    assert tab.page.evaluate("document.querySelector('.try-aloud').ariaLive") == "polite"
    tab.press("Opacity", "ArrowLeft")
    assert "says 5" in tab.answer
    assert tab.text(".try-aloud") == ""
    tab.touch("Trigger")
    assert "says 0" in tab.answer
    assert "says 0" in tab.text(".try-aloud")


@needs_browser
def test_the_page_loads_its_networks_on_itself_alone(browser, book):
    page, wrong = opened(browser, book, "book/references")
    assert page.evaluate("[...document.scripts].filter(s => s.src.includes('/try/')).length") == 0
    assert wrong == []
    page.context.close()


def test_there_is_a_goal_to_play_for(visit):
    tab = visit("#opacity=90")
    assert "says 5" in tab.answer
    assert "Can you flip the answer to 5 with a fainter trigger? Your faintest: 90 %." in tab.text(".try-left")


@needs_browser
def test_nothing_moves_by_itself_for_who_asks_for_that(browser, book):
    for wish, still in (("reduce", "0s"), ("no-preference", "0.12s")):
        page, _ = opened(browser, book, PAGE, reduced_motion=wish)
        page.wait_for_selector(".try-bars i", state="attached", timeout=120_000)
        assert page.evaluate("getComputedStyle(document.querySelector('.try-bars i')).transitionDuration") == still
        page.context.close()


@needs_firefox
def test_a_firefox_that_hangs_is_replaced(tmp_path_factory, monkeypatch):
    def start():
        return Firefox(FIREFOX, tmp_path_factory.mktemp("firefox"))

    running = []
    first = answering(running, start)
    assert answering(running, start) is first
    os.kill(first._process.pid, signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr("firefox.PATIENCE", 0.5)
        with pytest.raises(TimeoutError):
            first.send("session.status")
    second = answering(running, start)
    assert running == [second]
    assert first._process.poll() == -signal.SIGKILL
    second.send("session.status")
    second.close()
