"""CSV files as a source: every column is text, an empty field is null, and nothing is read half."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.migration import SourceError
from pipelines.migration.source import open_source

CONTENT = 'id,name,note\n1,ann,""\n2,"b, o""b",\n3,"two\nlines",x\n'


def test_a_file_is_a_table_in_chunks_of_whole_size(tmp_path: Path) -> None:
    (tmp_path / "people.csv").write_text(CONTENT)
    source = open_source(f"csv:///{tmp_path / 'people.csv'}")
    table = source.tables({"people", "others"})["people"]
    with source.snapshot() as snapshot:
        frames = [*snapshot.chunks(table, key=("id",), columns=("id", "name", "note"), rows=2)]
        count = snapshot.count("people")
    assert count == 3
    assert [frame.height for frame in frames] == [2, 1]
    assert frames[0]["name"].to_list() == ["ann", 'b, o"b']
    assert frames[0]["note"].to_list() == ["", None]
    assert frames[1]["name"].to_list() == ["two\nlines"]
    assert {column.kind for column in table.columns.values()} == {"text"}


def test_a_folder_holds_a_table_a_file(tmp_path: Path) -> None:
    for name in ("admins", "users"):
        (tmp_path / f"{name}.csv").write_text(CONTENT)
    assert {*open_source(f"csv:///{tmp_path}").tables({"admins", "users"})} == {"admins", "users"}


def test_a_file_that_is_changed_meanwhile_or_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "people.csv"
    with pytest.raises(SourceError, match="does not exist"):
        open_source(f"csv:///{path}")
    path.write_text(CONTENT)
    source = open_source(f"csv:///{path}")
    with pytest.raises(SourceError, match="was changed while it was read"), source.snapshot():
        path.write_text(CONTENT + "4,dan,\n")
    path.write_text("id,name\n1,ann,more,than,there,is\n")
    table = source.tables({"people"})["people"]
    with pytest.raises(SourceError, match="cannot be read as CSV"), source.snapshot() as snapshot:
        _ = [*snapshot.chunks(table, key=("id",), columns=("id", "name"), rows=2)]
