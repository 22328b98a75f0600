"""What a benchmark's report says, and how ratios are taken."""

from __future__ import annotations

import io
import json
import math

import pytest
from rich.console import Console

from benchmarks.__main__ import show
from benchmarks.report import Claim, Report, Row, as_json, missing, paired_ratio


@pytest.mark.parametrize(
    ("claim", "holds"),
    [
        (Claim("rate", 0.9, 0.9), True),
        (Claim("rate", 0.89, 0.9), False),
        (Claim("memory", 1.05, 1.05, "at_most"), True),
        (Claim("memory", 1.06, 1.05, "at_most"), False),
        (Claim("rate", None, 0.9), False),
        (Claim("memory", None, 1.05, "at_most"), False),
        (Claim("memory", math.nan, 1.05, "at_most"), False),
    ],
)
def test_a_claim_holds_when_its_figure_is_reached(claim, holds):
    assert claim.holds is holds


def test_a_ratio_is_the_median_of_pairs_that_take_turns():
    order = []

    def measure(name, figures):
        def one() -> float:
            order.append(name)
            return next(figures)

        return one

    ours = measure("ours", iter([2.0, 30.0, 4.0]))
    theirs = measure("theirs", iter([1.0, 10.0, 4.0]))
    pairs = paired_ratio(ours, theirs, 3)
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert pairs.ratios == (2.0, 3.0, 1.0)
    assert (pairs.ratio, pairs.ours, pairs.theirs) == (2.0, 4.0, 4.0)


REPORT = Report(
    "lookup",
    [Row("ours", "dim 64", "rate", "GB/s", 9.5), missing("theirs", "not installed [really]")],
    [Claim("lookup.rate", 0.5, 0.9, note="half [of it]")],
    ["one core"],
)


def test_the_json_has_rows_claims_machine_and_versions():
    text = json.loads(as_json(REPORT))
    assert text["benchmark"] == "lookup"
    assert text["rows"] == [
        {"subject": "ours", "case": "dim 64", "metric": "rate", "unit": "GB/s", "value": 9.5},
        {
            "subject": "theirs",
            "case": "all",
            "metric": "missing",
            "unit": "",
            "value": None,
            "note": "not installed [really]",
        },
    ]
    (claim,) = text["claims"]
    assert {key: claim[key] for key in ("name", "value", "to_reach", "holds")} == {
        "name": "lookup.rate",
        "value": 0.5,
        "to_reach": 0.9,
        "holds": False,
    }
    assert {"cpu", "cores", "memory_bytes"} <= text["machine"].keys()
    assert {"python", "numpy", "tensorflow"} <= text["versions"].keys()


def test_the_screen_shows_what_is_missing_and_what_was_missed():
    console = Console(file=io.StringIO(), width=160)
    show(REPORT, console)
    shown = console.file.getvalue()
    for words in ("ours", "9.5", "not installed [really]", "MISSED", "half [of it]", "one core"):
        assert words in shown
