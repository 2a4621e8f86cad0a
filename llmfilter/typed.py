"""What was typed, and what stands in the files that it names, as text; UsageError where there is none."""

import errno
import os
import stat
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llmfilter.errors import UsageError
from llmfilter.input.template import parse_prompt
from llmfilter.words import printable

if TYPE_CHECKING:
    from llmfilter.answers.schema import Schema

_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


def check_text(args: Namespace, environ: Mapping[str, str]) -> None:
    """Raise UsageError where what goes into requests is not text: bytes that are not UTF-8 show up as surrogates."""
    typed = {"-s": args.system, "-m": args.model, "-f": args.fields, "--as": args.as_key, "-u": args.base_url}
    typed |= {"--response": args.response, "--image": args.image}
    for option, text in [
        *typed.items(),
        *(("-o", each) for each in args.option),
        *(("-H", each) for each in args.header),
        ("$OPENAI_MODEL", environ.get("OPENAI_MODEL")),
    ]:
        if text is not None:
            check_utf8(option, text)
    for option, text in {"-p": args.prompt, "-s": args.system, "-m": args.model, "-u": args.base_url}.items():
        if text is not None and not text.strip():
            raise UsageError(f"{option}: the value is empty; is a variable in it not set?")


def check_utf8(option: str, text: str) -> None:
    """Raise UsageError where a value that was typed is not UTF-8."""
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise UsageError(f"{option}: the value is not UTF-8")


def read_file(option: str, path: str, else_: str = "") -> str:
    """Return a file's text, UTF-8 whatever the locale; else_: what to say beside where there is none of that name."""
    try:
        status = os.stat(path)
        if stat.S_ISFIFO(status.st_mode) and os.path.samestat(status, os.fstat(0)):
            raise UsageError(f"{option} {printable(path)}: this is stdin, which the records come through: name a file")
        return Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        way_out = else_ if error.errno in _NO_FILE else ""
        raise UsageError(f"{option} {printable(path)}: {error.strerror}{way_out}") from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{option} {printable(path)}: not UTF-8 at byte {error.start}: convert it with: iconv -f ENCODING -t UTF-8"
        ) from None


def read_prompt(text: str) -> str:
    """Return the prompt: what stands in a file, or the text itself if it holds a `{` and is no file's name."""
    if "{" not in text or os.path.exists(text):
        way_out = (
            "; for a prompt without a file, name a field in braces, as in -p 'Translate: {text}', or give -p <(echo …)"
        )
        return parse_prompt(read_file("-p", text, way_out))
    check_utf8("-p", text)
    return text


def read_system(text: str) -> str:
    """Return the system prompt: the text itself, or what stands in @FILE."""
    return parse_prompt(read_file("-s", text[1:])) if text.startswith("@") else text


def read_schema(text: str) -> "Schema":
    """Return the schema in a file, or the one that the text is, if it begins with a `{` and is no file's name."""
    from llmfilter.answers.schema import Schema

    if text.lstrip().startswith("{") and not os.path.exists(text):
        check_utf8("--schema", text)
        return Schema(text.encode(), "{…}")
    way_out = '; for a schema without a file, begin with a {, as in --schema \'{"type": "object", …}\''
    return Schema(read_file("--schema", text, way_out).encode(), text)
