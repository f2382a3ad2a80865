"""The commands run and chat: the text and nothing else on stdout, prompts, samples, marks, figures."""

import base64
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

from command_line import refused

from pico import generate, load
from pico.app import samples
from pico.base.symbols import ASSISTANT, BOS, END_OF_TURN, EOS, SYSTEM, USER, visible
from pico.decode import generation


def test_stdout_is_the_prompt_and_the_text_and_nothing_else(cli, home):
    result = cli("run model a --max-bytes 40 --seed 3 --device cpu --prompt", "the dög")
    steps = list(generate(load(home / "model", "a"), "the dög", max_bytes=40, seed=3, echo=True))
    assert result.raw == b"".join(s.bytes for s in steps)
    assert result.out.startswith("the dög") and result.err == ""


def test_a_terminal_gets_pictures_and_a_pipe_the_bytes(cli, home, monkeypatch):
    data = b"\x1b[2J the \xff cat\r\n\t\xc2\x9b"
    (home / "odd.bin").write_bytes(data)
    line = "run model a --max-bytes 30 --device cpu --prompt-file odd.bin --temperature 2"
    piped = cli(line)
    assert piped.raw.startswith(data) and len(piped.raw) <= len(data) + 30
    marked = cli(line + " --show-router-decisions").raw
    assert marked.count(b"_") > piped.raw.count(b"_") and marked.replace(b"_", b"") == piped.raw.replace(b"_", b"")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    shown = cli(line)
    assert shown.out.startswith("␛[2J the \ufffd cat␍\n\t␦") and shown.out.endswith("\n")
    assert shown.raw.decode() == visible(piped.raw.decode(errors="replace")) + "\n"  # and it is valid UTF-8


def test_samples_as_json(cli, home):
    (home / "odd.bin").write_bytes(b"the \xff")
    line = "run model a --max-bytes 20 --device cpu --num-samples 2 --json"
    steps = [[], []]
    for step in generate(load(home / "model", "a"), "the", num_samples=2, max_bytes=20):
        steps[step.row].append(step)
    objects = [json.loads(text) for text in cli(line, "--prompt", "the").out.splitlines()]
    for found, row in zip(objects, steps, strict=True):
        data = b"".join(step.bytes for step in row)
        assert found["prompt"] == "the" and "prompt_base64" not in found and len(found["prompt_routed"]) == 3
        assert found["text"] == data.decode(errors="replace")
        assert (
            base64.b64decode(found["text_base64"]) == data if "text_base64" in found else found["text"].encode() == data
        )
        assert found["text_routed"] == [step.routed for step in row]
        assert found["ended"] in ("end", "length") and found["stats"]["bytes"] == sum(map(len, steps))
    (odd, _) = (json.loads(text) for text in cli(line + " --prompt-file odd.bin").out.splitlines())
    assert odd["prompt"] == "the \ufffd" and base64.b64decode(odd["prompt_base64"]) == b"the \xff"


def test_a_text_ends_before_a_stop_text(cli):
    line = "run model a --max-bytes 60 --device cpu --temperature 0 --num-samples 2 --prompt the"
    whole = cli(line).raw.split(b"\n\n")[0].removeprefix(b"the")
    wanted = whole[: whole.index(whole[5:7])]
    stop = whole[5:7].decode("utf-8", "surrogateescape")  # as the system hands over bytes that are no UTF-8
    assert cli(line, "--stop", "nowhere", "--stop", stop).raw == b"\n\n".join([b"the" + wanted] * 2)
    assert cli(line, "--stop", r"\n\n", "--json", "--stop", stop).out.count('"ended": "stop"') == 2


def test_router_decisions_are_underscores(cli, home):
    marked = cli("run model a --max-bytes 40 --device cpu --show-router-decisions --prompt", "abc").out
    plain = cli("run model a --max-bytes 40 --device cpu --prompt", "abc").out
    steps = list(generate(load(home / "model", "a"), "abc", max_bytes=40, echo=True))
    assert marked.replace("_", "") == plain.replace("_", "")
    assert marked.count("_") - plain.count("_") == sum(s.routed for s in steps) > 0  # ASCII and lone bytes alike


def test_disable_latent_routes_nothing(cli):
    line = "run model a --max-bytes 30 --device cpu --disable-latent --show-router-decisions --temperature 0"
    assert "_" not in cli(line, "--prompt", "the ").out


def test_mixing_online_draws_without_drafts(cli, home):
    line = "run model a --max-bytes 40 --device cpu --mix-online --stats --prompt"
    said = cli(line, "abcabcabc")
    steps = generate(load(home / "model", "a"), "abcabcabc", max_bytes=40, echo=True, mix_online=True)
    assert said.raw == b"".join(step.bytes for step in steps)
    assert json.loads(said.err.splitlines()[-1])["bytes_per_forward"] == 1


def test_prompts_from_a_file_and_from_stdin_hold_any_bytes(cli, home, monkeypatch):
    data = b"the \xff cat\n"
    (home / "prompt.bin").write_bytes(data)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    a = cli("run model a --max-bytes 9 --device cpu --prompt-file prompt.bin").raw
    b = cli("run model a --max-bytes 9 --device cpu --prompt -").raw
    assert a == b and a.startswith(data)


def test_a_prompt_without_end_is_refused(cli, monkeypatch):
    monkeypatch.setattr(samples, "LONGEST_PROMPT", 1000)
    monkeypatch.setattr(generation, "LONGEST_PROMPT", 1000)
    for file in ("text.txt", "/dev/zero") if Path("/dev/zero").exists() else ("text.txt",):
        refused(cli(f"run model a --device cpu --prompt-file {file}"), "1,001 bytes or more, expected at most 1,000")


def test_samples_are_a_batch_with_an_empty_line_between(cli, home):
    raw = cli("run model a --num-samples 3 --max-bytes 20 --device cpu --prompt", "the").raw
    rows = [bytearray() for _ in range(3)]
    for step in generate(load(home / "model", "a"), "the", num_samples=3, max_bytes=20, echo=True):
        rows[step.row] += step.bytes
    assert len({bytes(row) for row in rows}) > 1
    assert raw == b"\n\n".join(rows)


def test_stats_are_one_json_object_on_stderr(cli):
    stats = json.loads(cli("run model a --max-bytes 25 --device cpu --stats --num-samples 2").err)
    names = "bytes symbols seconds bytes_per_second forwards bytes_per_forward acceptance routed_fraction"
    assert set(stats) == set(names.split())
    assert stats["bytes"] <= 50 and len(stats["acceptance"]) == 4  # two heads, and the last one twice more
    plain = json.loads(cli("run model a --max-bytes 25 --device cpu --stats --no-speculative").err)
    assert plain["acceptance"] == [] and plain["bytes_per_forward"] <= 1


def test_the_only_run_needs_no_name(cli):
    assert cli("run model --max-bytes 5 --device cpu").out == cli("run model a --max-bytes 5 --device cpu").out


def test_a_conversation(cli, home, monkeypatch):
    """A model that was not trained on any answers, and a line says what to expect."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cat\n/quit\n"))
    result = cli("chat model --max-bytes 9 --temperature 0 --device cpu --system", "Be kind.")
    ids = [BOS, SYSTEM, *b"Be kind.", END_OF_TURN, USER, *b"the cat", END_OF_TURN, ASSISTANT]
    ends = frozenset([END_OF_TURN, EOS])
    steps = generate(load(home / "model", "a"), ids, max_bytes=9, temperature=0, stop_symbols=ends)
    assert result.raw == b"".join(step.bytes for step in steps) + b"\n"
    assert result.err.startswith("model/a was not trained on conversations, so expect text and no answers: ")
    assert "run model a --interactive continues texts\n" in result.err
    refused(cli("chat model a --top-p 2 --device cpu"), "--top-p = 2.0")

    record = home / "model" / "a" / "train.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"chat": True}))
    assert cli("chat model a --device cpu") == (0, "", "", b"")
