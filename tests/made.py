"""Records as if they had been computed, for the tests of what reads them."""

from typing import Any

from purifier_core.lab.cells import Cell
from purifier_core.lab.records import Record

EFFORT = {"epochs": 10, "images": 1000, "seconds": 5.0}
PLACE = {"device": "cpu", "commit": "0" * 40, "versions": {"python": "3", "torch": "2"}}


def record(cell: Cell, acc: float = 0.99, asr: float = 1.0, **changes: Any) -> Record:
    """A cell's record. changes: further fields of it, or others in place of these."""
    usual = {"key": cell.key(), "data": {"fingerprint": "0" * 16, "copy": "MNIST"}}
    usual |= {"acc_images": 10_000, "asr_images": 9_108, "effort": EFFORT, "provenance": PLACE}
    return Record(cell, acc=acc, asr=asr, **(usual | changes))
