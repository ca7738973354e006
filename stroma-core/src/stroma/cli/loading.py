"""Finds the pipelines that a command names."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from stroma.errors import ConfigError
from stroma.pipeline import Pipeline


def load_pipeline(name: str) -> Pipeline:
    """Return the pipeline that "MODULE:PIPELINE" names; modules of the current folder are found.

    Raises:
        ConfigError: there is no such module, or no such pipeline in it: then it says what is.
        Exception: what the module raised when it was imported.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise ConfigError(f"{name!r} is no MODULE:PIPELINE, such as app:digest")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as exc:
        missing = exc.name or ""
        if missing != module_name and not module_name.startswith(f"{missing}."):
            raise  # one that the module wants itself
        raise ConfigError(f"{name!r}: there is no module {missing!r} here ({here})") from exc
    found: object = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if isinstance(found, Pipeline):
        return found
    there = [key for key, value in vars(module).items() if isinstance(value, Pipeline)]
    what = "has no" if found is None else f"has a {type(found).__name__}, no Pipeline, at"
    raise ConfigError(
        f"{module_name} {what} {attribute!r}; its pipelines are {', '.join(there) or 'none'}"
    )
