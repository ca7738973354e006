"""Find the Python interpreters that tests run on.

A name on PATH proves nothing: version managers put shims there that fail when they are called, and
nox would pass over such a session without failing. So every candidate is run before it counts.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PROBE = "import sys; print('{}.{}'.format(*sys.version_info)); print(sys.executable)"


@dataclass(frozen=True, slots=True)
class Found:
    """What was found for one version.

    Attributes:
        version: as in "3.12".
        executable: an interpreter that ran, or None.
        package: the system package that could be installed instead, or None.
    """

    version: str
    executable: Path | None = None
    package: str | None = None

    def __str__(self) -> str:
        if self.executable:
            return f"Python {self.version}: {self.executable}"
        if self.package:
            return (
                f"Python {self.version}: MISSING, but this machine can have it: "
                f"apt-get install {self.package} (or install it with pyenv)"
            )
        return f"Python {self.version}: MISSING, and no package offers it here; NOT TESTED"


def find(version: str, env: Mapping[str, str] = os.environ) -> Found:
    """Look for this version on PATH, then among pyenv's."""
    for candidate in _candidates(version, env):
        executable = _run(candidate, version, env)
        if executable:
            return Found(version, executable)
    return Found(version, package=_package(version, env))


def use(found: Sequence[Found], env: MutableMapping[str, str]) -> None:
    """Change PATH so that `pythonX.Y` means the interpreter that was found."""
    for each in found:
        if each.executable is None:
            continue
        first = shutil.which(f"python{each.version}", path=env.get("PATH", ""))
        if first and _run(Path(first), each.version, env):
            continue
        env["PATH"] = os.pathsep.join((str(each.executable.parent), env.get("PATH", "")))


def _candidates(version: str, env: Mapping[str, str]) -> Iterator[Path]:
    name = f"python{version}"
    for folder in env.get("PATH", "").split(os.pathsep):
        candidate = Path(folder or ".", name)
        if os.access(candidate, os.X_OK):
            yield candidate
    root = env.get("PYENV_ROOT") or Path(env.get("HOME", "/"), ".pyenv")
    installed = Path(root, "versions").glob(f"{version}*/bin/{name}")
    yield from sorted(installed, key=_release, reverse=True)


def _release(executable: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", executable.parts[-3]))


def _run(candidate: Path, version: str, env: Mapping[str, str]) -> Path | None:
    """Return the real path of an interpreter that runs and has this version."""
    try:
        done = subprocess.run(
            [candidate, "-c", _PROBE],
            check=False,
            capture_output=True,
            text=True,
            timeout=30,
            env=dict(env),
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.splitlines()
    if done.returncode != 0 or len(lines) != 2 or lines[0] != version:
        return None
    return Path(lines[1])


def _package(version: str, env: Mapping[str, str]) -> str | None:
    """Return the package that the system's package manager would install, if it has one."""
    name = f"python{version}"
    try:
        done = subprocess.run(
            ["apt-cache", "policy", name],
            check=False,
            capture_output=True,
            text=True,
            timeout=30,
            env={**env, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    candidate = re.search(r"^\s*Candidate: (\S+)", done.stdout, re.MULTILINE)
    return name if candidate and candidate[1] != "(none)" else None
