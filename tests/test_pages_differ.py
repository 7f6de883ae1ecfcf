"""The script that compares the numbers of two built books."""

import sys

from purifier_core.files import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import pages_differ

TABLE = "<table><tr><td>{}</td><td>x1</td></tr></table>"
PAGE = "<nav>9 pages</nav><article><p>An ASR of {} % in {} seeds.</p>" + TABLE + "</article>"


def books(tmp_path, old: str, new: str):
    for name, page in (("old", old), ("new", new)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "table3.html").write_text(page)
    return list(pages_differ.differences(tmp_path / "old", tmp_path / "new"))


def test_other_words_and_other_navigation_are_no_difference(tmp_path):
    old = PAGE.format("99.9", 3, "1,000")
    assert books(tmp_path, old, old.replace("An ASR", "The rate").replace("9 pages", "8 pages")) == []


def test_a_number_that_changed_is_told_with_its_text(tmp_path):
    assert books(tmp_path, PAGE.format("99.9", 3, "-0.5"), PAGE.format("99.8", 3, "+0.5")) == [
        "table3.html: - An ASR of 99.9 % in 3 seeds.",
        "table3.html: - -0.5",
        "table3.html: + An ASR of 99.8 % in 3 seeds.",
        "table3.html: + +0.5",
    ]


def test_a_page_of_one_book_alone_is_told(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "gone.html").write_text("<article></article>")
    assert list(pages_differ.differences(tmp_path / "old", tmp_path / "new")) == ["gone.html: only in the old book"]
