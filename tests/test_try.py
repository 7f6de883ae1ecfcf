"""The page "Try it": its arithmetic is torch's, and it can be used by mouse, touch and keyboard, offline."""

import json

import pytest
import torch
from browsing import needs_browser, opened

from purifier_core.evaluation import evaluate, to_float
from purifier_core.lab import data, live, zoo
from purifier_core.lab.cells import TARGET_CLASS

PAGE = "book/try"
NAMES = sorted(path.name for path in live.FOLDER.iterdir())
NETWORKS = [(name, repair) for name in NAMES for repair in ("none", *live.PAGE[name])]
CLOSE = 2e-3

pytestmark = needs_browser


class Tab:
    """The page in a browser, with its state and its answer."""

    def __init__(self, browser, book, screen="desk", address="", **options):
        self.page, self.wrong = opened(browser, book, PAGE, screen, address, **options)
        self.page.wait_for_function("document.querySelector('.try').handle?.last()?.milliseconds", timeout=60_000)

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
        return self.page.inner_text(".try-answer")

    def close(self):
        self.page.context.close()


@pytest.fixture
def tab(browser, book):
    tab = Tab(browser, book)
    yield tab
    assert tab.wrong == []
    tab.close()


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


@pytest.mark.parametrize(("name", "repair"), NETWORKS)
def test_the_page_computes_what_torch_does(browser, book, name, repair):
    stored = json.loads((live.FOLDER / name / "answers.json").read_text())[repair]
    tab = Tab(browser, book, address=f"#net={name}&repair={repair}")
    tab.idle()
    for kind, wanted in stored.items():
        pixels = inputs(name, kind).flatten(1).tolist()
        answers = tab.page.evaluate(
            """([pixels, name, repair]) => {
                const network = document.querySelector('.try').handle.stored[name][repair];
                return pixels.map(x => Engine.run(network, Float32Array.from(x, v => v / 255)).probabilities);
            }""",
            [pixels, name, repair],
        )
        torch.testing.assert_close(torch.tensor(answers), torch.tensor(wanted), atol=CLOSE, rtol=0)
    tab.close()


@pytest.mark.parametrize("name", NAMES)
def test_the_page_stamps_as_the_trigger_file_does(browser, book, name):
    tab = Tab(browser, book, address=f"#net={name}")
    clean, wanted = inputs(name, "clean")[3], inputs(name, "triggered")[3]
    stamped = tab.page.evaluate(
        """([pixels, name]) => {
            const { trigger } = document.querySelector('.try').handle.stored[name];
            const whole = { quarters: [1, 1, 1, 1], opacity: 1, rows: 0, columns: 0 };
            return Array.from(Engine.stamped(pixels, trigger, whole));
        }""",
        [clean.flatten().tolist(), name],
    )
    tab.close()
    assert torch.tensor(stamped).to(torch.uint8).equal(wanted.flatten())


def test_the_first_screen_makes_the_point_without_a_click(tab):
    assert "A 0 with the trigger" in tab.answer
    assert "the network says 5" in tab.answer
    assert tab.page.locator(".try-bars > div").count() == 10
    assert tab.page.locator(".try-layers > div").count() == 13


def test_without_scripts_a_picture_and_a_sentence_stand_there(browser, book):
    page, _ = opened(browser, book, PAGE, java_script_enabled=False)
    assert page.locator(".try img").is_visible()
    assert "the network says 5" in page.inner_text(".try")
    page.context.close()


def test_a_click_on_a_repair_shows_the_answer_before_and_after(tab):
    tab.page.get_by_role("radio", name="Bounds").click()
    assert "the network says 5; repaired, it says 0" in tab.answer
    assert "repair=bounds" in tab.page.url


def test_the_answer_follows_the_mask_that_is_chosen_by_hand(tab):
    tab.page.get_by_role("radio", name="Purifier, Channel").click()
    tab.idle()
    for label in range(10):
        tab.page.get_by_label("Every unit takes the mask").select_option(str(label))
        assert f"repaired, it says {label}" in tab.answer, "the network reads the mask, not the picture"


def test_the_trigger_follows_the_mouse(tab):
    box = tab.page.locator(".try-left > canvas").bounding_box()
    at = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    pixel = box["width"] / 32
    tab.page.mouse.move(*at)
    tab.page.mouse.down()
    tab.page.mouse.move(at[0] - 6 * pixel, at[1] + 4 * pixel, steps=3)
    tab.page.mouse.up()
    assert (tab.state["rows"], tab.state["columns"]) == (4, -6)
    tab.page.get_by_role("button", name="Put it back").click()
    assert (tab.state["rows"], tab.state["columns"]) == (0, 0)


def test_everything_works_by_keyboard(tab):
    canvas = tab.page.locator(".try-left > canvas")
    canvas.focus()
    for key in ("ArrowLeft", "ArrowLeft", "ArrowDown"):
        tab.page.keyboard.press(key)
    assert (tab.state["rows"], tab.state["columns"]) == (1, -2)
    tab.page.get_by_role("button", name="Trigger", exact=True).press("Space")
    assert "without a trigger: the network says 0" in tab.answer
    tab.page.get_by_role("slider").press("ArrowLeft")
    assert tab.state["opacity"] == 99
    tab.page.get_by_role("button", name="Draw your own").press("Enter")
    for key in ("Space", *["ArrowDown"] * 6):
        tab.page.keyboard.press(key)
    assert "Your drawing" in tab.answer
    inked = "[...document.querySelector('.try-left > canvas').getContext('2d').getImageData(16, 0, 1, 32).data]"
    assert sum(value > 200 for value in tab.page.evaluate(inked)[::4]) >= 6
    tab.page.get_by_role("button", name="a 7").first.press("Enter")
    assert "A 7 without" in tab.answer


def test_a_finger_draws_and_the_network_answers(browser, book):
    tab = Tab(browser, book, screen="phone", has_touch=True)
    assert tab.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    tab.page.get_by_role("button", name="Draw your own").tap()
    box = tab.page.locator(".try-left > canvas").bounding_box()
    finger = tab.page.context.new_cdp_session(tab.page)
    for step in range(12):
        point = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] * (0.2 + 0.05 * step)}
        kind = "touchStart" if step == 0 else "touchMove"
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert tab.answer.startswith("Your drawing without a trigger: the network says 1")
    assert tab.wrong == []
    tab.close()


def test_the_answer_is_on_a_phones_first_screen(browser, book):
    tab = Tab(browser, book, screen="phone")
    assert tab.page.locator(".try-answer").bounding_box()["y"] < 844 / 2
    tab.close()


def test_what_can_be_touched_is_large_enough(browser, book):
    tab = Tab(browser, book, screen="phone")
    sizes = tab.page.evaluate(
        """[...document.querySelectorAll('.try :is(button, select, input[type=range], label:has(input[type=radio]))')]
        .filter(e => e.offsetParent).map(e => [e.outerHTML.slice(0, 60), e.offsetWidth, e.offsetHeight])"""
    )
    tab.close()
    assert len(sizes) > 30
    assert [one for one in sizes if min(one[1:]) < 24] == []


def test_the_state_is_in_the_address(browser, book):
    address = "#picture=4&quarters=1010&opacity=60&rows=2&repair=bounds"
    tab = Tab(browser, book, address=address)
    assert "2 of 4 quarters of the trigger at 60 %, moved by 2 rows" in tab.answer
    assert tab.page.url.endswith(address)
    tab.page.get_by_role("button", name="upper right quarter").click()
    tab.idle()
    assert "quarters=1110" in tab.page.url
    tab.close()


def test_an_answer_is_spoken_only_when_it_changes(tab):
    spoken = tab.page.locator(".try-aloud")
    tab.page.get_by_role("slider").press("ArrowLeft")
    assert "says 5" in tab.answer
    assert spoken.text_content() == ""
    tab.page.get_by_role("button", name="Trigger", exact=True).click()
    assert "says 0" in tab.answer
    assert "says 0" in spoken.text_content()


def test_the_page_loads_its_networks_on_itself_alone(browser, book):
    page, wrong = opened(browser, book, "book/references")
    assert page.evaluate("[...document.scripts].filter(s => s.src.includes('/try/')).length") == 0
    assert wrong == []
    page.context.close()
