"""The model in the repository: small, whole, and as good as its card says."""

from pathlib import Path

from pico import generate, load
from pico.evaluate.score import score
from pico.runs import checkpoint
from pico.runs.export import folder_size
from pico.runs.folder import checkpoints

SHIPPED = Path(__file__).parents[2] / "models" / "tinystories"
STORY = (
    b"Once upon a time, there was a little girl named Lily. She had a red ball. One day, her friend Tom came to play. "
    b'"Can I play with your ball?" asked Tom. Lily smiled and said, "Yes, let\'s play together!" They were very happy.'
)


def test_it_is_small_and_whole():
    (folder,) = checkpoints(SHIPPED / "best")
    assert checkpoint.verify_checkpoint(folder) is None
    assert folder_size(SHIPPED) < 25e6
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
