"""What was typed → what is done with each row. Everything that is wrong with it shows here, before
any row is read: as UsageError."""

import os
import stat
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from llmfilter.answer import Checks
from llmfilter.cache import Cache, Keys, NoCache, Seen
from llmfilter.endpoint import Mask, make_endpoint
from llmfilter.errors import Retryable, RowError, RunError, UsageError, printable
from llmfilter.options import make_parser
from llmfilter.prompt import Field, Prompt, Template, parse_field, parse_prompt, refuse_fixed
from llmfilter.record import depth, is_exact, one_line, parse_json
from llmfilter.rows import BLOCK_BYTES, BOM, parse_record
from llmfilter.stats import Stats

if TYPE_CHECKING:
    from llmfilter.chat import Chat
    from llmfilter.preview import Preview
    from llmfilter.schema import Schema

_BUILT = {"messages": "-p and -s", "model": "-m", "stream": None, "n": None}  # what -o may not set
_LOADING = {"--from-batch", "--cache", "--no-cache", "--stats", "--quiet"}  # what goes with --from-batch
_LISTED_MOST = 20
_NAME_MOST = 100  # characters of a model's name
_DEPTH_MOST = 254  # what orjson writes


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
    budget: int | None
    cache: NoCache
    connect: "Callable[[], Chat]"
    preview: "Preview | None" = None


async def make_job(args: Namespace, environ: Mapping[str, str], stdin: int, stats: Stats) -> Job:
    """Return the job; ask the server for its model if none was named."""
    if args.from_batch:
        return make_loading(args, environ)
    if args.dry_run and args.to_batch:
        raise UsageError("-n and --to-batch print different things instead of sending: give one of them")
    check_text(args, environ)
    check_stats(args.stats)
    schema = read_schema(args.schema) if args.schema is not None else None
    checks = make_checks(args, schema)
    fields = request_fields(args.option, response_format(args.text, schema))
    user = Template(parse_prompt(read_file("-p", args.prompt))) if args.prompt is not None else None
    system = Template(read_system(args.system)) if args.system is not None else None
    if user and not varies(user, system, fields):
        refuse_fixed(peek_keys(stdin))
    is_dry = args.dry_run or args.to_batch
    endpoint = make_endpoint(args.base_url, args.header, environ, needs_key=not is_dry)
    cache = open_cache(args, environ)

    def connect() -> "Chat":
        from llmfilter.chat import Chat
        from llmfilter.limit import Limit

        return Chat(endpoint, args.timeout, Limit(args.jobs, args.rpm / 60), stats)

    model = args.model or environ.get("OPENAI_MODEL") or await only_model(connect(), endpoint.mask, is_dry)
    prompt = Prompt(user, system, model, fields)
    return Job(
        prompt=prompt,
        keys=Keys(endpoint.url, args.header, prompt.head),
        checks=checks,
        reasks=args.reask,
        retries=args.retries,
        jobs=args.jobs,
        keep_order=args.keep_order,
        budget=args.budget,
        cache=cache,
        connect=connect,
        preview=make_preview(args, cache),
    )


def make_loading(args: Namespace, environ: Mapping[str, str]) -> Job:
    """Return the job of `--from-batch`, which has a cache and else nothing."""
    for action in make_parser()._actions:
        option = action.option_strings[-1]
        if option not in _LOADING and getattr(args, action.dest, action.default) != action.default:
            raise UsageError(
                f"--from-batch only puts results into the cache: {option} belongs to the same command without it"
            )
    if args.no_cache:
        raise UsageError("--from-batch puts results into the cache: leave out --no-cache")
    check_stats(args.stats)
    return Job(
        prompt=Prompt(None, None, "", {}),
        keys=Keys("", []),
        checks=Checks(),
        reasks=0,
        retries=0,
        jobs=1,
        keep_order=False,
        budget=None,
        cache=open_cache(args, environ),
        connect=_connect_never,
    )


def _connect_never() -> "Chat":
    raise AssertionError("nothing is sent")


def make_preview(args: Namespace, cache: NoCache) -> "Preview | None":
    """Return what prints requests instead of sending them, if that was asked for."""
    if not (args.dry_run or args.to_batch):
        return None
    from llmfilter.preview import DryRun, ToBatch

    seen = Seen(cache.folder)
    return DryRun(seen, args.budget) if args.dry_run else ToBatch(seen)


def check_text(args: Namespace, environ: Mapping[str, str]) -> None:
    """Raise UsageError where what goes into requests is not text: bytes that are not UTF-8 show up as surrogates."""
    typed = {"-s": args.system, "-m": args.model, "-f": args.fields, "--as": args.as_key, "-u": args.base_url}
    typed["--response"] = args.response
    for option, text in [
        *typed.items(),
        *(("-o", each) for each in args.option),
        *(("-H", each) for each in args.header),
        ("$OPENAI_MODEL", environ.get("OPENAI_MODEL")),
    ]:
        if text is not None and not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
            raise UsageError(f"{option}: the value is not UTF-8")


def check_stats(path: str | None) -> None:
    """Raise UsageError if the counters could not be written at the end: better to know at once."""
    try:
        if path is not None:
            Path(path).open("a").close()
    except OSError as error:
        raise UsageError(f"--stats {printable(path or '')}: {error.strerror}") from None


def read_file(option: str, path: str) -> str:
    """Return a file's text, UTF-8 whatever the locale."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{option} {printable(path)}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{option} {printable(path)}: not UTF-8 at byte {error.start}: convert it, for example with iconv"
        ) from None


def read_system(text: str) -> str:
    """Return the system prompt: the text itself, or what stands in @FILE."""
    return parse_prompt(read_file("-s", text[1:])) if text.startswith("@") else text


def varies(user: Template, system: Template | None, fields: Mapping[str, Any]) -> bool:
    """Return whether anything of a request comes from its record."""
    templates = [user, system] if system else [user]
    return any(each.placeholders for each in templates) or any(isinstance(each, Field) for each in fields.values())


def read_schema(path: str) -> "Schema":
    """Return the schema in a file."""
    from llmfilter.schema import Schema  # imports a library that other runs don't need

    return Schema(read_file("--schema", path).encode(), path)


def make_checks(args: Namespace, schema: "Schema | None") -> Checks:
    """Return what an answer must be."""
    fields = [name.strip() for name in args.fields.split(",")] if args.fields is not None else []
    if args.fields is not None and not all(fields):
        raise UsageError(f"-f {args.fields!r}: give names with commas between them, like -f label,score")
    if args.text and (schema or fields):
        raise UsageError("--text takes any text as the answer: leave out --schema and -f, or leave out --text")
    taken = fields if args.as_key is None else [args.as_key]
    if args.response in (taken or ["answer"] * args.text):
        raise UsageError(f"--response {printable(args.response)}: the answer has this key already: give another one")
    return Checks(schema, fields, args.as_key, args.text, args.response)


def response_format(is_text: bool, schema: "Schema | None") -> Any:
    """Return how the server is asked for JSON; None where it isn't."""
    if is_text:
        return None
    return schema.response_format() if schema else {"type": "json_object"}


def request_fields(options: list[str], response_format: Any) -> dict[str, Any]:
    """Return the fields of a request beside model and messages: what is built, then what `-o` says."""
    fields: dict[str, Any] = {"temperature": 0, "response_format": response_format}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or not key:
            raise UsageError(f"-o {option!r}: give KEY=VALUE, like -o max_tokens=500")
        if key in _BUILT:
            instead = f"use {_BUILT[key]}" if _BUILT[key] else "each row is one whole answer"
            raise UsageError(f"-o {key}=…: llmfilter sets this field itself; {instead}")
        fields[key] = parse_value(key, text)
    return {key: value for key, value in fields.items() if value is not None}


def parse_value(key: str, text: str) -> Any:
    """Return what the VALUE of `-o` stands for: a field of the record, JSON, or else text.

    JSON that Python's values can't hold (1e400, integers beyond 64 bits, lone surrogates) goes out as typed.
    """
    field = parse_field(text)
    if field is not None:
        return field
    try:
        value = parse_json(text)
    except ValueError:
        return text
    if depth(text) > _DEPTH_MOST:
        raise UsageError(f"-o {key}=…: the value is nested too deeply, in more than {_DEPTH_MOST} levels")
    return value if is_exact(text) else orjson.Fragment(one_line(text))


def open_cache(args: Namespace, environ: Mapping[str, str]) -> NoCache:
    """Return the cache that was named, or the usual one; a dry run leaves no new folder behind."""
    if args.cache == "":
        raise UsageError("--cache: the folder's name is empty: give one, or --no-cache")
    if args.no_cache:
        if args.cache is not None:
            raise UsageError("--cache and --no-cache: give one of them")
        return NoCache()
    named = args.cache or environ.get("LLMFILTER_CACHE")
    try:
        folder = cache_folder(named, environ)
        if (args.dry_run or args.to_batch) and not (folder / "data.mdb").exists():
            return NoCache()
        return Cache(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home to be found, or a loop of links
        shown = printable(named or "~/.cache/llmfilter", _NAME_MOST)
        why = (isinstance(error, OSError) and error.strerror) or printable(str(error).rstrip("."))
        raise UsageError(
            f"the cache {shown} can't be opened ({why}): give another folder with --cache, or --no-cache"
        ) from None


def cache_folder(named: str | None, environ: Mapping[str, str]) -> Path:
    """Return where the cache is; the usual place follows the XDG Base Directory Specification.

    Raise RuntimeError where a home that it needs is not known.
    """
    if named:
        return Path(named).expanduser()
    home = environ.get("XDG_CACHE_HOME", "")
    base = Path(home) if home.startswith("/") else Path("~/.cache").expanduser()
    return base / "llmfilter"


async def only_model(chat: "Chat", mask: Mask, is_dry: bool) -> str:
    """Return the server's model, if it has just one; else raise UsageError that lists them.

    is_dry: nothing else will be asked of the server.
    """
    try:
        models: list[Any] = list(await chat.models())
    except (RowError, RunError) as error:
        raise UsageError(
            f"no model was named, and the server could not be asked for one ({error})"
            f"{': give -m NAME, which needs no server' if is_dry else _advice(error)}"
        ) from None
    finally:
        await chat.close()
    names = [each for each in models if isinstance(each, str) and each.isprintable()]
    if len(names) == len(models) == 1:
        return names[0]
    shown = ", ".join(printable(mask.text(name), _NAME_MOST) for name in names[:_LISTED_MOST])
    more = ", …" if len(names) > _LISTED_MOST else ""
    raise UsageError(f"which model? Give -m NAME; the server has: {shown or 'none that can be named'}{more}")


def _advice(error: RowError | RunError) -> str:
    """Return what to do where the server can't be asked for its model."""
    if isinstance(error, RunError):
        return ""  # it says so itself
    if isinstance(error, Retryable) and error.kind in ("network", "timeout"):
        return f": {error.advice}"
    return ": check $OPENAI_API_KEY" if error.status == 403 else ": give -m NAME"


def peek_keys(stdin: int) -> list[str] | None:
    """Return the keys of the first record where stdin is a file, of which nothing is taken; else None."""
    try:
        if not stat.S_ISREG(os.fstat(stdin).st_mode):
            return None
        block = os.pread(stdin, BLOCK_BYTES, os.lseek(stdin, 0, os.SEEK_CUR))
        return list(parse_record(block.removeprefix(BOM).partition(b"\n")[0]))
    except (OSError, RowError):
        return None
