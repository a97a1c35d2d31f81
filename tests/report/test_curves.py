"""Curves say what the numbers say, whatever the numbers are."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.report.curves import POINT_LIMIT, Chart, Series, chart_html, nice_ticks


def svg_of(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, [0.0, 0.5, 1.0]),
        (0.13, 0.58, [0.0, 0.2, 0.4, 0.6]),
        (-3.0, 40.0, [-20.0, 0.0, 20.0, 40.0]),
        (1e-6, 4e-6, [1e-6, 2e-6, 3e-6, 4e-6]),
    ],
)
def test_ticks_are_round_numbers_that_enclose_the_range(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_enclose_any_range_in_few_steps(low: float, span: float) -> None:
    ticks = nice_ticks(low, low + span)
    if span > 1e-6 * abs(low):  # the narrower are drawn as flat
        assert ticks[0] <= low + 1e-6 * span
        assert ticks[-1] >= low + span * (1 - 1e-6)
        assert 2 <= len(ticks) <= 7


def test_line_goes_through_the_points() -> None:
    html = chart_html(Chart("Reward", (Series("reward", {0: 0.0, 5: 1.0, 10: 0.5}),), share=True))
    line = next(e for e in svg_of(html).iter("path") if e.get("class", "").startswith("line"))
    # The plot spans x 46 to 392 and y 184 (value 0) to 10 (value 1).
    assert line.get("d") == "M46.0 184.0L219.0 10.0L392.0 97.0"
    assert "<tr><td>5</td><td>1</td></tr>" in html


def test_stacked_areas_stand_on_each_other() -> None:
    parts = (Series("generate", {0: 3.0, 1: 1.0}), Series("update", {0: 1.0, 1: 3.0}, 1))
    svg = svg_of(chart_html(Chart("Time", parts, stacked=True)))
    lines = [e.get("d") for e in svg.iter("path") if e.get("class", "").startswith("line")]
    # The axis runs from 0 (y 184) to 4 (y 10); the upper edge is the sum, 4 at both steps.
    assert lines == ["M46.0 53.5L392.0 140.5", "M46.0 10.0L392.0 10.0"]


def test_long_curve_is_drawn_as_means_of_equal_stretches() -> None:
    html = chart_html(Chart("Loss", (Series("loss", {step: float(step % 2) for step in range(1, 1501)}),)))
    assert html.count("<tr>") == 1 + POINT_LIMIT
    assert "each row the mean of up to 10 steps" in html
    assert "<tr><td>5.5</td><td>0.5</td></tr>" in html


def test_missing_value_leaves_its_cell_empty() -> None:
    html = chart_html(Chart("Entropy", (Series("right", {1: 0.5, 2: 0.4}), Series("wrong", {2: 0.3}, 1))))
    assert "<tr><td>1</td><td>0.5</td><td></td></tr>" in html


@given(
    st.dictionaries(
        st.integers(-(10**7), 10**7),
        st.floats(-1e299, 1e299) | st.sampled_from([0.0, 5e-324, -1e-300]),
        min_size=1,
    ),
    st.booleans(),
    st.booleans(),
)
def test_any_numbers_give_a_well_formed_finite_picture(
    values: dict[int, float], share: bool, stacked: bool
) -> None:
    values = dict(sorted(values.items()))
    svg = svg_of(chart_html(Chart("m", (Series("m", values),), share=share, stacked=stacked)))
    drawn = " ".join(value for e in svg.iter() for value in e.attrib.values())
    assert "nan" not in drawn
    assert "inf" not in drawn


def test_names_from_the_run_are_escaped() -> None:
    hostile = '</svg><script>alert(1)</script>"'
    html = chart_html(Chart(hostile, (Series(hostile, {1: 1.0}), Series("b", {1: 2.0})), about=hostile))
    assert "<script" not in html
    assert svg_of(html).get("aria-label", "").startswith(hostile)
    assert math.isclose(float(svg_of(html).find("circle").get("cx")), 219.0)  # type: ignore[union-attr, arg-type]
