"""A provider's Batch API, as OpenAI's reference has it: /v1/files and /v1/batches; its 24 hours are a few looks."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from server import Request, Response, completion, error

_STATES = ["validating", "in_progress", "in_progress", "finalizing"]  # what one look after the other sees
_EXPIRED = "This request could not be executed before the completion window expired."


def _reply(document: Any) -> Response:
    return Response(json.dumps(document).encode())


@dataclass
class Batch:
    """One batch."""

    id: str
    input: bytes
    looks: int = 0
    files: dict[str, str | None] = field(default_factory=lambda: {"output_file_id": None, "error_file_id": None})


class BatchApi:
    """Answers requests: `server.answer = BatchApi().answer`.

    expires, refuses: prompts that time runs out for, and that are answered with a 400; asked_live:
    the prompts that came to /chat/completions.
    """

    KEY = "sk-batch-secret"

    def __init__(self, expires: set[str] = frozenset(), refuses: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        self._expires = expires
        self._refuses = refuses
        self._files: dict[str, bytes] = {}
        self._batches: dict[str, Batch] = {}
        self.asked_live: list[str] = []

    def answer(self, request: Request) -> Response:
        """What a request gets."""
        if request.headers.get("authorization") != f"Bearer {self.KEY}":
            return error(401, "no key")
        routes: list[tuple[str, str, Callable[..., Response]]] = [
            ("POST", "/v1/chat/completions", self._chat),
            ("POST", "/v1/files", self._upload),
            ("POST", "/v1/batches", self._create),
            ("GET", r"/v1/batches/([\w-]+)", self._look),
            ("GET", r"/v1/files/([\w-]+)/content", self._download),
        ]
        for method, path, serve in routes:
            if method == request.method and (match := re.fullmatch(path, request.path)):
                return serve(request, *match.groups())
        return error(404, f"no {request.method} {request.path}")

    def _chat(self, request: Request) -> Response:
        self.asked_live.append(request.prompt)
        self.asked_live.sort()
        return completion({"live": request.prompt})

    def _upload(self, request: Request) -> Response:
        boundary = request.headers["content-type"].partition("boundary=")[2].encode()
        form = {}
        for part in request.body.split(b"--" + boundary)[1:-1]:
            head, _, content = part.partition(b"\r\n\r\n")
            name = re.search(rb'name="(\w+)"', head)
            assert name
            form[name[1]] = content.removesuffix(b"\r\n")
            if name[1] == b"file" and not re.search(rb'filename="[^"]+\.jsonl"', head):
                return error(400, "a .jsonl file is needed")
        if form.get(b"purpose") != b"batch":
            return error(400, "the purpose is not batch")
        return _reply({"id": self._add_file(form[b"file"]), "object": "file", "purpose": "batch"})

    def _add_file(self, content: bytes) -> str:
        self._files[f"file-{len(self._files)}"] = content
        return f"file-{len(self._files) - 1}"

    def _create(self, request: Request) -> Response:
        asked = request.json
        if (asked.get("endpoint"), asked.get("completion_window")) != ("/v1/chat/completions", "24h"):
            return error(400, "unknown endpoint or window")
        if asked.get("input_file_id") not in self._files:
            return error(400, "no such file")
        batch = Batch(f"batch_{len(self._batches)}", self._files[asked["input_file_id"]])
        self._batches[batch.id] = batch
        return _reply({"id": batch.id, "object": "batch", "status": "validating"})

    def _look(self, _: Request, name: str) -> Response:
        batch = self._batches[name]
        lines = [json.loads(line) for line in batch.input.splitlines()]
        if len({line["custom_id"] for line in lines}) < len(lines) or len(lines) > 50_000:
            return _reply({"id": name, "status": "failed", **batch.files})
        status = _STATES[batch.looks] if batch.looks < len(_STATES) else "expired" if self._expires else "completed"
        if batch.looks == len(_STATES):
            self._finish(batch, lines)
        batch.looks += 1
        return _reply({"id": name, "object": "batch", "status": status, **batch.files})

    def _finish(self, batch: Batch, lines: list[Any]) -> None:
        """Make the files of results: in another order, and failures in a file of their own."""
        done, failed = [], []
        for line in reversed(lines):
            prompt = line["body"]["messages"][-1]["content"]
            common = {"id": f"batch_req_{prompt}", "custom_id": line["custom_id"]}
            if prompt in self._expires:
                failed.append({**common, "response": None, "error": {"code": "batch_expired", "message": _EXPIRED}})
            elif prompt in self._refuses:
                body = {"error": {"message": "no", "type": "invalid_request_error", "code": None}}
                response = {"status_code": 400, "request_id": "r", "body": body}
                failed.append({**common, "response": response, "error": None})
            else:
                body = json.loads(completion({"batch": prompt}).body)
                done.append(
                    {**common, "response": {"status_code": 200, "request_id": "r", "body": body}, "error": None}
                )
        for key, results in (("output_file_id", done), ("error_file_id", failed)):
            if results:
                content = "".join(json.dumps(result) + "\n" for result in results)
                batch.files[key] = self._add_file(content.encode())

    def _download(self, _: Request, name: str) -> Response:
        return Response(self._files[name], headers={"Content-Type": "application/octet-stream"})
