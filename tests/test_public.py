"""The public face: what `purifier_core` exports, typed, documented, and without torch until it is used."""

import inspect
import re
import subprocess
import sys

import pytest

import purifier_core
from purifier_core.files import ROOT


@pytest.mark.parametrize("name", purifier_core.__all__)
def test_a_public_name_is_there_and_says_what_it_is(name):
    thing = getattr(purifier_core, name)
    assert thing.__name__ == name
    assert inspect.getdoc(thing)


def test_the_type_checker_sees_the_same_names():
    code = (ROOT / "purifier_core" / "__init__.py").read_text()
    assert sorted(re.findall(r"import (\w+) as \1", code)) == purifier_core.__all__
    assert (ROOT / "purifier_core" / "py.typed").exists()


def test_the_package_alone_needs_no_torch():
    code = "import sys, purifier_core; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'purrify'; public: .*purify"):
        getattr(purifier_core, "purrify")  # noqa: B009


def test_every_public_name_has_a_place_on_the_books_page():
    page = (ROOT / "book" / "api.md").read_text()
    assert sorted(re.findall(r"auto(?:function|class|exception):: purifier_core\.(\w+)", page)) == purifier_core.__all__
