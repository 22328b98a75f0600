from __future__ import annotations

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("batching", "shards", "router", "cluster")
OURS = {"shardserve", "tests", "benchmarks", "examples"}
# One is not named as its distribution is, the other has an environment of its own.
OPTIONAL = {"fbgemm_gpu", "pytriton"}
# uvicorn imports it, and leaves it to us to install.
INDIRECT = {"httptools"}
#: Modules that are imported only where they are asked for, and the extra that each needs.
ON_DEMAND = {
    ROOT / "router" / "onnx_kind.py": "onnx",
    ROOT / "router" / "sklearn_kind.py": "sklearn",
    ROOT / "router" / "otel.py": "tracing",
}
REQUIREMENTS = [
    *PROJECT["project"]["dependencies"],
    *(line for extra in PROJECT["project"]["optional-dependencies"].values() for line in extra),
]

# Prints "NAME PATH" of every subpackage, as `python -c IMPORT_ALL`.
IMPORT_ALL = """
import importlib, pkgutil, shardserve
for module in pkgutil.walk_packages(shardserve.__path__, "shardserve."):
    if module.ispkg:
        print(module.name, importlib.import_module(module.name).__file__)
"""


def sources() -> Iterator[Path]:
    for package in PACKAGES:
        yield from (ROOT / package).rglob("*.py")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the tree, so that the build leaves nothing in the clone."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("shardserve", *PACKAGES):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignored)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tree / "dist"), str(tree))
    (built,) = (tree / "dist").iterdir()
    return built


def pip(*arguments: str) -> None:
    quiet = ("--quiet", "--disable-pip-version-check", "--no-index")
    subprocess.run([sys.executable, "-m", "pip", arguments[0], *quiet, *arguments[1:]], check=True)


def test_the_wheel_holds_every_module_and_the_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    wanted = {f"shardserve/{source.relative_to(ROOT)}" for source in sources()}
    assert wanted - set(names) == set()
    assert "shardserve/py.typed" in names
    assert any(name.endswith("/LICENSE") for name in names)


def test_an_installed_wheel_imports_outside_the_clone(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    pip("install", "--no-deps", "--target", str(installed), str(wheel))
    environment = {"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin"}
    printed = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found = dict(line.split(" ", 1) for line in printed.splitlines())
    assert set(found) == set(PROJECT["tool"]["setuptools"]["packages"]) - {"shardserve"}
    assert all(Path(path).is_relative_to(installed) for path in found.values())


def test_every_third_party_import_of_the_packages_is_a_declared_dependency() -> None:
    """What a module that is imported on demand needs is a dependency of an extra."""
    declared = PROJECT["project"]["dependencies"]
    assert undeclared(set(sources()) - set(ON_DEMAND), declared) == {}
    extras = PROJECT["project"]["optional-dependencies"]
    for module, extra in ON_DEMAND.items():
        assert undeclared([module], [*declared, *extras[extra]]) == {}


def test_every_dependency_is_imported() -> None:
    owners = importlib.metadata.packages_distributions()
    names = {name for source in sources() for name in imported(source)}
    used = {canonical(owner) for name in names for owner in owners.get(name, [])}
    declared = {distribution(requirement) for requirement in PROJECT["project"]["dependencies"]}
    assert declared - used == INDIRECT


def test_every_third_party_import_around_them_is_declared_in_an_extra() -> None:
    around = [
        path
        for name in ("tests", "benchmarks", "examples")
        for path in ROOT.glob(f"{name}/**/*.py")
    ]
    assert undeclared(around, REQUIREMENTS) == {}


def undeclared(paths: Iterable[Path], requirements: Iterable[str]) -> dict[str, str]:
    """Modules imported that belong to no requirement, and one file that imports each."""
    declared = {distribution(requirement) for requirement in requirements}
    owners = importlib.metadata.packages_distributions()
    return {
        name: str(path)
        for path in paths
        for name in imported(path)
        if name not in OURS | OPTIONAL
        and name not in sys.stdlib_module_names
        and declared.isdisjoint(canonical(owner) for owner in owners.get(name, [name]))
    }


def imported(source: Path) -> Iterator[str]:
    """The top-level names of the modules that a file imports."""
    for node in ast.walk(ast.parse(source.read_text())):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            modules = [node.module]
        yield from (module.split(".")[0] for module in modules)


def distribution(requirement: str) -> str:
    return canonical(re.split(r"[\[<>=!~ ]", requirement)[0])


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_constraints_pin_versions_and_nothing_else() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin) for pin in pins)
    pinned = {canonical(pin.split("==")[0]) for pin in pins}
    assert {distribution(requirement) for requirement in REQUIREMENTS} <= pinned


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_is_linked_under_the_one_import_name(package: str) -> None:
    link = ROOT / "shardserve" / package
    assert link.is_symlink()
    assert link.readlink() == Path("..") / package
