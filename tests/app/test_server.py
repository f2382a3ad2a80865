"""The server as its users meet it: OpenAI's own client, a plain one, and the command."""

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys

import openai
import pytest
from command_line import ROOT, refused
from helpers import texts, tiny_gpt, trained
from serving import raw, serving, wait_for

from pico.app.api import Limits
from pico.base.symbols import ASSISTANT, BOS, END_OF_TURN, EOS, SYSTEM, USER
from pico.decode.generation import generate

MODEL = trained("topk")
TALK = [{"role": "system", "content": "count"}, {"role": "user", "content": "one two"}]


@pytest.fixture(scope="module")
def served():
    with serving(MODEL) as served:
        yield served


@pytest.fixture(scope="module")
def client(served):
    return openai.OpenAI(base_url=f"{served.address}/v1", api_key="any", timeout=120, max_retries=0)


def alone(ids, most=20, **settings) -> str:
    return texts(generate(MODEL, ids, temperature=0, max_bytes=most, **settings))[0].decode(errors="replace")


def test_models(client):
    (model,) = client.models.list().data
    assert model.id == "tiny" and client.models.retrieve("tiny").id == "tiny"
    parameters = sum(p.numel() for p in MODEL.parameters())
    facts = dict(unit="byte", routes=True, chat=True, context=None, parameters=parameters)
    assert model.pico == facts
    with pytest.raises(openai.NotFoundError, match="tiny"):
        client.models.retrieve("gpt-4")


def test_a_completion_is_what_generate_says(client):
    made = client.completions.create(model="tiny", prompt="one two", temperature=0, max_tokens=20)
    assert made.choices[0].text == alone(b"one two") and made.choices[0].finish_reason == "length"
    assert (made.usage.prompt_tokens, made.usage.completion_tokens, made.usage.total_tokens) == (7, 20, 27)
    stop = made.choices[0].text[9:12]
    made = client.completions.create(model="tiny", prompt="one two", temperature=0, max_tokens=20, stop=stop)
    assert made.choices[0].text == alone(b"one two").split(stop)[0] and made.choices[0].finish_reason == "stop"


def test_prompts_may_be_texts_or_ids_and_several(client):
    wanted = [alone(b"one"), alone(b"two")]
    for prompt in (["one", "two"], [list(b"one"), [BOS, *b"two"]]):
        made = client.completions.create(model="tiny", prompt=prompt, temperature=0, max_tokens=20)
        assert [choice.text for choice in made.choices] == wanted
    made = client.completions.create(model="tiny", prompt="one", temperature=0.9, max_tokens=20, n=3, seed=4)
    again = client.completions.create(model="tiny", prompt="one", temperature=0.9, max_tokens=20, n=3, seed=4)
    assert [choice.text for choice in made.choices] == [choice.text for choice in again.choices]
    assert len({choice.text for choice in made.choices}) == 3 and [c.index for c in made.choices] == [0, 1, 2]


def test_a_chat_is_laid_out_as_it_was_trained(client):
    made = client.chat.completions.create(model="tiny", messages=TALK, temperature=0, max_completion_tokens=20)
    ids = [BOS, SYSTEM, *b"count", END_OF_TURN, USER, *b"one two", END_OF_TURN, ASSISTANT]
    ends = frozenset([END_OF_TURN, EOS])
    assert made.choices[0].message.content == alone(ids, stop_symbols=ends)
    assert made.choices[0].message.role == "assistant" and made.usage.prompt_tokens == len(ids) - 1
    parts = [{"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]}]
    made = client.chat.completions.create(model="tiny", messages=[TALK[0], *parts], temperature=0, max_tokens=20)
    assert made.choices[0].message.content == alone(ids, stop_symbols=ends)


def test_streams_say_the_same_in_pieces(client):
    whole = client.chat.completions.create(model="tiny", messages=TALK, temperature=0.7, seed=3, max_tokens=50)
    options = dict(stream=True, stream_options={"include_usage": True})
    events = list(
        client.chat.completions.create(model="tiny", messages=TALK, temperature=0.7, seed=3, max_tokens=50, **options)
    )
    pieces = [event.choices[0] for event in events if event.choices]
    assert "".join(piece.delta.content for piece in pieces) == whole.choices[0].message.content
    assert [piece.delta.role for piece in pieces][:2] == ["assistant", None] and len(pieces) > 3
    assert [piece.finish_reason for piece in pieces][-2:] == [None, whole.choices[0].finish_reason]
    assert events[-1].usage.completion_tokens == whole.usage.completion_tokens and not events[-1].choices
    events = client.completions.create(model="tiny", prompt="one", temperature=0, max_tokens=20, stream=True, n=2)
    rows = ["", ""]
    for event in events:
        rows[event.choices[0].index] += event.choices[0].text
    assert rows == [alone(b"one")] * 2


def test_log_probabilities(client):
    made = client.completions.create(model="tiny", prompt="one", temperature=0, max_tokens=9, logprobs=2)
    said, text = made.choices[0].logprobs, made.choices[0].text
    assert "".join(said.tokens) == text and len(said.top_logprobs) == len(said.token_logprobs) == 9
    for token, value, top in zip(said.tokens, said.token_logprobs, said.top_logprobs):
        assert len(top) == 2 and math.isclose(top[token], value, abs_tol=1e-4) and value == max(top.values()) <= 0
    made = client.chat.completions.create(
        model="tiny", messages=TALK, temperature=0, max_tokens=9, logprobs=True, top_logprobs=3
    )
    for item in made.choices[0].logprobs.content:
        assert bytes(item.bytes).decode() == item.token and len(item.top_logprobs) == 3
        assert item.top_logprobs[0].token == item.token


def test_the_trace_says_what_each_byte_took(served):
    wanted = dict(temperature=0.8, seed=1, max_tokens=30, pico={"trace": True})
    whole = served.complete(**wanted).json()["choices"][0]
    assert b"".join(bytes(item["bytes"]) for item in whole["pico"]).decode(errors="replace") == whole["text"]
    assert {type(item[key]) for item in whole["pico"] for key in ("weight", "surprise")} == {float}
    assert {item["routed"] for item in whole["pico"]} == {True, False}
    lines = served.complete(**wanted, stream=True).text.split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert lines[-2:] == ["data: [DONE]", ""]
    streamed = [item for event in events for item in event["choices"][0]["pico"]]
    assert [item["bytes"] for item in streamed] == [item["bytes"] for item in whole["pico"]]
    for key in "routed", "weight", "surprise":
        assert [item[key] for item in streamed] == pytest.approx([item[key] for item in whole["pico"]], abs=1e-4)
    off = served.complete(**{**wanted, "pico": {"trace": True, "disable_latent": True}}).json()["choices"][0]
    assert not any(item["routed"] for item in off["pico"])


def test_bytes_that_are_no_text_are_told_as_bytes():
    model = trained("topk", fb_num_blocks=0)
    with serving(model) as served:
        made = served.complete(temperature=50.0, seed=1, max_tokens=80, pico={"trace": True}, logprobs=0)
        choice = made.json()["choices"][0]
        data = b"".join(bytes(item["bytes"]) for item in choice["pico"])
        assert data.decode(errors="replace") == choice["text"] and "\ufffd" in choice["text"]
        assert any(token.startswith("bytes:\\x") for token in choice["logprobs"]["tokens"])


def test_who_leaves_frees_the_row(served):
    before = served.service.engine.stats["symbols"]
    with served.client.stream(
        "POST", "/v1/completions", json=dict(model="tiny", prompt="a", max_tokens=60000, temperature=0, stream=True)
    ) as r:
        lines = r.iter_lines()  # held: the connection is closed where the iterator is dropped
        next(lines)
        assert growing(served) == 1
    wait_for(lambda: not growing(served))
    connection = socket.create_connection((served.client.base_url.host, served.client.base_url.port))
    body = b'{"model": "tiny", "prompt": "a", "max_tokens": 60000, "temperature": 0}'
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: %d\r\n\r\n"
    connection.sendall(head % len(body) + body)
    wait_for(lambda: growing(served) == 1)
    connection.close()
    wait_for(lambda: not growing(served) and not served.service.open)
    assert served.service.engine.stats["symbols"] - before < 60000, "both were left long before their end"


def growing(served) -> int:
    found = re.search(r"^pico_texts_growing (\d+)$", served.client.get("/metrics").text, re.M)
    assert found
    return int(found[1])


def test_limits():
    limits = Limits(body=2000, prompt=100, tokens=50000, choices=3, waiting=-14, seconds=0.3)
    with serving(MODEL, limits=limits) as served:
        refusals = {
            413: dict(prompt="x" * 3000),
            400: dict(prompt="x" * 200),
            429: dict(n=3, max_tokens=5),
            408: dict(max_tokens=50000, temperature=0),
        }
        for status, fields in refusals.items():
            answer = served.complete(**fields)
            assert answer.status_code == status, answer.text
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert served.complete(max_tokens=50001).status_code == 400
        assert served.complete(n=4, max_tokens=1).status_code == 400
        said = served.complete(max_tokens=50000, temperature=0, stream=True).text.split("\n\n")
        assert json.loads(said[-2].removeprefix("data: "))["error"]["code"] == "timeout"
        assert served.complete(max_tokens=1).status_code == 200


def test_a_key_is_asked_for():
    with serving(MODEL, key="pïco-key") as served:
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": b"Bearer \xff\xfe"}):
            for path in ("/v1/models", "/metrics"):
                assert served.client.get(path, headers=headers).status_code == 401
            assert served.post("/v1/completions", {"model": "tiny"}, headers=headers).status_code == 401
        assert served.client.get("/").status_code == served.client.get("/health").status_code == 200
        assert served.client.get("/v1/models", headers={"Authorization": "Bearer pïco-key".encode()}).status_code == 200


def test_no_other_page_may_ask_and_no_file_is_read(served):
    answer = served.client.get("/v1/models", headers={"Origin": "http://evil.example"})
    assert not any(name.startswith("access-control") for name in answer.headers)
    assert served.client.options("/v1/completions", headers={"Origin": "http://evil.example"}).status_code == 405
    plain = served.client.post("/v1/completions", content=b'{"model": "tiny"}', headers={"Content-Type": "text/plain"})
    assert plain.status_code == 415
    for host, status in (("evil.example", 403), ("evil.example:80", 403), ("localhost:1", 200), ("127.0.0.1", 200)):
        assert served.client.get("/v1/models", headers={"Host": host}).status_code == status, host
    page = served.client.get("/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html") and "<!doctype" in page.text
    for path in (
        "/../pyproject.toml",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/..%2f..%2fetc/passwd",
        "/%00",
        "/index.html/",
    ):
        said = raw(
            served.address, b"GET " + path.encode() + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        assert said.startswith(b"HTTP/1.1 404"), (path, said)


def test_the_twin_counts_its_symbols_and_drops_the_oldest_turns():
    model = tiny_gpt(max_context=64)
    with serving(model) as served:
        assert served.client.get("/v1/models").json()["data"][0]["pico"]["context"] == 64
        long = served.complete(prompt="x" * 64, max_tokens=4)
        assert long.status_code == 400 and long.json()["error"]["code"] == "context_length_exceeded"
        assert served.complete(pico={"disable_latent": True}).status_code == 400
        talk = [{"role": role, "content": f"{i} words"} for i in range(8) for role in ("user", "assistant")]
        talk = [{"role": "system", "content": "s"}, *talk, {"role": "user", "content": "what?"}]
        body = {"model": "tiny", "messages": talk, "max_tokens": 5, "temperature": 0}
        said = served.post("/v1/chat/completions", body).json()
        short = served.post("/v1/chat/completions", {**body, "messages": [talk[0], *talk[-5:]]}).json()
        assert said["choices"][0]["message"] == short["choices"][0]["message"]
        assert said["usage"]["prompt_tokens"] == short["usage"]["prompt_tokens"] < 64


def test_a_model_that_cannot_talk_says_so():
    with serving(MODEL, chat=False) as served:
        answer = served.post("/v1/chat/completions", {"model": "tiny", "messages": TALK})
        assert answer.status_code == 400 and "/v1/completions" in answer.json()["error"]["message"]


def test_a_failure_inside_is_an_error_in_shape(monkeypatch):
    with serving(MODEL) as served:
        monkeypatch.setattr(served.service.engine, "_grow", lambda: 1 / 0)
        answer = served.complete(max_tokens=3)
        assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
        monkeypatch.undo()
        assert served.complete(max_tokens=3).status_code == 200


@pytest.mark.slow
def test_the_command(home, tmp_path):
    """From the shell: it says where it is, answers, and ends without a traceback."""
    command = [sys.executable, str(ROOT / "picolm.py"), "serve", "model", "a", "--port", "0", "--api-key", "k"]
    process = subprocess.Popen(command, cwd=home, stderr=subprocess.PIPE, text=True, env={**os.environ})
    assert process.stderr
    line = process.stderr.readline()
    found = re.search(r"http://127.0.0.1:\d+", line)
    assert found, line
    client = openai.OpenAI(base_url=f"{found[0]}/v1", api_key="k", timeout=120)
    assert client.completions.create(model="model", prompt="the", max_tokens=5).usage.completion_tokens == 5
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(60) == 0 and rest == "", rest


def test_what_cannot_be_served_is_one_line(cli):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused(cli(f"serve model a --port {taken.getsockname()[1]}"), "--port")
    refused(cli("serve model a --port 70000"), "--port 70000")
    refused(cli("serve model a --host no.such.host.invalid"), "--host")
    refused(cli("serve model a --api-key", ""), "--api-key")
    refused(cli("serve model nothing"), "nothing")
