"""Plots of a report as SVG that needs nothing from anywhere: counts, times and buckets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

_WIDTH = 720
_LABEL = 120
_ROW = 30


def stacked(rows: Mapping[str, Mapping[str, int]], kinds: Sequence[str]) -> str:
    """One bar an entity, all of one length, its parts coloured by what became of them."""
    parts, place = [], 0
    for name, counts in rows.items():
        total, x = sum(counts.get(kind, 0) for kind in kinds), float(_LABEL)
        parts.append(_text(0, place + 19, name, "label"))
        for kind in kinds:
            count = counts.get(kind, 0)
            width = (_WIDTH - _LABEL - 90) * count / total if total else 0.0
            if count:
                width = max(width, 2.0)
                title = f"<title>{escape(name)}: {count:,} {escape(kind)}</title>"
                parts.append(_rect(x, place + 4, width, 20, f"k-{kind}", title))
                x += width
        parts.append(_text(_WIDTH, place + 19, f"{total:,}", "figure end"))
        place += _ROW
    return _svg(place, "".join(parts), "What became of the records of each entity")


def bars(rows: Sequence[tuple[str, float, str]], css: str) -> str:
    """One bar a row: its label, its length as a number, and how the number is written."""
    longest = max((value for _, value, _ in rows), default=0) or 1
    parts = []
    for number, (label, value, written) in enumerate(rows):
        top = number * _ROW
        width = max((_WIDTH - 2 * _LABEL - 80) * value / longest, 1.5)
        parts += [
            _text(0, top + 19, label, "label"),
            _rect(2 * _LABEL, top + 5, width, 18, css, f"<title>{escape(label)}: {escape(written)}</title>"),
            _text(2 * _LABEL + width + 8, top + 19, written, "figure"),
        ]
    return _svg(len(rows) * _ROW, "".join(parts), "A bar for each row")


def timeline(stages: Sequence[tuple[str, float]]) -> str:
    """The stages one after the other, each where it began and as long as it took."""
    total = sum(seconds for _, seconds in stages) or 1.0
    parts, x, room = [], float(_LABEL), _WIDTH - _LABEL - 90
    for number, (stage, seconds) in enumerate(stages):
        top, width = number * 24, max(room * seconds / total, 1.5)
        parts += [
            _text(0, top + 15, stage, "label"),
            f'<line x1="{_LABEL}" x2="{_WIDTH - 90}" y1="{top + 20}" y2="{top + 20}" class="rule"/>',
            _rect(x, top + 4, width, 12, "k-time", f"<title>{escape(stage)}: {seconds:.2f} s</title>"),
            _text(_WIDTH, top + 15, f"{seconds:,.2f} s", "figure end"),
        ]
        x += room * seconds / total
    return _svg(len(stages) * 24 + 4, "".join(parts), "How long each stage took")


def buckets(unequal: Sequence[int], count: int) -> str:
    """Every bucket that was compared as a cell: those that differ stand out."""
    columns, size, wrong = 128, _WIDTH / 128, {*unequal}
    cells = [
        _rect(bucket % columns * size, bucket // columns * size, size - 1, size - 1, "k-differs", "")
        for bucket in sorted(wrong)
    ]
    height = -(-count // columns) * size
    field = (
        f'<defs><pattern id="cell" width="{size:.3f}" height="{size:.3f}" patternUnits="userSpaceOnUse">'
        f'<rect width="{size - 1:.3f}" height="{size - 1:.3f}" class="k-equal"/></pattern></defs>'
        f'<rect width="{_WIDTH}" height="{height:.1f}" fill="url(#cell)"/>'
    )
    label = f"{count - len(wrong)} of {count} buckets are equal"
    return _svg(int(height), field + "".join(cells), label)


def _svg(height: int, inner: str, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {max(height, 1)}" role="img" aria-label="{escape(label)}" '
        f'xmlns="http://www.w3.org/2000/svg">{inner}</svg>'
    )


def _rect(x: float, y: float, width: float, height: float, css: str, inner: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect {place} rx="2" class="{escape(css)}">{inner}</rect>'


def _text(x: float, y: float, text: str, css: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{css}">{escape(text)}</text>'
