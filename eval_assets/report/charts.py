"""Vega-Lite charts. Marks have colours that stand out on light and dark; texts and axes take the page's."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from eval_assets.report.index_page import Table
from eval_assets.report.ranking import STEPS
from eval_assets.report.text import interval, number, visible

_FIRST, _SECOND, _GREY = "#3b82c4", "#c8641e", "#8b949c"

_SHADES = ["#ffffff", "#f3f8fd", "#e8f1fb", "#dceaf8", "#cfe3f5", "#c1dbf2", "#b2d2ef", "#a2c9eb", "#92bfe7"]
"""Those of the page (report.css)."""
_SHAPES = alt.Scale(range=["circle", "triangle-up"])


def _data(rows: Sequence[Mapping[str, Any]]) -> alt.Data:
    """Rows as a chart's data."""
    return alt.Data(values=list(rows))  # type: ignore[no-untyped-call]  # altair's own


def _spec(chart: alt.TopLevelMixin) -> str:
    """The chart as JSON, without a background and with texts of the page's size."""
    text: str = chart.configure(
        background="transparent",
        font="system-ui, sans-serif",
        axis=alt.AxisConfig(labelFontSize=12, titleFontSize=12, titleFontWeight="normal", labelLimit=220),
        axisY=alt.AxisConfig(minExtent=36),
        header=alt.HeaderConfig(labelFontSize=13, titleFontSize=12),
        legend=alt.LegendConfig(labelFontSize=12, titleFontSize=12, labelLimit=240),
        view=alt.ViewConfig(strokeOpacity=0),
    ).to_json(indent=None)
    return text


def history(rows: Sequence[Mapping[str, Any]], order: Sequence[str]) -> str:
    """Scores with their intervals over versions, one small chart a benchmark.

    `rows` have dataset, metric, version, value, low, high, n and current (whether it is the page's version).
    """
    data = [
        {**row, "version": visible(row["version"]), "interval": interval(row["low"], row["high"])}
        for row in rows
    ]
    base = alt.Chart(_data(data)).encode(
        x=alt.X(
            "version:N", sort=[visible(one) for one in order], title="version", axis=alt.Axis(labelAngle=0)
        ),
        tooltip=[
            alt.Tooltip("version:N"),
            alt.Tooltip("metric:N"),
            alt.Tooltip("value:Q", format=".4g", title="score"),
            alt.Tooltip("interval:N", title="95 % interval"),
            alt.Tooltip("n:Q", format=",", title="items"),
        ],
    )
    score = alt.Y("value:Q", title=None, scale=alt.Scale(zero=False))
    intervals = base.mark_rule(strokeWidth=2, color=_FIRST, opacity=0.55).encode(
        y=alt.Y("low:Q", title=None), y2="high:Q"
    )
    line = base.mark_line(strokeWidth=1.5, color=_FIRST, opacity=0.55).encode(y=score)
    points = base.mark_point(filled=True, opacity=1, color=_FIRST).encode(
        y=score, size=alt.condition("datum.current", alt.value(110), alt.value(45))
    )
    chart = (
        alt.layer(line, intervals, points)
        .properties(width=300, height=150)
        .facet(facet=alt.Facet("dataset:N", title=None, header=alt.Header(labelAnchor="start")), columns=3)
        .resolve_scale(y="independent", x="independent")
    )
    return _spec(chart)


def differences(rows: Sequence[Mapping[str, Any]], tolerance: float | None) -> str:
    """Paired differences with their intervals, 0 and the tolerated loss; rows have what, d, low, high, n."""
    data = [{**row, "what": visible(row["what"])} for row in rows]
    order = [row["what"] for row in data]
    base = alt.Chart(_data(data)).encode(
        y=alt.Y("what:N", sort=order, title=None),
        tooltip=[
            alt.Tooltip("what:N", title="what"),
            alt.Tooltip("d:Q", format="+.4f", title="difference"),
            alt.Tooltip("low:Q", format="+.4f", title="from"),
            alt.Tooltip("high:Q", format="+.4f", title="to"),
            alt.Tooltip("n:Q", format=",", title="items"),
        ],
    )
    title = "difference (candidate less baseline, positive is better)"
    layers = [
        alt.Chart(_data([{"at": 0}])).mark_rule(color=_GREY).encode(x=alt.X("at:Q", title=title)),
        base.mark_rule(strokeWidth=3, color=_FIRST, opacity=0.55).encode(x="low:Q", x2="high:Q"),
        base.mark_point(filled=True, size=80, opacity=1, color=_FIRST).encode(x="d:Q"),
    ]
    if tolerance:
        limit = alt.Chart(_data([{"at": -tolerance}]))
        layers.insert(0, limit.mark_rule(strokeDash=[4, 4], color=_SECOND).encode(x="at:Q"))
    return _spec(alt.layer(*layers).properties(width=560, height=alt.Step(26)))


def reliability(rows: Sequence[Mapping[str, Any]]) -> str:
    """How often answers of a confidence are right; rows have side, confidence, right, n."""
    base = alt.Chart(_data(rows)).encode(
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
    ideal = alt.Chart(_data([{"x": 0, "y": 0}, {"x": 1, "y": 1}]))
    chart = alt.layer(
        ideal.mark_line(strokeDash=[4, 4], color=_GREY).encode(x="x:Q", y="y:Q"),
        base.mark_line(strokeWidth=1.5, opacity=0.55),
        base.mark_point(filled=True, size=70, opacity=1).encode(
            shape=alt.Shape(
                "side:N", sort=None, legend=None, scale=alt.Scale(range=["circle", "triangle-up"])
            )
        ),
    )
    return _spec(chart.properties(width=340, height=260))


def _sides() -> alt.Color:
    """The baseline's colour and the candidate's; shapes or places tell them apart as well."""
    return alt.Color("side:N", title=None, sort=None, scale=alt.Scale(range=[_SECOND, _FIRST]))


def lengths(rows: Sequence[Mapping[str, Any]]) -> str:
    """How long outputs are; rows have side, from, to and n (of a histogram)."""
    chart = (
        alt.Chart(_data(rows))
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
        .facet(
            row=alt.Row(
                "side:N",
                title=None,
                sort=None,
                header=alt.Header(labelAngle=0, labelOrient="top", labelAnchor="start"),
            )
        )
    )
    return _spec(chart)


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
    base = alt.Chart(_data(rows)).encode(
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
