"""The models in the repository: small, whole, and as good as their cards say."""

from itertools import islice
from pathlib import Path

import pytest

from pico import generate, load
from pico.app.chat import Chat
from pico.data.spelling import is_test_word
from pico.data.stories.words import WORDS
from pico.decode.sampling import Sampling
from pico.evaluate.score import score
from pico.runs import checkpoint
from pico.runs.export import folder_size
from pico.runs.folder import checkpoints, is_chat, run_folder

MODELS = Path(__file__).parents[2] / "models"
SHIPPED, CHAT = MODELS / "tinystories", MODELS / "chat"
STORY = (
    b"Once upon a time, there was a little girl named Lily. She had a red ball. One day, her friend Tom came to play. "
    b'"Can I play with your ball?" asked Tom. Lily smiled and said, "Yes, let\'s play together!" They were very happy.'
)


@pytest.mark.parametrize("model", [SHIPPED, CHAT])
def test_it_is_small_and_whole(model):
    (folder,) = checkpoints(run_folder(model, ""))
    assert checkpoint.verify_checkpoint(folder) is None
    assert folder_size(model) < 20e6
    assert not any(file.name == "optimizer.safetensors" for file in folder.iterdir())


def test_it_knows_simple_stories():
    model = load(SHIPPED, "best")
    on, off = (score(model, [STORY], context_len=512, disable_latent=d).bits_per_byte for d in (False, True))
    assert on < 0.5 and off > on + 0.1


def test_it_continues_a_story():
    steps = list(generate(load(SHIPPED), "Once upon a time", max_bytes=120, temperature=0))
    text = b"".join(step.bytes for step in steps).decode()
    assert text.isprintable() and 0.1 < sum(step.routed for step in steps) / len(steps) < 0.4
    assert sum(word in text for word in (" there ", " was ", " a ", " little ")) >= 3


def answer(model, question: str) -> str:
    steps = Chat(model).answer(question.encode(), Sampling.build(temperature=0, max_bytes=120))
    return b"".join(step.bytes for step in steps).decode()


def test_the_chat_model_says_who_it_is_and_what_it_does_not_know():
    assert is_chat(run_folder(CHAT, ""))
    model = load(CHAT)
    assert "Pico" in answer(model, "Who are you?") and "I am Pico" in answer(model, "Hello!")
    assert "not know" in answer(model, "What is the capital of France?")
    assert answer(model, "Tell me a story about a cat.").startswith("O")  # Once, One day


def test_the_chat_model_turns_words_around_that_no_training_spelled():
    every = (word for table in WORDS.values() for word in table if word.isalpha() and word.islower())
    words = islice(filter(is_test_word, every), 12)
    model = load(CHAT)
    right = [answer(model, f"Write the word {word} backwards.") == word[::-1] for word in words]
    assert len(right) == 12 and sum(right) >= 10
