"""Finding and loading plugins: whatever one of them does wrong stays its own problem."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import types
from collections.abc import Iterator
from importlib.machinery import PathFinder
from importlib.metadata import DistributionFinder
from pathlib import Path

import pytest

from stroma import plugins
from stroma.errors import PluginError
from stroma.plugins import PluginInfo, PluginSet
from tests.core.plugins.installed import install, install_sample, python

BROKEN = {
    "broken-import-error": "ModuleNotFoundError: No module named 'stroma_sample_driver",
    "broken-exits": "SystemExit: 3",
    "broken-misspelt": "PluginValidationError: unknown hook 'stroma_register_storse'",
    "broken-unmarked": "PluginError: stroma_register_stores is not marked with @hookimpl",
    "broken-signature": "{'settings'} are declared in the hookimpl but can not be found",
    "broken-raises": "RuntimeError: the licence has expired",
    "broken-newer": "it was made for version 99 of the plugin interface, and stroma 1.",
    "broken-override": "ConfigError: store 'memory' is built in, and cannot be overridden",
    "broken-coroutine": "PluginError: stroma_register_stores is async",
    "broken-empty": "PluginError: it implements no hook",
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    yield folder
    # The next test installs modules of the same names into a folder of its own.
    for name in [name for name in sys.modules if name.startswith(("sample_", "stroma_sample_"))]:
        del sys.modules[name]


def discovered(**environ: str) -> PluginSet:
    """Return the plugins; real ones of the test environment are found, too."""
    found = PluginSet()
    found.discover(environ)
    return found


def ours(found: PluginSet) -> dict[str, PluginInfo]:
    return {each.name: each for each in found.infos() if "sample" in each.distribution}


def hooks_module(body: str) -> str:
    return f"from stroma.hookspecs import hookimpl\n{body}\n"


def test_a_good_plugin_is_listed_with_what_it_offers(site: Path) -> None:
    install_sample(site, "stroma-sample-dir")

    info = ours(discovered())["dir"]

    assert info.provides == ("store dir", "classifier disk-full")
    assert (info.distribution, info.version) == ("stroma-sample-dir", "1.0.0")
    assert (info.status, info.error) == ("active", None)
    assert info.label == "dir (stroma-sample-dir 1.0.0)"


def test_a_plugin_does_not_import_its_store_to_register_it(site: Path) -> None:
    install_sample(site, "stroma-sample-dir")
    code = "import stroma, sys; print([m for m in sys.modules if m.startswith('stroma_sample')])"

    done = python(site, "-c", code)

    assert "stroma_sample_dir._plugin" in done.stdout, done.stderr
    assert "stroma_sample_dir.options" not in done.stdout


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_broken_plugin_is_kept_with_its_error_and_logged_once(
    name: str, site: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install_sample(site, "stroma-sample-broken")

    with caplog.at_level(logging.WARNING, logger="stroma"):
        found = discovered(STROMA_PLUGINS=name)
        found.discover({})

    info = ours(found)[name]
    assert info.status == "broken"
    assert BROKEN[name] in (info.error or "")
    mine = [record.getMessage() for record in caplog.records if name in record.getMessage()]
    assert len(mine) == 1
    assert "stroma-sample-broken 1.0.0" in mine[0]


def test_broken_plugins_stop_neither_the_import_nor_the_good_one(site: Path) -> None:
    install_sample(site, "stroma-sample-broken")
    install_sample(site, "stroma-sample-dir")

    done = python(site, "-m", "stroma", "plugins", "--json")

    assert done.returncode == 0, done.stderr
    listed = {each["name"]: each for each in json.loads(done.stdout)}
    assert {name for name, each in listed.items() if each["status"] == "broken"} == set(BROKEN)
    assert listed["dir"]["status"] == "active"
    assert done.stderr.count("is broken") == len(BROKEN)


def test_the_users_interrupt_is_not_caught(site: Path) -> None:
    install(site, "sample-x", {"x": "sample_int"}, {"sample_int": "raise KeyboardInterrupt"})

    with pytest.raises(KeyboardInterrupt):
        discovered(STROMA_PLUGINS="x")


def test_a_plugin_may_import_what_discovers_it(site: Path) -> None:
    source = hooks_module(
        "from stroma import plugins\nplugins.discover()\n"
        "@hookimpl\ndef stroma_register_hooks(registry): pass"
    )
    install(site, "sample-again", {"again": "sample_again"}, {"sample_again": source})

    assert ours(discovered())["again"].status == "active"


@pytest.mark.parametrize(
    ("variables", "active"),
    [
        ({}, {"a", "b"}),
        ({"STROMA_PLUGINS": ""}, {"a", "b"}),
        ({"STROMA_PLUGINS": "a"}, {"a"}),
        ({"STROMA_PLUGINS": "sample-one, c"}, {"a", "b"}),
        ({"STROMA_PLUGINS": "*"}, {"a", "b"}),
        ({"STROMA_DISABLE_PLUGINS": "a"}, {"b"}),
        ({"STROMA_DISABLE_PLUGINS": "a b"}, set()),
        ({"STROMA_DISABLE_PLUGINS": "*"}, set()),
        ({"STROMA_PLUGINS": "a", "STROMA_DISABLE_PLUGINS": "sample-one"}, set()),
    ],
)
def test_the_lists_act_before_anything_is_loaded(
    variables: dict[str, str], active: set[str], site: Path
) -> None:
    loaded = site / "loaded"
    source = hooks_module(
        f"with open({str(loaded)!r}, 'a') as file: file.write(__name__[-1])\n"
        "@hookimpl\ndef stroma_register_hooks(registry): pass"
    )
    modules = {"sample_list_a": source, "sample_list_b": source}
    install(site, "sample-one", {"a": "sample_list_a", "b": "sample_list_b"}, modules)

    found = ours(discovered(**variables))

    assert {name for name, each in found.items() if each.status == "active"} == active
    assert set(loaded.read_text() if loaded.exists() else "") == active
    assert found.keys() == {"a", "b"}


@pytest.mark.parametrize("variable", ["STROMA_PLUGINS", "STROMA_DISABLE_PLUGINS"])
def test_a_variable_that_names_what_is_not_installed_is_logged(
    variable: str, site: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install_sample(site, "stroma-sample-dir")

    with caplog.at_level(logging.WARNING, logger="stroma"):
        found = discovered(**{variable: "dri, stroma-sample-dir, *"})

    message = f"{variable} names 'dri', and no such plugin is installed; did you mean 'dir'?"
    assert [record.getMessage() for record in caplog.records] == [message]
    assert ours(found).keys() == {"dir"}


def test_the_first_installation_on_the_path_counts(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = hooks_module("@hookimpl\ndef stroma_register_hooks(registry): pass")
    install(site, "sample-shadow", {"old": "sample_old"}, {"sample_old": source}, "1.0")
    newer = tmp_path / "newer"
    install(newer, "sample-shadow", {"new": "sample_new"}, {"sample_new": source}, "2.0")
    monkeypatch.syspath_prepend(newer)

    found = ours(discovered())

    assert {name: each.version for name, each in found.items()} == {"new": "2.0"}


@pytest.mark.parametrize("kind", ["dist-info", "egg-info", "archive", "egg", "finder"])
def test_a_plugin_is_found_however_it_is_installed(
    kind: str, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = site if kind in {"dist-info", "egg-info"} else tmp_path / "elsewhere"
    source = hooks_module("@hookimpl\ndef stroma_register_hooks(registry): pass")
    install(place, "sample-there", {"there": "sample_there"}, {"sample_there": source}, "1.5")
    info = place / "sample_there-1.5.dist-info"
    if kind in {"egg-info", "egg"}:
        (info / "METADATA").rename(info / "PKG-INFO")
        info.rename(info.with_suffix(".egg-info") if kind == "egg-info" else place / "EGG-INFO")
    if kind == "egg":
        place = place.rename(tmp_path / "sample_there-1.5-py3.egg")
    if kind == "archive":
        place = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", place))
    if kind == "finder":
        finder = types.SimpleNamespace(
            find_spec=lambda *_: None,
            find_distributions=lambda _: PathFinder.find_distributions(
                DistributionFinder.Context(path=[str(place)])
            ),
        )
        monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, finder])
        (place / "sample_there.py").rename(site / "sample_there.py")
    elif kind in {"archive", "egg"}:
        monkeypatch.syspath_prepend(place)

    found = ours(discovered())

    assert {name: (each.version, each.status) for name, each in found.items()} == {
        "there": ("1.5", "active")
    }


def test_unreadable_metadata_of_others_does_no_harm(site: Path) -> None:
    info = site / "sample_garbage-1.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_bytes(b"\xff\xfe[stroma]\n")

    assert ours(discovered()) == {}


def test_a_distribution_that_cannot_be_looked_up_is_taken_as_it_was_found(site: Path) -> None:
    source = hooks_module("@hookimpl\ndef stroma_register_hooks(registry): pass")
    install(site, "sample-odd", {"odd": "sample_odd"}, {"sample_odd": source})
    (site / "sample_odd-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\n")

    (info,) = [each for each in discovered(STROMA_PLUGINS="odd").infos() if each.name == "odd"]

    assert (info.distribution, info.version, info.status) == ("unknown", "unknown", "active")


@pytest.mark.parametrize("value", ["'1'", "0", "None"])
def test_a_nonsensical_api_version_is_refused(value: str, site: Path) -> None:
    install(site, "sample-api", {"api": "sample_api"}, {"sample_api": f"STROMA_API = {value}"})

    assert "STROMA_API must be a number from 1" in (ours(discovered())["api"].error or "")


def test_asking_for_what_a_broken_plugin_would_have_offered_names_it(site: Path) -> None:
    install_sample(site, "stroma-sample-broken")
    found = discovered()

    for word in ("half", "broken-raises"):
        with pytest.raises(PluginError, match=r"broken-raises .*licence has expired") as caught:
            found.store(word)
        assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(PluginError, match="broken-raises"):
        found.store_for_scheme("halves")


def test_asking_for_what_is_switched_off_says_so(site: Path) -> None:
    install_sample(site, "stroma-sample-dir")
    found = discovered(STROMA_DISABLE_PLUGINS="dir")

    with pytest.raises(PluginError, match=r"dir .stroma-sample-dir 1.0.0. is switched off by"):
        found.store("dir")


def test_a_name_taken_twice_names_both_distributions(site: Path) -> None:
    install_sample(site, "stroma-sample-broken")
    source = (site / "stroma_sample_broken" / "twice_a.py").read_text()
    install(site, "sample-other", {"other": "sample_other"}, {"sample_other": source})
    found = discovered(STROMA_PLUGINS="broken-twice-a other")

    for ask in (found.store, found.store_for_scheme):
        with pytest.raises(
            PluginError, match=r"stroma-sample-broken 1.0.0.* and other .sample-oth"
        ):
            ask("twice")


def test_module_functions_ask_the_plugins_found_at_import(monkeypatch: pytest.MonkeyPatch) -> None:
    found = PluginSet()
    monkeypatch.setattr(plugins, "_installed", found)

    assert plugins.list_plugins() == ()
    with pytest.raises(PluginError, match="there is no store 'nope'; there are memory, sqlite"):
        plugins.store_factory("nope")
    with pytest.raises(PluginError, match="did you mean 'memory'"):
        plugins.store_for_scheme("memori")
