"""Vega-Lite charts. Marks have colours that stand out on light and dark; texts and axes take the page's."""

import io
import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, TypeAlias

import altair as alt

from eval_assets.report.index_page import Table
from eval_assets.report.ranking import STEPS
from eval_assets.report.text import interval, number, visible

_FIRST, _SECOND, _GREY = "#3b82c4", "#c8641e", "#8b949c"

_SHADES = ["#ffffff", "#f3f8fd", "#e8f1fb", "#dceaf8", "#cfe3f5", "#c1dbf2", "#b2d2ef", "#a2c9eb", "#92bfe7"]
"""Those of the page (report.css)."""
_SHAPES = alt.Scale(range=["circle", "triangle-up"])

Rows: TypeAlias = Sequence[Mapping[str, Any]]


def _filled(chart: dict[str, Any], **datasets: Rows) -> str:
    """A chart as JSON, with data by the names that it uses."""
    # Altair checks a chart against the schema of Vega-Lite, which takes longer than all else of a page: once.
    return json.dumps({**chart, "datasets": {**chart.get("datasets", {}), **datasets}})


def _named(name: str) -> alt.Chart:
    """A chart whose data comes later (`_filled`)."""
    return alt.Chart(alt.NamedData(name))


def _whole(chart: alt.TopLevelMixin) -> dict[str, Any]:
    """The chart without a background and with texts of the page's size."""
    whole: dict[str, Any] = chart.configure(
        background="transparent",
        font="system-ui, sans-serif",
        axis=alt.AxisConfig(labelFontSize=12, titleFontSize=12, titleFontWeight="normal", labelLimit=220),
        axisX=alt.AxisConfig(labelOverlap="greedy", labelSeparation=10),
        axisY=alt.AxisConfig(minExtent=36),
        header=alt.HeaderConfig(labelFontSize=13, titleFontSize=12),
        legend=alt.LegendConfig(labelFontSize=12, titleFontSize=12, labelLimit=240),
        view=alt.ViewConfig(strokeOpacity=0),
    ).to_dict()
    return whole


def history(rows: Rows) -> str:
    """Scores with their intervals over versions, one small chart a benchmark.

    `rows` have dataset, metric, version, value, low, high, n and current (whether it is the page's version),
    in the order of the versions.
    """
    shown = [{**row, "interval": interval(row["low"], row["high"])} for row in rows]
    return _filled(_history(), rows=_seen(shown))


def differences(rows: Rows, tolerance: float | None) -> str:
    """Paired differences with their intervals, 0 and the tolerated loss; rows have what, d, low, high, n."""
    return _filled(_differences(), rows=_seen(rows), limit=[{"at": -tolerance}] if tolerance else [])


def reliability(rows: Rows) -> str:
    """How often answers of a confidence are right; rows have side, confidence, right, n."""
    return _filled(_reliability(), rows=_seen(rows))


def lengths(rows: Rows) -> str:
    """How long outputs are; rows have side, from, to and n (of a histogram)."""
    return _filled(_lengths(), rows=_seen(rows))


def _seen(rows: Rows) -> list[dict[str, Any]]:
    """The rows with every text as it may be shown."""
    return [{name: visible(v) if isinstance(v, str) else v for name, v in row.items()} for row in rows]


@cache
def _history() -> dict[str, Any]:
    base = _named("rows").encode(
        x=alt.X("version:N", sort=None, title="version", axis=alt.Axis(labelAngle=0)),
        tooltip=[
            alt.Tooltip("version:N"),
            alt.Tooltip("metric:N"),
            alt.Tooltip("value:Q", format=".4g", title="score"),
            alt.Tooltip("interval:N", title="95 % interval"),
            alt.Tooltip("n:Q", format=",", title="items"),
        ],
    )
    score = alt.Y("value:Q", title=None, scale=alt.Scale(zero=False))
    points = base.mark_point(filled=True, opacity=1, color=_FIRST).encode(
        y=score, size=alt.condition("datum.current", alt.value(110), alt.value(45))
    )
    return _whole(
        alt.layer(
            base.mark_line(strokeWidth=1.5, color=_FIRST, opacity=0.55).encode(y=score),
            base.mark_rule(strokeWidth=2, color=_FIRST, opacity=0.55).encode(
                y=alt.Y("low:Q", title=None), y2="high:Q"
            ),
            points,
        )
        .properties(width=300, height=150)
        .facet(facet=alt.Facet("dataset:N", title=None, header=alt.Header(labelAnchor="start")), columns=3)
        .resolve_scale(y="independent", x="independent")
    )


@cache
def _differences() -> dict[str, Any]:
    base = _named("rows").encode(
        y=alt.Y("what:N", sort=None, title=None),
        tooltip=[
            alt.Tooltip("what:N", title="what"),
            alt.Tooltip("d:Q", format="+.4f", title="difference"),
            alt.Tooltip("low:Q", format="+.4f", title="from"),
            alt.Tooltip("high:Q", format="+.4f", title="to"),
            alt.Tooltip("n:Q", format=",", title="items"),
        ],
    )
    title = "difference (candidate less baseline, positive is better)"
    return _whole(
        alt.layer(
            _named("limit").mark_rule(strokeDash=[4, 4], color=_SECOND).encode(x=alt.X("at:Q", title=title)),
            alt.Chart(alt.InlineData(values=[{"at": 0}])).mark_rule(color=_GREY).encode(x="at:Q"),
            base.mark_rule(strokeWidth=3, color=_FIRST, opacity=0.55).encode(x="low:Q", x2="high:Q"),
            base.mark_point(filled=True, size=80, opacity=1, color=_FIRST).encode(x="d:Q"),
        ).properties(width=560, height=alt.Step(26))
    )


@cache
def _reliability() -> dict[str, Any]:
    base = _named("rows").encode(
        x=alt.X("confidence:Q", scale=alt.Scale(domain=[0, 1]), title="confidence in the likeliest choice"),
        y=alt.Y("right:Q", scale=alt.Scale(domain=[0, 1]), title="share that is right"),
        color=_sides(),
        tooltip=[
            alt.Tooltip("side:N"),
            alt.Tooltip("confidence:Q", format=".3f"),
            alt.Tooltip("right:Q", format=".3f"),
            alt.Tooltip("n:Q", format=",", title="items"),
        ],
    )
    corners = alt.Chart(alt.InlineData(values=[{"x": 0, "y": 0}, {"x": 1, "y": 1}]))
    return _whole(
        alt.layer(
            corners.mark_line(strokeDash=[4, 4], color=_GREY).encode(x="x:Q", y="y:Q"),
            base.mark_line(strokeWidth=1.5, opacity=0.55),
            base.mark_point(filled=True, size=70, opacity=1).encode(
                shape=alt.Shape("side:N", sort=None, legend=None, scale=_SHAPES)
            ),
        ).properties(width=340, height=260)
    )


@cache
def _lengths() -> dict[str, Any]:
    header = alt.Header(labelAngle=0, labelOrient="top", labelAnchor="start")
    return _whole(
        _named("rows")
        .mark_rect()
        .encode(
            x=alt.X("from:Q", title="output tokens"),
            x2="to:Q",
            y=alt.Y("n:Q", title="items"),
            y2=alt.datum(0),
            color=_sides().legend(None),
            tooltip=[
                alt.Tooltip("side:N"),
                alt.Tooltip("from:Q", format=",.0f"),
                alt.Tooltip("to:Q", format=",.0f"),
                alt.Tooltip("n:Q", format=",", title="items"),
            ],
        )
        .properties(width=340, height=90)
        .facet(row=alt.Row("side:N", title=None, sort=None, header=header))
    )


def _sides() -> alt.Color:
    """The baseline's colour and the candidate's; shapes or places tell them apart as well."""
    return alt.Color("side:N", title=None, sort=None, scale=alt.Scale(range=[_SECOND, _FIRST]))


def heat_map(table: Table, versions: int = 24, benchmarks: int = 10) -> bytes:
    """The leaderboard as a PNG: the first so many versions and benchmarks, light as a page of print."""
    models = [visible(row.model) for row in table.rows[:versions]]
    rows = [
        {
            "model": visible(row.model),
            "dataset": visible(column.dataset),
            "shade": shown.shade,
            "score": number(shown.value),
            "interval": interval(shown.low, shown.high),
        }
        for row in table.rows[:versions]
        for column, shown in list(zip(table.columns, row.cells, strict=True))[:benchmarks]
        if shown.state == "scored"
    ]
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("dataset:N", title=None, axis=alt.Axis(orient="top", labelAngle=0)),
        y=alt.Y("model:N", title=None, sort=models),
    )
    shades = alt.Scale(domain=list(range(STEPS)), range=_SHADES)
    chart = alt.layer(
        base.mark_rect(stroke="#e2e4e6").encode(fill=alt.Fill("shade:O", scale=shades, legend=None)),
        base.mark_text(dy=-7, fontSize=14, fontWeight=600).encode(text="score:N"),
        base.mark_text(dy=9, fontSize=11, color="#565e66").encode(text="interval:N"),
    ).properties(width=alt.Step(130), height=alt.Step(42), padding=12)
    axis = alt.AxisConfig(labelFontSize=13, labelLimit=260, domain=False, ticks=False, labelPadding=8)
    buffer = io.BytesIO()
    chart.configure(background="white", axis=axis, font="sans-serif").save(
        buffer, format="png", scale_factor=1.5
    )
    return buffer.getvalue()
