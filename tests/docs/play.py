"""Run the blocks of a page, in a process and a folder of their own, and say what they print.

    python play.py PAGE OUTCOME

Python blocks share one namespace, which is that of the module `__main__`, as in a program.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import traceback
import types
from pathlib import Path

from pages import Block, blocks_of


def main() -> None:
    page, outcome = Path(sys.argv[1]), Path(sys.argv[2])
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.path[0] = str(Path.cwd())  # as for a program that lies here
    printed: dict[int, str] = {}
    for block in blocks_of(page.read_text(encoding="utf-8")):
        if not block.is_run:
            continue
        if block.title:
            Path(block.title).parent.mkdir(parents=True, exist_ok=True)
            Path(block.title).write_text(block.text, encoding="utf-8")
        else:
            play = play_python if block.language == "python" else play_shell
            printed[block.line], is_right = play(block, page, module)
            if not is_right:
                sys.exit(f"{page.name}, line {block.line}:\n{printed[block.line]}")
    outcome.write_text(json.dumps(printed), encoding="utf-8")


def play_python(block: Block, page: Path, module: types.ModuleType) -> tuple[str, bool]:
    # The line numbers of the page, for those who read a traceback.
    code = "\n" * (block.line - 1) + block.text
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            exec(compile(code, str(page), "exec", dont_inherit=True), module.__dict__)
        except BaseException:
            traceback.print_exc()
            return output.getvalue(), False
    return output.getvalue(), True


def play_shell(block: Block, page: Path, module: types.ModuleType) -> tuple[str, bool]:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    code = done.returncode if done.returncode >= 0 else 128 - done.returncode  # as shells say it
    return done.stdout, code == block.exit_code


if __name__ == "__main__":
    main()
