"""An interpreter counts only when it runs; a missing one says what can be done."""

import shutil
import sys
from pathlib import Path

import pytest

from tools import interpreters

HERE = "{}.{}".format(*sys.version_info)
REAL = sys.executable


def _script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def _apt(folder: Path, candidate: str) -> None:
    _script(folder / "apt-cache", f"echo 'python9.9:'; echo '  Candidate: {candidate}'")


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment that knows no interpreter, neither here nor for programs started."""
    path = str(tmp_path / "bin")
    monkeypatch.setenv("PATH", path)
    return {"PATH": path, "HOME": str(tmp_path)}


def test_an_interpreter_on_path_is_found(tmp_path: Path, env: dict[str, str]) -> None:
    _script(tmp_path / "bin" / f"python{HERE}", f'exec {REAL} "$@"')

    found = interpreters.find(HERE, env)

    assert found.executable is not None
    assert found.executable.exists()


def test_a_shim_that_fails_does_not_hide_a_real_one(tmp_path: Path, env: dict[str, str]) -> None:
    _script(tmp_path / "bin" / f"python{HERE}", "echo 'command not found' >&2; exit 127")
    real = _script(tmp_path / ".pyenv/versions" / f"{HERE}.0/bin/python{HERE}", f'exec {REAL} "$@"')

    found = interpreters.find(HERE, env)
    interpreters.use([found], env)

    assert found.executable == Path(REAL)
    assert env["PATH"].startswith(str(Path(REAL).parent))
    assert real.exists()


def test_another_version_under_the_right_name_does_not_count(
    tmp_path: Path, env: dict[str, str]
) -> None:
    _script(tmp_path / "bin" / "python9.9", f'exec {REAL} "$@"')

    assert interpreters.find("9.9", env).executable is None


def test_the_newest_of_several_is_taken(tmp_path: Path, env: dict[str, str]) -> None:
    for release in ("9", "10"):
        _script(
            tmp_path / "pyenv/versions" / f"9.9.{release}/bin/python9.9",
            f"echo 9.9; echo /opt/9.9.{release}",
        )
    env["PYENV_ROOT"] = str(tmp_path / "pyenv")

    assert interpreters.find("9.9", env).executable == Path("/opt/9.9.10")


def test_a_missing_one_names_the_package_to_install(tmp_path: Path, env: dict[str, str]) -> None:
    _apt(tmp_path / "bin", "9.9.1-1")

    found = interpreters.find("9.9", env)

    assert found.package == "python9.9"
    assert "apt-get install python9.9" in str(found)


def test_one_that_no_package_offers_says_so(tmp_path: Path, env: dict[str, str]) -> None:
    _apt(tmp_path / "bin", "(none)")

    found = interpreters.find("9.9", env)

    assert found.package is None
    assert "NOT TESTED" in str(found)


def test_without_a_package_manager_nothing_is_claimed(env: dict[str, str]) -> None:
    assert interpreters.find("9.9", env).package is None


def test_path_stays_as_it_is_when_the_name_already_works(
    tmp_path: Path, env: dict[str, str]
) -> None:
    _script(tmp_path / "bin" / f"python{HERE}", f'exec {REAL} "$@"')
    before = env["PATH"]

    interpreters.use([interpreters.find(HERE, env)], env)

    assert env["PATH"] == before
    assert shutil.which(f"python{HERE}", path=env["PATH"])
