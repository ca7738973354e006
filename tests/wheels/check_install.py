"""Check what users get: run by the interpreter of an environment that has our wheels only.

    python -I check_install.py WHEELHOUSE core
    python -I check_install.py WHEELHOUSE plugins NAME [NAME ...]

There is no pytest here: it would bring pluggy along, and so hide that we forgot to depend on it.
"""

import asyncio
import importlib.metadata
import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from urllib.parse import unquote, urlsplit

CORE_INSTALLS = {
    "annotated-types",
    "pluggy",
    "pydantic",
    "pydantic-core",
    "stroma",
    "typing-extensions",
    "typing-inspection",
}
INSTALLERS = {"pip", "setuptools", "wheel"}


def main() -> None:
    wheelhouse, mode, *names = sys.argv[1:]
    check_origin("stroma", Path(wheelhouse))
    if mode == "core":
        check_nothing_else_was_installed()
        check_import()
        check_listing([])
        asyncio.run(check_run())
    else:
        for name in names:
            check_origin(name, Path(wheelhouse))
        check_listing(names)
    print(f"installed {mode}: as it should be")


def check_nothing_else_was_installed() -> None:
    command = [sys.executable, "-m", "pip", "list", "--format=json"]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    installed = {each["name"].lower().replace("_", "-") for each in json.loads(listing)}
    expect(installed - INSTALLERS == CORE_INSTALLS, f"pip list shows {sorted(installed)}")


def check_origin(name: str, wheelhouse: Path) -> None:
    """An unrelated distribution of the same name exists: ours is the one from this folder."""
    distribution = importlib.metadata.distribution(name)
    record = distribution.read_text("direct_url.json")
    expect(record is not None, f"{name} was installed from an index")
    url = urlsplit(json.loads(record or "{}")["url"])
    wheel = Path(unquote(url.path))
    expect(url.scheme == "file" and wheel.parent.samefile(wheelhouse), f"{name} is from {wheel}")


def check_import() -> None:
    import stroma

    origin = Path(stroma.__file__)
    expect(origin.is_relative_to(sysconfig.get_path("purelib")), f"stroma imported from {origin}")
    expect(origin.with_name("py.typed").is_file(), "py.typed is not shipped")
    expect(stroma.__version__ == "1.0.0", f"stroma.__version__ is {stroma.__version__}")
    expect("stroma.cli" not in sys.modules, "importing stroma imports the command line")


def check_listing(names: list[str]) -> None:
    """The list works without the extra `cli`, and shows every plugin as it was installed."""
    command = [sys.executable, "-I", "-m", "stroma", "plugins"]
    done = subprocess.run(command, capture_output=True, text=True)
    expect(done.returncode == 0, f"the list of plugins failed:\n{done.stdout}{done.stderr}")
    print(done.stdout, end="")
    missing = [name for name in names if name not in done.stdout]
    expect(not missing, f"plugins not found: {missing}\n{done.stdout}")


async def check_run() -> None:
    from pydantic import BaseModel

    from stroma import StromaRunner

    class Text(BaseModel):
        text: str

    class Count(BaseModel):
        words: int

    runner = StromaRunner.quick()
    calls: list[str] = []

    @runner.node("clean", input=Text, output=Text)
    async def clean(state: Text) -> Text:
        calls.append("clean")
        return Text(text=state.text.strip())

    @runner.node("count", input=Text, output=Count)
    async def count(state: Text) -> dict[str, int]:
        calls.append("count")
        return {"words": len(state.text.split())}

    first = await runner.run([clean, count], Text(text=" two words "), run_id="wheel")
    again = await runner.run([clean, count], Text(text=" two words "), run_id="wheel")
    expect(first.final_state == Count(words=2), f"the run ended as {first}")
    expect(again.final_state == first.final_state, f"the second run ended as {again}")
    expect(calls == ["clean", "count"], f"recorded nodes were called again: {calls}")


def expect(condition: bool, problem: str) -> None:
    if not condition:
        sys.exit(f"wheel check failed: {problem}")


if __name__ == "__main__":
    main()
