"""What was typed → what is done with each row.

Everything that is wrong with it shows here, before any row is read: as UsageError.
"""

import re
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from llmfilter.answers.checks import make_checks, response_format
from llmfilter.cache.store import open_cache
from llmfilter.errors import UsageError
from llmfilter.input.fields import request_fields
from llmfilter.input.records import peek_keys
from llmfilter.input.request import Keys, Prompt, may_vary
from llmfilter.input.template import Template, refuse_fixed
from llmfilter.modes.plan import Asking, Plan
from llmfilter.options import typed_options
from llmfilter.origin import describe_run
from llmfilter.pipeline import Mode, Run
from llmfilter.server.endpoint import Endpoint, make_endpoint
from llmfilter.server.tls import check_key_log, load_aiohttp
from llmfilter.typed import check_text, read_prompt, read_schema, read_system

if TYPE_CHECKING:
    from llmfilter.server.client import Client

_LOADING = {"--from-batch", "--cache", "--no-cache", "--stats", "--quiet"}  # what goes with --from-batch


async def prepare(args: Namespace, environ: Mapping[str, str], stdin: int) -> Callable[[Run], Mode]:
    """Return what makes the mode of a run; ask the server for its model if none was named."""
    if args.from_batch:
        return prepare_load(args, environ)
    if args.dry_run and args.to_batch:
        raise UsageError("-n and --to-batch print different things instead of sending: give one of them")
    check_text(args, environ)
    schema = read_schema(args.schema) if args.schema is not None else None
    fields = request_fields(args.option, response_format(args.text, schema))
    checks = make_checks(args, schema, fields.get("max_completion_tokens", fields.get("max_tokens")))
    if args.stream and "stream" in fields:
        raise UsageError("--stream and -o stream=false: give one of them")
    user, system = read_templates(args)
    if user and not args.image and not may_vary(user, system, fields):
        refuse_fixed(peek_keys(stdin))
    endpoint = make_endpoint(args.base_url, args.header, environ, needs_key=not is_dry(args))
    check_key_log(endpoint, environ)
    cache = open_cache(args, environ)
    model = args.model or environ.get("OPENAI_MODEL") or await ask_for_model(args, endpoint)
    prompt = Prompt(user, system, model, fields, image=args.image)
    if user and not (args.text or schema) and asks_no_json([user, *([system] if system else [])], args.option):
        prompt.notices.add("JSON", _NO_JSON)
    plan = Plan(prompt, Keys(endpoint.url, args.header, prompt.head), checks, cache)
    origin = describe_run(args, model, endpoint) if args.stats is not None else {}
    if is_dry(args):
        return partial(begin, prompt, origin, partial(make_preview, plan, None if args.to_batch else args))
    return partial(begin, prompt, origin, partial(make_asking, plan, args, endpoint))


def is_dry(args: Namespace) -> bool:
    """Return whether requests are printed instead of sent."""
    return bool(args.dry_run or args.to_batch)


def read_templates(args: Namespace) -> tuple[Template | None, Template | None]:
    """Return the templates of the user's and the system's message."""
    user = Template(read_prompt(args.prompt)) if args.prompt is not None else None
    system = Template(read_system(args.system)) if args.system is not None else None
    if args.image is not None and not user:
        raise UsageError("--image puts pictures behind the text of -p: give that; a record's own messages hold them")
    return user, system


async def ask_for_model(args: Namespace, endpoint: Endpoint) -> str:
    """Return the only model that the server has."""
    load_aiohttp(endpoint)
    from llmfilter.server.models import only_model

    return await only_model(endpoint, args.timeout, is_dry(args))


_NO_JSON = (
    "neither the prompt nor -s asks for JSON, but an answer has to be a JSON object: "
    "ask for one, or give --text for plain text"
)


def asks_no_json(templates: Sequence[Template], options: Sequence[str]) -> bool:
    """Return whether prompts have words of their own, beside the records' fields, and nothing typed says JSON."""
    prompts = b"".join([part for template in templates for part in template.parts]).decode()
    return re.search(r"[^\W\d_]", prompts) is not None and "json" not in f"{prompts}{options}".lower()


def begin(prompt: Prompt, origin: dict[str, Any], make_mode: Callable[[Run], Mode], run: Run) -> Mode:
    """Return the mode of a run that knows where its answers come from; say what is already to be said of it."""
    run.stats.run = origin
    for notice in prompt.notices.take():
        run.output.say(notice)
    return make_mode(run)


def make_asking(plan: Plan, args: Namespace, endpoint: Endpoint, run: Run) -> Mode:
    """Return the ordinary run."""
    from llmfilter.modes.ask import Ask

    def connect(run: Run) -> "Client":
        load_aiohttp(endpoint)
        from llmfilter.server.client import Client
        from llmfilter.server.exchange import Wire
        from llmfilter.server.limit.turns import Limit
        from llmfilter.server.streaming import StreamingWire

        wire = (StreamingWire if args.stream else Wire)(endpoint, args.timeout)
        limit = Limit(args.jobs, args.rpm / 60)
        return Client(wire, limit, run.stats, run.ending, run.output.say)

    return Ask(plan, Asking(connect, args.jobs, args.retries, args.reask, args.budget), run)


def make_preview(plan: Plan, dry: Namespace | None, run: Run) -> Mode:
    """Return a run that prints requests: for people (`-n`, with its arguments), or for a Batch API."""
    from llmfilter.modes.preview import Preview, Tally
    from llmfilter.modes.seen import Seen

    tally = Tally(Seen())
    if dry:
        from llmfilter.input.pictures import shorten
        from llmfilter.modes.dry_run import DryRun

        return Preview(
            plan, DryRun(tally, run.stats, dry.budget, dry.stream, shorten if plan.prompt.image else None), run
        )
    from llmfilter.modes.to_batch import ToBatch

    return Preview(plan, ToBatch(tally), run)


def prepare_load(args: Namespace, environ: Mapping[str, str]) -> Callable[[Run], Mode]:
    """Return what makes the mode that puts a Batch API's results into the cache."""
    from llmfilter.modes.from_batch import FromBatch

    for option in typed_options(args):
        if option not in _LOADING:
            raise UsageError(f"--from-batch only puts results into the cache: give {option} to the run after it")
    if args.no_cache:
        raise UsageError("--from-batch puts results into the cache: leave out --no-cache")
    return partial(FromBatch, open_cache(args, environ))
