"""Long life: memory, descriptors and the time of a row stay flat, however much a run has done.

make soak                 # an hour; all of it
make soak SOAK='--scale 0.1 rows reconnects'
"""

import argparse
import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvloop

TENTHS = 10
LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


class Answers(asyncio.Protocol):
    """Answers each request at once, of whatever rows; counts them and its connections."""

    requests = connections = 0
    pad_bytes = 0
    closes = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count it."""
        self._transport, self._data = transport, b""
        Answers.connections += 1

    def data_received(self, data: bytes) -> None:
        """Answer each request that is whole."""
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            found = LENGTH.search(self._data, 0, end)
            assert found
            whole = end + 4 + int(found[1])
            if len(self._data) < whole:
                return
            self._data = self._data[whole:]
            Answers.requests += 1
            content = json.dumps({"label": "x" * self.pad_bytes})
            choice = {"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
            body = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 3}}).encode()
            more = b"Connection: close\r\n" if self.closes else b""
            self._transport.write(b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (more, len(body), body))
            if self.closes:
                self._transport.close()


@contextmanager
def serving(pad_bytes: int = 0, closes: bool = False) -> Iterator[str]:
    """A server in a thread of this process; yields its URL."""
    loop = uvloop.new_event_loop()
    Answers.requests = Answers.connections = 0
    Answers.pad_bytes, Answers.closes = pad_bytes, closes
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listener:
        loop.run_until_complete(loop.create_server(Answers, sock=listener))
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def start(url: str, cache: str, *more: str) -> subprocess.Popen[bytes]:
    """Start the program, to be fed rows."""
    command = [sys.executable, "-m", "llmfilter", "-q", "-m", "m", "-p", "json {id}", "-u", url, "--cache", cache]
    return subprocess.Popen([*command, *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def state(pid: int) -> str:
    """Return a program's memory, without what is mapped of files, and its descriptors."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return f"{int(found[1]) / 1000 if found else 0:7.1f} MB {len(os.listdir(f'/proc/{pid}/fd')):5} descriptors"


def feed(run: subprocess.Popen[bytes], ids: range) -> None:
    """Give a program its rows, in a thread."""

    def write() -> None:
        assert run.stdin
        with run.stdin as stdin:
            for each in ids:
                stdin.write(b'{"id":%d}\n' % each)

    threading.Thread(target=write, daemon=True).start()


def watch(run: subprocess.Popen[bytes], rows: int) -> None:
    """Tell after each tenth of the rows how the program is; raise if it does not end well."""
    assert run.stdout
    done, since = 0, time.perf_counter()
    for tenth in range(1, TENTHS + 1):
        first = done
        while done < rows * tenth // TENTHS and run.stdout.readline():
            done += 1
        seconds = time.perf_counter() - since
        since += seconds
        print(f"  {done:9,} rows {(done - first) / max(seconds, 1e-9):9,.1f} rows/s {state(run.pid)}", flush=True)
    assert (run.wait(), done) == (0, rows)


def soak_rows(cache: str, scale: float) -> None:
    """A million rows, asked."""
    rows = int(1_000_000 * scale)
    with serving() as url:
        run = start(url, cache, "-j", "64")
        feed(run, range(rows))
        watch(run, rows)
        print(f"  {Answers.requests:,} requests over {Answers.connections:,} connections")


def soak_idle(cache: str, scale: float) -> None:
    """An hour of tail -f in which one row a minute comes."""
    with serving() as url:
        run = start(url, cache)
        assert run.stdin and run.stdout
        for minute in range(max(2, int(60 * scale))):
            run.stdin.write(b'{"id":%d}\n' % minute)
            run.stdin.flush()
            assert run.stdout.readline()
            if minute % 6 == 0:
                times = Path(f"/proc/{run.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
                cpu_s = sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
                print(f"  minute {minute:3} {cpu_s:6.2f} s of CPU {state(run.pid)}", flush=True)
            time.sleep(60)
        run.communicate()
        assert run.returncode == 0


def soak_reconnects(cache: str, scale: float) -> None:
    """Ten thousand requests, each over a connection of its own."""
    rows = int(10_000 * scale)
    with serving(closes=True) as url:
        run = start(url, cache, "-j", "32")
        feed(run, range(rows))
        watch(run, rows)
        print(f"  {Answers.requests:,} requests over {Answers.connections:,} connections")


def soak_cache(cache: str, scale: float) -> None:
    """A cache of 10 GB, in answers of 10 MB: filled, then replayed."""
    rows = int(1_000 * scale)
    with serving(pad_bytes=10_000_000) as url:
        for _ in range(2):
            run = start(url, cache, "-j", "4")
            feed(run, range(rows))
            watch(run, rows)
        print(f"  {Answers.requests:,} requests; {(Path(cache) / 'data.mdb').stat().st_size / 1e9:.1f} GB")
        assert Answers.requests == rows


def soak_processes(cache: str, scale: float) -> None:
    """Fifty processes on one cache, one of which is stopped and continued again and again."""
    count, rows = 50, int(2_000 * scale)
    with serving() as url:
        runs = [start(url, cache, "-j", "4") for _ in range(count)]
        for each, run in enumerate(runs):
            feed(run, range(each * rows, (each + 1) * rows))
        printed = [0] * count

        def read(each: int) -> None:
            stdout = runs[each].stdout
            assert stdout
            printed[each] = len(stdout.readlines())
            runs[each].wait()

        readers = [threading.Thread(target=read, args=[each]) for each in range(count)]
        for reader in readers:
            reader.start()
        since = time.perf_counter()
        while any(run.poll() is None for run in runs[1:]):
            for number in (signal.SIGSTOP, signal.SIGCONT):
                if runs[0].poll() is None:
                    runs[0].send_signal(number)
                time.sleep(0.5)
        for reader in readers:
            reader.join()
        seconds = time.perf_counter() - since
        print(f"  {sum(printed):,} rows in {seconds:.1f} s, {Answers.requests:,} requests")
        assert {run.returncode for run in runs} == {0}
        assert set(printed) == {rows} and Answers.requests == count * rows
        again = start(url, cache)
        feed(again, range(count * rows))
        watch(again, count * rows)
        assert Answers.requests == count * rows  # all was stored


PARTS: dict[str, Callable[[str, float], None]] = {
    "rows": soak_rows,
    "idle": soak_idle,
    "reconnects": soak_reconnects,
    "cache": soak_cache,
    "processes": soak_processes,
}


def main() -> None:
    """Run the parts that were named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("part", nargs="*", choices=[*PARTS, []], default=[*PARTS])
    args = parser.parse_args()
    for name in args.part:
        print(f"{name}: {PARTS[name].__doc__}")
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as folder:
            PARTS[name](folder, args.scale)


if __name__ == "__main__":
    main()
