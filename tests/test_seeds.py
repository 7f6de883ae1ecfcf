"""The rule of decision on named questions: what one no, one open answer and several starts come to."""

from purifier_core.pages.seeds import Decision, all_of, by_start, decide, in_words

YES, NO = decide({0: True, 1: True, 2: True}), decide(dict.fromkeys(range(5), False))
OPEN, ONE = decide({0: True, 1: False, 2: True}), decide({0: True})


def test_a_decision_says_what_it_rests_on():
    assert YES.text() == "holds (3 seeds, 75 %)"
    assert NO.text() == "does not hold (5 seeds, 93.8 %)"
    assert decide(dict.fromkeys(range(10), True)).basis == "10 seeds, 99.8 %"
    assert OPEN.text() == "not decided: the seeds disagree"
    assert ONE.text() == "not decided: one run"
    assert decide({}).text() == "not decided: records are missing"


def test_all_of_several():
    assert all_of({"a": YES, "b": YES}).answer is True
    assert all_of({"a": YES, "b": NO, "c": OPEN}) == NO  # one no is enough
    assert all_of({"a": YES, "b": OPEN}).text() == "not decided: the seeds disagree"
    assert all_of({"a": ONE, "b": OPEN}).text() == "not decided: a: one run; b: the seeds disagree"


def test_names_in_words():
    assert in_words({"a": YES, "b": NO}) == "a"
    assert in_words({"a": NO, "b": OPEN}) == "none; not decided (the seeds disagree): b"
    assert in_words({"a": ONE, "b": ONE}) == "not decided (one run)"


def test_the_start_that_the_paper_describes_decides():
    assert by_start({"full": YES, "random": NO}) == "holds (3 seeds, 75 %)"
    assert by_start({"full": NO, "partial": OPEN, "random": YES}) == (
        "holds only when Purifier starts from init=random (3 seeds, 75 %)"
    )
    assert by_start({"full": NO, "random": ONE}) == "does not hold (5 seeds, 93.8 %)"
    assert by_start({"full": OPEN, "random": YES}) == "not decided: the seeds disagree"
    assert by_start({"full": Decision(None, 0, "records are missing")}) == "not decided: records are missing"
