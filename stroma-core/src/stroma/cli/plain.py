"""What the command line can do with the standard library alone: list the plugins."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from stroma._version import __version__
from stroma.install_hint import extra_hint
from stroma.plugins import PluginInfo, list_plugins

USAGE = "usage: python -m stroma plugins [--json]"


def run(arguments: Sequence[str]) -> int:
    """Do what the arguments say, and return the exit code."""
    if list(arguments) == ["plugins"]:
        print(plugins_as_text(list_plugins()))
        return 0
    if list(arguments) == ["plugins", "--json"]:
        print(plugins_as_json(list_plugins()))
        return 0
    if not arguments or set(arguments) & {"-h", "--help"}:
        print(f"{USAGE}\nMore commands come with the extra cli: {extra_hint('cli')}")
        return 0
    print(
        f"error: only the list of plugins works without the extra cli: {extra_hint('cli')}\n"
        f"{USAGE}",
        file=sys.stderr,
    )
    return 2


def plugins_as_text(plugins: Sequence[PluginInfo]) -> str:
    """Return the list for people: a plugin's line, what it offers, and what is wrong with it."""
    lines = [f"stroma {__version__}: {_count(plugins)}"]
    for plugin in plugins:
        lines.append(f"  {plugin.name}  {plugin.distribution} {plugin.version}  {plugin.status}")
        if plugin.provides:
            lines.append(f"    offers {', '.join(plugin.provides)}")
        if plugin.error:
            lines.append(f"    {plugin.error}")
    return "\n".join(map(printable, lines))


def plugins_as_json(plugins: Sequence[PluginInfo]) -> str:
    """Return the list for programs."""
    return json.dumps([_as_dict(plugin) for plugin in plugins], indent=2)


def printable(text: str) -> str:
    """Return a text that cannot steer a terminal: ids and errors are data of others."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _count(plugins: Sequence[PluginInfo]) -> str:
    if not plugins:
        return "no plugins are installed"
    return f"{len(plugins)} plugin{'s' if len(plugins) > 1 else ''}"


def _as_dict(plugin: PluginInfo) -> dict[str, object]:
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "provides": list(plugin.provides),
        "status": plugin.status,
        "error": plugin.error,
    }
