"""The report's page: it loads nothing, escapes everything, and says in a word what it proves."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from pipelines.migration.report_page import entity_plot, page, quarantine_plot, time_plot, verdict

EVIL = "<script>alert('x')</script>\"&"


def some_facts(**changes: Any) -> dict[str, Any]:
    counts = dict.fromkeys(("inserted", "updated", "unchanged", "skipped", "quarantined", "filtered"), 1)
    table = {"matched": 3, "changed": 1, "missing": 0, "extra": 0, "others": 2, "unequal": [7]}
    difference = dict.fromkeys(("entity", "table", "key", "record", "kind"), EVIL)
    return {
        "migration_id": EVIL,
        "status": "completed",
        "correlation_id": EVIL,
        "started_at": EVIL,
        "completed_at": None,
        "source": {"kind": EVIL, "database": EVIL},
        "target": {"kind": "postgresql", "database": EVIL},
        "entities": {EVIL: {"in": 6, **counts}, "empty": {"in": 0, **dict.fromkeys(counts, 0)}},
        "stages": [
            {"stage": EVIL, "attempt": 1, "seconds": 1.5},
            {"stage": "load", "attempt": 1, "seconds": 0},
        ],
        "attempts": [{"number": 1, "in": 6, "quarantined": 1, "mapping_sha256": EVIL}],
        "quarantine": [
            {
                **dict.fromkeys(("entity", "stage", "rule", "column", "message"), EVIL),
                "count": 9,
                "samples": [EVIL] * 9,
            }
        ],
        "warnings": [EVIL],
        "conversions": [{"kind": EVIL, "source_format": EVIL, "target_format": EVIL, "count": 2}],
        "verification": {
            "ok": False,
            "tables": {EVIL: table},
            "events": {EVIL: {EVIL: table}},
            "invariants": {EVIL: {"description": EVIL, "checked": None, "broken": 0}},
            "orphans": {EVIL: 1},
            "sequences": {EVIL: {"next": 2, "highest": 3, "ok": False}},
            "accounting": {
                EVIL: {"source": 6, "filtered": 1, "quarantined": 1, "id_map": 4, "balanced": True}
            },
            "differences": [{**difference, "columns": [EVIL], "found_by": [EVIL]}],
        },
        "rolled_back": None,
        **changes,
    }


class Tags(HTMLParser):
    """Every tag and attribute of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


UNDONE = {"ok": True, "tables": {EVIL: {"written": 3, "standing": 0, "rows": 0}}}


@pytest.mark.parametrize("changes", [{}, {"rolled_back": UNDONE}, {"verification": None}, {"quarantine": []}])
def test_nothing_in_the_facts_becomes_markup_and_nothing_is_loaded(changes: dict[str, Any]) -> None:
    html = page(some_facts(**changes))
    found = Tags(html)
    assert EVIL not in html
    assert found.tags.isdisjoint({"script", "img", "link", "iframe", "object", "image", "use", "a"})
    assert found.attributes.isdisjoint({"src", "href", "style", "onload", "onclick"})
    assert "Content-Security-Policy" in html
    assert "url(" not in html.replace("url(#cell)", "")


def test_every_plot_is_well_formed_alone() -> None:
    for draw in (entity_plot, time_plot, quarantine_plot):
        ElementTree.fromstring(draw(some_facts(), standalone=True))
    assert quarantine_plot(some_facts(quarantine=[])) == ""


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, "Differences"),
        ({"verification": None}, "Not verified"),
        ({"verification": {"ok": True}}, "Proven"),
        ({"rolled_back": {"ok": True}}, "Taken back"),
        ({"rolled_back": {"ok": False}}, "Not taken back whole"),
    ],
)
def test_the_verdict_is_one_word(changes: dict[str, Any], word: str) -> None:
    assert verdict(some_facts(**changes))[0] == word
