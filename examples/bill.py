"""What a crash costs: a provider's bill, for a plain loop and for the same loop with Stroma.

    python examples/bill.py

A provider runs as a process of its own and keeps a bill: every call that it accepts is on disk,
with its tokens, before it is answered. A program asks it for the facts of 500 passages, 20 at a
time. At 60 % of the calls the program is killed (SIGKILL), and then the same program is started
again. This is done with a plain asyncio loop, which holds its answers in memory and writes them
at the end, and with Stroma on a SQLite file. All figures are read from the bill.

The last 20 calls before the kill are billed and never answered. So as many calls as can be in
flight are in flight, which is the worst case, and the figures are the same each time.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

import stroma
from stroma.records import RecordHeader
from stroma.stores.sqlite import SQLiteStore

MODEL = "example-large"
PRICES = stroma.PriceTable({MODEL: (5, 30)}, "USD for a million tokens, read and written")
WORDS = ("stone", "river", "cloud", "amber", "field", "lantern", "harbour", "winter")
RUN_ID = "bill"
WAIT_SECONDS = 60


class Passage(BaseModel):
    number: int
    text: str


class Passages(BaseModel):
    passages: list[Passage]


class Facts(BaseModel):
    facts: str


def make_passages(calls: int) -> Passages:
    dice = random.Random(7)
    texts = (" ".join(dice.choices(WORDS, k=dice.randint(250, 350))) for _ in range(calls))
    return Passages(
        passages=[Passage(number=n, text=f"Passage {n}: {text}") for n, text in enumerate(texts)]
    )


def key_of(prompt: str) -> str:
    """Return what calls for the same work have in common."""
    return hashlib.sha256(prompt.encode()).hexdigest()


# -- the provider ------------------------------------------------------------------------------


class Provider(ThreadingHTTPServer):
    """Answers chat completions, and bills them first: one line of JSON for each call.

    Args:
        bill: the file.
        calls: after so many it says that it is time to kill the caller.
        unanswered: how many of these calls, the last ones, get no answer.
        latency_ms: until an answer is sent.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, bill: Path, calls: int, unanswered: int, latency_ms: float) -> None:
        super().__init__(("127.0.0.1", 0), CompletionHandler)
        self.latency_seconds = latency_ms / 1000
        self._file = bill.open("ab", buffering=0)
        self._lock = threading.Lock()
        self._kill_at = calls
        self._silent = range(calls - unanswered + 1, calls + 1)
        self._count = 0

    def accept(self, prompt: str, usage: Mapping[str, int]) -> bool:
        """Bill a call, and say whether it gets an answer."""
        line = json.dumps({"prompt": key_of(prompt), **usage}) + "\n"
        with self._lock:
            self._file.write(line.encode())
            os.fsync(self._file.fileno())
            self._count += 1
            if self._count == self._kill_at:
                print("now", flush=True)
            return self._count not in self._silent

    def handle_error(self, *args: object) -> None:
        """Say nothing of callers that died: their calls are billed."""


class CompletionHandler(BaseHTTPRequestHandler):
    server: Provider

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        prompt = json.loads(data)["messages"][-1]["content"]
        answer = " ".join(prompt.split()[:60])
        usage = {
            "prompt_tokens": len(prompt.split()),
            "completion_tokens": len(answer.split()),
        }
        is_answered = self.server.accept(prompt, usage)
        time.sleep(self.server.latency_seconds)
        if not is_answered:
            threading.Event().wait()  # until the provider ends
        message = {"role": "assistant", "content": answer}
        body = {"model": MODEL, "choices": [{"index": 0, "message": message}], "usage": usage}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *args: object) -> None:
        """Keep quiet."""


def provide(bill: str, calls: str, unanswered: str, latency_ms: str) -> None:
    """Serve until the standard input ends, which it does with whoever started this."""
    provider = Provider(Path(bill), int(calls), int(unanswered), float(latency_ms))
    threading.Thread(target=provider.serve_forever, daemon=True).start()
    print(provider.server_port, flush=True)
    sys.stdin.read()


# -- the program, written twice ----------------------------------------------------------------


async def ask(port: int, prompt: str) -> tuple[str, int, int]:
    """Return a chat completion and its usage."""
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": prompt}]}).encode()
    head = f"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head.encode() + body)
        response = await reader.read()
    finally:
        writer.close()
    status, _, content = response.partition(b"\r\n\r\n")
    if b" 200 " not in status.split(b"\r\n")[0]:
        raise ConnectionError("the provider gave no answer")
    answer = json.loads(content)
    usage = answer["usage"]
    text = answer["choices"][0]["message"]["content"]
    return text, usage["prompt_tokens"], usage["completion_tokens"]


async def plain(port: int, passages: Passages, concurrency: int, folder: Path) -> None:
    """Ask for everything, and keep the answers in memory until the end."""
    slots = asyncio.Semaphore(concurrency)

    async def extract(passage: Passage) -> str:
        async with slots:
            return (await ask(port, passage.text))[0]

    answers = await asyncio.gather(*map(extract, passages.passages))
    write_answers(folder, answers)


async def with_stroma(port: int, passages: Passages, concurrency: int, folder: Path) -> None:
    """Ask for everything that is not recorded yet, and record each answer as it comes."""

    @stroma.node
    async def extract(passage: Passage) -> tuple[Facts, int, int, str]:
        answer, read, written = await ask(port, passage.text)
        return Facts(facts=answer), read, written, MODEL

    steps = [stroma.fan_out(extract, over="passages", into="facts", max_concurrency=concurrency)]
    url = f"sqlite:///{database(folder)}"
    async with stroma.StromaRunner.quick(store=url, pricers=[PRICES]) as runner:
        result = await runner.run(steps, passages, run_id=RUN_ID)
    facts: Iterable[Facts] = getattr(result.final_state, "facts", ())
    if not result.is_complete:
        raise SystemExit(result.stop_reason)
    write_answers(folder, [each.facts for each in facts])


def write_answers(folder: Path, answers: Sequence[str]) -> None:
    Path(folder, "answers.json").write_text(json.dumps(answers))


def database(folder: Path) -> Path:
    return folder / "runs.db"


PROGRAMS = {"A plain asyncio loop": plain, "The same with Stroma": with_stroma}


def run_program(name: str, port: str, calls: str, concurrency: str, folder: str) -> None:
    program = PROGRAMS[name]
    asyncio.run(program(int(port), make_passages(int(calls)), int(concurrency), Path(folder)))


# -- killing it, and reading the bill ----------------------------------------------------------


class Call(NamedTuple):
    """A line of the bill."""

    prompt: str
    usd: Decimal


class Outcome(NamedTuple):
    """What became of one of the programs.

    Attributes:
        before: what was billed before the kill.
        after: and after it.
        recorded: prompts whose answers were on disk at the kill.
        spent: what the program's own records say in the end.
        answers: what it wrote.
    """

    before: list[Call]
    after: list[Call]
    recorded: set[str]
    spent: Decimal
    answers: str

    @property
    def twice(self) -> list[Call]:
        seen = {call.prompt for call in self.before}
        return [call for call in self.after if call.prompt in seen]

    @property
    def in_doubt(self) -> list[Call]:
        return [call for call in self.before if call.prompt not in self.recorded]


def crash_and_continue(program: str, args: argparse.Namespace, folder: Path) -> Outcome:
    """Run a program, kill it at a call, run it again, and read what was billed."""
    folder.mkdir()
    bill = folder / "bill.jsonl"
    unanswered = min(args.concurrency, args.calls)
    kill_at = max(unanswered, round(args.calls * args.kill_at))
    with started("provider", bill, kill_at, unanswered, args.latency_ms) as provider:
        command = (program, first_line(provider), args.calls, args.concurrency, folder)
        with started(*command):
            first_line(provider)
        before = read_bill(bill)
        recorded = recorded_prompts(folder, make_passages(args.calls))
        with started(*command) as again:
            if again.wait(WAIT_SECONDS):
                raise SystemExit(f"{program}: the second start failed")
    after = read_bill(bill)[len(before) :]
    spent = sum((header.usage.cost_usd or Decimal(0) for header in records(folder)), Decimal(0))
    return Outcome(before, after, recorded, spent, Path(folder, "answers.json").read_text())


@contextmanager
def started(*command: object) -> Iterator[subprocess.Popen[str]]:
    """Run this file as another process, and kill it in the end."""
    argv = [sys.executable, __file__, *map(str, command)]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def first_line(process: subprocess.Popen[str]) -> str:
    """Return the next line that a process prints, within a bounded time."""
    timer = threading.Timer(WAIT_SECONDS, process.kill)
    timer.start()
    try:
        line = process.stdout.readline().strip() if process.stdout else ""
    finally:
        timer.cancel()
    if not line:
        raise SystemExit(f"{process.args!r} ended, or said nothing for {WAIT_SECONDS} s")
    return line


def read_bill(path: Path) -> list[Call]:
    calls = []
    for line in path.read_text().splitlines():
        found = json.loads(line)
        tokens = found["prompt_tokens"], found["completion_tokens"]
        price = PRICES(MODEL, *tokens)
        assert price is not None
        calls.append(Call(found["prompt"], price.cost_usd(*tokens)))
    return calls


def records(folder: Path) -> Sequence[RecordHeader]:
    """Return what the database has; without one, there is nothing."""

    async def read() -> Sequence[RecordHeader]:
        store = SQLiteStore(database(folder))
        run = await store.inspect(RUN_ID)
        await store.aclose()
        return run.headers if run else ()

    return asyncio.run(read()) if database(folder).exists() else ()


def recorded_prompts(folder: Path, passages: Passages) -> set[str]:
    paths = {header.path for header in records(folder) if header.kind == "result"}
    found = enumerate(passages.passages)
    return {key_of(passage.text) for n, passage in found if f"extract[{n}]" in paths}


# -- the table ---------------------------------------------------------------------------------

FOOTNOTE = """\
In doubt: billed, and the process was killed before it could record the answer. No recorded
answer was bought again. What Stroma recorded plus what was in doubt is the bill, to the cent.
Both programs ended with the same answers."""
HEAD = ("", "Calls billed", "Billed twice", "In doubt at the kill", "Bill")


def table(outcomes: Mapping[str, Outcome]) -> str:
    rows = [HEAD, *(row(name, outcome) for name, outcome in outcomes.items())]
    widths = [max(len(each[column]) for each in rows) for column in range(len(HEAD))]
    lines = [" | ".join(cells(each, widths)) for each in rows]
    rule = " | ".join(
        "-" * width if column == 0 else "-" * (width - 1) + ":"
        for column, width in enumerate(widths)
    )
    return "\n".join(f"| {line} |" for line in (lines[0], rule, *lines[1:]))


def cells(texts: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *others = zip(texts, widths, strict=True)
    return [first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]


def row(name: str, outcome: Outcome) -> tuple[str, ...]:
    counts = (outcome.before + outcome.after, outcome.twice, outcome.in_doubt)
    return (name, *(str(len(calls)) for calls in counts), usd(counts[0]))


def total(calls: Sequence[Call]) -> Decimal:
    return sum((call.usd for call in calls), Decimal(0))


def usd(calls: Sequence[Call]) -> str:
    return f"${total(calls):.2f}"


def check(outcomes: Mapping[str, Outcome], calls: int, concurrency: int) -> None:
    """Refuse to print figures that break the promise."""
    for name, outcome in outcomes.items():
        if not outcome.recorded.isdisjoint(call.prompt for call in outcome.after):
            raise SystemExit(f"{name}: a recorded answer was bought again")
        if len(json.loads(outcome.answers)) != calls:
            raise SystemExit(f"{name}: answers are missing")
    _, kept = outcomes.values()
    if len(kept.in_doubt) > concurrency:
        raise SystemExit("more calls are in doubt than were in flight")
    if kept.spent + total(kept.in_doubt) != total(kept.before + kept.after):
        raise SystemExit("the bill is not what is recorded plus what is in doubt")
    if len({outcome.answers for outcome in outcomes.values()}) != 1:
        raise SystemExit("the programs ended with different answers")


def main() -> None:
    args = parse_arguments()
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, program in enumerate(PROGRAMS):
            outcomes[program] = crash_and_continue(program, args, Path(folder, str(number)))
            if not args.markdown:
                print(story(program, outcomes[program]), flush=True)
    check(outcomes, args.calls, args.concurrency)
    print(table(outcomes))
    if not args.markdown:
        print(f"\n{FOOTNOTE}")


def story(program: str, outcome: Outcome) -> str:
    return (
        f"{program}: killed after {len(outcome.before)} calls ({usd(outcome.before)}), with "
        f"{len(outcome.recorded)} answers recorded. Started again, it made "
        f"{len(outcome.after)} calls ({usd(outcome.after)}).\n"
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--markdown", action="store_true", help="print the table and nothing else")
    add("--calls", metavar="N", type=positive, default=500, help="passages: %(default)s")
    add("--concurrency", metavar="N", type=positive, default=20, help="at once: %(default)s")
    add("--kill-at", metavar="SHARE", type=share, default=0.6, help="of the calls: %(default)s")
    add("--latency-ms", metavar="MS", type=positive, default=40, help="of a call: %(default)s")
    return parser.parse_args()


def positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def share(text: str) -> float:
    if not 0 < float(text) <= 1:
        raise ValueError
    return float(text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["provider"]:
        provide(*sys.argv[2:])
    elif sys.argv[1:2] and sys.argv[1] in PROGRAMS:
        run_program(*sys.argv[1:])
    else:
        main()
