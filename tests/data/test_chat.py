"""Conversations: rows to turns, turns to a document and back, and to the symbols that a model reads."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pico.base.errors import PicoError
from pico.base.symbols import ASSISTANT, BOS, BYTES, END_OF_TURN, EOS, SYSTEM, USER
from pico.data.chat import ROLES, Turn, choose_form, conversations, pack_turns, symbols, unpack_turns

HELLO = [("system", b"Be kind."), ("user", b"Hi"), ("assistant", b"Hello!")]
TURNS = st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=4)


def talk(row: dict, wanted: str | None = None) -> list:
    """The turns of one row, or how it is counted among what is left out."""
    left_out = Counter()
    found = list(conversations([row], choose_form(row, wanted, "rows"), left_out))
    return unpack_turns(found[0]) if found else list(left_out)


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
    ids = symbols(back, BYTES, loss_on="all")[0]
    roles = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
    assert ids[np.isin(ids, list(roles.values()))].tolist() == [roles[turn.role] for turn in turns]
    assert (ids[0], ids[-1], (ids == END_OF_TURN).sum()) == (BOS, EOS, len(turns))
    assert BYTES.decode(ids) == b"".join(text for _, text in back)


def test_the_layout_and_what_is_scored():
    everything = symbols(HELLO, BYTES, loss_on="all")[0]
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
    masked = symbols(HELLO, BYTES)[0]
    assert np.where(masked < 0, ~masked, masked).tolist() == wanted
    assert masked[masked >= 0].tolist() == [*b"Hello!", END_OF_TURN]
    assert (masked >= 0).nonzero()[0].tolist() == list(range(len(wanted) - 8, len(wanted) - 1))


def test_a_long_conversation_is_cut_where_the_user_speaks():
    exchange = [("user", b"1234"), ("assistant", b"5678")]  # 12 symbols
    turns = [("system", b"s"), *exchange * 5]  # system: 3 symbols, BOS and EOS: 2
    pieces = symbols(turns, BYTES, context_len=3 + 2 + 2 * 12, loss_on="all")
    assert [len(piece) for piece in pieces] == [29, 29, 17]
    assert all(piece[:5].tolist() == [BOS, SYSTEM, ord("s"), END_OF_TURN, USER] for piece in pieces)
    assert [len(piece) for piece in symbols(turns, BYTES, context_len=28)] == [17] * 5
    assert [len(piece) for piece in symbols(turns, BYTES, context_len=8)] == [17] * 5  # an exchange stays whole
    assert [len(piece) for piece in symbols(turns, BYTES)] == [65]


def test_an_alphabet_without_turns():
    with pytest.raises(PicoError, match=r"no symbols for turns \(assistant, end-of-turn, system, user\)"):
        symbols(HELLO, SimpleNamespace(control={"bos": 0, "eos": 0}))


def test_roles_are_three():
    assert set(ROLES.values()) == {"system", "user", "assistant"}
