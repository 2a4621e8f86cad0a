"""How fast llmfilter is, beside what people use instead; prints a Markdown table.

Whole processes, measured from outside. What is compared runs in turn, A B A B, and a ratio is the median of
the rounds' ratios (lowest–highest), since absolute times drift on any machine. Each generator below makes one
row of the table, or a few.
"""

import argparse
import json
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles

from processes import Command, Failed, Run
from stage import HERE, JOBS, LLMFILTER, Missing, Stage, peer_python, slow_server, tool

Runs = dict[str, list[Run]]

FILES = 65536  # enough open files for all that is started here


@dataclass(frozen=True)
class Line:
    """A row of the table."""

    what: str
    measured: str
    ratio: str = ""
    target: str = ""
    reached: str = ""

    def __str__(self) -> str:
        return f"| {self.what} | {' '.join(self.measured.split())} | {self.ratio} | {self.target} | {self.reached} |"


def live(stage: Stage) -> Iterator[Line]:
    count = stage.count(20_000)
    url, rows = stage.static_url(), stage.rows(count)
    runs = stage.in_turn(
        9,
        naive=partial(stage.run, stage.naive(url), rows),
        llmfilter=partial(stage.filter, url, rows, "live", is_fresh=True),
    )
    title = f"**Live**: {count:,} rows, `-j {JOBS}`, empty cache, durable; beside a naive aiohttp loop"
    yield beside("naive", title, runs, count, least=1.0, nearly=0.9)
    yield from optional("… wrk", wrk(stage, count / median(seconds(runs["naive"]))))
    yield from optional("… the first version", live_cpu(stage, url, rows, count))


def live_cpu(stage: Stage, url: str, rows: Path, count: int) -> Iterator[Line]:
    """CPU instead of time, since the disk's part in it differs from machine to machine."""
    for title, options, least_first, least_naive in (
        ("durable", ["--cache", stage.folder / "cpu"], 1.25, 1.1),
        ("`--no-cache`", ["--no-cache"], 1.25, 1.6),
    ):

        def afresh(command: Command) -> Run:
            shutil.rmtree(stage.folder / "cpu", ignore_errors=True)
            return stage.run(command, rows)

        runs = stage.in_turn(
            6,
            first=partial(afresh, stage.first_version(url, "-j", str(JOBS), *options)),
            naive=partial(stage.run, stage.naive(url), rows),
            llmfilter=partial(afresh, stage.llmfilter(url, "-j", str(JOBS), *options)),
        )
        cpu_s = {name: [run.cpu_s for run in runs[name]] for name in runs}
        first, naive = (times(cpu_s[name], cpu_s["llmfilter"]) for name in ("first", "naive"))
        each_us = {name: f"{median(cpu_s[name]) / count * 1e6:.0f} µs" for name in cpu_s}
        yield Line(
            f"… CPU a row, {title}; beside the first version and the naive loop",
            f"{each_us['llmfilter']}; first: {each_us['first']}; naive: {each_us['naive']}",
            f"{spread(first)} × first; {spread(naive)} × naive",
            f"≥ {least_first} × first, ≥ {least_naive} × naive",
            verdict(median(first) >= least_first and median(naive) >= least_naive),
        )


def wrk(stage: Stage, naive_rate: float) -> Iterator[Line]:
    rate = median(stage.wrk(stage.static_url(), JOBS, 2) for _ in range(stage.rounds(3)))
    yield Line("… wrk, which only sends", f"{rate:,.0f} requests/s", f"{rate / naive_rate:.1f} × naive")


def peers(stage: Stage) -> Iterator[Line]:
    """Fewer rows, scaled; without the program's start, which would weigh too much among them."""
    yield from optional("… openai", peer(stage, "openai"))
    yield from optional("… litellm", peer(stage, "litellm"))
    yield from optional("… LangChain", langchain(stage))


def peer(stage: Stage, name: str) -> Iterator[Line]:
    count, naive_count = stage.count(1000), stage.count(20_000)
    url, python = stage.static_url(), peer_python(stage, name, [name])
    program: Command = [python, HERE / f"peer_{name}.py", url, stage.prompt]
    runs = stage.in_turn(
        3,
        naive=partial(stage.run, stage.naive(url), stage.rows(naive_count)),
        start=partial(stage.run, program),
        peer=partial(stage.run, program, stage.rows(count)),
    )
    yield Line(
        f"… {name} {peer_version(python, name)}, {count:,} rows",
        peer_speed(runs, "peer", count),
        share(seconds(runs["naive"], naive_count), peer_seconds(runs, "peer", count)) + " × naive",
    )


def langchain(stage: Stage) -> Iterator[Line]:
    count, naive_count, jq_count = stage.count(2000), stage.count(20_000), stage.count(200_000)
    url, jq = stage.static_url(), tool("jq", "jq")
    python = peer_python(stage, "langchain", ["langchain-openai", "langchain-community"])
    sqlite, rows = stage.folder / "langchain.sqlite", stage.rows(count)
    program: Command = [python, HERE / "peer_langchain.py", url, stage.prompt, sqlite]

    def start_afresh() -> Run:
        sqlite.unlink(missing_ok=True)
        return stage.run(program, rows, samples=True)

    runs = stage.in_turn(
        3,
        naive=partial(stage.run, stage.naive(url), stage.rows(naive_count)),
        jq=partial(stage.run, [jq, "-c", "."], stage.rows(jq_count)),
        start=partial(stage.run, program),
        live=start_afresh,
        replay=partial(stage.run, program, rows),
    )
    title = f"… LangChain (langchain-openai {peer_version(python, 'langchain-openai')}), {count:,} rows"
    memory_mb = median(run.peak_kb for run in runs["live"]) / 1000
    yield Line(
        f"{title}, SQLiteCache, empty",
        f"{peer_speed(runs, 'live', count)}; peak of RssAnon {memory_mb:.0f} MB",
        share(seconds(runs["naive"], naive_count), peer_seconds(runs, "live", count)) + " × naive",
    )
    yield Line(
        f"{title}, all in its cache",
        peer_speed(runs, "replay", count),
        share(seconds(runs["jq"], jq_count), peer_seconds(runs, "replay", count)) + " × jq",
    )


def replay(stage: Stage) -> Iterator[Line]:
    count, jq = stage.count(200_000), tool("jq", "jq")
    url, rows = stage.static_url(), stage.rows(count)
    stage.say("replay: filling the cache")
    stage.filter(url, rows, "replay", is_fresh=True)
    runs = stage.in_turn(
        7,
        jq=partial(stage.run, [jq, "-c", "."], rows),
        llmfilter=partial(stage.filter, url, rows, "replay"),
    )
    title = f"**Replay**: {count:,} rows, all in the cache; beside `jq -c .` on the same file"
    yield beside("jq", title, runs, count, least=1.5, nearly=1.3)
    yield from optional("… the first version", replay_cpu(stage, url, rows, count))


def replay_cpu(stage: Stage, url: str, rows: Path, count: int) -> Iterator[Line]:
    first = stage.first_version(url, "-j", str(JOBS), "--cache", stage.folder / "replay-first")
    stage.run(first, rows)  # its cache has another format
    runs = stage.in_turn(
        6,
        first=partial(stage.run, first, rows),
        llmfilter=partial(stage.filter, url, rows, "replay"),
    )
    found = times([run.cpu_s for run in runs["first"]], [run.cpu_s for run in runs["llmfilter"]])
    each_us = {name: f"{median(run.cpu_s for run in runs[name]) / count * 1e6:.1f} µs" for name in runs}
    yield Line(
        "… CPU a row; beside the first version",
        f"{each_us['llmfilter']}; first: {each_us['first']}",
        spread(found),
        "≥ 1.0 × first",
        verdict(median(found) >= 1.0, is_near=median(found) >= 0.95),
    )


def beside(other: str, title: str, runs: Runs, count: int, least: float, nearly: float) -> Line:
    """How many times as fast as another program, and whether that is enough."""
    found = times(seconds(runs[other]), seconds(runs["llmfilter"]))
    return Line(
        title,
        f"{speed(runs['llmfilter'], count)}; {other}: {speed(runs[other], count)}",
        spread(found),
        f"≥ {least} × {other}",
        verdict(median(found) >= least, is_near=median(found) >= nearly),
    )


def memory(stage: Stage) -> Iterator[Line]:
    few, many = stage.count(10_000), stage.count(1_000_000)
    url, peaks_mb = stage.static_url(), {}
    for count, rounds in ((few, stage.rounds(3)), (many, 1)):
        rows = stage.rows(count)
        runs = stage.in_turn(
            rounds,
            live=partial(stage.filter, url, rows, "memory", is_fresh=True, samples=True),
            replay=partial(stage.filter, url, rows, "memory", samples=True),
        )
        for kind in runs:
            peaks_mb[kind, count] = median(run.peak_kb for run in runs[kind]) / 1000
    rows.unlink()
    shutil.rmtree(stage.folder / "memory")
    for kind in ("live", "replay"):
        before, after = peaks_mb[kind, few], peaks_mb[kind, many]
        yield Line(
            f"**Memory**, {kind}: peak of RssAnon at `-j {JOBS}`, {few:,} → {many:,} rows",
            f"{before:.1f} → {after:.1f} MB",
            f"{after / before - 1:+.1%}",
            "≤ 60 MB, growth ≤ 5 %",
            verdict(max(before, after) <= 60 and after <= 1.05 * before),
        )


def flight(stage: Stage) -> Iterator[Line]:
    jobs, mean_s, count = 2000, 0.5, stage.count(60_000)
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 2 * jobs:
        raise Missing(f"needs: ulimit -n {2 * jobs}")
    ideal_s = count / (jobs / mean_s)
    rows, one = stage.rows(count), stage.rows(1)
    with ExitStack() as stack:
        url = slow_server(stack, 0.5 * mean_s, 1.5 * mean_s)
        runs = stage.in_turn(
            3,
            naive=partial(stage.run, stage.naive(url, jobs), rows),
            llmfilter=partial(stage.filter, url, rows, "flight", jobs=jobs, is_fresh=True, samples=True),
            one=partial(stage.filter, url, one, "one", jobs=jobs, is_fresh=True, samples=True),
        )
        ours, naive = (ideal_s / median(seconds(runs[name])) for name in ("llmfilter", "naive"))
        each_kb = median(run.peak_kb - idle.peak_kb for run, idle in zip(runs["llmfilter"], runs["one"], strict=True))
        each_kb /= jobs
        yield Line(
            f"**Many in flight**: answers take 0.25–0.75 s, `-j {jobs}`, {count:,} rows; beside the naive loop",
            f"{ours:.1%} of the ideal `jobs / mean latency`; naive: {naive:.1%}; {each_kb:.1f} kB a request in flight",
            spread(times(seconds(runs["naive"]), seconds(runs["llmfilter"]))),
            "≥ 88 % of ideal, ≤ 40 kB",
            verdict(ours >= 0.88 and each_kb <= 40),
        )
        yield from optional("… wrk", slow_wrk(stage, url, jobs, ideal_s))


def slow_wrk(stage: Stage, url: str, jobs: int, ideal_s: float) -> Iterator[Line]:
    ideal_rate = stage.count(60_000) / ideal_s
    rate = stage.wrk(url, jobs, max(2, round(ideal_s)))
    yield Line("… wrk, which only sends", f"{rate / ideal_rate:.1%} of ideal")


def start(stage: Stage) -> Iterator[Line]:
    url, python, fresh = stage.static_url(), sys.executable, iter(range(1, 1000))
    stage.filter(url, stage.rows(1), "start", is_fresh=True)
    program = stage.llmfilter(url, "--cache", stage.folder / "start")
    runs = stage.in_turn(
        15,
        python=partial(stage.run, [python, "-c", "pass"]),
        imports=partial(stage.run, [python, "-c", imports_of(stage, program, stage.rows(1))]),
        aiohttp=partial(stage.run, [python, "-c", "import aiohttp"]),
        help=partial(stage.run, [LLMFILTER, "--help"]),
        replay=partial(stage.run, program, stage.rows(1)),
        live=lambda: stage.run(program, stage.rows(1, first=next(fresh))),
    )
    for name, what, base, most_ms in (
        ("help", "`--help`; beside `python -c pass`", "python", 35),
        ("live", "a live row, the server's time included; beside `python -c 'import aiohttp'`", "aiohttp", 90),
    ):
        ms, base_ms = (median(seconds(runs[each])) * 1000 for each in (name, base))
        yield Line(
            f"**Start**: {what}",
            f"{ms:.0f} ms; {base}: {base_ms:.0f} ms",
            f"{ms - base_ms:+.0f} ms",
            f"≤ {base} + {most_ms} ms",
            verdict(ms - base_ms <= most_ms),
        )
    found = times(seconds(runs["replay"]), seconds(runs["imports"]))
    yield Line(
        "**Start**: a replay of one row; beside importing the same modules",
        f"{median(seconds(runs['replay'])) * 1000:.0f} ms; imports: {median(seconds(runs['imports'])) * 1000:.0f} ms",
        spread(found),
        "≤ 1.3 × imports",
        verdict(median(found) <= 1.3),
    )


def imports_of(stage: Stage, program: Command, rows: Path) -> str:
    """Python code that imports what a run imports, in the same order."""
    command: Command = [sys.executable, "-X", "importtime", "-m", "llmfilter", *program[1:]]
    with rows.open() as stdin:
        said = subprocess.run(command, stdin=stdin, env=stage.environ, check=True, capture_output=True, text=True)
    names = re.findall(r"^import time: +\d+ \| +\d+ \| +([\w.]+)$", said.stderr, re.MULTILINE)
    each = "\n".join(f" try: import {name}\n except ImportError: pass" for name in names)  # one may be only looked for
    return f"if 1:\n{each}"


def delay(stage: Stage) -> Iterator[Line]:
    count, delays_ms = stage.count(500), []
    with ExitStack() as stack:
        url = slow_server(stack, 0.02, 0.03)
        command = stage.llmfilter(url, "--cache", stage.folder / "delay")
        program = stack.enter_context(
            subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=stage.environ)
        )
        assert program.stdin and program.stdout
        for row in stage.rows(count).read_bytes().splitlines(keepends=True):
            program.stdin.write(row)
            line = os.read(program.stdout.fileno(), 1 << 16)
            printed_at = time.monotonic()
            if not line:
                raise Failed("llmfilter has ended before its input")
            delays_ms.append((printed_at - json.loads(line)["sent_at"]) * 1000)
    yield Line(
        f"**Pass-through delay**: {count} records, one at a time through an idle filter, cache on",
        f"printed {median(delays_ms):.1f} ms after the server sent the answer, "
        f"95 % within {quantiles(delays_ms, n=20)[-1]:.1f} ms",
        "",
        "≤ 5 ms",
        verdict(median(delays_ms) <= 5),
    )


def processes(stage: Stage) -> Iterator[Line]:
    count = stage.count(20_000)
    cache, url = stage.folder / "processes", stage.static_url()
    command = stage.llmfilter(url, "-j", str(JOBS), "--cache", cache)

    def together(command: Command, *files: Path) -> Run:
        shutil.rmtree(cache, ignore_errors=True)
        runs = [started.end() for started in [stage.start(command, rows) for rows in files]]
        return Run(max(run.seconds for run in runs), sum(run.cpu_s for run in runs))

    def more_cpu(two: list[Run], one: list[Run]) -> list[float]:
        return times([run.cpu_s / 2 for run in two], [run.cpu_s for run in one])

    first, second = stage.rows(count), stage.rows(count, first=count)
    runs = stage.in_turn(
        5,
        one=partial(together, command, first),
        two=partial(together, command, first, second),
        naive=partial(together, stage.naive(url), first),
        naive_two=partial(together, stage.naive(url), first, second),
    )
    found = times(seconds(runs["one"], count), seconds(runs["two"], 2 * count))
    cpu = more_cpu(runs["two"], runs["one"])
    cores = len(os.sched_getaffinity(0))
    yield Line(
        f"**Several processes**: 2 on one cache, live, {count:,} rows each; beside one, on {cores} cores",
        f"{speed(runs['two'], 2 * count)}; one: {speed(runs['one'], count)}; CPU a row {spread(cpu)} × one; "
        f"two naive loops, which share nothing: {spread(more_cpu(runs['naive_two'], runs['naive']))} × one",
        spread(found),
        "≥ 1.6 × one; below 3 cores: CPU a row ≤ 1.1 × one",
        verdict(median(found) >= 1.6 or (cores < 3 and median(cpu) <= 1.1)),
    )


def limits(stage: Stage) -> Iterator[Line]:
    slots, mean_s, count = 8, 0.3, stage.count(800)
    rows, ideal_s = stage.rows(count), count * mean_s / slots
    with ExitStack() as stack:
        url = slow_server(stack, 0.1, 0.5, slots)
        title = f"**Limits**: {slots} slots, no queue, answers of 0.1–0.5 s, `-j {JOBS}`, {count:,} rows"
        run = stage.filter(url, rows, "limits", is_fresh=True)
        taken, refused = verdicts(url)
        yield Line(
            title,
            limited(run, ideal_s, count - taken, refused / (taken + refused)),
            target="≥ 93 % of ideal, none lost",
            reached=verdict(ideal_s / run.seconds >= 0.93 and taken == count),
        )
        yield from optional("… openai", limited_peer(stage, url, rows, count, ideal_s))


def limited_peer(stage: Stage, url: str, rows: Path, count: int, ideal_s: float) -> Iterator[Line]:
    python = peer_python(stage, "openai", ["openai"])
    run = stage.run([python, HERE / "peer_openai.py", url, stage.prompt, "5"], rows)
    taken, refused = verdicts(url)
    title = f"… openai {peer_version(python, 'openai')}, `max_retries=5`, as many at a time"
    yield Line(title, limited(run, ideal_s, count - taken, refused / (taken + refused)))


def verdicts(url: str) -> tuple[int, int]:
    """How many requests the slow server took and refused since it was asked last."""
    with urllib.request.urlopen(url) as said:
        found = json.load(said)
    return found["taken"], found["refused"]


def limited(run: Run, ideal_s: float, lost: int, refused: float) -> str:
    return f"{run.seconds:.1f} s, ideal {ideal_s:.1f} s; {lost} rows lost; {refused:.0%} refused"


def optional(what: str, lines: Iterator[Line]) -> Iterator[Line]:
    """The lines, or one that says what has to be installed for them."""
    try:
        yield from lines
    except Missing as missing:
        yield Line(what, str(missing))


def seconds(runs: list[Run], rows: int = 1) -> list[float]:
    """For one row, where it is said how many there were."""
    return [run.seconds / rows for run in runs]


def peer_seconds(runs: Runs, name: str, rows: int) -> list[float]:
    return [(run.seconds - idle.seconds) / rows for run, idle in zip(runs[name], runs["start"], strict=True)]


def times(those: list[float], ours: list[float]) -> list[float]:
    """How many times as long those took, round by round."""
    return [that / our for that, our in zip(those, ours, strict=True)]


def spread(figures: list[float]) -> str:
    return f"**{median(figures):.2f}** ({min(figures):.2f}–{max(figures):.2f})"


def share(fast: list[float], slow: list[float]) -> str:
    return f"1/{median(times(slow, fast)):.0f}"


def speed(runs: list[Run], rows: int) -> str:
    cpu_us = median(run.cpu_s for run in runs) / rows * 1e6
    return f"{1 / median(seconds(runs, rows)):,.0f} rows/s, {cpu_us:.1f} µs of CPU a row"


def peer_speed(runs: Runs, name: str, rows: int) -> str:
    rate = 1 / median(peer_seconds(runs, name, rows))
    return f"{rate:,.0f} rows/s, without its start of {median(seconds(runs['start'])):.1f} s"


def verdict(is_reached: bool, is_near: bool = False) -> str:
    return "yes" if is_reached else "nearly" if is_near else "**no**"


def heading(stage: Stage, scale: float) -> Iterator[str]:
    libraries = [f"{name} {version(name)}" for name in ("llmfilter", "aiohttp", "orjson", "lmdb", "uvloop")]
    tools = [tool_version("nginx", "-v"), tool_version("jq", "--version"), tool_version("wrk", "-v")]
    yield f"{date.today()}: {', '.join([*libraries, f'Python {platform.python_version()}', *tools])}; {machine(stage)}."
    if scale != 1:
        yield f"Numbers of rows × {scale:g}."
    yield ""
    yield str(Line("what", "measured", "ratio", "to reach", "reached"))
    yield "|---|---|---|---|---|"


def machine(stage: Stage) -> str:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    files = subprocess.run(["stat", "-f", "-c", "%T", stage.folder], check=True, capture_output=True, text=True).stdout
    return (
        f"{len(os.sched_getaffinity(0))} cores of {model[1] if model else platform.machine()}, "
        f"Linux {platform.release()}, cache on {files.strip()} with an fsync of {fsync_ms(stage.folder):.2f} ms"
    )


def fsync_ms(folder: Path) -> float:
    """What durability costs here, for 4 kB."""
    spent_ms = []
    with open(folder / "fsync", "wb", buffering=0) as file:
        for _ in range(51):
            file.write(bytes(4096))
            started_at = time.perf_counter()
            os.fsync(file.fileno())
            spent_ms.append((time.perf_counter() - started_at) * 1000)
    return median(spent_ms)


def tool_version(name: str, option: str) -> str:
    try:
        said = subprocess.run([tool(name, name), option], check=False, capture_output=True, text=True)
    except Missing:
        return f"no {name}"
    found = re.search(r"\d[\d.]+", said.stdout + said.stderr)
    return f"{name} {found[0] if found else '?'}"


def peer_version(python: Path, package: str) -> str:
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


ROWS = {each.__name__: each for each in (live, peers, replay, memory, flight, start, delay, processes, limits)}


def names_of_rows(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(ROWS):
        raise argparse.ArgumentTypeError(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    return names


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="ROW,ROW", type=names_of_rows, default=list(ROWS), help=", ".join(ROWS))
    parser.add_argument("--rounds", metavar="N", type=int, default=0, help="of each row (default: from 3 to 15)")
    parser.add_argument("--rows-scale", metavar="X", type=float, default=1.0, help="of the numbers of records")
    args = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # through every `finally`
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, FILES), hard))
    has_failed = False
    # Not /tmp, which is often in memory, where an fsync costs nothing.
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as folder, ExitStack() as stack:
        stage = Stage(Path(folder), stack, args.rounds, args.rows_scale)
        for line in heading(stage, args.rows_scale):
            print(line, flush=True)
        for name in args.only:
            try:
                for row in optional(f"**{name.capitalize()}**", ROWS[name](stage)):
                    print(row, flush=True)
            except Failed as failure:
                has_failed = True
                print(Line(f"**{name.capitalize()}**", f"failed: {failure}"), flush=True)
    return 1 if has_failed else 0


if __name__ == "__main__":
    sys.exit(main())
