"""Lanes: few of a kind at work, the rest wait in order, and what is too much is refused at once."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest

from serving.service.fair_queue import FairQueue, Lane, decision_lanes
from serving.service.http_rules import BufferedJsonBody


class Work:
    """An app whose every request lasts until it is let go; `order` is who was worked on."""

    def __init__(self):
        self.order, self.at_work, self.most, self.free = [], 0, 0, asyncio.Event()

    async def __call__(self, scope, receive, send):
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        self.order.append((scope["path"], (await receive())["body"]))
        await self.free.wait()
        self.at_work -= 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


async def send_one(app, path, body=b"{}", send=None):
    """Return status, headers and body of the response."""
    messages = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def collect(message):
        messages.append(message)

    await app({"type": "http", "path": path, "method": "POST", "headers": []}, receive, send or collect)
    return (messages[0]["status"], dict(messages[0]["headers"]), messages[1]["body"]) if messages else None


@asynccontextmanager
async def sending(app, *paths):
    """Yield requests under way; at the end they are released and have ended."""
    sent = [asyncio.ensure_future(send_one(app, path)) for path in paths]
    await settled()
    yield sent
    app._app.free.set()
    await asyncio.wait(sent)


async def settled():
    for _ in range(20):
        await asyncio.sleep(0)


def test_one_kind_never_waits_for_another_however_many_requests_come():
    async def check():
        app = FairQueue(Work(), {"/observe": Lane(2, 8), "/decide": Lane(2, 500)})
        async with sending(app, *["/decide"] * 200) as sent:
            assert app._app.at_work == 2
            observed = asyncio.ensure_future(send_one(app, "/observe"))
            await settled()
            assert [path for path, _ in app._app.order] == ["/decide", "/decide", "/observe"]
            app._app.free.set()
            assert (await observed)[0] == 200
            assert [(await one)[0] for one in sent] == [200] * 200
        assert app._app.most == 3

    asyncio.run(check())


def test_what_a_lane_has_no_place_for_is_a_429_at_once_with_retry_after():
    async def check():
        app = FairQueue(Work(), {"/decide": Lane(max_running=1, max_waiting=2)})
        async with sending(app, *["/decide"] * 3):
            status, headers, body = await asyncio.wait_for(send_one(app, "/decide"), 0.5)
            assert (status, headers[b"retry-after"]) == (429, b"1")
            content = json.loads(body)
            assert (content["kind"], content["fields"]) == ("TooManyRequests", [])
            assert "1 of this kind run and 2 wait" in content["error"]

    asyncio.run(check())


def test_a_wait_that_is_too_long_is_a_429_and_leaves_no_place_taken():
    async def check():
        app = FairQueue(Work(), {"/decide": Lane(max_running=1, max_waiting=5)}, wait_s=0.05)
        async with sending(app, "/decide"):
            assert (await send_one(app, "/decide"))[0] == 429
        assert (await send_one(app, "/decide"))[0] == 200
        assert app._app.order == [("/decide", b"{}")] * 2

    asyncio.run(check())


def test_a_caller_that_is_cut_off_while_it_waits_or_works_gives_its_place_back():
    async def check():
        app = FairQueue(Work(), {"/decide": Lane(max_running=1, max_waiting=5)})
        async with sending(app, "/decide", "/decide", "/decide") as (first, second, _):
            second.cancel()
            first.cancel()
            await settled()
            assert app._app.at_work == 2  # the first, whose end Work never saw, and the third
        assert (await send_one(app, "/decide"))[0] == 200

    asyncio.run(check())


def test_a_slow_sender_and_a_slow_reader_take_no_place():
    async def check():
        work = Work()
        app = BufferedJsonBody(FairQueue(work, {"/decide": Lane(max_running=1, max_waiting=0)}))
        work.free.set()
        never = asyncio.Event()

        async def slow_body():
            await never.wait()

        async def slow_reader(message):
            await never.wait()

        scope = {"type": "http", "path": "/decide", "method": "POST", "headers": []}
        slow = [
            asyncio.ensure_future(app(scope, slow_body, slow_reader)),
            asyncio.ensure_future(send_one(app, "/decide", send=slow_reader)),
        ]
        await settled()
        assert (await asyncio.wait_for(send_one(app, "/decide"), 1))[0] == 200
        for task in slow:
            task.cancel()

    asyncio.run(check())


@pytest.mark.parametrize("path", ["/ready", "/readyz", "/livez", "/metrics", "/unknown"])
def test_probes_wait_for_nothing(path):
    async def check():
        app = FairQueue(Work(), {**decision_lanes(), "/decide": Lane(1, 0)})
        async with sending(app, "/decide", *[path] * 50):
            assert app._app.at_work == 51

    asyncio.run(check())


def test_every_call_that_changes_something_has_a_lane_of_its_own():
    lanes = decision_lanes()
    own = [lanes[path] for path in ("/observe", "/outcome", "/fill", "/decide", "/status")]
    assert len({id(lane) for lane in own}) == len(own)
