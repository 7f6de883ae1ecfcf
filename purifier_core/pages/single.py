"""Any one number, for the command: a line for each seed."""

from typing import Any

import pandas as pd

from purifier_core.lab.records import Record
from purifier_core.lab.results import Results
from purifier_core.pages.statistics import measured


def table(results: Results) -> pd.DataFrame:
    """ACC and ASR in percent, and the seconds that it took, by seed."""
    return pd.DataFrame.from_dict({record.cell.seed: _line(record) for record in results.records}, orient="index")


def _line(record: Record) -> dict[str, Any]:
    percents = {name: f"{100 * (value or 0.0):.2f}" for name, value in (("ACC", record.acc), ("ASR", record.asr))}
    return {**percents, "seconds": f"{record.effort['seconds']:.1f}"}


def reading(results: Results) -> list[str]:
    """What was computed, and its mean and range over seeds."""
    if not results.records:
        return [f"No record at profile {results.shown} is there yet."]
    acc, asr = (measured(results.records, metric).text(2) for metric in ("acc", "asr"))
    what = str(results.records[0].cell).partition(" · seed")[0]
    return [f"{what}: ACC {acc} %, ASR {asr} %."]
