"""The report as one page of HTML that loads nothing: styles and plots stand in it, every text is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from eventsourcing.wording import counted
from pipelines.migration import report_plots as plots
from pipelines.migration.buckets import COUNT

Facts = dict[str, Any]
_KINDS = ("inserted", "updated", "unchanged", "skipped", "quarantined", "filtered")


def page(facts: Facts) -> str:
    """The whole page."""
    parts = [
        _head(facts),
        _figures(facts),
        _section("What became of every record", _entities(facts)),
        _section("Verification", _verification(facts)),
        _section("Quarantine", _quarantine(facts)),
        _section("Time by stage", _times(facts)),
        _section("Particulars", _particulars(facts)),
    ]
    title = escape(f"Migration {facts['migration_id']}")
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_style()}</style></head><body><main>{''.join(parts)}</main></body></html>"
    )


def _style() -> str:
    return Path(__file__).with_name("report.css").read_text("utf-8")


def verdict(facts: Facts) -> tuple[str, str]:
    """One word of what the report proves, and its colour: good, bad or open."""
    if facts["rolled_back"] is not None:
        return ("Taken back", "good") if facts["rolled_back"]["ok"] else ("Not taken back whole", "bad")
    if facts["verification"] is None:
        return "Not verified", "open"
    return ("Proven", "good") if facts["verification"]["ok"] else ("Differences", "bad")


def _head(facts: Facts) -> str:
    word, colour = verdict(facts)
    route = " → ".join(f"{side.get('kind', '?')} {side.get('database', '')}" for side in _sides(facts))
    return (
        f'<header><div><p class="kicker">Migration report</p><h1>{escape(facts["migration_id"])}</h1>'
        f'<p class="route">{escape(route)}</p></div><p class="verdict {colour}">{escape(word)}</p></header>'
    )


def _sides(facts: Facts) -> tuple[Facts, Facts]:
    return facts["source"], facts["target"]


def _figures(facts: Facts) -> str:
    entities = facts["entities"].values()
    seconds = sum(stage["seconds"] for stage in facts["stages"])
    arrived = sum(e["inserted"] + e["updated"] + e["unchanged"] for e in entities)
    shown = [
        ("records read", f"{sum(e['in'] for e in entities):,}"),
        ("in the target" if facts["rolled_back"] is None else "were in the target", f"{arrived:,}"),
        ("in quarantine", f"{sum(e['quarantined'] for e in entities):,}"),
        ("left out by filters", f"{sum(e['filtered'] for e in entities):,}"),
        ("status", facts["status"].replace("_", " ")),
        ("work", f"{seconds:,.1f} s"),
    ]
    tiles = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in shown)
    return f'<dl class="figures">{tiles}</dl>'


def _entities(facts: Facts) -> str:
    keys = [kind for kind in _KINDS if any(e[kind] for e in facts["entities"].values())]
    legend = "".join(f'<span><i class="k-{kind}"></i>{kind}</span>' for kind in keys)
    rows = [
        [name, _n(e["in"]), *(_n(e[kind]) for kind in _KINDS), _tick(e["in"] == sum(e[k] for k in _KINDS))]
        for name, e in facts["entities"].items()
    ]
    table = _table(["entity", "in", *_KINDS, "adds up"], rows, numbers=range(1, 8))
    return f'<p class="legend">{legend}</p>{entity_plot(facts)}{table}'


def entity_plot(facts: Facts, *, standalone: bool = False) -> str:
    """What became of the records of each entity, as SVG."""
    return _picture(plots.stacked(facts["entities"], _KINDS), standalone=standalone)


def time_plot(facts: Facts, *, standalone: bool = False) -> str:
    """How long each stage took, as SVG; nothing while none is done."""
    many = len(facts["attempts"]) > 1
    shown = [
        (f"{one['stage']} ({one['attempt']})" if many else one["stage"], one["seconds"])
        for one in facts["stages"]
        if one["stage"] != "start"
    ]
    return _picture(plots.timeline(shown), standalone=standalone) if shown else ""


def quarantine_plot(facts: Facts, *, standalone: bool = False) -> str:
    """How many records each rule set aside, as SVG; nothing when none did."""
    groups = sorted(facts["quarantine"], key=lambda item: -int(item["count"]))
    shown = [(f"{g['entity']}.{g['column']} {g['rule']}", g["count"], _n(g["count"])) for g in groups]
    return _picture(plots.bars(shown, "k-quarantined"), standalone=standalone) if shown else ""


def _picture(svg: str, *, standalone: bool) -> str:
    """The plot as it is, or with its colours in itself, for where the page's styles are not."""
    if not standalone:
        return svg
    family = "svg{font:13px system-ui,sans-serif}"
    return svg.replace(">", f"><style>{_style()}{family}</style>", 1)


def _verification(facts: Facts) -> str:
    if facts["rolled_back"] is not None:
        rows = [
            [name, _n(t["written"]), _n(t["standing"]), _n(t["rows"]), _tick(not t["standing"])]
            for name, t in facts["rolled_back"]["tables"].items()
        ]
        heads = [
            "table",
            "rows written by the run",
            "standing as it left them",
            "rows there now",
            "taken back",
        ]
        return _table(heads, rows, numbers=(1, 2, 3))
    verified = facts["verification"]
    if verified is None:
        return '<p class="note">The target was not compared with what was migrated yet.</p>'
    unequal = sorted({bucket for table in verified["tables"].values() for bucket in table["unequal"]})
    note = (
        f"Every row was read back and hashed; rows were compared in {COUNT:,} buckets by the hash of their "
        f"key. {COUNT - len(unequal):,} buckets are equal."
    )
    return (
        _checks(verified)
        + f'<p class="note">{note}</p>{plots.buckets(unequal, COUNT)}'
        + _differences(verified["differences"])
    )


def _checks(verified: Facts) -> str:
    rows = [
        [
            f"rows of {table}",
            _tick(not (t["changed"] or t["missing"] or t["extra"])),
            _found(t) + (f", {t['others']:,} others left alone" if t["others"] else ""),
        ]
        for table, t in verified["tables"].items()
    ]
    for entity, parts in verified["events"].items():
        for table, t in parts.items():
            same = not (t["changed"] or t["missing"] or t["extra"])
            rows.append([f"events of {entity}, folded, against {table}", _tick(same), _found(t)])
    for name, item in verified["invariants"].items():
        checked, broken = item["checked"], item["broken"]
        said = "the source cannot be read" if checked is None else f"{checked:,} checked, {broken:,} broken"
        mark = _Mark('<span class="open">–</span>') if checked is None else _tick(not broken)
        rows.append([f"{name}: {item['description']}", mark, said])
    for name, count in verified["orphans"].items():
        rows.append([f"references of {name}", _tick(not count), f"{count:,} lead nowhere"])
    for name, item in verified["sequences"].items():
        said = f"next key {item['next']:,}, highest {item['highest']:,}"
        rows.append([f"sequence of {name}", _tick(item["ok"]), said])
    for name, item in verified["accounting"].items():
        said = f"{item['source']:,} − {item['filtered']:,} filtered − {item['quarantined']:,} in quarantine "
        rows.append([f"accounting of {name}", _tick(item["balanced"]), said + f"= {item['id_map']:,} mapped"])
    return _table(["check", "", "found"], rows)


def _found(counts: Facts) -> str:
    kinds = [f"{counts[kind]:,} {kind}" for kind in ("changed", "missing", "extra") if counts[kind]]
    return ", ".join([f"{counts['matched']:,} match", *kinds])


def _differences(differences: Sequence[Facts]) -> str:
    if not differences:
        return ""
    rows = [
        [
            one["entity"],
            one["table"],
            one["key"],
            one["record"] or "",
            one["kind"],
            ", ".join(one["columns"]),
            ", ".join(one["found_by"]),
        ]
        for one in differences
    ]
    heads = ["entity", "table", "key", "record", "what", "columns", "found by"]
    return f"<h3>Differences</h3>{_table(heads, rows)}"


def _quarantine(facts: Facts) -> str:
    groups = sorted(facts["quarantine"], key=lambda item: -int(item["count"]))
    if not groups:
        return '<p class="note">No record was set aside.</p>'
    rows = [
        [
            g["entity"],
            g["stage"],
            g["rule"],
            g["column"],
            g["message"],
            _n(g["count"]),
            ", ".join(map(str, g["samples"][:8])) + (" …" if g["count"] > 8 else ""),
        ]
        for g in groups
    ]
    heads = ["entity", "stage", "rule", "column", "what is wrong", "records", "source keys"]
    return quarantine_plot(facts) + _table(heads, rows, numbers=(5,))


def _times(facts: Facts) -> str:
    return time_plot(facts) or '<p class="note">No stage is done yet.</p>'


def _particulars(facts: Facts) -> str:
    rows = [
        ["started", facts["started_at"]],
        ["completed", facts["completed_at"] or "not yet"],
        ["correlation", facts["correlation_id"]],
    ]
    for one in facts["attempts"]:
        said = f"{counted(one['in'], 'record')} in, {one['quarantined']:,} left in quarantine"
        rows.append([f"attempt {one['number']}", f"{said}, mapping {one['mapping_sha256']}"])
    for one in facts["conversions"]:
        said = f"{one['source_format']} → {one['target_format']}: {one['count']:,}"
        rows.append([f"{one['kind']} conversion", said])
    rows += [["warning", text] for text in facts["warnings"]]
    return _table(["", ""], rows)


def _section(title: str, inner: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{inner}</section>"


class _Mark(str):
    """Text that is HTML already."""


def _tick(good: bool) -> _Mark:
    return _Mark('<span class="good">✓</span>' if good else '<span class="bad">✗</span>')


def _n(number: int) -> str:
    return f"{number:,}"


def _table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Sequence[int] = (),
) -> str:
    def cell(place: int, text: str) -> str:
        css = ' class="n"' if place in numbers else ""
        inner = text if isinstance(text, _Mark) else escape(str(text))
        return f"<td{css}>{inner}</td>"

    head = "".join(
        f"<th{' class=n' if place in numbers else ''}>{escape(name)}</th>" for place, name in enumerate(heads)
    )
    body = "".join(
        "<tr>" + "".join(cell(place, text) for place, text in enumerate(row)) + "</tr>" for row in rows
    )
    top = f"<thead><tr>{head}</tr></thead>" if any(heads) else ""
    return f'<div class="wide"><table>{top}<tbody>{body}</tbody></table></div>'
