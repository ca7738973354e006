"""What holds for every distribution of the workspace, and for the repository around them."""

import ast
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[2]
DISTRIBUTIONS = sorted(path.parent for path in ROOT.glob("stroma-*/pyproject.toml"))
OWN_FILES = ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE")
LONGEST_MODULE = 500
FOR_AUTHORS = {"stroma.checkpoint._schema_ref", "stroma.checkpoint._resolve_schema"}
LOWER_BOUNDS = {">=", ">", "==", "~="}
NEEDED = (
    ".ci/run",
    "constraints.txt",
    "noxfile.py",
    "benchmarks/results.py",
    "docs/how-to/build.md",
    "examples/dist/main.py",
    "stroma-core/src/stroma/py.typed",
    "stroma-core/src/stroma/build/__init__.py",
    "stroma-core/src/stroma/dist/__init__.py",
    "stroma-core/src/stroma/lib/__init__.py",
    "stroma-core/src/stroma/stores/__init__.py",
    "stroma-core/src/stroma/testing/__init__.py",
    "stroma-redis/src/stroma_redis/commit.lua",
    "stroma-postgres/src/stroma_postgres/migrations/0001.sql",
    "tests/core/data/run.json",
    "tests/plugins/sample/src/sample/__init__.py",
    "tests/wheels/check_install.py",
)

each_distribution = pytest.mark.parametrize("folder", DISTRIBUTIONS, ids=lambda path: path.name)


def _toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    # A container may have cloned as another user; this is about names of files only.
    command = ["git", "-c", "safe.directory=*", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def _tracked() -> list[str]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    return _git("ls-files").stdout.splitlines()


def _requirements(pyproject: dict[str, Any]) -> Iterator[str]:
    project = pyproject.get("project", {})
    yield from pyproject.get("build-system", {}).get("requires", ())
    yield from project.get("dependencies", ())
    for extra in project.get("optional-dependencies", {}).values():
        yield from extra
    for group in pyproject.get("dependency-groups", {}).values():
        yield from (entry for entry in group if isinstance(entry, str))


def _without_lower_bound(pyproject: dict[str, Any]) -> list[str]:
    return [
        text
        for text in _requirements(pyproject)
        if not {bound.operator for bound in Requirement(text).specifier} & LOWER_BOUNDS
    ]


def test_the_workspace_has_its_core() -> None:
    assert ROOT / "stroma-core" in DISTRIBUTIONS


@each_distribution
def test_every_dependency_of_a_distribution_has_a_lower_bound(folder: Path) -> None:
    assert _without_lower_bound(_toml(folder / "pyproject.toml")) == []


def test_every_development_dependency_has_a_lower_bound() -> None:
    assert _without_lower_bound(_toml(ROOT / "pyproject.toml")) == []


def test_a_missing_lower_bound_is_noticed() -> None:
    project = {"dependencies": ["a", "b<2", "c>=1", "d~=1.0"]}

    assert _without_lower_bound({"project": project}) == ["a", "b<2"]


@each_distribution
def test_a_distribution_is_at_the_common_version(folder: Path) -> None:
    path = folder / _toml(folder / "pyproject.toml")["tool"]["hatch"]["version"]["path"]

    assert re.findall(r'^__version__ = "(.+)"$', path.read_text(), re.MULTILINE) == ["1.0.0"]


@each_distribution
def test_a_distribution_has_its_own_papers(folder: Path) -> None:
    missing = [name for name in OWN_FILES if not (folder / name).is_file()]

    assert missing == []


@each_distribution
def test_a_distribution_ships_its_types(folder: Path) -> None:
    packages = [path.parent for path in folder.glob("src/*/__init__.py")]

    assert packages
    assert [path.name for path in packages if not (path / "py.typed").is_file()] == []


def test_every_plugin_accepts_every_core_of_this_major_version() -> None:
    for folder in set(DISTRIBUTIONS) - {ROOT / "stroma-core"}:
        texts = _toml(folder / "pyproject.toml")["project"]["dependencies"]
        core = [each.specifier for each in map(Requirement, texts) if each.name == "stroma"]

        assert core == [SpecifierSet(">=1.0,<2")], folder.name


def _imports(file: Path) -> Iterator[str]:
    """Yield what a module imports, as "module" or "module.name"."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _is_private(imported: str) -> bool:
    is_core = imported.partition(".")[0] == "stroma"
    return is_core and re.search(r"\._(?!_)", imported) is not None and imported not in FOR_AUTHORS


@each_distribution
def test_plugins_know_the_public_core_and_no_other_plugin(folder: Path) -> None:
    if folder.name == "stroma-core":
        pytest.skip("the core's modules know each other: see the layers in pyproject.toml")
    (own,) = (path.parent.name for path in folder.glob("src/*/__init__.py"))
    foreign = {
        f"{file.name}: {name}"
        for file in folder.glob("src/**/*.py")
        for name in _imports(file)
        if _is_private(name) or (name.startswith("stroma_") and name.split(".")[0] != own)
    }

    assert foreign == set()


def test_a_private_import_is_noticed() -> None:
    assert _is_private("stroma._aio.finish")
    assert _is_private("stroma.stores._owner_lock.OwnerLock")
    assert not _is_private("stroma.__version__")
    assert not _is_private("stroma.checkpoint._schema_ref")
    assert not _is_private("stroma_redis._keys.run_key")


def test_the_core_depends_on_pydantic_and_pluggy_only() -> None:
    dependencies = _toml(ROOT / "stroma-core" / "pyproject.toml")["project"]["dependencies"]

    assert {Requirement(each).name for each in dependencies} == {"pydantic", "pluggy"}


def test_all_the_extras_are_in_all() -> None:
    extras = _toml(ROOT / "stroma-core" / "pyproject.toml")["project"]["optional-dependencies"]
    everything = Requirement(extras["all"][0])

    assert everything.name == "stroma"
    assert everything.extras == extras.keys() - {"all"}


def test_the_pins_have_no_addresses_and_fit_the_bounds() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if not line.startswith("#")]
    pins = {pin.name: pin for pin in pinned}
    needed = [Requirement(text) for text in _requirements(_toml(ROOT / "pyproject.toml"))]
    tools = {tool.name: tool for tool in needed}

    assert [pin.name for pin in pins.values() if pin.url] == []
    assert pins.keys() == tools.keys()
    for name, tool in tools.items():
        (exact,) = pins[name].specifier
        assert tool.specifier.contains(exact.version), name


def test_no_lock_file_is_tracked() -> None:
    locks = re.compile(r"(^|/)([\w.-]+\.lock|package-lock\.json|pylock[\w.]*\.toml)$")

    assert [name for name in _tracked() if locks.search(name)] == []


def test_nothing_that_is_needed_is_ignored() -> None:
    _tracked()
    # Without the index: a file that is tracked already would hide the rule that ignores it.
    ignored = _git("check-ignore", "--no-index", *NEEDED).stdout.splitlines()

    assert ignored == []


def test_no_source_file_on_disk_is_ignored() -> None:
    _tracked()
    ignored = _git("ls-files", "--others", "--ignored", "--exclude-standard").stdout.splitlines()
    sources = re.compile(r"^(stroma-\w+/src|tests|docs|examples|benchmarks|tools)/.*")
    debris = re.compile(r"(^|/)(__pycache__|\.hypothesis|[\w.-]+\.egg-info)/")

    assert [name for name in ignored if sources.match(name) and not debris.search(name)] == []


def test_modules_stay_small_enough_to_hold_in_the_head() -> None:
    lengths = {
        path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines())
        for path in ROOT.glob("stroma-*/src/**/*.py")
    }

    assert lengths
    assert {name: lines for name, lines in lengths.items() if lines >= LONGEST_MODULE} == {}


def test_what_has_to_be_executable_is() -> None:
    _tracked()

    assert _git("ls-files", "--stage", ".ci/run").stdout.startswith("100755 ")
