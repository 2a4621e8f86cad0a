"""Where the answers of a run come from: what `--stats` says of it, so that a file can be told by its prompt."""

import hashlib
import os
import stat
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from llmfilter import __version__
from llmfilter.options import typed_options
from llmfilter.server.endpoint import Endpoint


def describe_run(args: Namespace, model: str, endpoint: Endpoint) -> dict[str, Any]:
    """Return what makes the answers what they are, without secrets: for `--stats`."""
    options = {name.lstrip("-"): value for name, value in typed_options(args).items()}
    options["header"] = [each.partition(":")[0] for each in args.header]
    texts = {"prompt": args.prompt, "system": args.system and args.system.removeprefix("@"), "schema": args.schema}
    return {
        "version": __version__,
        "model": model,
        "url": endpoint.mask.text(endpoint.url),
        **{name: digest(text) for name, text in texts.items() if text},
        "options": {name: mask_value(value, endpoint) for name, value in options.items() if value != []},
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def digest(text: str) -> str | None:
    """Return the SHA-256 of a file, as sha256sum prints it, or of what is no file's name; None for a pipe."""
    try:
        if not stat.S_ISREG(os.stat(text).st_mode):
            return None  # it can be read only once
        content = Path(text).read_bytes()
    except (OSError, ValueError):  # a text, mostly too long for a name
        content = text.encode("utf-8", "surrogateescape")
    return hashlib.sha256(content).hexdigest()


def mask_value(value: Any, endpoint: Endpoint) -> Any:
    """Return an option's value, or several, without secrets."""
    if isinstance(value, list):
        return [mask_value(each, endpoint) for each in value]
    return endpoint.mask.text(value) if isinstance(value, str) else value
