"""The path or URL of a picture in a record → the parts of a message that show it (`--image`).

A file is read when its request is made. It has to be a picture by its first bytes: nothing else of a disk
is ever sent, whatever a record names.
"""

import os
import re
import stat
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

from llmfilter.errors import RowError
from llmfilter.input.values import look_up
from llmfilter.jsontext import dump_text
from llmfilter.words import printable

BYTES_MOST = 20 << 20  # of a row's files together; servers take 20 to 50 MB a request
_URL = re.compile(r"https?://|data:", re.IGNORECASE)
_MEDIA_TYPES = [
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
]
_SHOWN = re.compile(rb"(data:image/\w+;base64,[\w+/]{16})[\w+/=]{16,}")


def picture_parts(name: str, record: Mapping[str, Any]) -> bytes:
    """Return what follows the text of a message, as JSON: a part for each picture that a field names.

    Raise RowError: `template` where the field is missing or names none, `input` where a file can't be sent.
    """
    value = look_up(name, record)
    sources = value if isinstance(value, list) else [value]
    if not sources or not all(isinstance(source, str) and source for source in sources):
        raise RowError("template", f"the field {name} holds neither a picture's path or URL nor a list of them")
    parts, left = [], BYTES_MOST
    for source in sources:
        url = source
        if not _URL.match(source):
            picture = read_picture(source, left)
            left -= len(picture)
            url = f"data:{media_type(source, picture)};base64,{b64encode(picture).decode()}"
        parts.append(b',{"type":"image_url","image_url":{"url":%b}}' % dump_text(url))
    return b"".join(parts)


def read_picture(path: str, bytes_most: int) -> bytes:
    """Return what a file holds; raise RowError(`input`)."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # no pipe is waited for
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise _fault(path, "not a file")
            data = file.read(bytes_most + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name, or a lone surrogate
        raise _fault(path, (isinstance(error, OSError) and error.strerror) or "not a name of a file") from None
    if len(data) > bytes_most:
        raise _fault(path, f"too large: a row's pictures may have {BYTES_MOST >> 20} MiB")
    return data


def media_type(path: str, data: bytes) -> str:
    """Return what kind of picture it is; raise RowError(`input`) if it is none that servers know."""
    for looks, name in _MEDIA_TYPES:
        if looks.match(data):
            return name
    raise _fault(path, "not a PNG, JPEG, GIF or WebP picture")


def shorten(body: bytes) -> bytes:
    """Return a request's body as it is shown: of each picture only the beginning."""
    return _SHOWN.sub("\\1…".encode(), body)


def _fault(path: str, what: str) -> RowError:
    return RowError("input", f"the picture {printable(path)}: {what}")
