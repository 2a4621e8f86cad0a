"""What was typed → what is done with each row.

Everything that is wrong with it shows here, before any row is read: as UsageError.
"""

from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llmfilter.answers.checks import Checks, make_checks
from llmfilter.cache.store import NoCache, open_cache
from llmfilter.errors import UsageError
from llmfilter.input.records import peek_keys
from llmfilter.input.request import Keys, Prompt, request_fields, response_format
from llmfilter.input.template import Template, parse_prompt, refuse_fixed, varies
from llmfilter.modes.seen import Seen
from llmfilter.server.endpoint import make_endpoint
from llmfilter.stats import Stats
from llmfilter.words import printable

if TYPE_CHECKING:
    from llmfilter.answers.schema import Schema
    from llmfilter.modes.dry_run import Preview
    from llmfilter.server.client import Chat


class Job(NamedTuple):
    """What is done with each row.

    connect: makes the client when the first row needs it, since loading it takes longer than a run
    that the cache can answer.
    """

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
        from llmfilter.modes.from_batch import make_loading

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
        from llmfilter.server.client import Chat
        from llmfilter.server.limit.limit import Limit

        return Chat(endpoint, args.timeout, Limit(args.jobs, args.rpm / 60), stats)

    model = args.model or environ.get("OPENAI_MODEL")
    if not model:
        from llmfilter.server.client import only_model

        model = await only_model(connect(), endpoint.mask, is_dry)
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


def make_preview(args: Namespace, cache: NoCache) -> "Preview | None":
    """Return what prints requests instead of sending them, if that was asked for."""
    if not (args.dry_run or args.to_batch):
        return None
    from llmfilter.modes.dry_run import DryRun
    from llmfilter.modes.to_batch import ToBatch

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


def read_schema(path: str) -> "Schema":
    """Return the schema in a file."""
    from llmfilter.answers.schema import Schema

    return Schema(read_file("--schema", path).encode(), path)
