"""What servers really send, and what becomes of it: the golden files in answers/, one for each server.

A case is an HTTP answer as it comes, and behind `>>>` its designed outcome:

    === name of the case
    HTTP 429
    Retry-After: 2

    {"error": …}
    >>> waited out after 2 s: http: HTTP 429: …

The outcome's first line is one of

    answer OBJECT                   it passed: printed and stored
    KIND: MESSAGE                   the row's error line (`no such model: …`, where a run that has had no success ends)
    retried [after S s]: KIND: …    sent again, as often as -r allows
    waited out [after S s]: KIND: … sent again, and uses up no attempt
    ends the run: MESSAGE

and after it stand `raw "…"` (the error line's raw, for an answer that was paid for) and `tokens P + C`
(what was billed), where there are any. `…` in an outcome stands for any words in that line (a library's, mostly).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from multidict import CIMultiDict

from llmfilter.answers.checks import Checks
from llmfilter.api.completion import parse_completion
from llmfilter.api.faults import ModelMissing, classify, classify_hidden
from llmfilter.errors import Faulty, Retryable, RowError, RunError
from llmfilter.jsontext import dump_text

FOLDER = Path(__file__).parent / "bodies"
SERVERS = "azure deepseek gateways gemini llamacpp mistral models ollama openai openrouter sglang vllm"


class Case(NamedTuple):
    name: str
    status: int
    headers: CIMultiDict[str]
    body: bytes
    outcome: str


def read_cases(path: Path) -> Iterator[Case]:
    for text in re.split(r"^=== ", path.read_text("utf-8"), flags=re.MULTILINE)[1:]:
        given, _, outcome = text.rpartition("\n>>> ")
        head, _, body = given.partition("\n\n")
        name, status, *headers = head.split("\n")
        pairs = [line.partition(": ")[::2] for line in headers]
        yield Case(name, int(status.removeprefix("HTTP ")), CIMultiDict(pairs), body.encode(), outcome.strip())


CASES = [
    pytest.param(case, id=f"{path.stem}: {case.name}")
    for path in sorted(FOLDER.glob("*.txt"))
    for case in read_cases(path)
]


def judge(case: Case) -> str:
    """What becomes of an answer, in the words of the golden files."""
    if case.status != 200:
        return describe(classify(case.status, case.headers, case.body))
    try:
        completion = parse_completion(case.body)
    except Faulty as fault:
        return describe(classify_hidden(fault.document) or fault)
    billed = completion.usage[:2]
    tokens = "\ntokens {} + {}".format(*billed) if any(billed) else ""
    if completion.fault:
        return describe(completion.fault) + tokens
    try:
        text, value = Checks().parse(completion.content)
    except RowError as error:
        return describe(error) + tokens
    assert isinstance(value, dict)
    return f"answer {text.decode()}{tokens}"


def describe(error: RowError | RunError) -> str:
    if isinstance(error, RunError):
        return f"ends the run: {error}"
    line = f"{error.kind}: {error.message}"
    if isinstance(error, Retryable):
        after = "" if error.after_s is None else f" after {error.after_s:g} s"
        return f"{'waited out' if error.is_refusal else 'retried'}{after}: {line}"
    if isinstance(error, ModelMissing):
        line = f"no such model: {line}"
    return line + (f"\nraw {dump_text(error.raw).decode()}" if error.raw else "")


@pytest.mark.parametrize("case", CASES)
def test_an_answer_has_its_designed_outcome(case: Case) -> None:
    outcome = judge(case)
    if not re.fullmatch(re.escape(case.outcome).replace("…", ".*"), outcome):
        assert outcome == case.outcome


def test_an_http_error_keeps_its_status_for_the_error_line() -> None:
    for param in CASES:
        case: Case = param.values[0]  # type: ignore[assignment]
        if case.status != 200 and isinstance(error := classify(case.status, case.headers, case.body), RowError):
            assert error.status == case.status, case.name


def test_every_server_has_cases_and_every_case_a_name_of_its_own() -> None:
    assert [path.stem for path in sorted(FOLDER.iterdir())] == SERVERS.split()
    assert len({param.id for param in CASES}) == len(CASES) >= 60
