"""Digest text and Markdown into one report, with a pipeline that survives being killed.

    python examples/digest.py README.md docs

Files are loaded and split into passages; facts are extracted from each passage (`fan_out`);
keywords, figures and an outline are made of them side by side (`parallel`), and merged into a
report. Every result is recorded as it comes. Kill it anywhere, start the same command again, and
it goes on where it was: what is recorded is not bought again.

With --model, passages go to an OpenAI-compatible endpoint, set by OPENAI_BASE_URL and
OPENAI_API_KEY, and tokens are those that it reports. Without, a local extractor works by rules:
it needs no key and no network, counts each word that it reads or writes as a token, and costs
nothing.

Exit codes: 0 the report is complete; 1 it is not, start the same command again; 2 the command
is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from digest_extractors import LOCAL, Extractor, Facts, WrongUse, choose_extractor, classify
from pydantic import BaseModel

import stroma
from stroma import ExecutionResult, Pipeline, PriceTable, StromaRunner, Usage

SUFFIXES = (".md", ".markdown", ".txt")
PASSAGE_CHARS = 1500
WRONG_USE = (
    WrongUse,
    stroma.ConfigError,
    stroma.PluginError,
    stroma.ResumeError,  # with --run-id: the id of another input
    stroma.StoreUnusable,
)
KEPT = "What is recorded is not bought again."
AGAIN = "Start the same command again: what is recorded is not bought again."


# -- the states between the nodes --------------------------------------------------------------


class Source(BaseModel):
    name: str
    sha256: str


class Sources(BaseModel):
    sources: list[Source]


class Document(BaseModel):
    name: str
    text: str


class Documents(BaseModel):
    documents: list[Document]


class Passage(BaseModel):
    document: str
    text: str


class Passages(BaseModel):
    passages: list[Passage]


class Extracted(Passages):
    facts: list[Facts]


class Keyword(BaseModel):
    word: str
    passages: int


class Keywords(BaseModel):
    keywords: list[Keyword]


class Lines(BaseModel):
    document: str
    lines: list[str]


class Figures(BaseModel):
    figures: list[Lines]


class Outline(BaseModel):
    outline: list[Lines]


class Findings(Keywords, Figures, Outline):
    pass


class Report(BaseModel):
    markdown: str


# -- the nodes ---------------------------------------------------------------------------------


@stroma.node
def load(state: Sources) -> Documents:
    return Documents(documents=[read(source) for source in state.sources])


def read(source: Source) -> Document:
    data = Path(source.name).read_bytes()
    if hashlib.sha256(data).hexdigest() != source.sha256:
        raise ValueError(f"{source.name} was changed just now")
    return Document(name=source.name, text=data.decode())


@stroma.node
def split(state: Documents) -> Passages:
    found = [
        Passage(document=document.name, text=text)
        for document in state.documents
        for text in passages_of(document.text)
    ]
    return Passages(passages=found)


def passages_of(text: str) -> Iterator[str]:
    """Yield paragraphs, joined up to the size of a passage; a longer one is cut."""
    passage = ""
    for paragraph in re.split(r"\n\s*\n", text):
        for start in range(0, len(paragraph), PASSAGE_CHARS):
            part = paragraph[start : start + PASSAGE_CHARS].rstrip()
            if passage and len(passage) + len(part) > PASSAGE_CHARS:
                yield passage
                passage = ""
            passage = f"{passage}\n\n{part}".strip("\n")
    if passage.strip():
        yield passage


@stroma.node
def keywords(state: Extracted) -> Keywords:
    counts = Counter(word.casefold() for facts in state.facts for word in set(facts.keywords))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[:20]
    return Keywords(keywords=[Keyword(word=word, passages=counts[word]) for word in ranked])


@stroma.node
def figures(state: Extracted) -> Figures:
    return Figures(figures=by_document(state, lambda facts: facts.figures))


@stroma.node
def outline(state: Extracted) -> Outline:
    return Outline(outline=by_document(state, lambda facts: [facts.summary]))


def by_document(state: Extracted, lines: Callable[[Facts], list[str]]) -> list[Lines]:
    found: dict[str, list[str]] = {}
    for passage, facts in zip(state.passages, state.facts, strict=True):
        found.setdefault(passage.document, []).extend(filter(None, lines(facts)))
    return [Lines(document=name, lines=each) for name, each in found.items() if each]


@stroma.node
def merge(state: Findings) -> Report:
    parts = ["# Digest", "## Keywords, with the number of passages"]
    parts.append("\n".join(f"- {each.word}: {each.passages}" for each in state.keywords))
    for title, found in (("Outline", state.outline), ("Figures", state.figures)):
        parts.append(f"## {title}")
        for each in found:
            parts += [f"### {each.document}", "\n".join(f"- {line}" for line in each.lines)]
    return Report(markdown="\n\n".join(parts) + "\n")


def make_pipeline(extractor: Extractor, concurrency: int) -> Pipeline:
    @stroma.node
    def extract(passage: Passage) -> tuple[Facts, int, int, str]:
        return extractor(passage.text)

    each = stroma.fan_out(extract, over="passages", into="facts", max_concurrency=concurrency)
    side_by_side = stroma.parallel(keywords, figures, outline)
    return Pipeline("digest", [load, split, each, side_by_side, merge], version="1")


# -- the command -------------------------------------------------------------------------------


def main() -> int:
    args = parse_arguments()
    try:
        return asyncio.run(digest(args))
    except WRONG_USE as exc:
        return complain(exc, 2)
    except stroma.StromaError as exc:
        return complain(exc, 1)
    except KeyboardInterrupt:
        return complain("interrupted", 1)


def complain(problem: object, code: int, again: str = AGAIN) -> int:
    print(f"digest: {problem}", *([again] if code == 1 else []), sep="\n", file=sys.stderr)
    return code


def parse_arguments() -> argparse.Namespace:
    about = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(
        description=about[0], epilog=about[-1], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("paths", metavar="PATH", nargs="+", type=Path, help="a file, or a folder of them")
    add(
        "--report",
        metavar="PATH",
        type=Path,
        default=Path("report.md"),
        help="the result: %(default)s",
    )
    store = os.environ.get("STROMA_STORE") or "sqlite:///digest.db"
    add("--store", metavar="URL", default=store, help="where results are recorded: %(default)s")
    add("--run-id", metavar="ID", help="made of the input and the model if not given")
    add("--model", metavar="NAME", help="ask this model at the OpenAI-compatible endpoint")
    add("--price", metavar="USD", nargs=2, type=float, help="of a million tokens read and written")
    add("--budget-tokens", metavar="N", type=int, help="stop when so many tokens are spent")
    add("--budget-usd", metavar="USD", type=float, help="stop when so many dollars are spent")
    add("--concurrency", metavar="N", type=int, default=8, help="passages at once: %(default)s")
    add("--delay-ms", metavar="MS", type=float, default=0.0, help="slow the local extractor down")
    args = parser.parse_args()
    if not 0 <= args.delay_ms < float("inf"):
        parser.error("--delay-ms must be 0 or more")
    if args.price and not args.model:
        parser.error("--price goes with --model: the local extractor costs nothing")
    return args


async def digest(args: argparse.Namespace) -> int:
    check_report(args.report)
    sources = find_sources(args.paths, args.report)
    extractor = choose_extractor(args.model, args.delay_ms)
    pipeline = make_pipeline(extractor, args.concurrency)
    run_id = run_id_for(sources, args.model or LOCAL) if args.run_id is None else args.run_id
    async with make_runner(args) as runner:
        print(f"Run {run_id}: {len(sources.sources)} files, {extractor}", flush=True)
        result = await runner.run(pipeline, sources, run_id=run_id)
    tell(result)
    if not isinstance(result.final_state, Report) or not result.is_complete:
        unpriced = isinstance(result.error, stroma.UnknownPrice)
        if isinstance(result.error, stroma.BudgetExceeded):
            return complain(result.stop_reason, 1, again=KEPT)
        return complain("give --price with --budget-usd" if unpriced else result.stop_reason, 1)
    write(args.report, result.final_state.markdown)
    print(f"Report: {args.report}")
    return 0


def make_runner(args: argparse.Namespace) -> StromaRunner:
    prices = {LOCAL: (0, 0)}
    if args.model and args.price:
        prices[args.model] = tuple(args.price)
    runner = StromaRunner.quick(
        store=args.store,
        classifiers=[classify],
        pricers=[PriceTable(prices, "the command line")],
        trace=stroma.TraceOptions(max_events=1_000_000, max_bytes=1_000_000_000),
    )
    return runner.with_budget(tokens=args.budget_tokens, cost_usd=args.budget_usd)


def find_sources(paths: Sequence[Path], report: Path) -> Sources:
    """Return the files to digest, each once, without the report that this writes itself."""
    found: dict[Path, Source] = {}
    has_text = False
    for file in (file for path in paths for file in files_in(path)):
        if file.resolve() in found or file.resolve() == report.resolve():
            continue
        data = read_bytes(file)
        has_text |= bool(data.strip())
        found[file.resolve()] = Source(
            name=file.as_posix(), sha256=hashlib.sha256(data).hexdigest()
        )
    if not has_text:
        raise WrongUse(f"there is no text to digest in {', '.join(map(str, paths))}")
    return Sources(sources=list(found.values()))


def files_in(path: Path) -> list[Path]:
    """Return a file itself, or the text files of a folder that are not hidden."""
    if not path.exists():
        raise WrongUse(f"there is no {path}")
    if not path.is_dir():
        return [path]
    return sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )


def read_bytes(file: Path) -> bytes:
    try:
        data = file.read_bytes()
        data.decode()
    except OSError as exc:
        raise WrongUse(f"{file} cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise WrongUse(f"{file} is no UTF-8 text: byte {exc.start} is wrong") from exc
    return data


def run_id_for(sources: Sources, model: str) -> str:
    """Return an id that other texts, names or models never have: their answers differ."""
    told = f"{PASSAGE_CHARS} {model} {sources.model_dump_json()}"
    return f"digest-{hashlib.sha256(told.encode()).hexdigest()[:12]}"


def check_report(path: Path) -> None:
    """Refuse now what could only fail after everything is paid for."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise WrongUse(f"the report cannot be written to {path}")


def write(path: Path, text: str) -> None:
    """Replace the report in one step, so that nobody ever finds half of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def tell(result: ExecutionResult) -> None:
    before, total = result.spent_before, result.spent
    items = [event for event in result.trace.skipped() if event.node_id == "extract"]
    nodes = [node_id for node_id in result.skipped if node_id != "extract"]
    if items:
        nodes.append(f"{len(items)} passages")
    known = all(usage.cost_usd is not None for usage in result.usage.values())
    if result.skipped or before.tokens:
        print(f"Recorded before, and not run again: {', '.join(nodes) or 'nothing'}")
        print(f"Spent before: {amount(before, known)}")
    tokens = total.tokens - before.tokens
    usd = result.cost_usd - (before.cost_usd or 0)
    print(f"Spent by this start: {amount(Usage(tokens, 0, usd), known)}")
    print(f"Spent in all: {amount(total, known)}")
    if result.in_doubt:
        print(f"In doubt: {len(result.in_doubt)} calls were cut, and may have been billed besides")


def amount(usage: Usage, is_price_known: bool) -> str:
    if not is_price_known:
        return f"{usage.tokens:,} tokens, at a price that nobody knows (see --price)"
    return f"{usage.tokens:,} tokens, $" + f"{usage.cost_usd:.6f}".rstrip("0").rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
