"""The store that is configured outside the program: where it is looked up, in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from stroma import AsyncInMemoryStore, config, plugins
from stroma.config import StoreChoice, default_store_spec, open_default_store
from stroma.errors import ConfigError, MissingPlugin
from stroma.plugins import PluginSet

PYPROJECT = '[project]\nname = "app"\n[tool.stroma]\nstore = "sqlite:///pyproject.db"\n'


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text)


def test_nothing_is_configured(tmp_path: Path) -> None:
    assert default_store_spec({}, tmp_path) is None
    assert open_default_store({"STROMA_STORE": ""}, tmp_path) is None


def test_the_variable_comes_first_then_our_file_then_pyproject(tmp_path: Path) -> None:
    write(tmp_path, pyproject=PYPROJECT)
    third = default_store_spec({}, tmp_path)
    write(tmp_path, stroma='store = "sqlite:///own.db"')
    second = default_store_spec({}, tmp_path)
    first = default_store_spec({"STROMA_STORE": "memory:"}, tmp_path)

    assert third == StoreChoice("sqlite:///pyproject.db", {}, "pyproject.toml: tool.stroma.store")
    assert second == StoreChoice("sqlite:///own.db", {}, "stroma.toml: store")
    assert first == StoreChoice("memory:", {}, "STROMA_STORE")


def test_an_empty_file_of_ours_leaves_it_to_pyproject(tmp_path: Path) -> None:
    write(tmp_path, pyproject=PYPROJECT, stroma="# nothing yet")

    choice = default_store_spec({}, tmp_path)

    assert choice is not None
    assert choice.spec == "sqlite:///pyproject.db"


def test_the_working_directory_is_where_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, stroma='store = "memory"')
    monkeypatch.chdir(tmp_path)

    assert isinstance(open_default_store({}), AsyncInMemoryStore)


@pytest.mark.parametrize(
    ("table", "spec", "options"),
    [
        ('name = "sqlite"\npath = "x.db"', "sqlite", {"path": "x.db"}),
        (
            'url = "sqlite:///x.db"\nbusy_timeout_seconds = 2',
            "sqlite:///x.db",
            {"busy_timeout_seconds": 2},
        ),
        (
            'name = "redis"\nurl = "redis://h"\nttl_seconds = 5',
            "redis",
            {"url": "redis://h", "ttl_seconds": 5},
        ),
    ],
)
def test_a_table_holds_a_name_or_url_and_options(
    table: str, spec: str, options: dict[str, object], tmp_path: Path
) -> None:
    write(tmp_path, stroma=f"[store]\n{table}\n")

    assert default_store_spec({}, tmp_path) == StoreChoice(spec, options, "stroma.toml: [store]")

    (tmp_path / "stroma.toml").unlink()
    write(tmp_path, pyproject=f"[tool.stroma.store]\n{table}\n")

    assert default_store_spec({}, tmp_path) == StoreChoice(
        spec, options, "pyproject.toml: [tool.stroma.store]"
    )


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("stroma", "stroe = 1", "stroma.toml: there is no key 'stroe', only 'store'"),
        ("stroma", "store = 1", "stroma.toml: store must be a table, not 1"),
        ("stroma", "[store]\nttl = 1", r"stroma.toml: \[store\] needs a name or a url"),
        (
            "stroma",
            '[store]\npath = "runs.db"',
            r'\[store\] needs a name or a url, such as name = "sqlite", .* it has only .path.$',
        ),
        (
            "stroma",
            "[store]\nname = 1",
            r"stroma.toml: \[store\]: name must be text, such as 'sqlite', not int",
        ),
        (
            "stroma",
            "[store]\nurl = 3",
            r"stroma.toml: \[store\]: url must be text, such as 'sqlite:///runs.db', not int",
        ),
        ("stroma", "[store", "stroma.toml is no TOML: "),
        ("stroma", 'store = "x.db"', "^stroma.toml: store: store 'x.db' is neither"),
        (
            "stroma",
            '[store]\nname = "sqlite"\nfile = "x"',
            r"^stroma.toml: \[store\]: store 'sqlite' has no option 'file'",
        ),
        ("pyproject", "tool.stroma = 1", "pyproject.toml: tool.stroma must be a table, not 1"),
        ("pyproject", "[tool.stroma]\nx = 1", "pyproject.toml: there is no key 'tool.stroma.x'"),
        ("pyproject", "[tool.stroma]\nstore = {}", r"pyproject.toml: \[tool.stroma.store\] needs"),
        ("pyproject", "[tool.stroma", "pyproject.toml is no TOML: "),
    ],
)
def test_mistakes_name_the_file_and_the_key(
    file: str, text: str, message: str, tmp_path: Path
) -> None:
    write(tmp_path, **{file: text})

    with pytest.raises(ConfigError, match=message):
        open_default_store({}, tmp_path)


def test_mistakes_in_the_variable_name_it_and_hide_passwords(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "_installed", PluginSet())
    with pytest.raises(MissingPlugin, match=r"^STROMA_STORE: store 'redis' needs a plugin"):
        open_default_store({"STROMA_STORE": "redis://h"}, tmp_path)
    with pytest.raises(ConfigError, match=r"^STROMA_STORE: .*sqlite://:[*]{3}@h") as caught:
        open_default_store({"STROMA_STORE": "sqlite://:hidden@h"}, tmp_path)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[tool.other]\nx = 1", "this is not TOML", "[tool.stroma]\n"])
def test_other_tools_files_are_left_alone(text: str, tmp_path: Path) -> None:
    write(tmp_path, pyproject=text)

    assert default_store_spec({}, tmp_path) is None


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "stroma.toml").write_bytes(b"\xff\xfe")

    with pytest.raises(ConfigError, match=r"stroma.toml is no TOML"):
        open_default_store({}, tmp_path)
    (tmp_path / "stroma.toml").unlink()
    (tmp_path / "stroma.toml").mkdir()
    with pytest.raises(ConfigError, match=r"stroma.toml cannot be read: "):
        open_default_store({}, tmp_path)


def test_a_variable_that_may_be_misspelt_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "_warned", set())
    environ = {"STROMA_STOER": "sqlite:///runs.db", "STROMA_BUDGET": "3"}

    for _ in range(2):
        assert default_store_spec(environ, tmp_path) is None

    names = "STROMA_STORE, STROMA_PLUGINS, STROMA_DISABLE_PLUGINS"
    assert [record.getMessage() for record in caplog.records] == [
        "Stroma does not read the environment variable STROMA_STOER; did you mean 'STROMA_STORE'?",
        f"Stroma does not read the environment variable STROMA_BUDGET; it reads {names}",
    ]
    assert "runs.db" not in caplog.text


def test_variables_that_are_read_are_not_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    of_tests = ("STROMA_TEST_REDIS_URL", "STROMA_FAULTS_SEED")
    environ: dict[str, str] = dict.fromkeys((*config.VARIABLES, *of_tests), "")

    assert default_store_spec(environ, tmp_path) is None
    assert caplog.records == []


def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)

    with pytest.raises(ConfigError, match=r"stroma.toml cannot be read: Permission denied"):
        open_default_store({}, tmp_path)
