"""The server's list of models, asked for where none was named."""

from typing import Any

from llmfilter.errors import Retryable, RowError, RunError, UsageError
from llmfilter.jsontext import parse_json
from llmfilter.server.client import body_of, clean
from llmfilter.server.endpoint import Endpoint
from llmfilter.server.exchange import Wire
from llmfilter.words import printable

TIMEOUT_S = 30.0  # a list takes no thinking
_LISTED_MOST = 20
_NAME_CHARS_MOST = 100


async def only_model(endpoint: Endpoint, timeout_s: float, is_dry: bool) -> str:
    """Return the server's model, if it has just one; else raise UsageError that lists them.

    is_dry: nothing else will be asked of the server.
    """
    try:
        names = await list_models(endpoint, min(timeout_s, TIMEOUT_S))
    except (RowError, RunError) as error:
        raise UsageError(
            f"no model was named, and the server could not be asked for one ({error})"
            f"{': give -m NAME, which needs no server' if is_dry else _advice(error)}"
        ) from None
    models = [each for each in names if isinstance(each, str) and each.isprintable()]
    if len(models) == len(names) == 1:
        return models[0]
    shown = ", ".join(printable(endpoint.mask.text(name), _NAME_CHARS_MOST) for name in models[:_LISTED_MOST])
    more = ", …" if len(models) > _LISTED_MOST else ""
    raise UsageError(f"which model? Give -m NAME; the server has: {shown or 'none that can be named'}{more}")


async def list_models(endpoint: Endpoint, timeout_s: float) -> list[Any]:
    """Return what the server lists as the names of its models; raise RowError or RunError."""
    wire = Wire(endpoint, timeout_s)
    try:
        document = parse_json(body_of(await wire.models(), endpoint.mask))
        return [model["id"] for model in document["data"]]
    except (RowError, RunError) as fault:
        raise clean(fault, endpoint.mask) from None
    except (ValueError, TypeError, LookupError):
        raise RowError("server", "it sent no list of models") from None
    finally:
        await wire.close()


def _advice(error: RowError | RunError) -> str:
    """Return what to do where the server can't be asked for its model."""
    if isinstance(error, RunError):
        return ""  # it says so itself
    if isinstance(error, Retryable) and error.kind in ("network", "timeout"):
        return f": {error.advice}"
    return ": check $OPENAI_API_KEY" if error.status == 403 else ": give -m NAME"
