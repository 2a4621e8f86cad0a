"""`make demo-schema`: 200 rows of a real model, held to a schema; then asked again with nothing but the prompt."""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema_rs
import llama
from demo import RECORDS, environment

SCHEMA = Path("tests/demo/schema.json")
FIELDS = "year,kind,person,places"
OPENERS = ("", "It is well known that ", "Schoolbooks say that ", "Few remember that ", "As the story goes, ")
COMMAND = f"llmfilter -m {llama.MODEL} -p tests/demo/schema_prompt.md -o max_tokens=300 --as event"


def main() -> None:
    """Prints what came of each run; exits with a message if a row is without a valid answer or a true error line."""
    rows = make_rows()
    is_valid = jsonschema_rs.validator_for(json.loads(SCHEMA.read_bytes())).is_valid
    with tempfile.TemporaryDirectory(prefix="llmfilter-demo-") as cache, llama.running() as url:
        environ = environment(url, cache)
        answers, errors = run(f"{COMMAND} --schema {SCHEMA}", rows, environ)
        valid = sum(is_valid(answer["event"]) for answer in answers)
        print(f"{valid} of {len(rows)} rows have an answer that satisfies the schema\n")
        checks = [valid == len(rows)]

        answers, errors = run(f"{COMMAND} --reask 2 -f {FIELDS}", rows, environ)
        whole = sum(answer["event"].keys() == set(FIELDS.split(",")) for answer in answers)
        valid = sum(is_valid(answer["event"]) for answer in answers)
        true = sum(map(is_true, errors))
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(error["error"] for error in errors).items())
        print(f"{whole} of {len(rows)} rows have an object with all fields (unasked, {valid} satisfy the schema);")
        print(f"{len(errors)} have an error line ({kinds or 'none'}), {true} of them true")
        checks += [whole == len(answers), true == len(errors), len(answers) + len(errors) == len(rows)]
    if not all(checks):
        sys.exit("that is not what was promised")


def make_rows() -> list[dict[str, Any]]:
    """The chronicle's records, each sentence begun in several ways."""
    records = [json.loads(line) for line in RECORDS.read_bytes().splitlines()]
    texts = [f"{opener}i{record['text'][1:]}" if opener else record["text"] for opener in OPENERS for record in records]
    return [{"id": number, "text": text} for number, text in enumerate(texts, 1)]


def run(command: str, rows: list[dict[str, Any]], environ: dict[str, str]) -> tuple[list[Any], list[Any]]:
    """Runs a command over the rows; returns the lines of its stdout and of its stderr, parsed."""
    print(f"$ {command}", flush=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    done = subprocess.run(command, shell=True, check=False, env=environ, input=lines.encode(), capture_output=True)
    if done.returncode not in (0, 1):
        sys.exit(f"exit status {done.returncode}: {done.stderr.decode(errors='replace')}")
    answers, errors = ([json.loads(line) for line in stream.splitlines()] for stream in (done.stdout, done.stderr))
    return answers, errors


def is_true(error: dict[str, Any]) -> bool:
    """Whether an error line tells what is wrong with the model's answer that it shows."""
    try:
        answer = json.loads(error["raw"])
    except ValueError:
        return error["error"] in ("unparsable", "truncated")
    if not isinstance(answer, dict):
        return bool(error["error"] == "unparsable")
    missing = [name for name in FIELDS.split(",") if name not in answer]
    return error["error"] == "invalid" and bool(missing) and all(repr(name) in error["message"] for name in missing)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
