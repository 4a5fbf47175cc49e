"""How many images are fetched at a time, and that neither a host nor a caller stops the others."""

from __future__ import annotations

import asyncio
from collections import Counter
import contextlib

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
import pytest

from inference_service.media.places import FetchPlaces
from tests.support.line_counts import lines_of
from tests.support.media_hosts import FakeResolver, fetcher, says, server


async def hold(places: FetchPlaces, caller: str, host: str, held: asyncio.Event) -> None:
    async with places.taken(host, caller=caller):
        held.set()
        await asyncio.sleep(3600)


async def test_a_host_and_a_caller_leave_half_of_the_places_to_others():
    places = FetchPlaces(8)
    tasks = [asyncio.ensure_future(hold(places, "", "hangs", asyncio.Event())) for _ in range(20)]
    await asyncio.sleep(0)
    async with asyncio.timeout(20):
        async with places.taken("good"):
            pass
        greedy = [
            asyncio.ensure_future(hold(places, "greedy", f"h{n}", asyncio.Event()))
            for n in range(9)
        ]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with places.taken("h1", caller="modest"):
            pass
        for task in greedy:
            task.cancel()
        await asyncio.gather(*greedy, return_exceptions=True)
        async with asyncio.TaskGroup() as group:
            for _ in range(50):
                group.create_task(asyncio.wait_for(hold_briefly(places), 20))


async def test_one_request_leaves_places_to_others():
    places = FetchPlaces(64)
    async with contextlib.AsyncExitStack() as stack:
        for n in range(8):
            await stack.enter_async_context(places.taken(f"h{n}", request="greedy"))
        waiting = asyncio.ensure_future(
            stack.enter_async_context(places.taken("h9", request="greedy"))
        )
        async with asyncio.timeout(20):
            await stack.enter_async_context(places.taken("h9", request="modest"))
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


@pytest.mark.parametrize("wide", ["hosts", "requests"])
def test_whoever_waits_costs_the_others_nothing(wide: str) -> None:
    """A request may have hundreds of images, each on a host of its own, and there are hundreds of requests."""

    def steps(count: int) -> int:
        async def main() -> None:
            places = FetchPlaces(64)

            async def one(number: int) -> None:
                host, request = (f"h{number}", "r") if wide == "hosts" else ("h", f"r{number % 30}")
                async with places.taken(host, caller="a", request=request):
                    await asyncio.sleep(0)

            await asyncio.gather(*(one(number) for number in range(count)))

        return lines_of(lambda: asyncio.run(main()), "inference_service.media.places")

    assert steps(800) < 5 * steps(200)


async def test_requests_and_hosts_take_turns() -> None:
    places = FetchPlaces(2)  # one for a host
    order: list[str] = []

    async def one(request: str, host: str) -> None:
        async with places.taken(host, request=request):
            order.append(request)
            await asyncio.sleep(0)

    greedy = [("greedy", host) for host in "xy" * 10]
    tasks = [asyncio.ensure_future(one(*fetch)) for fetch in (*greedy, ("b", "x"), ("c", "y"))]
    async with asyncio.timeout(20):
        await asyncio.gather(*tasks)
    assert max(order.index("b"), order.index("c")) <= 5


async def hold_briefly(places: FetchPlaces) -> None:
    async with places.taken("host", caller="caller", request="1"):
        await asyncio.sleep(0)


_FETCHES = st.lists(
    st.tuples(
        st.sampled_from(["", "", "a", "b", "c"]),
        st.sampled_from(["x", "y", "z"]),
        st.sampled_from(["", "1", "2"]),
        st.integers(0, 3),  # turns of the loop that it takes
        st.none() | st.integers(0, 6),  # turn in which it is cancelled
    ),
    max_size=60,
)


@hypothesis_settings(deadline=None)
@given(st.integers(1, 40), _FETCHES)
def test_limits_hold_and_everybody_gets_a_turn(maximum, fetches):
    running: Counter[tuple[str, str]] = Counter()
    half = max(1, maximum // 2)

    async def one(places: FetchPlaces, caller: str, host: str, request: str, turns: int) -> str:
        async with places.taken(host, caller=caller, request=request):
            keys = [("all", ""), ("host", host), ("caller", caller), ("request", request)]
            running.update(keys)
            assert running["all", ""] <= maximum
            assert running["host", host] <= half
            assert not caller or running["caller", caller] <= half
            assert not request or running["request", request] <= 8
            try:
                for _ in range(turns):
                    await asyncio.sleep(0)
            finally:
                running.subtract(keys)
        return "done"

    async def main() -> None:
        places = FetchPlaces(maximum)
        loop = asyncio.get_running_loop()
        tasks = []
        for caller, host, request, turns, cancelled in fetches:
            task = asyncio.ensure_future(one(places, caller, host, request, turns))
            tasks.append(task)
            if cancelled is not None:
                await_turns(loop, cancelled, task)
        async with asyncio.timeout(20):
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result, (*_, cancelled) in zip(results, fetches, strict=True):
            assert result == "done" or (
                cancelled is not None and isinstance(result, asyncio.CancelledError)
            )
        # all places are free again
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            for n in range(maximum):
                group.create_task(one(places, "", f"h{n}", "", 3))

    asyncio.run(main())


def await_turns(loop: asyncio.AbstractEventLoop, turns: int, task: asyncio.Task[str]) -> None:
    """Cancels a task after some turns of the loop."""
    if turns:
        loop.call_soon(await_turns, loop, turns - 1, task)
    else:
        task.cancel()


@pytest.mark.usefixtures("dialled")
async def test_hosts_that_hang_stop_neither_other_hosts_nor_numeric_addresses():
    async def hangs(request: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(3600)

    async def resolver(host: str, port: int) -> list[str]:
        if host.startswith("hung"):
            await asyncio.sleep(3600)
        return ["127.0.0.1"]

    async with (
        server(hangs) as hung,
        server(says("HTTP/1.1 200 OK", b"ok")) as good,
        asyncio.timeout(30),
    ):
        service = fetcher(".example:1", f"127.0.0.1:{hung}", f"127.0.0.1:{good}", max_fetches=32)
        service._resolve = resolver
        urls = [f"http://127.0.0.1:{hung}/{n}" for n in range(40)]
        urls += [f"http://hung{n}.example:1/" for n in range(10)]
        tasks = [asyncio.ensure_future(service.fetch(url, field="f")) for url in urls]
        await asyncio.sleep(0.1)
        assert await service.fetch(f"http://127.0.0.1:{good}/", field="f") == b"ok"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.usefixtures("dialled")
async def test_numeric_addresses_need_no_resolver():
    async with server(says("HTTP/1.1 200 OK", b"ok")) as port:
        resolver = FakeResolver()
        service = fetcher(f"127.0.0.1:{port}", resolver=resolver)
        assert await service.fetch(f"http://127.0.0.1:{port}/", field="f") == b"ok"
    assert resolver.asked == []
