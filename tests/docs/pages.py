"""Pages of Markdown: their code blocks, headings and links.

What a page may say about its blocks:

- a ``python`` block runs; one with ``title="app.py"`` is written to that file instead, and so is
  a block of any other language that has a title;
- a ``sh`` block runs;
- a ``text`` block right after one of these is what it prints; "…" stands for what differs from
  one time to the next, within a line;
- ``<!-- not run: reason -->`` before a block keeps it from being run; the block of the README that
  runs the tests is marked ``<!-- tests -->``;
- ``<!-- servers: redis, postgres, s3 -->`` anywhere: its blocks need these, see servers.py;
- ``<!-- exit code 1 -->`` before a ``sh`` block: it ends with that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUN = ("python", "sh")

_FENCE = re.compile(r"^ {0,3}(`{3,})\s*([\w-]*)(.*)$")
_COMMENT = re.compile(r"^<!-- *(.*?) *-->$")
_HEADING = re.compile(r"^(#{1,6}) +(.*?) *$")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_TITLE = re.compile(r'title="([^"]+)"')


@dataclass
class Block:
    """A fenced block.

    Attributes:
        language: what follows the fence.
        title: the file that it stands for, or "".
        text: what is in it.
        line: number of its first line, from 1.
        mark: the comment right before it, or "".
        follows: the line of the block right before it, with nothing between; 0 if there is none.
    """

    language: str
    title: str
    text: str
    line: int
    mark: str
    follows: int

    @property
    def is_run(self) -> bool:
        is_kept_back = self.mark == "tests" or self.mark.startswith("not run: ")
        return not is_kept_back and bool(self.title or self.language in RUN)

    @property
    def exit_code(self) -> int:
        found = re.fullmatch(r"exit code (\d+)", self.mark)
        return int(found[1]) if found else 0


def pages() -> list[Path]:
    """Return every page that users read."""
    readmes = [ROOT / "README.md", *sorted(ROOT.glob("stroma-*/README.md"))]
    return [*readmes, *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks_of(text: str) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    found: list[Block] = []
    open_block: Block | None = None
    fence, mark, last_line = "", "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if open_block is not None:
            if line.strip() == fence:
                open_block, last_line = None, open_block.line
            else:
                open_block.text += f"{line}\n"
            continue
        opening, comment = _FENCE.match(line), _COMMENT.match(line)
        if opening:
            fence = opening[1]
            title = _TITLE.search(opening[3])
            open_block = Block(
                opening[2], title[1] if title else "", "", number + 1, mark, last_line
            )
            found.append(open_block)
            mark = ""
        elif comment:
            mark = comment[1]
        elif line.strip():
            mark, last_line = "", 0
    if open_block is not None:
        raise ValueError(f"the block at line {open_block.line} is not closed")
    return found


def prose_of(text: str) -> str:
    """Return a page without its fenced blocks."""
    lines, fence = [], ""
    for line in text.splitlines():
        opening = _FENCE.match(line)
        if fence:
            fence = "" if line.strip() == fence else fence
        elif opening:
            fence = opening[1]
        else:
            lines.append(line)
    return "\n".join(lines)


def outputs_of(blocks: list[Block]) -> dict[int, Block]:
    """Return the block that shows what another one prints, by the other one's line."""
    return {b.follows: b for b in blocks if b.language == "text" and b.follows and not b.title}


def links_of(text: str) -> Iterator[str]:
    """Yield where the links of a page lead."""
    for found in _LINK.finditer(prose_of(text)):
        yield found[1]


def anchors_of(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = filter(None, map(_HEADING.match, prose_of(text).splitlines()))
    return {_anchor(heading[2]) for heading in headings}


def _anchor(heading: str) -> str:
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.replace("`", "")).lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def matches(shown: str, printed: str) -> bool:
    """Say whether something was printed as a page shows it."""
    parts = (".*?".join(map(re.escape, line.split("…"))) for line in _lines(shown))
    return re.fullmatch("\n".join(parts), "\n".join(_lines(printed))) is not None


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n ").split("\n")]
