"""Every code block of the documentation runs, and prints what the page shows."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, RUN, blocks_of, matches, name_of, outputs_of, pages
from tests.docs.servers import servers_of, variables_for

PLAY = Path(__file__).with_name("play.py")
NOT_RUN_AT_MOST = 10
KNOWN_LANGUAGES = {*RUN, "text", "toml"}

each_page = pytest.mark.parametrize("page", pages(), ids=name_of)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "here"
    made.mkdir()
    return made


def copy_repository(folder: Path) -> None:
    """Copy what a clone would have."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def environment() -> dict[str, str]:
    """Return one in which `python` and `stroma` are those that run the tests.

    What pip and plugins of pytest warn of is the machine's affair, and not what the pages show.
    """
    scripts = str(Path(sys.executable).parent)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("COVERAGE_", "STROMA_"))}
    quiet = {"PIP_QUIET": "2", "PYTHONWARNINGS": "ignore:The configuration option"}
    return {**kept, "PATH": scripts + os.pathsep + kept["PATH"], **quiet}


@pytest.mark.timeout(300)
@each_page
def test_the_blocks_of_a_page_run_and_print_what_it_shows(
    page: Path, folder: Path, tmp_path: Path
) -> None:
    if page == ROOT / "README.md":
        copy_repository(folder)
    text = page.read_text(encoding="utf-8")
    outcome = tmp_path / "outcome.json"
    done = subprocess.run(
        [sys.executable, "-W", "error", str(PLAY), str(page), str(outcome)],
        cwd=folder,
        env=environment() | variables_for(servers_of(text)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    printed = {int(line): text for line, text in json.loads(outcome.read_text()).items()}
    blocks = blocks_of(text)
    shown = outputs_of(blocks)
    for block in blocks:
        where = f"{name_of(page)}:{block.line}"
        if block.line in printed and block.line in shown:
            expected = shown[block.line].text
            assert matches(expected, printed[block.line]), (
                f"{where} prints\n{printed[block.line]}\nand the page shows\n{expected}"
            )
        elif block.line in printed and block.language == "python":
            assert printed[block.line] == "", f"{where} prints what the page does not show"


@each_page
def test_a_page_has_only_blocks_that_are_checked(page: Path) -> None:
    blocks = blocks_of(page.read_text(encoding="utf-8"))
    shown = outputs_of(blocks).values()

    for block in blocks:
        where = f"{name_of(page)}:{block.line}"
        assert block.language in KNOWN_LANGUAGES, f"{where}: no language that is checked"
        if not block.is_run:
            is_output = any(block is output for output in shown)
            assert is_output or block.mark, f"{where} is no output, and has no reason not to run"


def test_few_blocks_are_not_run() -> None:
    reasons = [
        f"{name_of(page)}:{block.line}: {block.mark}"
        for page in pages()
        for block in blocks_of(page.read_text(encoding="utf-8"))
        if block.mark.startswith("not run: ")
    ]

    assert len(reasons) <= NOT_RUN_AT_MOST, reasons
