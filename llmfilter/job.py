"""What was typed → what is done with each row. Everything that is wrong with it shows here, before
any row is read: as UsageError."""

import os
import select
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from llmfilter.answer import Checks
from llmfilter.cache import Cache, Keys, NoCache
from llmfilter.endpoint import make_endpoint
from llmfilter.errors import RowError, RunError, UsageError
from llmfilter.prompt import Prompt, Template, check_placeholders, read_prompt
from llmfilter.rows import BLOCK_BYTES, BOM, parse_record
from llmfilter.stats import Stats

if TYPE_CHECKING:
    from llmfilter.chat import Chat
    from llmfilter.schema import Schema

_BUILT = {"messages": "-p and -s", "model": "-m", "stream": None, "n": None}  # what -o may not set
_LISTED_MOST = 20
_PEEK_MS = 1000


class Job(NamedTuple):
    """What is done with each row. connect makes the client when the first row needs it, since loading
    it takes longer than a run that the cache can answer."""

    prompt: Prompt
    keys: Keys
    checks: Checks
    reasks: int
    retries: int
    jobs: int
    keep_order: bool
    cache: NoCache
    connect: "Callable[[], Chat]"
    is_dry: bool = False


async def make_job(args: Namespace, environ: Mapping[str, str], stdin: int, stats: Stats) -> Job:
    """The job; asks the server for its model if none was named."""
    check_text(args)
    check_stats(args.stats)
    user = Template(read_prompt(read_file("-p", args.prompt))) if args.prompt is not None else None
    system = Template(read_system(args.system)) if args.system is not None else None
    if user and not user.names and not (system and system.names):
        check_placeholders(peek_keys(stdin))
    schema = read_schema(args.schema) if args.schema is not None else None
    checks = make_checks(args, schema)
    fields = request_fields(args.option, response_format(args.text, schema))
    endpoint = make_endpoint(args.base_url, args.header, environ, needs_key=not args.dry_run)
    cache = open_cache(args, environ, stats)

    def connect() -> "Chat":
        from llmfilter.chat import Chat

        return Chat(endpoint, args.timeout, args.rpm / 60, stats)

    model = args.model or environ.get("OPENAI_MODEL")
    if not model:
        if args.dry_run:
            raise UsageError("-n sends nothing, so it can't ask the server for its model: give -m NAME")
        model = await only_model(connect())
    prompt = Prompt(user, system, model, fields)
    return Job(
        prompt,
        Keys(endpoint.url, args.header, prompt.head),
        checks,
        args.reask,
        args.retries,
        args.jobs,
        args.keep_order,
        cache,
        connect,
        args.dry_run,
    )


def check_text(args: Namespace) -> None:
    """Raises UsageError where what goes into requests is not text: bytes that are not UTF-8 show up as surrogates."""
    typed = {"-s": args.system, "-m": args.model, "-f": args.fields, "--as": args.as_key, "-u": args.base_url}
    for option, text in [
        *typed.items(),
        *(("-o", each) for each in args.option),
        *(("-H", each) for each in args.header),
    ]:
        if text is not None and not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
            raise UsageError(f"{option}: the value is not UTF-8")


def check_stats(path: str | None) -> None:
    """Raises UsageError if the counters could not be written at the end: better to know at once."""
    try:
        if path is not None:
            Path(path).open("a").close()
    except OSError as error:
        raise UsageError(f"--stats {path}: {error.strerror}") from None


def read_file(option: str, path: str) -> str:
    """A file's text, UTF-8 whatever the locale."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{option} {path}: not UTF-8 at byte {error.start}: convert it, for example with iconv"
        ) from None


def read_system(text: str) -> str:
    """The system prompt: the text itself, or what stands in @FILE."""
    return read_prompt(read_file("-s", text[1:])) if text.startswith("@") else text


def read_schema(path: str) -> "Schema":
    """The schema in a file."""
    from llmfilter.schema import Schema  # imports a library that other runs don't need

    return Schema(read_file("--schema", path).encode(), path)


def make_checks(args: Namespace, schema: "Schema | None") -> Checks:
    """What an answer must be."""
    fields = [name.strip() for name in args.fields.split(",")] if args.fields is not None else []
    if args.fields is not None and not all(fields):
        raise UsageError(f"-f {args.fields!r}: give names with commas between them, like -f label,score")
    if args.text and (schema or fields):
        raise UsageError("--text takes any text as the answer: leave out --schema and -f, or leave out --text")
    return Checks(schema, fields, args.as_key, args.text)


def response_format(is_text: bool, schema: "Schema | None") -> Any:
    """How the server is asked for JSON; None where it isn't."""
    if is_text:
        return None
    return schema.response_format() if schema else {"type": "json_object"}


def request_fields(options: list[str], response_format: Any) -> dict[str, Any]:
    """The fields of a request beside model and messages: what is built, then what `-o` says."""
    fields: dict[str, Any] = {"temperature": 0, "response_format": response_format}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or not key:
            raise UsageError(f"-o {option!r}: give KEY=VALUE, like -o max_tokens=500")
        if key in _BUILT:
            instead = f"use {_BUILT[key]}" if _BUILT[key] else "each row is one whole answer"
            raise UsageError(f"-o {key}=…: llmfilter sets this field itself; {instead}")
        try:
            fields[key] = orjson.loads(text)
        except orjson.JSONDecodeError:
            fields[key] = text
    return {key: value for key, value in fields.items() if value is not None}


def open_cache(args: Namespace, environ: Mapping[str, str], stats: Stats) -> NoCache:
    """The cache that was named, or the usual one; a dry run leaves no new folder behind."""
    if args.no_cache:
        if args.cache is not None:
            raise UsageError("--cache and --no-cache: give one of them")
        return NoCache()
    folder = cache_folder(args.cache or environ.get("LLMFILTER_CACHE"), environ)
    if args.dry_run and not (folder / "data.mdb").exists():
        return NoCache()
    return Cache(folder, stats)


def cache_folder(named: str | None, environ: Mapping[str, str]) -> Path:
    """Where the cache is; the usual place follows the XDG Base Directory Specification."""
    if named:
        return Path(named).expanduser()
    home = environ.get("XDG_CACHE_HOME", "")
    base = Path(home) if home.startswith("/") else Path("~/.cache").expanduser()
    return base / "llmfilter"


async def only_model(chat: "Chat") -> str:
    """The server's model, if it has just one; else raises UsageError that lists them."""
    try:
        models = await chat.models()
    except (RowError, RunError) as error:
        raise UsageError(
            f"no model was named, and the server could not be asked for one ({error}): give -m NAME"
        ) from None
    finally:
        await chat.close()
    if len(models) == 1:
        return models[0]
    shown = ", ".join(models[:_LISTED_MOST]) + (", …" if len(models) > _LISTED_MOST else "")
    raise UsageError(f"which model? Give -m NAME; the server has: {shown or 'none'}")


def peek_keys(stdin: int) -> list[str] | None:
    """The keys of the first record, if one can be read at once: for a message, the run ends with it."""
    poll = select.poll()
    poll.register(stdin, select.POLLIN)
    if os.isatty(stdin) or not poll.poll(_PEEK_MS):
        return None
    try:
        line = os.read(stdin, BLOCK_BYTES).removeprefix(BOM).partition(b"\n")[0]
        return list(parse_record(line))
    except (OSError, RowError):
        return None
