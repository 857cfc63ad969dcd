"""The shape of the code: what a reviewer would otherwise have to say again and again."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import eventsourcing
from eventsourcing.storage.statements import statements

ROOT = Path(__file__).parents[1]
PACKAGES = ("eventsourcing", "resources", "pipelines", "api")
LOOK_AGAIN_PAST, LONGEST_FILE, LONGEST_FUNCTION, DEEPEST = 300, 500, 60, 3
MEANINGLESS = {"utils", "util", "common", "helpers", "helper", "core", "manager", "managers", "misc"}

READS_THE_ENVIRONMENT = {
    "eventsourcing/config.py": "the one reader of the environment",
    "api/cli/processes.py": "a child process inherits the environment beside its own names",
    "eventsourcing/metrics.py": "the metrics library takes from there the folder that processes share",
    "resources/dagster_home.py": "a fresh process takes over Dagster's names before it loads Dagster",
}
"""Files that may touch os.environ, each with its reason; a child's environment is a reason."""


@cache
def sources(*folders: str) -> tuple[Path, ...]:
    return tuple(sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_no_file_is_longer_than_five_hundred_lines() -> None:
    lengths = {
        name_of(path): len(path.read_text("utf-8").splitlines()) for path in sources(*PACKAGES, "tests")
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}
    for name, length in sorted(lengths.items()):
        if length > LOOK_AGAIN_PAST:
            print(f"look again: {name} has {length} lines")  # noqa: T201 - a hint in the report, no failure


def test_no_function_is_longer_than_sixty_lines() -> None:
    long = {
        f"{name_of(path)}:{node.name}": node.end_lineno - node.lineno + 1
        for path in sources(*PACKAGES, "tests")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION
    }
    assert long == {}


def test_only_the_config_reads_the_environment() -> None:
    readers = {name_of(path) for path in sources(*PACKAGES) if reads_environment(tree(path))}
    assert readers - set(READS_THE_ENVIRONMENT) == set()
    excepted = {name for name in READS_THE_ENVIRONMENT if (ROOT / name).exists()}
    assert excepted - readers == set(), "an exception that nobody needs any more"


def reads_environment(module: ast.Module) -> bool:
    names = {"environ", "environb", "getenv", "getenvb", "putenv"}
    return any(
        (isinstance(node, ast.Attribute) and node.attr in names)
        or (isinstance(node, ast.ImportFrom) and any(alias.name in names for alias in node.names))
        for node in ast.walk(module)
    )


def test_planted_reads_of_the_environment_are_found() -> None:
    for line in (
        "import os; os.environ['A']",
        "import os as o; o.getenv('A')",
        "from os import environ as e",
    ):
        assert reads_environment(ast.parse(line))
    assert not reads_environment(ast.parse("import os; os.getpid()"))


def test_all_names_exactly_what_the_package_imports_sorted_as_ruff_sorts() -> None:
    names = eventsourcing.__all__
    assert names == sorted(names, key=ruff_order)
    assert len(set(names)) == len(names)
    imported = {
        alias.asname or alias.name
        for node in tree(ROOT / "eventsourcing" / "__init__.py").body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(names) == {name for name in imported if not name.startswith("_")}
    assert [name for name in names if not hasattr(eventsourcing, name)] == []


def ruff_order(name: str) -> tuple[int, str]:
    """Constants first, then classes, then the rest."""
    rank = 0 if name.isupper() else 1 if name[:1].isupper() else 2
    return rank, name


def test_the_front_of_the_library_holds_nothing_but_exports() -> None:
    allowed = (ast.ImportFrom, ast.Assign, ast.Expr)
    assert all(isinstance(node, allowed) for node in tree(ROOT / "eventsourcing" / "__init__.py").body)


def test_every_named_statement_is_used_and_every_used_one_exists() -> None:
    folder = ROOT / "eventsourcing" / "storage"
    texts = {
        node.value
        for path in sources("eventsourcing")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    for file in (folder / "sql").glob("*.sql"):
        names = statements(file.stem)
        assert names, f"{file.name} holds no named statement"
        assert file.read_text("utf-8").count("-- name:") == len(names), f"{file.name} names one twice"
        if not file.stem.startswith("schema_"):  # a schema is run whole, in its order
            assert {name for name in names if name not in texts} == set(), file.name
        assert file.stem in texts, f"{file.name} is loaded by nobody"


def test_no_source_promises_work_for_later() -> None:
    promise = re.compile(r"\b(TO" + r"DO|FIX" + r"ME)\b")
    places = [
        f"{name_of(path)}:{number}"
        for path in (*sources(*PACKAGES, "tests"), *(ROOT / "eventsourcing").rglob("*.sql"))
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)
        if promise.search(line)
    ]
    assert places == []


def test_no_package_is_empty_and_none_is_too_deep() -> None:
    for package in PACKAGES:
        for folder in folders(ROOT / package):
            assert any(path.name != "__init__.py" for path in folder.rglob("*.py")), f"{folder} is empty"
            deep = len(folder.relative_to(ROOT).parts)
            assert deep <= DEEPEST or "migrations" in folder.parts, f"{folder} is {deep} folders deep"


def folders(package: Path) -> Iterator[Path]:
    if package.is_dir():
        yield from {path.parent for path in package.rglob("*.py")}


def test_every_file_has_a_name_that_says_something() -> None:
    places = [
        name_of(path)
        for path in sources(*PACKAGES, "tests")
        if MEANINGLESS & {*path.relative_to(ROOT).parts[:-1], path.stem, *path.stem.split("_")}
    ]
    assert places == []


def test_every_module_and_public_class_or_function_says_what_it_is() -> None:
    silent = [
        f"{name_of(path)}:{getattr(node, 'name', 'module')}"
        for path in sources(*PACKAGES)
        if path.read_text("utf-8").strip()
        for node in (tree(path), *tree(path).body)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and not getattr(node, "name", "").startswith("_")
        and not ast.get_docstring(node)
    ]
    assert silent == []


def test_every_exception_to_a_rule_carries_its_reason() -> None:
    bare = re.compile(r"#\s*(noqa(:\s*[A-Z0-9, ]+)?|type:\s*ignore(\[[^\]]*\])?)\s*$")
    places = [
        f"{name_of(path)}:{number}"
        for path in sources(*PACKAGES, "tests")
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)
        if bare.search(line)
    ]
    assert places == []
