"""docs/chat.md from its first line to its last, as a newcomer would type it, on small sizes."""

import io
import json
import re
import shlex
import shutil
import sys

import pytest
from command_line import ROOT, SMALL
from serving import serving

import picolm

PAGE = (ROOT / "docs" / "chat.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", PAGE, re.DOTALL)
LITTLE = {  # the page's words, and what the test types instead
    "--preset tiny": SMALL,
    "--max-minutes 10": "--max-steps 2 --batch-size 2 --context-len 64 --device cpu",
    "chat models/my-chat sft": "chat models/my-chat sft --max-bytes 9 --device cpu",
    "--tasks spelling,utf8": "--tasks spelling --limit 1 --device cpu",
    "--limit 500": "--limit 1 --tasks-folder evals --device cpu",
}
QUESTION = {"query": "Question: What does a cat say?\nAnswer: ", "choices": ["Meow", "Quack"], "gold": 0}


@pytest.mark.slow
def test_its_commands_and_programs_run(tmp_path, monkeypatch, capfd, short_samples):
    """The server of `serve` answers while the program that follows asks it."""
    shutil.copytree(ROOT / "experiments" / "picochat", tmp_path / "experiments" / "picochat")
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / "arc_easy.jsonl").write_text(json.dumps(QUESTION) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pico.app.server.serve_model", lambda *given: asked.append(given))
    asked, used, commands = [], set(), []
    for kind, text in BLOCKS:
        if kind == "python" and asked:
            model, name, chat, host, port, key = asked.pop()
            assert (host, port, key, chat) == ("127.0.0.1", 8000, None, True)
            with serving(model, name, chat, key) as served:
                exec(text.replace("http://127.0.0.1:8000", served.address).replace("200", "20"), {})
            assert capfd.readouterr().out
        elif kind == "python":
            exec(text.replace("200", "20"), {})
        for command in re.findall(r"^uv run python picolm\.py (.*)$", text, re.MULTILINE) if kind == "sh" else []:
            for words in [words for words in LITTLE if words in command]:
                command = command.replace(words, LITTLE[words])
                used.add(words)
            monkeypatch.setattr(sys, "stdin", io.StringIO("Who are you?\n/retry\n"))
            assert picolm.main(shlex.split(command)) == 0, command
            commands.append(command.split()[0])
    assert commands == ["init", "train", "train", "train", "chat", "serve", "eval", "eval", "export"] and used == set(
        LITTLE
    )
