"""Installs plugins as pip would leave them, into a folder that a test puts on the path."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

SAMPLES = Path(__file__).resolve().parents[2] / "plugins"
CORE = Path(__file__).resolve().parents[3] / "stroma-core" / "src"


def install(
    folder: Path,
    distribution: str,
    entry_points: Mapping[str, str],
    modules: Mapping[str, str] | None = None,
    version: str = "1.0",
) -> None:
    """Write a distribution's metadata and modules.

    Args:
        folder: what stands for site-packages.
        distribution: its name.
        entry_points: module by name of the entry point, in the group "stroma".
        modules: source by module name.
        version: of the distribution.
    """
    info = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n\nA readme.\n"
    )
    lines = [f"{name} = {module}" for name, module in entry_points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[stroma]", *lines, ""]))
    for name, source in (modules or {}).items():
        (folder / f"{name}.py").write_text(source)


def install_sample(folder: Path, name: str) -> None:
    """Install one of the packages of tests/plugins."""
    project = tomllib.loads((SAMPLES / name / "pyproject.toml").read_text())["project"]
    install(folder, name, project["entry-points"]["stroma"], version=project["version"])
    for package in (SAMPLES / name / "src").iterdir():
        shutil.copytree(package, folder / package.name)


def python(
    folder: Path, *arguments: str, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run another Python that has a folder's plugins, and no others by a variable of ours."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("STROMA_")}
    environment |= {"PYTHONPATH": os.pathsep.join([str(folder), str(CORE)]), **variables}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=cwd or folder, timeout=60
    )
