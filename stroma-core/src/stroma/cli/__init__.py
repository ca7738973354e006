"""The command ``stroma``: what is installed, what a store holds, and workers.

Exit codes: 0 when it was done, 1 when it could not be (no such run, a store that does not
answer), 2 when it was asked for wrongly (an unknown option, store or status).
"""

from __future__ import annotations

import io
import sys
from importlib.util import find_spec

EXIT_FAILED = 1
EXIT_WRONG_USE = 2


def main() -> None:
    """Run the command line, and exit. Without the extra ``cli`` only ``plugins`` works."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # ids may hold what its encoding does not have
        sys.stdout.reconfigure(errors="backslashreplace")
    if find_spec("typer") is None or find_spec("rich") is None:
        from stroma.cli.plain import run

        sys.exit(run(sys.argv[1:]))
    from stroma.cli.app import app

    app(prog_name="stroma")
