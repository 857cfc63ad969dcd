"""Each rule, alone: what breaks it, and that a null breaks only `required`."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from pipelines.migration.masking import Masker
from pipelines.migration.records import stream_of
from pipelines.migration.rowhash import row_hashes
from pipelines.migration.rules import broken_mask, check_rule, rule_message
from pipelines.migration.schema import Column
from pipelines.migration.sqlite_values import frame_of

BCRYPT = "$2b$12$" + "a" * 53


@pytest.mark.parametrize(
    ("rule", "argument", "kept", "broken"),
    [
        ("not_empty", None, "a", ""),
        ("max_length", 3, "äöü", "äöüß"),
        ("pattern", "^[a-z]+$", "abc", "ab1"),
        ("hash", "bcrypt", BCRYPT, BCRYPT + "a"),
        ("hash", "bcrypt", BCRYPT.replace("2b", "2y"), BCRYPT.replace("12$", "99$")),
        ("hash", "argon2", "$argon2id$v=19$m=1,t=2,p=1$YQ$YWI", BCRYPT),
        ("in", ["a", "b"], "a", "c"),
        ("in", [1, 2], 1, 3),
        ("range", {"min": 1, "max": 5}, 5, 6),
        ("range", {"min": 1}, 1, 0),
        ("finite", None, 1.5, float("inf")),
        ("finite", None, 1.5, float("nan")),
        ("no_nul", None, "a", "a\x00b"),
    ],
)
def test_a_rule(rule: str, argument: Any, kept: Any, broken: Any) -> None:
    frame = pl.DataFrame({"v": [kept, broken, None]})
    mask = frame.select(broken_mask(rule, check_rule(rule, argument), pl.col("v"))).to_series()
    assert mask.to_list() == [False, True, False]


def test_required_is_broken_by_null_alone() -> None:
    mask = pl.DataFrame({"v": ["", None]}).select(broken_mask("required", None, pl.col("v"))).to_series()
    assert mask.to_list() == [False, True]


def test_a_message_never_holds_the_value() -> None:
    assert rule_message("max_length", 3) == "is longer than 3 characters"
    assert rule_message("range", check_rule("range", {"max": 5})) == "is outside any … 5"


def test_row_hashes_tell_apart_what_concatenation_would_not() -> None:
    columns = [Column("a", "text", "text"), Column("b", "text", "text")]
    frame = pl.DataFrame({"a": ["12", "1", None, "", "n"], "b": ["3", "23", "x", "x", ";x"]})
    assert row_hashes(frame, columns).n_unique() == 5


def test_row_hashes_see_the_same_value_in_either_form() -> None:
    columns = [Column("j", "json", "json"), Column("d", "decimal", "numeric")]
    frame = pl.DataFrame({"j": ['{"a": 1, "b": 2}', '{"b":2,"a":1}'], "d": ["1.50", "1.5"]})
    assert row_hashes(frame, columns).n_unique() == 1


def test_a_mask_is_the_same_for_the_same_secret_of_one_run_only() -> None:
    masker = Masker("secret", "m1")
    assert masker.mask("hunter2") == masker.mask("hunter2")
    assert masker.mask("hunter2") != Masker("secret", "m2").mask("hunter2")
    assert masker.mask("hunter2") != Masker("other", "m1").mask("hunter2")
    assert masker.mask(None) is None


def test_a_key_that_no_stream_id_can_hold_is_hashed() -> None:
    assert stream_of("user", 17) == "user-17"
    assert len(stream_of("user", "x" * 500)) < 100
    assert stream_of("user", "a\nb") != stream_of("user", "a\tb")


def test_values_of_another_type_become_null_and_are_named() -> None:
    columns = [
        Column("n", "integer", "integer"),
        Column("b", "boolean", "boolean"),
        Column("t", "datetime", "datetime"),
        Column("f", "float", "float"),
    ]
    frame = frame_of(
        columns, [(1, 1, "2024-01-01 00:00:00", 1), ("x", 2, "yesterday", 2.5), (None, None, None, None)]
    )
    assert frame["_ill_typed"].to_list() == [None, "n,b,t", None]
    assert frame["f"].to_list() == [1.0, 2.5, None]


def test_text_that_is_not_utf_8_is_ill_typed() -> None:
    frame = frame_of([Column("t", "text", "text")], [("ok",), (b"\xff",)])
    assert frame["_ill_typed"].to_list() == [None, "t"]
