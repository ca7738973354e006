"""The list of plugins, with and without the extra `cli`; and what `import stroma` leaves out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stroma.cli import plain
from stroma.plugins import PluginInfo
from tests.core.plugins.installed import install_sample, python

WITHOUT_EXTRA = (
    "import runpy, sys; sys.modules['typer'] = None; sys.argv[0] = 'stroma'; "
    "runpy.run_module('stroma', run_name='__main__')"
)
PLUGINS = (
    PluginInfo("a", "sample-a", "1.0", ("store box", "hooks timer"), "active", None),
    PluginInfo("b", "sample-b", "2.0", (), "broken", "ImportError: \x1b[2J"),
)


@pytest.mark.parametrize(
    "start", [("-m", "stroma"), ("-c", WITHOUT_EXTRA)], ids=["with", "without"]
)
def test_the_list_is_the_same_with_and_without_the_extra(
    start: tuple[str, str], tmp_path: Path
) -> None:
    install_sample(tmp_path, "stroma-sample-dir")

    text, as_json = (python(tmp_path, *start, "plugins", *options) for options in ((), ("--json",)))

    assert text.returncode == 0, text.stderr
    assert "dir  stroma-sample-dir 1.0.0  active" in text.stdout
    assert "    offers store dir, classifier disk-full" in text.stdout
    (listed,) = [each for each in json.loads(as_json.stdout) if each["name"] == "dir"]
    assert listed == {
        "name": "dir",
        "distribution": "stroma-sample-dir",
        "version": "1.0.0",
        "provides": ["store dir", "classifier disk-full"],
        "status": "active",
        "error": None,
    }


def test_without_the_extra_other_commands_say_what_to_install(tmp_path: Path) -> None:
    done = python(tmp_path, "-c", WITHOUT_EXTRA, "runs")
    helped = python(tmp_path, "-c", WITHOUT_EXTRA, "--help")

    assert done.returncode == 2
    assert "pip install './stroma-core[cli]'" in done.stderr
    assert helped.returncode == 0
    assert "pip install './stroma-core[cli]'" in helped.stdout


def test_the_text_shows_errors_and_cannot_steer_a_terminal() -> None:
    assert plain.plugins_as_text(PLUGINS).splitlines()[1:] == [
        "  a  sample-a 1.0  active",
        "    offers store box, hooks timer",
        "  b  sample-b 2.0  broken",
        "    ImportError: \\x1b[2J",
    ]
    assert plain.plugins_as_text(()).endswith(": no plugins are installed")


def test_plain_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert plain.run([]) == 0
    assert plain.run(["plugins"]) == 0
    assert plain.run(["plugins", "--json"]) == 0
    assert plain.run(["plugins", "--nope"]) == 2
    assert "usage: python -m stroma plugins" in capsys.readouterr().err


def test_importing_stroma_imports_neither_the_command_line_nor_what_may_never_be_used(
    tmp_path: Path,
) -> None:
    heavy = ["typer", "rich", "sqlite3", "tomllib", "stroma.cli", "difflib", "hypothesis", "pytest"]
    # Whoever measures coverage has imported some of these before.
    code = (
        "import sys; before = set(sys.modules); import stroma; "
        f"print(sorted((set(sys.modules) - before) & set({heavy!r})))"
    )

    done = python(tmp_path, "-c", code, STROMA_DISABLE_PLUGINS="*")

    assert done.stdout == "[]\n", done.stderr
