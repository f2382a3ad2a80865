"""Whatever is sent, the server answers in OpenAI's shape, blames itself for nothing, and goes on."""

import itertools
import json
import re
from collections import Counter

import pytest
from helpers import tiny_gpt, trained
from hostile import RAW, hostile_requests
from serving import raw, serving, wait_for

SHAPE = {"message", "type", "param", "code"}


AMID = [each for each in RAW if b"chunked" in each]  # what breaks off amid its body


def statuses(said: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"^HTTP/1\.1 (\d{3})", said, re.M)]


def check(asked: bytes, said: bytes) -> int:
    """The status of a reply, 0 for none, which only what is no request gets. What is refused says why."""
    found = statuses(said)
    assert all(status < 500 for status in found), (asked[:300], said[:300])
    head, _, body = said.partition(b"\r\n\r\n")
    if found and found[0] >= 400 and b"application/json" in head and body:
        error = json.loads(body)["error"]
        assert set(error) == SHAPE and error["message"] and error["type"], (asked[:300], said)
        assert isinstance(error["message"], str) and len(error["message"]) <= 500
    return found[0] if found else 0


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda: trained("topk"), lambda: tiny_gpt(max_context=64)], ids=["pico", "twin"])
def test_two_hundred_requests_in_bad_faith(make, caplog):
    model = make()
    with serving(model) as served:
        body = dict(model="tiny", prompt="one two", temperature=0, max_tokens=20)
        before = served.post("/v1/completions", body).json()["choices"]
        answered = Counter()
        for asked in itertools.islice(hostile_requests(7), 100):
            answered[check(asked, raw(served.address, asked))] += 1
        assert answered[400] > 30 and {200, 404, 405, 415} <= set(answered), answered
        assert served.post("/v1/completions", body).json()["choices"] == before
        for asked in AMID:
            assert statuses(raw(served.address, asked)) == [400]
        wait_for(lambda: not served.service.open)
    assert not [record for record in caplog.records if record.exc_info], "no traceback in the server's log"


@pytest.mark.parametrize(
    "field, value",
    [
        ("model", 3), ("model", None), ("prompt", {}), ("prompt", []), ("prompt", [["x"]]), ("prompt", [264]),
        ("prompt", [-1]), ("prompt", [[1], [2**70]]), ("max_tokens", 0), ("max_tokens", "5"), ("max_tokens", 5.5),
        ("max_tokens", 10**30), ("temperature", -1), ("temperature", "hot"), ("temperature", 1e9), ("top_p", 0),
        ("top_p", 2), ("n", 0), ("n", 10**9), ("n", True), ("stop", 5), ("stop", ["x"] * 65), ("stop", ""),
        ("stop", "x" * 257), ("seed", 2**64), ("seed", "1"), ("stream", "yes"), ("logprobs", 21), ("logprobs", -1),
        ("echo", True), ("best_of", 2), ("suffix", "x"), ("frequency_penalty", 0.5), ("logit_bias", {"5": 1}),
        ("pico", {"trace": 1}), ("pico", {"unknown": 1}), ("pico", {"top_k": -1}), ("stream_options", 5),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(field, value, server):
    answer = server.complete(**{field: value})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == field
    assert field in answer.json()["error"]["message"]


def test_numbers_that_json_does_not_know_are_refused_wherever_they_stand(server):
    for number in b"NaN", b"-Infinity":
        body = b'{"model": "tiny", "prompt": "a", "max_tokens": 1, "user": %s}' % number
        answer = server.client.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400


@pytest.fixture(scope="module")
def server():
    with serving(trained("topk")) as server:
        yield server
