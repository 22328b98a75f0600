"""Compiled loops are kept where there is a place, for as long as their sources are the same."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]

LOOPS = """
from numba import types
from shardserve.router.compiled import compiled
import steps_of_loops

@compiled(types.int64(types.int64), parts=(steps_of_loops,))
def one(number):
    return steps_of_loops.step(number)

@compiled(types.int64(types.int64))
def two(number):
    return 2 * number
"""

STEP = """
from shardserve.router.compiled import part

@part
def step(number):
    return number + {}
"""

#: As where a server may write nothing, in which even the superuser may not make a directory.
NOWHERE = "/sys/kernel/shardserve"

RUN = "import loops; print(loops.one(1), loops.two(1))"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "loops.py").write_text(LOOPS)
    (tmp_path / "steps_of_loops.py").write_text(STEP.format(1))
    return tmp_path


def imported(directory: Path) -> ModuleType:
    for name in ("loops", "steps_of_loops"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    return importlib.import_module("loops")


def run(code: str, directory: Path, **environment: str) -> tuple[str, list[str]]:
    """What a process prints, and the lines that it logs."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", code],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{directory}"} | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    return done.stdout.strip(), done.stderr.splitlines()


def test_what_is_kept_counts_until_a_part_changes(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(directory)
    answers = []
    for step in (1, 1, 2):
        (directory / "steps_of_loops.py").write_text(STEP.format(step))
        loops = imported(directory)
        hits = [sum(loop.stats.cache_hits.values()) for loop in (loops.one, loops.two)]
        answers.append((loops.one(1), hits))
    assert answers == [(2, [0, 0]), (2, [1, 1]), (3, [0, 1])]


def test_where_nothing_can_be_kept_loops_are_compiled_with_one_warning(directory: Path) -> None:
    (directory / "__pycache__").touch()
    printed, [warning] = run(
        RUN, directory, XDG_CACHE_HOME=NOWHERE, HOME=NOWHERE, NUMBA_CACHE_DIR=""
    )
    assert printed == "2 2"
    assert "no directory for them can be written; see NUMBA_CACHE_DIR" in warning


def test_a_disk_that_takes_no_more_costs_a_warning(directory: Path) -> None:
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); "
    printed, [warning] = run(full + RUN, directory, NUMBA_CACHE_DIR=str(directory / "kept"))
    assert printed == "2 2"
    assert "kept" in warning
    assert "cannot be written (File too large)" in warning


# Of the router's own loops


def source(module: str) -> ast.Module:
    return ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())


def taken_from(module: str) -> set[str]:
    """The modules of the project that a module takes names from, which use numba."""
    froms = [node for node in ast.walk(source(module)) if isinstance(node, ast.ImportFrom)]
    modules = {str(node.module).removeprefix("shardserve.") for node in froms}
    return {name for name in modules if (ROOT / (name.replace(".", "/") + ".py")).exists()}


def is_compiled(module: str) -> bool:
    text = ast.unparse(source(module))
    return "import part" in text or "numba.extending" in text


def parts_of(module: str) -> set[str]:
    """All other modules whose words are compiled into its loops."""
    found: set[str] = set()
    left = [module]
    while left:
        new = {name for name in taken_from(left.pop()) if is_compiled(name)} - found
        found |= new
        left += new
    return found - {module}


def named_parts(module: str) -> set[str]:
    keywords = [node for node in ast.walk(source(module)) if isinstance(node, ast.keyword)]
    return {
        name.id
        for keyword in keywords
        if keyword.arg == "parts"
        for name in ast.walk(keyword.value)
        if isinstance(name, ast.Name)
    }


@pytest.mark.parametrize("name", ["json_numbers", "result_codec", "split_kernels", "varints"])
def test_loops_name_all_modules_that_they_are_made_of(name: str) -> None:
    assert {part.split(".")[-1] for part in parts_of(f"router.{name}")} == named_parts(
        f"router.{name}"
    )


def test_no_module_of_the_router_keeps_compiled_code_in_another_way() -> None:
    texts = [path.read_text() for path in (ROOT / "router").glob("*.py")]
    assert not [text for text in texts if "cache=True)" in text]
