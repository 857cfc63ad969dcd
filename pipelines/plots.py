"""Plots of what a run did, as pictures that Markdown shows: Dagster's UI takes no drawing of its own."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 480, 240, 74, 30, 30
_AT_MOST = 400

Points = Sequence[tuple[float, float]]


def curve(title: str, points: Points, *, x_unit: str, y_unit: str) -> str:
    """One line through points in order of x, from nought on both axes; "" for fewer than two points."""
    if len(points) < 2:
        return ""
    shown = points[:: len(points) // _AT_MOST + 1]
    if shown[-1] != points[-1]:
        shown = [*shown, points[-1]]
    right = max(x for x, _ in points) or 1.0
    top = max(y for _, y in points) or 1.0
    line = " ".join(f"{_x(x / right):.1f},{_y(y / top):.1f}" for x, y in shown)
    area = f"{_x(0):.1f},{_y(0):.1f} {line} {_x(shown[-1][0] / right):.1f},{_y(0):.1f}"
    inner = "".join(
        [
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
            *(_rule(share, f"{share * top:,.0f}") for share in (0.0, 0.5, 1.0)),
            f'<polygon points="{area}" fill="#dbe7ff"/>',
            f'<polyline points="{line}" fill="none" stroke="#2f6bff" stroke-width="2"/>',
            _text(_LEFT, 16, f"{title} ({y_unit})", weight="bold"),
            _text(_WIDTH - 8, _HEIGHT - 8, f"{right:,.1f} {x_unit}", anchor="end"),
        ]
    )
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}">{inner}</svg>'
    return picture(title, svg)


def picture(title: str, svg: str) -> str:
    """A drawing as Markdown that needs nothing from anywhere."""
    encoded = base64.b64encode(svg.encode()).decode()
    return f"![{title}](data:image/svg+xml;base64,{encoded})"


def _x(share: float) -> float:
    return _LEFT + share * (_WIDTH - _LEFT - 12)


def _y(share: float) -> float:
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP)


def _rule(share: float, label: str) -> str:
    y = _y(share)
    line = f'<line x1="{_LEFT}" x2="{_WIDTH - 12}" y1="{y:.1f}" y2="{y:.1f}" stroke="#d5d9e2"/>'
    return line + _text(_LEFT - 8, y + 4, label, anchor="end")


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    style = f'font-family="sans-serif" font-size="14" font-weight="{weight}" fill="#3a4150"'
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {style}>{escape(text)}</text>'
