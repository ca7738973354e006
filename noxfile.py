"""Everything that can be checked here: `nox` runs the default list, `nox --list` shows it all."""

from __future__ import annotations

import argparse
import atexit
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import nox
from nox.command import CommandFailed

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from tools import interpreters as pythons  # noqa: E402  (the folder had to be put on the path)

nox.needs_version = ">=2025.10.14"
# pip and not uv, which does not read pip's configuration and so misses the index that a machine
# is set up for. virtualenv comes with nox and needs no package of the system's for each Python.
nox.options.default_venv_backend = "virtualenv"
nox.options.download_python = "never"
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = False  # the session `interpreters` decides
nox.options.sessions = [
    "interpreters",
    "lint",
    "imports",
    "typing",
    "wheels",
    "docs",
    "tests",
    "coverage",
]

FOUND = [pythons.find(version) for version in ("3.11", "3.12", "3.13")]
pythons.use(FOUND, os.environ)
OLDEST = FOUND[0].version
# For what one Python is enough for; its tests are the ones that are measured.
PYTHON = next((found.version for found in (FOUND[1], FOUND[2], FOUND[0]) if found.executable), None)

PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
CORE = ROOT / "stroma-core"
PLUGINS = sorted(
    path.parent for path in ROOT.glob("stroma-*/pyproject.toml") if path.parent != CORE
)
DISTRIBUTIONS = [CORE, *PLUGINS]
SAMPLE_PLUGINS = sorted(path.parent for path in ROOT.glob("tests/plugins/*/pyproject.toml"))
EXTRAS = {CORE: "[cli,testing]"}
PIN = ("-c", "constraints.txt")


@nox.session(venv_backend="none")
def interpreters(session: nox.Session) -> None:
    """Which Pythons there are; in CI, one that could be installed has to be."""
    for found in FOUND:
        session.log(str(found))
    missing = [str(found) for found in FOUND if not found.executable]
    obtainable = [str(found) for found in FOUND if found.package]
    if missing:
        atexit.register(print, *missing, sep="\n", file=sys.stderr)
    if obtainable and os.environ.get("CI"):
        session.error("; ".join(obtainable))


@nox.session(python=PYTHON)
def lint(session: nox.Session) -> None:
    """Style and likely mistakes."""
    session.install(*PIN, *group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session(python=PYTHON)
def imports(session: nox.Session) -> None:
    """No module imports from a layer above its own."""
    session.install(*PIN, *group("imports"))
    sources = os.pathsep.join(str(folder / "src") for folder in DISTRIBUTIONS)
    session.run("lint-imports", "--no-cache", env={"PYTHONPATH": sources})


@nox.session(python=PYTHON)
def typing(session: nox.Session) -> None:
    """mypy and pyright, on the packages and on what users write against them."""
    session.install(*PIN, *group("typing"), *workspace())
    session.run(
        "mypy", *existing("tests/typing", "tests/wheels", "tests/workspace", "tools", "noxfile.py")
    )
    # Named, as pyright would take a pyrightconfig.json of a folder above first.
    session.run("pyright", "--project", "pyproject.toml")


@nox.session(python=[found.version for found in FOUND])
def tests(session: nox.Session) -> None:
    """The tests; the slow ones run on one Python only, as they are not about the language.

    On the oldest Python they run with the oldest pydantic and pluggy that we promise.
    """
    session.install(*PIN, *group("tests"), *workspace(), *floors(session))
    if session.posargs:
        session.run("python", "-m", "pytest", *session.posargs)
        return
    pytest = ("-m", "pytest", "tests", "--ignore=tests/docs", "-m")
    if session.python != PYTHON:
        session.run("python", *pytest, "not slow")
        return
    session.run("coverage", "erase")
    # Measured, the slow tests would take much longer and reach hardly a line more.
    measured = ("coverage", "run", *pytest, "not slow")
    file = {"COVERAGE_FILE": str(ROOT / ".coverage")}
    passed = [passes(session, *measured, env=file), passes(session, "python", *pytest, "slow")]
    if not all(passed):
        session.error("tests failed")


@nox.session(python=PYTHON)
def coverage(session: nox.Session) -> None:
    """What the last run of `tests` on one Python has reached."""
    parts = list(ROOT.glob(".coverage.*"))
    if not parts and not Path(ROOT, ".coverage").exists():
        session.error(f"nothing measured yet: nox -s tests-{PYTHON} coverage")
    session.install(*PIN, *group("coverage"))
    if parts:
        session.run("coverage", "combine", "--quiet")
    # The kits are tests themselves, and drivers have errors that no server here gives.
    session.run("coverage", "report", "--include=*/stroma/*", "--omit=*/stroma/testing/*")
    others = "--include=*/stroma/testing/*,*/stroma_*/*"
    session.run("coverage", "report", "--fail-under=0", others)


@nox.session(python=PYTHON)
def docs(session: nox.Session) -> None:
    """Every code block of the documentation runs, and prints what it says."""
    session.install(*PIN, *group("docs"), *workspace())
    session.run("python", "-m", "pytest", *(session.posargs or ("tests/docs",)))


@nox.session(python=PYTHON)
def wheels(session: nox.Session) -> None:
    """What users get: wheels, built from the source archives, in an environment of their own."""
    session.install(*PIN, *group("wheels"))
    folder = Path(session.create_tmp(), "wheels").resolve()
    shutil.rmtree(folder, ignore_errors=True)
    for project in (*DISTRIBUTIONS, *SAMPLE_PLUGINS):
        session.run("python", "-m", "build", "--outdir", str(folder), str(project), silent=True)

    # By path: an unrelated distribution called stroma is on the public index.
    core, *others = (wheel_of(project, folder) for project in (*DISTRIBUTIONS, *SAMPLE_PLUGINS))
    python = clean_environment(session)
    session.run(python, "-m", "pip", "install", "--quiet", core, external=True)
    check = (python, "-I", "tests/wheels/check_install.py", str(folder))
    session.run(*check, "core", external=True)
    if others:
        plugins = [project_name(project) for project in (*PLUGINS, *SAMPLE_PLUGINS)]
        session.run(python, "-m", "pip", "install", "--quiet", core, *others, external=True)
        session.run(*check, "plugins", *plugins, external=True)
        session.run(python, "-m", "pip", "install", "--quiet", f"{core}[testing]", external=True)
        for project in SAMPLE_PLUGINS:
            run_own_tests(session, python, project)


@nox.session(python=PYTHON)
def bench(session: nox.Session) -> None:
    """Measure, and print a table; not among the defaults, as it says nothing on a busy machine."""
    session.install(*PIN, *workspace())
    session.run("python", "benchmarks/ratios.py", *session.posargs)


@nox.session(python=PYTHON)
def chaos(session: nox.Session) -> None:
    """The fault suite at full size, which takes hours; not among the defaults.

    nox -s chaos -- --size full --seed 7 -k redis: the rest goes to pytest.
    """
    parser = argparse.ArgumentParser(prog="nox -s chaos --", add_help=False, allow_abbrev=False)
    parser.add_argument("--size", choices=("small", "full"), default="full")
    parser.add_argument("--seed", type=int)
    given, others = parser.parse_known_args(session.posargs)
    session.install(*PIN, *group("tests"), *workspace())
    env = {"STROMA_FAULTS_SIZE": given.size}
    if given.seed is not None:
        env["STROMA_FAULTS_SEED"] = str(given.seed)
    # Stdout is shown of tests that pass, too: they say what they have counted.
    session.run("python", "-m", "pytest", "tests/faults", "-rP", *others, env=env)


def passes(session: nox.Session, *command: str, env: dict[str, str] | None = None) -> bool:
    """Run a command and say whether it passed; where it fails, the session goes on."""
    try:
        session.run(*command, env=env)
    except CommandFailed:
        return False
    return True


def group(name: str) -> list[str]:
    """Return the requirements of a dependency group of the root pyproject.toml."""
    return list(nox.project.dependency_groups(PROJECT, name))


def workspace() -> list[str]:
    """Return what to tell pip to install every distribution from its folder."""
    targets = (f"{folder}{EXTRAS.get(folder, '')}" for folder in DISTRIBUTIONS)
    return [part for target in targets for part in ("-e", target)]


def floors(session: nox.Session) -> list[str]:
    """Return what to tell pip to take the lowest versions that the core says it works with."""
    if session.python != OLDEST:
        return []
    lowest = [each.replace(">=", "==") for each in pyproject(CORE)["project"]["dependencies"]]
    file = Path(session.create_tmp(), "lowest.txt")
    file.write_text("\n".join(lowest))
    return ["-c", str(file)]


def clean_environment(session: nox.Session) -> str:
    """Return the interpreter of a new environment that has pip and nothing else."""
    folder = Path(session.create_tmp(), "clean").absolute()
    make = (sys.executable, "-m", "virtualenv", "--quiet", "--clear")
    session.run(*make, "--python", f"{session.bin}/python", str(folder), external=True)
    return str(folder / "bin" / "python")


def run_own_tests(session: nox.Session, python: str, project: Path) -> None:
    """Run the tests of a sample plugin as its author would: installed, and nowhere near ours."""
    if Path(project, "tests").is_dir():
        folder = Path(session.create_tmp(), project.name).resolve()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(Path(project, "tests"), folder)
        Path(folder, "pytest.ini").write_text("[pytest]\n")  # or else it would find ours above
        with session.chdir(folder):
            session.run(python, "-m", "pytest", "-q", external=True)


def wheel_of(project: Path, folder: Path) -> str:
    """Return the wheel that was built of this project."""
    (wheel,) = folder.glob(f"{re.sub(r'[-_.]+', '_', project_name(project))}-*.whl")
    return str(wheel)


def project_name(project: Path) -> str:
    """Return the name under which this project is installed."""
    return str(pyproject(project)["project"]["name"])


def pyproject(project: Path) -> dict[str, Any]:
    """Return the settings of this project."""
    return nox.project.load_toml(project / "pyproject.toml")


def existing(*paths: str) -> list[str]:
    """Return the sources of the packages, and those of these paths that there are."""
    sources = [str(package.parent) for package in ROOT.glob("stroma-*/src/*/py.typed")]
    return sources + [path for path in paths if Path(path).exists()]
