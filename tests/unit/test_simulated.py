"""simulated: the virtual clock itself."""

import asyncio

import pytest
from simulated import run


def test_the_clock_jumps_to_the_next_timer() -> None:
    async def main() -> float:
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()

    assert run(main()) == 3600


def test_when_all_wait_for_ever_it_fails_instead_of_hanging() -> None:
    async def main() -> None:
        await asyncio.sleep(1)
        await asyncio.Event().wait()

    with pytest.raises(AssertionError, match="all wait"):
        run(main())
