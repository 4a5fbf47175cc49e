"""What is kept of responses, over HTTP: conversations, references, retrieval, replay, cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
import contextlib
import json
from pathlib import Path
import threading
from typing import Any

import openai
import pytest
import requests

from rest_adapter.body import RequestBody
from rest_adapter.off_loop import off_loop
from rest_adapter.openai.responses import stored_route
from rest_adapter.openai.responses.in_flight import Run
from rest_adapter.openai.responses.writer import ResponseWriter
from tests.rest_adapter.conftest import Adapter, open_adapter, wait_until
from tests.rest_adapter.openai.responses.conftest import client_of
from tests.rest_adapter.openai.responses.strict import check_event, check_resource
from tests.rest_adapter.openai.responses.test_answers import (
    LOOK,
    STOP,
    THOUGHT,
    call,
    frames_of,
    post,
)
from tests.rest_adapter.raw_http import connect, head
from tests.rest_adapter.scripted_answers import script


PNG = "data:image/png;base64,iVBORw0KGgo="


def texts_of(adapter: Adapter) -> list[str]:
    return ["".join(part.text for part in message.parts) for message in adapter.spec.messages]


def test_a_conversation_goes_on(storing_adapter: Adapter, storing: openai.OpenAI) -> None:
    first = storing.responses.create(model="demo", input="one", instructions="Be brief.")
    second = storing.responses.create(model="demo", input="two", previous_response_id=first.id)
    third = storing.responses.create(
        model="qwen-vl", input="three", previous_response_id=second.id, instructions="Be kind."
    )
    assert texts_of(storing_adapter) == ["Be kind.", "one", "one", "two", "two", "three"]
    assert third.previous_response_id == second.id
    assert third.to_dict()["store"] is True


def test_all_items_of_a_conversation_have_the_bounds_of_one_request(
    storing_adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rest_adapter.json_size.MAX_STRINGS", 1000)
    items = [{"type": "reasoning", "summary": []}] * 50 + [{"role": "user", "content": "hi"}]
    previous: dict[str, Any] = {}
    for _ in range(10):
        answer = post(storing_adapter, input=items, **previous)
        if answer.status_code != 200:
            break
        previous = {"previous_response_id": answer.json()["id"]}
    assert previous, "one request alone is within the bounds"
    assert answer.status_code == 413
    assert "The conversation has" in answer.json()["error"]["message"]


def test_calls_and_outputs_and_reasoning_go_on(
    storing_adapter: Adapter, storing: openai.OpenAI
) -> None:
    tools: Any = [LOOK, STOP]
    first = storing.responses.create(model="demo", input=script(*THOUGHT), tools=tools)
    outputs: Any = [
        {"type": "function_call_output", "call_id": call_id, "output": "done"}
        for call_id in ("call_1", "call_2")
    ]
    second = storing.responses.create(
        model="demo", input=outputs, previous_response_id=first.id, tools=tools
    )
    storing.responses.create(model="demo", input="on", previous_response_id=second.id)
    _, answer, one, two, done, last = storing_adapter.spec.messages
    assert answer.reasoning == "let me see"
    assert answer.parts[0].text == "It is red."
    assert [call.arguments_json for call in answer.tool_calls] == ['{"at": "x"}', "{}"]
    assert [one.tool_call_id, two.tool_call_id] == ["call_1", "call_2"]
    assert (done.parts[0].text, last.parts[0].text) == ("done", "on")


def test_images_go_on_as_bytes(storing_adapter: Adapter, storing: openai.OpenAI) -> None:
    content: Any = [
        {"type": "input_text", "text": "see"},
        {"type": "input_image", "image_url": PNG, "detail": "low"},
    ]
    first = storing.responses.create(model="demo", input=[{"role": "user", "content": content}])
    asked = storing_adapter.spec.messages[0]
    storing.responses.create(model="demo", input="again", previous_response_id=first.id)
    assert storing_adapter.spec.messages[0] == asked
    assert asked.parts[1].image.data


def test_a_response_that_is_not_there(storing: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        storing.responses.create(model="demo", input="x", previous_response_id="resp_none")
    assert caught.value.code == "previous_response_not_found"
    assert caught.value.param == "previous_response_id"


def test_a_failed_response_is_not_continued(
    storing_adapter: Adapter, storing: openai.OpenAI
) -> None:
    frames = frames_of(post(storing_adapter, input="fail-after 2", stream=True).text)
    failed = frames[-1]["response"]
    stored = storing.responses.retrieve(failed["id"])
    assert stored.status == "failed"
    assert stored.error is not None
    assert stored.error.code == "server_error"
    with pytest.raises(openai.BadRequestError) as caught:
        storing.responses.create(model="demo", input="x", previous_response_id=failed["id"])
    assert caught.value.param == "previous_response_id"


def test_retrieve_and_delete(storing_adapter: Adapter, storing: openai.OpenAI) -> None:
    created = storing.responses.create(model="demo", input="hello")
    retrieved = storing.responses.retrieve(created.id)
    assert retrieved.to_dict() == created.to_dict()
    check_resource(retrieved.to_dict(mode="json"))
    assert call(storing_adapter, "DELETE", f"/{created.id}").json() == {
        "id": created.id,
        "object": "response",
        "deleted": True,
    }
    with pytest.raises(openai.NotFoundError) as caught:
        storing.responses.retrieve(created.id)
    assert caught.value.code == "not_found"
    with pytest.raises(openai.NotFoundError):
        storing.responses.delete(created.id)


def test_store_false_keeps_nothing(storing_adapter: Adapter, storing: openai.OpenAI) -> None:
    created = storing.responses.create(model="demo", input="hello", store=False)
    assert created.to_dict()["store"] is False
    with pytest.raises(openai.NotFoundError):
        storing.responses.retrieve(created.id)
    reference: Any = [{"type": "item_reference", "id": created.output[0].id}]
    with pytest.raises(openai.BadRequestError) as caught:
        storing.responses.create(model="demo", input=reference)
    assert caught.value.param == "input[0].id"


def test_what_clients_do_not_read_is_bounded() -> None:
    """Pages with images count as bodies until they have been read."""
    image = "data:image/png;base64," + "A" * 8 * 2**20
    content: Any = [{"type": "input_image", "image_url": image}]
    with open_adapter(response_store="memory", body_budget_mib=64) as adapter:
        created = post(adapter, input=[{"role": "user", "content": content}])
        path = f"/{created.json()['id']}/input_items"
        request = head("GET", f"/v1/responses{path}", "authorization: Bearer none")

        def page() -> requests.Response:
            return call(adapter, "GET", path)

        with contextlib.ExitStack() as silent:
            for _ in range(6):
                silent.enter_context(connect(adapter)).sendall(request)
            wait_until(lambda: page().status_code == 429)
            assert post(adapter, input="small").status_code == 200
        wait_until(lambda: page().status_code == 200)
        assert page().json()["data"][0]["content"][0]["image_url"] == image


@pytest.mark.parametrize("stream", [True, False])
def test_a_stream_can_be_replayed(
    storing_adapter: Adapter, storing: openai.OpenAI, stream: bool
) -> None:
    body: dict[str, Any] = {"input": script(*THOUGHT), "tools": [LOOK, STOP]}
    answer = post(storing_adapter, stream=stream, **body)
    frames = frames_of(answer.content.decode()) if stream else []
    response_id = frames[-1]["response"]["id"] if stream else answer.json()["id"]
    path = f"/{response_id}"
    replayed = call(storing_adapter, "GET", path, params={"stream": "true"}).content.decode()
    assert replayed.endswith("data: [DONE]\n\n")
    again = frames_of(replayed)
    if stream:
        assert again == frames
    for frame in again:
        check_event(frame)
    query = {"stream": "true", "starting_after": "3"}
    later = frames_of(call(storing_adapter, "GET", path, params=query).content.decode())
    assert later == again[4:]
    events = list(storing.responses.retrieve(response_id, stream=True, starting_after=20))
    assert [event.sequence_number for event in events] == list(range(21, len(again)))


def test_input_items(storing: openai.OpenAI) -> None:
    history: Any = [
        {"role": "system", "content": "sys"},
        {"role": "user", "content": [{"type": "input_image", "image_url": PNG}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"role": "assistant", "content": "hello", "id": "msg_mine", "phase": "commentary"},
        {"type": "function_call", "call_id": "c", "name": "look", "arguments": ""},
        {"type": "function_call_output", "call_id": "c", "output": "out"},
        {"type": "message", "role": "user", "content": "last"},
    ]
    created = storing.responses.create(model="demo", input=history)
    listed = list(storing.responses.input_items.list(created.id, limit=3, order="asc"))
    assert [item.type for item in listed] == [
        *("message", "message", "reasoning", "message"),
        *("function_call", "function_call_output", "message"),
    ]
    assert len({item.id for item in listed}) == 7
    assert listed[3].id == "msg_mine"
    newest = storing.responses.input_items.list(created.id, limit=2)
    assert [item.id for item in newest.data] == [listed[6].id, listed[5].id]
    assert newest.has_more
    same: Any = [item.to_dict() for item in listed]
    again = storing.responses.create(model="demo", input=same, store=False)
    assert again.output_text == "last"


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "101"}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"order": "up"}, "order"),
        ({"after": "msg_none"}, "after"),
    ],
)
def test_bad_pages(storing_adapter: Adapter, query: dict[str, str], param: str) -> None:
    created = post(storing_adapter).json()
    answer = call(storing_adapter, "GET", f"/{created['id']}/input_items", params=query)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_references_to_items(storing_adapter: Adapter, storing: openai.OpenAI) -> None:
    first = storing.responses.create(model="demo", input=script(*THOUGHT[:4]))
    references: Any = [{"type": "item_reference", "id": item.id} for item in first.output]
    question: Any = {"role": "user", "content": "and now?"}
    storing.responses.create(model="demo", input=[question, *references, question])
    answer = storing_adapter.spec.messages[1]
    assert (answer.reasoning, answer.parts[0].text) == ("let me see", "It is red.")


def cancel_while_it_runs(adapter: Adapter) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Cancels a stream that hangs: its frames, and what the request to cancel got."""
    body = {"model": "demo", "input": "hang", "stream": True}
    answer = call(adapter, "POST", "", json=body, stream=True)
    lines = answer.iter_lines()
    first = next(json.loads(line[6:]) for line in lines if line.startswith(b"data: "))
    cancelled = call(adapter, "POST", f"/{first['response']['id']}/cancel").json()
    rest = [line for line in lines if line.startswith(b"data: {")]
    return [first, *(json.loads(line[6:]) for line in rest)], cancelled


def test_cancel(storing_adapter: Adapter, storing: openai.OpenAI) -> None:
    frames, cancelled = cancel_while_it_runs(storing_adapter)
    assert cancelled["status"] == "cancelled"
    assert frames[-1]["response"] == cancelled
    check_resource(cancelled)
    assert storing.responses.retrieve(cancelled["id"]).status == "cancelled"
    wait_until(lambda: storing_adapter.seen.cancelled == 1)
    with pytest.raises(openai.BadRequestError):
        storing.responses.create(model="demo", input="x", previous_response_id=cancelled["id"])


def test_only_what_runs_can_be_cancelled(storing: openai.OpenAI) -> None:
    created = storing.responses.create(model="demo", input="hello")
    with pytest.raises(openai.BadRequestError, match="completed"):
        storing.responses.cancel(created.id)
    with pytest.raises(openai.NotFoundError):
        storing.responses.cancel("resp_none")


def test_a_response_in_progress_can_be_looked_at(storing_adapter: Adapter) -> None:
    body = {"model": "demo", "input": "hang", "stream": True}
    with call(storing_adapter, "POST", "", json=body, stream=True) as answer:
        lines = answer.iter_lines()
        first = next(json.loads(line[6:]) for line in lines if line.startswith(b"data: "))
        found = call(storing_adapter, "GET", f"/{first['response']['id']}").json()
        assert found["status"] == "in_progress"
    wait_until(lambda: storing_adapter.seen.running == 0)
    assert storing_adapter.seen.cancelled == 1, "a client that leaves cancels its response"
    path = f"/{found['id']}"
    wait_until(lambda: call(storing_adapter, "GET", path).status_code == 404)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_response_in_progress_counts_and_is_paced(
    storing_adapter: Adapter, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """It repeats what its request had, whether its reader reads it or not."""
    taken: list[int] = []
    sizes: list[int] = []
    take = "take" if method == "GET" else "take_for_answer"

    async def noted(size: int, work: Callable[..., Any], *args: Any) -> Any:
        sizes.append(size)
        return await off_loop(size, work, *args)

    body = {"model": "demo", "input": "hang", "stream": True, "instructions": "x" * 200_000}
    with call(storing_adapter, "POST", "", json=body, stream=True) as answer:
        lines = answer.iter_lines()  # when it is gone, the connection is closed
        path = f"/{first_of(lines)['id']}"
        monkeypatch.setattr(RequestBody, take, lambda _, count: taken.append(count))
        monkeypatch.setattr(stored_route, "off_loop", noted)
        found = call(storing_adapter, method, path if method == "GET" else f"{path}/cancel")
    assert found.status_code == 200
    assert len(found.content) in taken
    assert min(sizes) > 200_000
    assert found.json()["instructions"] == body["instructions"]


def test_a_response_in_progress_is_known_by_every_route(storing_adapter: Adapter) -> None:
    body = {"model": "demo", "input": "hang", "stream": True}
    with call(storing_adapter, "POST", "", json=body, stream=True) as answer:
        lines = answer.iter_lines()  # when it is gone, the connection is closed
        path = f"/{first_of(lines)['id']}"
        for refused, param in (
            (call(storing_adapter, "GET", f"{path}/input_items"), "response_id"),
            (call(storing_adapter, "GET", f"{path}?stream=true"), "stream"),
            (
                post(storing_adapter, input="x", previous_response_id=path[1:]),
                "previous_response_id",
            ),
        ):
            error = refused.json()["error"]
            assert (refused.status_code, error["param"]) == (400, param)
            assert "in progress" in error["message"].replace("_", " ")


def first_of(lines: Iterator[bytes]) -> Any:
    """The response, as the first event of a stream has it."""
    return next(json.loads(line[6:]) for line in lines if line.startswith(b"data: "))["response"]


def is_gone(adapter: Adapter, response_id: str) -> bool:
    path = f"/{response_id}"
    looks = (("GET", path), ("GET", f"{path}/input_items"))
    uses = (*looks, ("DELETE", path), ("POST", f"{path}/cancel"))
    return {call(adapter, method, at).status_code for method, at in uses} == {404}


def test_a_response_in_progress_that_is_deleted_is_not_stored(storing_adapter: Adapter) -> None:
    body = {"model": "demo", "input": "slow 1", "stream": True}
    with call(storing_adapter, "POST", "", json=body, stream=True) as answer:
        lines = answer.iter_lines()
        response_id = first_of(lines)["id"]
        deleted = call(storing_adapter, "DELETE", f"/{response_id}").json()
        assert deleted == {"id": response_id, "object": "response", "deleted": True}
        assert is_gone(storing_adapter, response_id)
        rest = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
        assert rest[-1]["type"] == "response.completed", "its client still gets it"
    assert is_gone(storing_adapter, response_id)


async def test_deleting_and_keeping_at_once_keeps_nothing() -> None:
    store: set[str] = set()
    writes = asyncio.Event()
    run = Run("", ResponseWriter.__new__(ResponseWriter), lambda: None)

    async def keep() -> None:
        await writes.wait()
        store.add("it")

    keeping = asyncio.create_task(run.keep(keep))
    await asyncio.sleep(0)
    deleting = asyncio.create_task(run.delete())
    await asyncio.sleep(0)
    assert not deleting.done(), "the caller then deletes what was kept"
    writes.set()
    await asyncio.gather(keeping, deleting)
    assert store == {"it"}
    store.clear()
    await run.keep(keep)
    assert not store


def test_callers_do_not_see_each_other(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one\nother\n")
    with open_adapter(response_store="memory", api_key_file=str(keys)) as adapter:
        mine, theirs = client_of(adapter, "one"), client_of(adapter, "other")
        created = mine.responses.create(model="demo", input="secret")
        assert mine.responses.retrieve(created.id).output_text == "secret"
        for use in (
            lambda: theirs.responses.retrieve(created.id),
            lambda: theirs.responses.delete(created.id),
            lambda: theirs.responses.cancel(created.id),
            lambda: theirs.responses.input_items.list(created.id),
        ):
            with pytest.raises(openai.NotFoundError):
                use()
        with pytest.raises(openai.BadRequestError):
            theirs.responses.create(model="demo", input="x", previous_response_id=created.id)
        reference: Any = [{"type": "item_reference", "id": created.output[0].id}]
        with pytest.raises(openai.BadRequestError):
            theirs.responses.create(model="demo", input=reference)
        mine.close()
        theirs.close()


def test_a_file_is_there_after_a_restart(tmp_path: Path) -> None:
    path = str(tmp_path / "responses.sqlite")
    with open_adapter(response_store=path) as adapter, client_of(adapter) as client:
        first = client.responses.create(model="demo", input="one")
    with open_adapter(response_store=path) as adapter, client_of(adapter) as client:
        assert client.responses.retrieve(first.id).output_text == "one"
        reference: Any = [{"type": "item_reference", "id": first.output[0].id}]
        client.responses.create(model="demo", input=reference, previous_response_id=first.id)
        assert texts_of(adapter) == ["one", "one", "one"]


def test_bounds_come_from_the_settings() -> None:
    with (
        open_adapter(response_store="memory", response_store_entries=2) as adapter,
        client_of(adapter) as client,
    ):
        ids = [client.responses.create(model="demo", input=text).id for text in "abc"]
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(ids[0])
        assert client.responses.retrieve(ids[2]).output_text == "c"


@pytest.mark.parametrize(
    ("method", "path", "body", "param"),
    [
        ("POST", "", {"store": True}, "store"),
        ("POST", "", {"previous_response_id": "resp_x"}, "previous_response_id"),
        ("GET", "/resp_x", None, "response_id"),
        ("DELETE", "/resp_x", None, "response_id"),
        ("GET", "/resp_x/input_items", None, "response_id"),
        ("POST", "/resp_x/cancel", None, "response_id"),
    ],
)
def test_without_a_store(
    adapter: Adapter, method: str, path: str, body: dict[str, Any] | None, param: str
) -> None:
    document = None if body is None else {"model": "demo", "input": "x"} | body
    answer = call(adapter, method, path, json=document)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", param)
    assert "--response-store" in error["message"]
    assert adapter.seen.calls == 0


def test_recent_items_are_known_without_a_store(adapter: Adapter, client: openai.OpenAI) -> None:
    """As `@ai-sdk/openai` sends them from the second turn on: it takes an unset `store` for true."""
    first = client.responses.create(model="demo", input="one")
    turn: Any = [
        {"role": "user", "content": "one"},
        {"type": "item_reference", "id": first.output[0].id},
        {"role": "user", "content": "two"},
    ]
    client.responses.create(model="demo", input=turn)
    assert texts_of(adapter) == ["one", "one", "two"]
    assert first.to_dict()["store"] is False


def test_many_at_once(storing_adapter: Adapter) -> None:
    ids: list[str] = []

    def work(number: int) -> None:
        ids.append(post(storing_adapter, input=f"n{number}", stream=False).json()["id"])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for response_id in ids:
        assert call(storing_adapter, "GET", f"/{response_id}").status_code == 200


def test_compaction(storing_adapter: Adapter, storing: openai.OpenAI) -> None:
    history: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
    ]
    compacted = post(storing_adapter, "/compact", input=history).json()
    assert compacted["object"] == "response.compaction"
    assert "Summarise" in texts_of(storing_adapter)[-1]
    kinds = [item.get("role", item["type"]) for item in compacted["output"]]
    assert kinds == ["developer", "user", "compaction"]
    later = [*compacted["output"], {"role": "user", "content": "three"}]
    storing.responses.create(model="demo", input=later)
    assert "Summarise" in texts_of(storing_adapter)[-2], "the fake service echoes the question"
    assert texts_of(storing_adapter)[-1] == "three"


def test_compaction_of_a_stored_response(storing_adapter: Adapter, storing: openai.OpenAI) -> None:
    first = storing.responses.create(model="demo", input="one")
    body = {"model": "demo", "previous_response_id": first.id}
    compacted = call(storing_adapter, "POST", "/compact", json=body).json()
    assert [item["type"] for item in compacted["output"]] == ["message", "compaction"]
    without = call(storing_adapter, "POST", "/compact", json={"input": "x"})
    assert (without.status_code, without.json()["error"]["param"]) == (400, "model")


def test_a_foreign_compaction_is_refused(client: openai.OpenAI) -> None:
    item: Any = {"type": "compaction", "encrypted_content": "gAAAAABo"}
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="demo", input=[item, {"role": "user", "content": "x"}])
    assert caught.value.param == "input[0].encrypted_content"
