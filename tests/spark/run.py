"""Spark drives the unchanged filter: `RDD.pipe` over a partitioned data set, in local-cluster mode.

    sh tests/spark/run.sh

starts this in an environment that has pyspark. Two worker processes (a JVM each, with executors and
Python workers of their own) share one cache, as the workers on one machine do, and ask a scripted
server that counts. In the middle of one partition the filter is killed with SIGKILL: Spark runs that
partition again. Shown is that
  1. the output is complete, each row once, although a partition failed and ran again;
  2. of the answers paid for before the kill none is asked for again: the run sends one request a
     row, and at most -j more, those that were in flight when the filter was killed;
  3. the same job once more asks for nothing.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from pyspark import SparkConf, SparkContext

sys.path.insert(0, os.fspath(Path(__file__).parent.parent))
from server import Server

ROWS = 4000
PARTITIONS = 8
JOBS = 16  # requests in flight, of each filter
LINES = 100  # so many answers of a partition are out when its filter is killed
LOCAL_CLUSTER = "local-cluster[2,2,1024]"  # workers, cores of each, MiB of each


def start_spark() -> SparkContext:
    """Spark on this machine, in several processes that talk over the network, as on a cluster."""
    os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
    os.environ["SPARK_SCALA_VERSION"] = "2.13"  # executors can't tell it from pyspark's own folder
    os.environ["PYSPARK_PYTHON"] = sys.executable
    conf = SparkConf().setMaster(LOCAL_CLUSTER).setAppName("llmfilter").set("spark.executor.memory", "1g")
    conf.set("spark.ui.enabled", "false").set("spark.ui.showConsoleProgress", "false")
    context = SparkContext(conf=conf)
    context.setLogLevel("ERROR")
    return context


def run_job(context: SparkContext, folder: Path, output: Path, url: str) -> int:
    """Pipes each partition through the filter; returns how often a partition failed."""
    # pyspark's pipe starts the command with these variables and no others.
    environ = {"OPENAI_BASE_URL": url, "OPENAI_MODEL": "tiny", "LLMFILTER_CACHE": os.fspath(folder / "cache")}
    kill = f"{sys.executable} {Path(__file__).parent / 'killed_once.py'} {folder / 'killed'} {LINES}"
    command = f"{kill} {Path(sys.executable).parent / 'llmfilter'} -p {folder / 'prompt.md'} -j {JOBS}"
    context.setJobGroup(output.name, "llmfilter")
    records = context.textFile(os.fspath(folder / "data"), PARTITIONS)
    records.pipe(command, env=environ, checkCode=True).saveAsTextFile(os.fspath(output))
    tracker = context.statusTracker()
    stages = [stage for job in tracker.getJobIdsForGroup(output.name) for stage in tracker.getJobInfo(job).stageIds]
    return sum(tracker.getStageInfo(stage).numFailedTasks for stage in stages)


def read_ids(output: Path) -> list[int]:
    return sorted(json.loads(line)["id"] for part in output.glob("part-*") for line in part.read_text().splitlines())


def check(what: str, holds: bool) -> bool:
    print("ok    " if holds else "FAILED", what, flush=True)
    return holds


def main() -> int:
    with tempfile.TemporaryDirectory() as name, Server() as server:
        folder = Path(name)
        (folder / "prompt.md").write_text("{id}")
        (folder / "data").mkdir()
        for part in range(PARTITIONS):
            lines = [json.dumps({"id": each}) + "\n" for each in range(part, ROWS, PARTITIONS)]
            (folder / "data" / f"{part}.jsonl").write_text("".join(lines))
        context = start_spark()
        try:
            failed = run_job(context, folder, folder / "first", server.url)
            asked = len(server.requests)
            failed_again = run_job(context, folder, folder / "second", server.url)
            executors = context._jsc.sc().statusTracker().getExecutorInfos()
            workers = len({info.port() for info in executors}) - 1  # the driver is one of them
        finally:
            context.stop()
        complete = list(range(ROWS))
        return not all(
            [
                check(f"{workers} workers", workers == 2),
                check(f"{failed} partition failed: its filter was killed after {LINES} answers", failed == 1),
                check("the output is complete", read_ids(folder / "first") == complete),
                check(
                    f"{asked} requests for {ROWS} rows, at most {JOBS} of them repeated",
                    len(set(server.prompts[:asked])) == ROWS <= asked <= ROWS + JOBS,
                ),
                check(
                    "the same job once more: complete, without a request",
                    (read_ids(folder / "second"), failed_again, len(server.requests)) == (complete, 0, asked),
                ),
            ]
        )


if __name__ == "__main__":
    sys.exit(main())
