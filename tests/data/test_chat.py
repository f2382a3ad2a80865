"""Conversations: rows to turns, turns to a document and back, and to the symbols that a model reads."""

import json
import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import write, write_parquet
from hypothesis import given
from hypothesis import strategies as st

from pico.base.config import DataConfig
from pico.base.errors import PicoError
from pico.base.symbols import ASSISTANT, BOS, BYTES, END_OF_TURN, EOS, SYSTEM, USER
from pico.data.chat import ROLES, Turn, choose_form, lay_out, lay_out_question, pack_row, pack_turns, unpack_turns
from pico.data.corpus import PER_EPOCH, read_words
from pico.data.open import open_data, open_evaluation
from pico.data.reading import Reading

HELLO = [("system", b"Be kind."), ("user", b"Hi"), ("assistant", b"Hello!")]
TURNS = st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=4)


def talk(row: dict, wanted: str | None = None) -> list:
    """The turns of one row, or how it is counted among what is left out."""
    left_out = Counter()
    return unpack_turns(pack_row(row, choose_form(row, wanted, "rows"), left_out)) or list(left_out)


def messages(*turns, role="role", content="content") -> list[dict]:
    return [{role: who, content: text} for who, text in turns]


def test_rows_of_every_kind():
    said = [("user", b"Why?"), ("assistant", b"So.")]
    assert talk({"messages": messages(("user", "Why?"), ("assistant", "So.")), "source": "x"}) == said
    share = messages(("human", "Why?"), ("gpt", "So."), role="from", content="value")
    assert talk({"id": 3, "conversations": share}) == said
    assert talk({"question": "Why?", "answer": "So."}) == said
    assert talk({"prompt": "Why?", "completion": "So."}) == said
    assert talk({"instruction": "Why?", "input": "", "output": "So."}) == said
    assert talk({"instruction": "Why?", "output": "So."}) == said
    assert talk({"instruction": "Add.", "input": "1, 2", "output": "3"})[0] == ("user", b"Add.\n\n1, 2")
    choices = {"text": ["blue", "red"], "label": ["A", "B"]}
    arc = talk({"question": "Which?", "choices": choices, "answerKey": "B", "set": "ARC-Easy"})
    assert arc == [("user", b"Which?\nA. blue\nB. red"), ("assistant", b"B. red")]


def test_named_columns():
    said = [("user", b"Why?"), ("assistant", b"So.")]
    row = {"ask": "Why?", "reply": "So.", "question": "no", "answer": "no"}
    assert talk(row, "ask,reply") == talk(row, "ask, reply") == said
    assert talk(row | {"more": "text"}, "ask,more,reply")[0] == ("user", b"Why?\n\ntext")
    assert talk({"talk": messages(("user", "Why?"), ("assistant", "So."))}, "talk") == said


def test_tables_without_conversations_are_one_clear_line():
    with pytest.raises(PicoError, match=r"no conversations in rows, it has title, text; expected one of messages;"):
        choose_form(["title", "text"], None, "rows")
    with pytest.raises(PicoError, match="no column 'reply' in rows, it has ask"):
        choose_form(["ask"], "ask,reply", "rows")
    with pytest.raises(PicoError, match="4 columns, expected one"):
        choose_form(["a", "b", "c", "d"], "a,b,c,d", "rows")


def test_what_is_dropped():
    system = messages(("system", " "), ("user", "Hi"), ("assistant", "Hello!"), ("user", "And?"))
    assert talk({"messages": system}) == HELLO[1:]
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    assert talk({"messages": messages(("user", parts), ("assistant", "Hello!"))}) == HELLO[1:]


@pytest.mark.parametrize(
    ("turns", "kind"),
    [
        ([], "conversations without an answer"),
        ([("user", "Hi")], "conversations without an answer"),
        ([("system", "Be kind.")], "conversations without an answer"),
        ([("assistant", "Hello!")], "conversations where the assistant speaks first, or twice"),
        ([("user", "Hi"), ("user", "Hi")], "conversations where the user speaks twice"),
        ([("user", "Hi"), ("tool", "42")], "conversations with other roles than system, user and assistant"),
        ([("user", "Hi"), (None, "Hello!")], "conversations with other roles than system, user and assistant"),
        ([("user", "Hi"), ("assistant", "")], "conversations with an empty turn"),
        ([("user", "Hi"), ("assistant", None)], "conversations with a turn that is no text"),
        ([("user", 7), ("assistant", "Hello!")], "conversations with a turn that is no text"),
        ([("user", [{"type": "image_url"}]), ("assistant", "x")], "conversations with a turn that is no text"),
        ([("user", "Hi"), ("system", "Be kind.")], "conversations with a system turn that is not the first"),
    ],
)
def test_bad_rows_are_counted(turns, kind):
    assert talk({"messages": messages(*turns)}) == [kind]


@pytest.mark.parametrize("value", [None, "Hi", 7, ["Hi"], {"role": "user"}])
def test_messages_that_are_none(value):
    assert talk({"messages": value}) == ["rows whose messages are no list of objects"]


@pytest.mark.parametrize("choices", [None, 7, "AB", {"text": ["x"]}, {"text": ["x"], "label": ["A"]}, {"label": "A"}])
def test_an_answer_that_is_no_choice(choices):
    row = {"question": "Which?", "choices": choices, "answerKey": "B"}
    assert talk(row) == ["rows whose answer is none of their choices"]


@given(TURNS, st.booleans())
def test_any_text_comes_back_and_forges_nothing(pairs, system):
    turns = [Turn("system", "\ud800\xf8\xfa")] * system
    turns += [Turn(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair)]
    back = unpack_turns(pack_turns(turns))
    assert back == [(role, text.encode(errors="surrogatepass")) for role, text in turns]
    ids = lay_out(back, BYTES, loss_on="all")[0]
    roles = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
    assert ids[np.isin(ids, list(roles.values()))].tolist() == [roles[turn.role] for turn in turns]
    assert (ids[0], ids[-1], (ids == END_OF_TURN).sum()) == (BOS, EOS, len(turns))
    assert BYTES.decode(ids) == b"".join(text for _, text in back)


def test_the_layout_and_what_is_scored():
    everything = lay_out(HELLO, BYTES, loss_on="all")[0]
    wanted = [
        BOS,
        SYSTEM,
        *b"Be kind.",
        END_OF_TURN,
        USER,
        *b"Hi",
        END_OF_TURN,
        ASSISTANT,
        *b"Hello!",
        END_OF_TURN,
        EOS,
    ]
    assert everything.tolist() == wanted
    masked = lay_out(HELLO, BYTES)[0]
    assert np.where(masked < 0, ~masked, masked).tolist() == wanted
    assert masked[masked >= 0].tolist() == [*b"Hello!", END_OF_TURN]
    assert (masked >= 0).nonzero()[0].tolist() == list(range(len(wanted) - 8, len(wanted) - 1))


def test_a_long_conversation_is_cut_where_the_user_speaks():
    exchange = [("user", b"1234"), ("assistant", b"5678")]  # 12 symbols
    turns = [("system", b"s"), *exchange * 5]  # system: 3 symbols, BOS and EOS: 2
    pieces = lay_out(turns, BYTES, context_len=3 + 2 + 2 * 12, loss_on="all")
    assert [len(piece) for piece in pieces] == [29, 29, 17]
    assert all(piece[:5].tolist() == [BOS, SYSTEM, ord("s"), END_OF_TURN, USER] for piece in pieces)
    assert [len(piece) for piece in lay_out(turns, BYTES, context_len=28)] == [17] * 5
    assert [len(piece) for piece in lay_out(turns, BYTES, context_len=8)] == [17] * 5  # an exchange stays whole
    assert [len(piece) for piece in lay_out(turns, BYTES)] == [65]


def test_an_alphabet_without_turns():
    with pytest.raises(PicoError, match=r"no symbols for turns \(assistant, end-of-turn, system, user\)"):
        lay_out(HELLO, SimpleNamespace(control={"bos": 0, "eos": 0}))


def test_roles_are_three():
    assert set(ROLES.values()) == {"system", "user", "assistant"}


# --- from files ------------------------------------------------------------------------------------------------------


def opened(dataset, **settings) -> tuple[list, list, dict, list]:
    """(training, validation conversations, what was said, warnings) of a dataset of conversations."""
    reading = Reading()
    config = DataConfig(dataset=str(dataset), format="chat", **settings)
    train, validation = open_data(config, 0, reading)
    assert train.loss_on == validation.loss_on == config.loss_on
    assert open_evaluation(config).loss_on == config.loss_on
    told = {line[:11].strip(): line[12:] for line in reading.lines()}
    return [unpack_turns(x) for x in train], [unpack_turns(x) for x in validation], told, reading.warnings


def qa(number: int) -> dict:
    return {"question": f"{number} + 1?", "answer": str(number + 1)}


def said(number: int) -> list:
    return [("user", b"%d + 1?" % number), ("assistant", b"%d" % (number + 1))]


def test_tables_of_conversations(tmp_path):
    rows = [qa(number) for number in range(9)]
    jsonl = "".join(json.dumps(row) + "\n" for row in [*rows, {"question": "why?", "answer": 7}, {"question": "x"}])
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / "train.jsonl", jsonl)
    write(tmp_path / "a" / "valid.jsonl", json.dumps(qa(9)))
    write(tmp_path / "a" / "notes.txt", "not read")
    train, validation, told, warnings = opened(tmp_path / "a")
    assert (train, validation, warnings) == ([said(number) for number in range(9)], [said(9)], [])
    assert told["tables"] == "conversations of columns question, answer"
    assert told["left out"] == "files that are no tables, conversations with a turn that is no text (2)"
    write(tmp_path / "b.json", json.dumps(rows))
    write(tmp_path / "c.csv", "answer,question\n" + "".join(f"{i + 1},{i} + 1?\n" for i in range(9)))
    write_parquet(tmp_path / "d.parquet", more=[1] * 9, **{name: [row[name] for row in rows] for name in rows[0]})
    for name in "b.json", "c.csv", "d.parquet":
        train, validation, *_ = opened(tmp_path / name, validation_size=2)
        assert sorted(train + validation) == [said(number) for number in range(9)] and len(validation) == 2, name


def test_nested_parquet_of_messages_and_choices(tmp_path):
    talks = [messages(("user", f"{i} + 1?"), ("assistant", f"{i + 1}")) for i in range(5)]
    write_parquet(tmp_path / "a.parquet", messages=talks, text=["no"] * 5)
    train, validation, *_ = opened(tmp_path / "a.parquet")
    assert sorted(train + validation) == [said(number) for number in range(5)]
    choices = [{"text": ["yes", "no"], "label": ["A", "B"]}] * 5
    write_parquet(tmp_path / "b.parquet", question=["Q"] * 5, choices=choices, answerKey=["A"] * 5)
    train, *_ = opened(tmp_path / "b.parquet")
    assert train[0] == [("user", b"Q\nA. yes\nB. no"), ("assistant", b"A. yes")]


def test_a_folder_laid_out_like_a_repository(tmp_path):
    write(tmp_path / "README.md", "---\nconfigs:\n- config_name: default\n  data_files: a.jsonl\n---\n")
    talks = [messages(("user", f"{i} + 1?"), ("assistant", f"{i + 1}")) for i in range(20)]
    write(tmp_path / "a.jsonl", "".join(json.dumps({"messages": talk, "source": "x"}) + "\n" for talk in talks))
    train, validation, told, _ = opened(tmp_path, validation_size=3)
    assert sorted(train + validation) == sorted(said(number) for number in range(20)) and len(validation) == 3
    assert told["tables"] == "conversations of column messages"
    config = DataConfig(dataset=str(tmp_path), format="chat", streaming=True, validation_size=3)
    stream, held = open_data(config, 0)
    block = stream.block(0)
    assert (len(held), len(block)) == (3, 17) and held.loss_on == block.loss_on == "assistant"
    assert unpack_turns(block[0]) == said(3)
    other, _ = open_data(config.model_copy(update={"loss_on": "all"}), 0)
    assert other.fingerprint != stream.fingerprint


def test_what_is_scored_belongs_to_the_fingerprint(tmp_path):
    write(tmp_path / "a.jsonl", "".join(json.dumps(qa(number)) + "\n" for number in range(9)))
    config = DataConfig(dataset=str(tmp_path / "a.jsonl"), format="chat")
    prints = {open_data(config.model_copy(update={"loss_on": on}), 0)[0].fingerprint for on in ("assistant", "all")}
    assert len(prints) == 2


def test_files_without_conversations_are_one_clear_line(tmp_path):
    file = write(tmp_path / "a.jsonl", '{"title": "x", "text": "y"}\n' * 3)
    with pytest.raises(PicoError, match=r"no conversations in .*a.jsonl, it has title, text; expected"):
        opened(file)
    with pytest.raises(PicoError, match=r"no tables in .*left out: files that are no tables"):
        opened(write(tmp_path / "a.txt", "text"))
    file = write(tmp_path / "b.jsonl", json.dumps({"messages": messages(("assistant", "x"))}))
    with pytest.raises(PicoError, match=r"no text in .*left out: conversations where the assistant speaks first"):
        opened(file)
    with pytest.raises(PicoError, match=r"one conversation, .* nothing to train on"):
        opened(write(tmp_path / "c.jsonl", json.dumps(qa(1))))


@pytest.mark.slow
def test_built_in_conversations(tmp_path):
    for name in "spelling", "identity":
        train, held = open_data(DataConfig(dataset=name, validation_size=30), 0)
        assert (len(train), len(held)) == (PER_EPOCH, 30) and train.loss_on == held.loss_on == "assistant"
        questions = [{unpack_turns(talk)[0] for talk in talks} for talks in (train, train.block(1), held)]
        assert not questions[0] & questions[2] and list(train.block(1)) != list(train)
        assert list(train.block(1)) == list(open_data(DataConfig(dataset=name), 0)[0].block(1))
    words = write(tmp_path / "words.jsonl", '{"text": "A moon, an APPLE."}')
    assert read_words(str(words)) == {"text", "a", "moon", "an", "apple"}
    train, _ = open_data(DataConfig(dataset="spelling", exclude_words=str(words)), 0)
    assert not any(
        re.search(rb"\bmoon\b", text) for talk in train for role, text in unpack_turns(talk) if role == "user"
    )
    with pytest.raises(PicoError, match="cannot read --exclude-words nowhere: No such file"):
        open_data(DataConfig(dataset="spelling", exclude_words="nowhere"), 0)
    with pytest.raises(PicoError, match="expected with the built-in 'spelling'"):
        DataConfig.build(dataset="stories", exclude_words="words")


def test_a_question_is_laid_out_up_to_its_answer():
    """In a context, its oldest turns are left out until there is room; the system's turn and the last one stay."""
    turns = [("system", b"s"), ("user", b"a" * 10), ("assistant", b"b" * 10), ("user", b"c")]
    head, last = [BOS, SYSTEM, *b"s", END_OF_TURN], [USER, *b"c", END_OF_TURN, ASSISTANT]
    whole = [*head, USER, *b"a" * 10, END_OF_TURN, ASSISTANT, *b"b" * 10, END_OF_TURN, *last]
    size = len(whole)
    assert lay_out_question(turns, BYTES) == (whole, 0)
    assert lay_out_question(turns, BYTES, context=size + 5, room=5) == (whole, 0)
    assert lay_out_question(turns, BYTES, context=size + 4, room=5) == ([*head, *last], 2)
    assert lay_out_question(turns, BYTES, context=2 * size, room=1000) == (whole, 0)  # a quarter is enough
    assert lay_out_question(turns, BYTES, context=3) == ([*head, *last], 2)
