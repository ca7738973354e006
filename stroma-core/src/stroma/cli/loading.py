"""Finds the pipelines that a command names."""

from __future__ import annotations

import sys
import traceback
from importlib import import_module
from pathlib import Path

from stroma.errors import ConfigError, StromaError
from stroma.failures import error_text
from stroma.pipeline import Pipeline


def load_pipeline(name: str) -> Pipeline:
    """Return the pipeline that "MODULE:PIPELINE" names; modules of the current folder are found.

    Raises:
        ConfigError: there is no such module, or no such pipeline in it: then it says what is.
        StromaError: the module cannot be imported. What it raised has been printed, unless it
            only exited.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise ConfigError(f"{name!r} is no MODULE:PIPELINE, such as app:digest")
    here = str(Path.cwd())
    if module_name.startswith(".") or "/" in module_name or "\\" in module_name:
        raise ConfigError(
            f"{name!r} is no MODULE:PIPELINE: a module is named as in an import, such as "
            f"app:digest or package.app:digest, and is looked up from here on ({here})"
        )
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as exc:
        missing = exc.name or ""
        if missing != module_name and not module_name.startswith(f"{missing}."):
            raise _broken(name, exc) from exc  # one that the module wants itself
        said = f"{name!r}: there is no module {missing!r} here ({here})"
        if module_name.endswith(".py"):
            said += f"; a module is named without .py: {module_name[:-3]}:{attribute}"
        raise ConfigError(said) from exc
    except SystemExit as exc:
        raise StromaError(
            f"{name!r}: the module exited while it was imported ({exc!r}): put what ends the "
            'program under `if __name__ == "__main__":`'
        ) from exc
    except Exception as exc:
        raise _broken(name, exc) from exc
    found: object = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if isinstance(found, Pipeline):
        return found
    there = [key for key, value in vars(module).items() if isinstance(value, Pipeline)]
    said = f"{module_name} has no {attribute!r}"
    if found is not None:
        kind = type(found).__name__
        said = f"{module_name} has {attribute!r}, which is no Pipeline but of type {kind}"
    raise ConfigError(f"{said}; its pipelines are {', '.join(there) or 'none'}")


def _broken(name: str, exc: Exception) -> StromaError:
    """Print what a module raised, from its own code on, and return the error that says so."""
    here = exc.__traceback__
    while here is not None and _is_machinery(here.tb_frame.f_code.co_filename):
        here = here.tb_next
    traceback.print_exception(type(exc), exc, here)
    return StromaError(
        f"{name!r}: the module cannot be imported: {type(exc).__name__}: {error_text(exc)}"
    )


def _is_machinery(file: str) -> bool:
    return file in (__file__, import_module.__code__.co_filename) or file.startswith("<frozen ")
