"""Tasks of our own: what noise says by its formula, exact match, chance, UTF-8, and questions as a model reads them."""

import json
import math
from random import Random

import pytest
from helpers import tiny, tiny_gpt, trained, use_tables, write

from pico.base.errors import PicoError
from pico.base.symbols import ASSISTANT, BOS, BYTES, END_OF_TURN
from pico.data.chat import lay_out
from pico.data.spelling import is_test_word
from pico.evaluate.noise import NOISES, noisy, noisy_documents
from pico.evaluate.questions import Question, answer_all, evenly, exact_match, user_turn
from pico.evaluate.score import score
from pico.evaluate.tables import tasks_table
from pico.evaluate.tasks import (
    CUTE,
    SPELLINGS,
    TASKS,
    Subject,
    choose_tasks,
    cute,
    made,
    noise,
    read_conversations,
    spelling,
    utf8,
    validity,
)
from pico.model.pico import plain_generate

TEXT = "The cook, Zoë, took all BOOKS to Aachen: 3 apples & 2 eggs fell off... " * 20


# --- noise ------------------------------------------------------------------------------------------------------------


def places_and_hits(kind: str, clean: str, text: str) -> tuple[int, int]:
    """Read off the two texts, where the noise could be seen and where it is."""
    if kind == "case":
        letters = [(a, b) for a, b in zip(clean, text, strict=True) if a.lower() != a.upper()]
        return len(letters), sum(a != b for a, b in letters)
    last = [a != b for a, b in zip(clean, [*clean[1:], ""])]  # of a run of one letter
    if kind in ("drop", "repeat"):
        return sum(last), abs(len(clean) - len(text))
    places = hits = i = 0
    while i < len(clean):
        swapped = text[i] != clean[i]
        places += last[i] and i + 1 < len(clean)
        hits += swapped
        i += 1 + swapped
    return places, hits


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("rate", [0.02, 0.3])
def test_the_bits_of_noise_are_those_of_its_places(kind, rate):
    text, bits = noisy(TEXT, kind, rate, Random(1))
    places, hits = places_and_hits(kind, TEXT, text)
    assert hits > 0
    assert bits == pytest.approx(hits * math.log2(1 / rate) + (places - hits) * math.log2(1 / (1 - rate)))
    entropy = places * (rate * math.log2(1 / rate) + (1 - rate) * math.log2(1 / (1 - rate)))
    sd = math.sqrt(places * rate * (1 - rate)) * abs(math.log2((1 - rate) / rate))
    assert abs(bits - entropy) < 4 * sd


@pytest.mark.parametrize("kind", NOISES)
def test_noise_of_any_bytes(kind):
    """Half a character stays one, and the same seed gives the same mistakes."""
    documents = [b"\xff\xfe ab", b"", "héé\n".encode()]
    found = noisy_documents(documents, kind, 0.4, seed=3)
    assert found == noisy_documents(documents, kind, 0.4, seed=3) != noisy_documents(documents, kind, 0.4, seed=4)
    assert noisy_documents(documents, kind, 1e-9)[0] == documents


def test_noise_costs_bits_of_the_clean_text():
    model, documents = tiny(), [b"The cat sat on the mat.", b"A dog, too."]
    rows = noise(Subject(model, texts=documents, context_len=16, max_bytes=30))
    clean = [documents[0], documents[1][:7]]
    assert rows["clean"]["bits_per_byte"] == pytest.approx(score(model, clean, 16).bits_per_byte)
    text, own = noisy_documents(clean, "drop", 0.1)
    row = rows["drop 10%"]
    assert row["bits_per_byte"] == pytest.approx(sum(score(model, text, 16).document_bits) / 30)
    assert row["noise_bits"] == pytest.approx(own / 30)
    assert row["more"] == pytest.approx(row["bits_per_byte"] - rows["clean"]["bits_per_byte"])
    assert len(rows) == 1 + 4 * 4


# --- questions --------------------------------------------------------------------------------------------------------


def test_exact_match_beside_chance():
    questions = [Question("a", "", answer) for answer in ["x", "x", "x", "y"]] + [Question("b", "", "z", 0.5)] * 1
    rows = exact_match(questions, ["x", "X", "x ", "y", "z"])
    assert rows == {
        "all": {"exact_match": 3 / 5, "chance": pytest.approx((4 * 2 / 3 + 0.5) / 5), "questions": 5},
        "a": {"exact_match": 2 / 4, "chance": 2 / 3, "questions": 4},
        "b": {"exact_match": 1.0, "chance": 0.5, "questions": 1},
    }


def test_answers_nobody_could_guess_have_no_chance():
    questions = [Question("a", "", str(i)) for i in range(9)]
    assert exact_match(questions, [""] * 9)["all"]["chance"] == 0


@pytest.mark.parametrize("chat", [False, True])
def test_an_answer_is_what_stands_before_its_end(monkeypatch, chat):
    """It says 'ab', then ends its line, or its turn: another answer, shorter or longer, is wrong."""
    end = END_OF_TURN if chat else 10
    sure = {ASSISTANT: {97: 1}, 58: {32: 1}, 32: {97: 1}, 97: {98: 1}, 98: {end: 1}, end: {97: 1}}
    model, _ = use_tables(monkeypatch, sure)
    answers = ["ab", "a", "abc", "ab", "b"]
    questions = [Question("part", f"What is {i}?", answer) for i, answer in enumerate(answers)]
    found = answer_all(model, questions, chat, {}, lambda text: None)
    assert [a == q.answer for a, q in zip(found, questions)] == [True, False, False, True, False]
    for question in questions:  # alone, where no other's answer is longer
        (alone,) = answer_all(model, [question], chat, {}, lambda text: None)
        assert (alone == question.answer) == (question.answer == "ab")


@pytest.mark.parametrize("make", [trained, tiny_gpt])
def test_answers_are_the_greedy_ones_of_each_question_alone(make):
    model = make()
    examples = [Question("b", "one?", "two")]
    questions = [Question(part, text, "x" * 9) for part, text in zip("abab", ["one", "onward! three", "t", ""])]
    for chat in (False, True):
        found = answer_all(model, questions, chat, {"b": examples}, lambda text: None)
        for question, answer in zip(questions, found):
            before = "Question: one?\nAnswer: two\n\n" if question.part == "b" else ""
            shown = f"{before}Question: {question.text}\nAnswer:"
            said = question.text if chat and question.part == "a" else shown
            ids = user_turn(said, BYTES) if chat else [BOS, *said.encode()]
            plain = bytes(plain_generate(model, ids, 11))
            assert answer == (plain if chat else plain.partition(b"\n")[0]).decode(errors="replace").strip()


def test_a_users_turn_is_the_beginning_of_a_conversation():
    ids = lay_out([("user", "Zoë?".encode()), ("assistant", b"")], BYTES)[0].tolist()
    assert user_turn("Zoë?", BYTES) == [max(i, ~i) for i in ids][:-2]


def test_evenly_spaced():
    assert evenly(range(10), None) == evenly(range(10), 99) == list(range(10))
    assert evenly(range(10), 4) == [0, 2, 5, 7]


def recorded(monkeypatch):
    """What `answer_all` is asked; it answers 'No'."""
    seen = []

    def answer(model, questions, chat, examples, status):
        seen.append((questions, chat, examples))
        return ["No"] * len(questions)

    monkeypatch.setattr("pico.evaluate.tasks.answer_all", answer)
    return seen


def test_spelling_asks_about_words_that_are_never_trained_on(monkeypatch):
    seen = recorded(monkeypatch)
    rows = spelling(Subject(None, limit=20))
    questions, chat, examples = seen[0]
    assert not chat and rows["all"]["questions"] == 20 * len(SPELLINGS)
    assert all(is_test_word(q.answer[::-1]) for q in questions if q.part == "reverse")
    assert not any(is_test_word(q.answer[::-1]) for q in examples["reverse"])
    assert len({q.text for q in questions}) > 150 and questions[0] == made("spell", 0, test=True)
    spelling(Subject(None, chat=True, limit=1))
    assert seen[1][1:] == (True, {})


def test_spelling_of_a_file(monkeypatch, tmp_path):
    said = [("system", "s"), ("user", "q{}"), ("assistant", "")]
    rows = [
        {
            "messages": [{"role": role, "content": text.format(i) or ["Yes", "No"][i % 2]} for role, text in said],
            "task": "t",
        }
        for i in range(10)
    ]
    file = write(tmp_path / "valid.jsonl", "\n".join(map(json.dumps, rows)))
    seen = recorded(monkeypatch)
    assert spelling(Subject(None, chat=True, file=file))["t"] == {"exact_match": 0.5, "chance": 4 / 9, "questions": 10}
    assert spelling(Subject(None, file=file))["t"]["questions"] == 6
    assert [q.text for q in seen[1][2]["t"]] == ["q0", "q1", "q2", "q3"]
    with pytest.raises(PicoError, match="no column 'messages'"):
        spelling(Subject(None, file=write(tmp_path / "x.jsonl", '{"text": "a"}')))


@pytest.mark.parametrize(
    "messages, problem",
    [
        (None, "rows whose messages are no list"),
        ("hello", "rows whose messages are no list"),
        (["hello"], "rows whose messages are no list"),
        ([], "conversations without an answer"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": None}], "a turn that is no text"),
        ([{"role": "user", "content": 5}, {"role": "assistant", "content": "b"}], "a turn that is no text"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}], "an empty turn"),
    ],
)
def test_a_row_that_asks_nothing_is_one_line(tmp_path, messages, problem):
    rows = [[{"role": "user", "content": "a \ud800"}, {"role": "assistant", "content": "b"}], messages]
    file = write(tmp_path / "q.jsonl", "\n".join(json.dumps({"messages": row}) for row in rows))
    with pytest.raises(PicoError, match=f"q.jsonl, row 2: expected conversations, it is one of the .*{problem}"):
        read_conversations(file)
    write(file, file.read_text().splitlines()[0])
    assert read_conversations(file) == [Question("questions", "a ?", "b")]


@pytest.mark.parametrize("change", [{"label": None}, {"input1": 3}, {"task": None}, {"task": "orth", "input3": None}])
def test_a_row_of_cute_without_its_columns_is_one_line(tmp_path, change):
    row = {"task": "spell", "input1": "cat", "input2": "", "label": "c a t"} | change
    with pytest.raises(PicoError, match=r"cute.jsonl(, row 1: \w+ is .*, expected text|: no table 'None' in CUTE)"):
        cute(Subject(None, file=write(tmp_path / "cute.jsonl", json.dumps(row))))


def test_cute_shows_four_of_a_table_and_asks_the_others(monkeypatch, tmp_path):
    rows = [
        {"task": task, "input1": f"l{i}", "input2": "m", "input3": "world", "label": "No"}
        for task in [*CUTE, "spell_rand"]
        for i in range(6)
    ]
    file = write(tmp_path / "cute.jsonl", "\n".join(map(json.dumps, rows)))
    seen = recorded(monkeypatch)
    found = cute(Subject(None, file=file))
    assert found["all"]["questions"] == 2 * (len(CUTE) + 1) and found["spell_rand"]["exact_match"] == 1
    questions, _, examples = seen[0]
    assert [q.text for q in questions if q.part == "ins_char"] == [
        f'Add "l{i}" after every "m" in "world".' for i in (4, 5)
    ]
    assert len(examples["sem"]) == 4 and questions[-1].text == 'Spell out "l5", with a space between the letters.'
    write(file, '{"task": "sing", "input1": "", "input2": "", "label": ""}')
    with pytest.raises(PicoError, match="no table 'sing' in CUTE"):
        cute(Subject(None, file=file))


# --- UTF-8 ------------------------------------------------------------------------------------------------------------


def test_what_is_utf8_and_what_is_not():
    texts = [b"plain", "Zoë".encode(), b"Zo\xc3", b"Zo\xc3", b"\xffab"]
    assert validity(texts, [True, True, True, False, True]) == {
        "valid_texts": 3 / 5,
        "valid_bytes": (5 + 4 + 2 + 2 + 2) / (5 + 4 + 2 + 3 + 3),
        "valid_non_ascii": 2 / 4,
        "non_ascii": 4,
        "bytes": 17,
    }
    assert validity([b"a"], [True])["valid_non_ascii"] is None


def test_utf8_of_samples_beside_random_bytes(monkeypatch):
    monkeypatch.setattr("pico.evaluate.tasks.SAMPLE_BYTES", 40)
    rows = utf8(Subject(tiny(), limit=2))
    assert list(rows) == ["temperature 0.8", "temperature 1.0", "random bytes"]
    assert 0 < rows["random bytes"]["valid_bytes"] < 1 and rows["random bytes"]["valid_texts"] == 0


# --- which ------------------------------------------------------------------------------------------------------------


def test_a_task_finds_its_questions(tmp_path):
    file, other = write(tmp_path / "cute.jsonl", "{}"), write(tmp_path / "q.jsonl", "{}")
    assert choose_tasks("utf8, spelling", tmp_path).own == {"utf8": None, "spelling": None}
    assert choose_tasks("cute", tmp_path).own == {"cute": file}
    assert choose_tasks(f"cute={other},spelling={other}", tmp_path).own == {"cute": other, "spelling": other}


@pytest.mark.parametrize(
    "text, options, message",
    [
        ("", {}, "names none: expected some of Pico's own, which are spelling, cute, utf8 and noise"),
        ("cute", {}, "cute=FILE"),
        ("cute=nowhere.jsonl", {}, "there is no file 'nowhere.jsonl'"),
        ("noise", {}, "eval PATH RUN DATASET --tasks noise"),
        ("utf8", {"limit": 0}, "--limit = 0: expected 1 or more"),
        (f"utf8={__file__}", {}, "utf8 reads no file of questions; expected utf8 alone"),
        ("utf8,spelling,utf8", {}, "names utf8 twice"),
    ],
)
def test_a_task_that_lacks_what_it_reads_is_refused(text, options, message):
    with pytest.raises(PicoError, match=message):
        choose_tasks(text, **options)


def test_without_lm_eval_its_install_command_is_said(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PicoError, match=r"'arc_easy' is none of Pico's own.*\(pip install lm-eval\)"):
        choose_tasks("utf8,arc_easy")


def test_every_task_is_shown(capsys):
    from rich.console import Console

    rows = {name: {"row": dict.fromkeys(task.figures, 0.25)} for name, task in TASKS.items()}
    rows["blimp"] = {"acc": {"value": 0.512345, "stderr": 0.01, "chance": 0.5, "questions": 1000}}
    rows["arc"] = {"acc": {"value": 3.6e7, "stderr": None, "chance": None, "questions": 9}}
    Console(width=120).print(tasks_table(rows))
    shown = capsys.readouterr().out
    assert shown.count("lm-eval") == 1 and all(task.about in shown for task in TASKS.values())
    assert (
        "blimp, acc   0.5123    0.01     0.5      1,000" in shown
        and "arc, acc    3.6e+07       -       -          9" in shown
    )
