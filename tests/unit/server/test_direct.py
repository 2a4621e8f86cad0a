"""quick: whether requests go the quick way through aiohttp. What goes that way is tested on the program."""

import asyncio

import pytest

from llmfilter.server import direct
from llmfilter.server.endpoint import make_endpoint
from llmfilter.server.exchange import Wire


def is_quick(base_url: str = "http://127.0.0.1:9/v1", **environ: str) -> bool:
    """Whether a run over a server goes the quick way."""

    async def look() -> bool:
        wire = Wire(make_endpoint(base_url, [], environ, needs_key=False), 1.0)
        await wire.close()
        return wire.is_quick

    return asyncio.run(look())


def test_the_inside_of_the_aiohttp_that_is_here_is_known() -> None:
    assert is_quick()


def test_through_a_proxy_requests_go_the_sessions_way() -> None:
    assert not is_quick("http://llm.test/v1", http_proxy="http://127.0.0.1:9")


def test_a_version_that_was_not_read_goes_the_sessions_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "_MINOR", "3.99")
    assert not is_quick()


@pytest.mark.parametrize("name", ["_RESPONSE_PARAMS", "_PARSER_PARAMS"])
def test_an_inside_that_has_changed_goes_the_sessions_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(getattr(direct, name), "not_there", 1)
    assert not is_quick()


@pytest.mark.parametrize("attribute", ["abort", "should_close", "transport", "_parser"])
def test_an_attribute_that_is_gone_goes_the_sessions_way(attribute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Changed(direct.ResponseHandler):  # type: ignore[name-defined, misc]
        def __getattribute__(self, name: str) -> object:
            if name == attribute:
                raise AttributeError(name)
            return super().__getattribute__(name)

    monkeypatch.setattr(direct, "ResponseHandler", Changed)
    assert not is_quick()
