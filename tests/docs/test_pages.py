"""How pages of Markdown are read, and what their links and names lead to."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import (
    ROOT,
    anchors_of,
    blocks_of,
    links_of,
    matches,
    name_of,
    outputs_of,
    pages,
    prose_of,
)

each_page = pytest.mark.parametrize("page", pages(), ids=name_of)

PAGE = """# A `title`, here

```python title="app.py"
x = 1
```

<!-- exit code 2 -->
```sh
python app.py
```

```text
took … ms
```

Words between.

```text
no output
```
"""


def test_blocks_are_found_with_what_is_said_of_them() -> None:
    file, shell, output, other = blocks_of(PAGE)

    assert (file.title, file.text, file.line, file.is_run) == ("app.py", "x = 1\n", 4, True)
    assert (shell.mark, shell.exit_code, shell.is_run) == ("exit code 2", 2, True)
    assert outputs_of([file, shell, output, other]) == {shell.line: output}
    assert not other.is_run


def test_a_block_with_a_reason_is_not_run() -> None:
    (block,) = blocks_of("<!-- not run: needs a key -->\n```python\nx\n```\n")

    assert not block.is_run


def test_what_differs_each_time_is_left_open_within_a_line() -> None:
    assert matches("took … ms\n", "took 12 ms\n\n")
    assert not matches("took … ms", "took 12 s")
    assert not matches("a … b", "a\nb")


def test_headings_have_the_anchors_that_links_use() -> None:
    assert anchors_of(PAGE) == {"a-title-here"}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in links_of(page.read_text(encoding="utf-8")):
        target, _, anchor = link.partition("#")
        if re.match(r"https?://", target):
            continue
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (
            anchor and anchor not in anchors_of(file.read_text(encoding="utf-8"))
        ):
            broken.append(link)

    assert broken == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    ahead = [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        reached.add(page)
        for link in links_of(page.read_text(encoding="utf-8")):
            file = (page.parent / link.partition("#")[0]).resolve()
            if file.suffix == ".md" and file.exists() and file not in reached:
                ahead.append(file)

    assert sorted(map(name_of, set((ROOT / "docs").rglob("*.md")) - reached)) == []


@each_page
def test_files_that_a_page_names_exist(page: Path) -> None:
    distributions = [folder.parent.name for folder in ROOT.glob("stroma-*/pyproject.toml")]
    folders = "|".join(["docs", "examples", "tests", "tools", "benchmarks", *distributions])
    text = page.read_text(encoding="utf-8")
    named = re.findall(rf"(?<![\w./-])(?:{folders})/[\w./-]*[\w/]", text)

    assert [name for name in named if not (ROOT / name).exists()] == []


@each_page
def test_a_page_has_one_title_and_no_long_lines(page: Path) -> None:
    prose = prose_of(page.read_text(encoding="utf-8")).splitlines()
    tables_and_links = re.compile(r"^\||\]\(|^<!--|^#+ `")

    assert len([line for line in prose if line.startswith("# ")]) == 1
    assert [line for line in prose if len(line) > 100 and not tables_and_links.search(line)] == []
