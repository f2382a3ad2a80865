"""Datasets of the Hub, through a folder laid out like one of its repositories."""

import json

import pytest
from helpers import same_batch, write_parquet
from repositories import CARD, STORIES, encoded, first_pass

from pico.base.config import DataConfig
from pico.base.errors import PicoError
from pico.data import hub
from pico.data import open as data
from pico.data.open import Batches, open_data, open_evaluation
from pico.data.reading import Reading

pytest.importorskip("datasets")

pytestmark = pytest.mark.usefixtures("caches")


@pytest.mark.parametrize("streaming", [False, True])
def test_default_config_of_a_repository(repository, streaming):
    config = DataConfig(dataset=str(repository), streaming=streaming)
    train, validation = open_data(config, seed=0)
    assert (first_pass(train) if streaming else list(train)) == encoded(STORIES)
    assert list(validation) == list(open_evaluation(config)) == [b"held one", b"held two"]


@pytest.mark.parametrize("streaming", [False, True])
def test_other_config_column_and_held_out_rows(repository, streaming):
    config = DataConfig(dataset=f"{repository}:other", column_name="a", streaming=streaming, validation_size=0.1)
    train, validation = open_data(config, seed=0)
    train = first_pass(train) if streaming else list(train)
    assert sorted(train + list(validation)) == sorted(encoded(STORIES))
    assert 5 <= len(validation) <= 20 and list(open_evaluation(config)) == list(validation)
    everything = DataConfig(dataset=f"{repository}:other", column_name="a", streaming=streaming)
    assert list(open_evaluation(everything)) == encoded(STORIES)


def test_streamed_hold_out_of_a_number_of_rows(repository):
    config = DataConfig(dataset=f"{repository}:other", column_name="a", streaming=True, validation_size=7)
    train, validation = open_data(config, seed=0)
    assert list(validation) == encoded(STORIES[:7]) and first_pass(train) == encoded(STORIES[7:])


@pytest.mark.parametrize("streaming", [False, True])
def test_split_flags_and_separator(repository, streaming):
    config = DataConfig(
        dataset=str(repository),
        train_split="validation",
        validation_split="train",
        document_separator=" ",
        streaming=streaming,
    )
    train, validation = open_data(config, seed=0)
    assert (first_pass(train) if streaming else list(train)) == [b"held", b"one", b"held", b"two"]
    assert list(validation) == [word for text in encoded(STORIES) for word in text.split(b" ") if word]


def test_file_flags_read_the_files_themselves(repository):
    config = DataConfig(dataset=str(repository), train_file="main/part-[01].parquet", validation_file="other/a.parquet")
    with pytest.raises(PicoError, match=r"several columns of .*a.parquet"):
        open_data(config, seed=0)
    config = config.model_copy(update={"validation_file": "main/part-2.parquet"})
    train, validation = open_data(config, seed=0)
    assert (list(train), list(validation)) == (encoded(STORIES[:80]), encoded(STORIES[80:]))


@pytest.mark.parametrize(("batch_size", "held"), [(1, None), (6, 0.3), (40, None)])
def test_stream_resumes_exactly_at_every_step(repository, batch_size, held):
    name = f"{repository}:other" if held else str(repository)
    config = DataConfig(dataset=name, column_name="a" if held else None, validation_size=held, streaming=True)

    def batches():
        return Batches(open_data(config, 0)[0], 32, 4, batch_size, seed=3)

    whole, states, rows = batches(), [], []
    while whole.epoch < 2:
        states.append(json.dumps(whole.state_dict()))
        rows.append(next(whole))
    assert whole.chunks_per_epoch is None
    for step in range(0, len(states) - 1, max(1, len(states) // 6)):
        resumed = batches()
        resumed.load_state_dict(json.loads(states[step]))
        for row in rows[step : step + 3]:
            assert same_batch(next(resumed), row)


def test_stream_is_shared_by_processes(repository):
    def batches(rank, world):
        return Batches(open_data(DataConfig(dataset=str(repository), streaming=True), 0)[0], 32, 4, 6, 0, rank, world)

    whole, shards = batches(0, 1), [batches(rank, 3) for rank in range(3)]
    for _ in range(40):
        expected = next(whole)
        assert all(same_batch(next(shard), [x[2 * i : 2 * i + 2] for x in expected]) for i, shard in enumerate(shards))


def test_fingerprints(repository):
    def fingerprint(**flags):
        return open_data(DataConfig(dataset=str(repository), **flags), 0)[0].fingerprint

    prints = [
        fingerprint(streaming=s, **f) for s in (False, True) for f in ({}, dict(train_file="main/part-0.parquet"))
    ]
    assert fingerprint(streaming=True) == fingerprint(streaming=True, column_name="story") == prints[2]
    assert fingerprint() == prints[0] and len({*prints}) == 3  # named files are read, not streamed


@pytest.mark.parametrize("streaming", [False, True])
def test_errors_of_a_repository(repository, streaming):
    for dataset, flags, message in [
        (repository, dict(column_name="text"), r"no column 'text' in dataset .*, it has id \(int64\), story \(text\)"),
        (repository, dict(column_name="id"), r"column 'id' of dataset .* holds int64, expected text or bytes"),
        (f"{repository}:other", {}, r"several columns of dataset .*, it has a \(text\), b \(text\)"),
        (f"{repository}:third", {}, "cannot read dataset .*third"),
        (repository, dict(train_split="extra"), "no split 'extra' in"),
        (repository, dict(validation_split="test"), "no split 'test' in .*, it has train, validation"),
    ]:
        with pytest.raises(PicoError, match=message) as error:
            open_data(DataConfig(dataset=str(dataset), streaming=streaming, **flags), seed=0)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_changed_and_broken_files_of_a_repository(repository, streaming):
    def read():
        train, _ = open_data(DataConfig(dataset=str(repository), streaming=streaming), seed=0)
        return first_pass(train) if streaming else list(train)

    assert read() == encoded(STORIES)
    write_parquet(repository / "main" / "part-1.parquet", id=[1], story=["changed"])
    assert read() == encoded([*STORIES[:40], "changed", *STORIES[80:]])
    (repository / "main" / "part-1.parquet").write_bytes(b"PAR1 broken")
    with pytest.raises(PicoError, match=r"cannot read (on in )?dataset .*tales'"):
        read()


def test_config_must_be_named_where_there_is_no_default(repository):
    (repository / "README.md").write_text(CARD.replace("  default: true\n", ""))
    with pytest.raises(PicoError, match=r"main.*other.*:CONFIG"):
        open_data(DataConfig(dataset=str(repository)), seed=0)


def test_repositories_are_told_from_plain_folders(repository, tmp_path):
    assert hub.is_repository(repository) and not hub.is_repository(tmp_path)
    (repository / "README.md").write_text("# No metadata\nconfigs: none\n")
    assert not hub.is_repository(repository)
    assert hub.is_name("owner/name-1.0") and hub.is_name("imdb") and hub.is_name("a/b:c")
    assert not any(hub.is_name(name) for name in ("../a", "/a/b", "a/b/c", "./a", "~/a", "a b", ""))


def test_streaming_does_not_change_local_files(tmp_path):
    (tmp_path / "a.txt").write_text("some text")
    train, _ = open_data(DataConfig(dataset=str(tmp_path / "a.txt"), streaming=True), seed=0)
    assert isinstance(train, data.Documents)


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_in_a_struct(tmp_path, streaming):
    rows = [{"text": text, "n": 1} for text in ("one", None, "three")]
    write_parquet(tmp_path / "a.parquet", meta=[*rows, None])
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: main\n  data_files: a.parquet\n---\n")
    for column in None, "meta.text":
        config = DataConfig(dataset=str(tmp_path), column_name=column, streaming=streaming, validation_size=1)
        reading = Reading()
        train, validation = open_data(config, 0, reading)
        assert sorted([*(train.block(0) if streaming else train), *validation]) == encoded(["one", "three"])
        assert "column 'meta.text'" in "\n".join(reading.lines())
    with pytest.raises(PicoError, match=r"no column 'meta' in .*, it has meta.text \(text\), meta.n \(int64\)"):
        open_data(config.model_copy(update={"column_name": "meta"}), 0)


# --- what is said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_read_of_a_repository_is_said(repository, streaming):
    write_parquet(repository / "main" / "held.parquet", id=[1, 2, 3], story=["held one", None, "held two"])
    config = DataConfig(dataset=str(repository), streaming=streaming, document_separator="||")
    reading, scored = Reading(), Reading()
    open_data(config, 0, reading)
    open_evaluation(config, reading=scored)
    lines = "\n".join(reading.lines())
    train = "a stream, split 'train'; column 'story'" if streaming else "120 documents, "
    assert f"training    {train}" in lines and "column 'story'" in lines and "left out    rows without text" in lines
    assert "validation  2 documents, 16 bytes; " in lines
    assert scored.lines()[-2].startswith("text        2 documents, 16 bytes; split 'validation'")
    assert scored.lines()[-1] == "left out    split 'train', rows without text"
    for warning in reading.warnings + scored.warnings:
        assert warning.startswith("--document-separator '||' never occurs in ")
    assert "2 documents, 16 bytes of text" in reading.warnings[-1] and len(scored.warnings) == 1


# --- data outside the folder ------------------------------------------------------------------------------------------

OUTSIDE = ["../secret/*.txt", "main/../../secret/a.txt", "/etc/*.txt", "..\\secret\\a.txt", "C:/secret/a.txt",
           "https://example.org/a.txt", "hf://datasets/a/b/c.txt", "~/a.txt"]  # fmt: skip


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("file", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize("path", OUTSIDE)
def test_metadata_that_leads_out_of_its_folder_is_not_followed(repository, streaming, file, path):
    (repository.parent / "secret").mkdir()
    (repository.parent / "secret" / "a.txt").write_text("nobody should read this\n")
    front = "configs:\n- config_name: main\n  data_files:\n  - split: train\n    path:\n    - main/part-*\n    - '{}'\n"
    card = front.format(path)
    if file == "README.md":
        card = f"---\n{card}---\n# Innocent\n"
    (repository / file).write_text(card)
    for dataset in str(repository), f"{repository}:main":
        with pytest.raises(PicoError, match=rf"{file} of .*tales names data outside its folder") as error:
            open_data(DataConfig(dataset=dataset, streaming=streaming), seed=0)
        assert "\n" not in str(error.value) and path in str(error.value)


def test_data_dir_that_leads_out_and_links_of_the_user(repository, tmp_path):
    card = "---\nconfigs:\n- config_name: main\n  data_dir: {}\n---\n"
    (repository / "README.md").write_text(card.format("../elsewhere"))
    with pytest.raises(PicoError, match="names data outside its folder"):
        open_data(DataConfig(dataset=str(repository)), seed=0)
    (repository / "other" / "a.parquet").rename(tmp_path / "blob")  # as the Hub's own cache lies
    (repository / "other" / "a.parquet").symlink_to(tmp_path / "blob")
    (repository / "README.md").write_text(card.format("other"))
    train, _ = open_data(DataConfig(dataset=str(repository), column_name="a"), seed=0)
    assert len(train) == 119


def test_a_stream_goes_on_with_another_number_of_processes(repository):
    """What splitting it between processes would break."""

    def batches(rank, world):
        return Batches(open_data(DataConfig(dataset=str(repository), streaming=True), 0)[0], 32, 4, 6, 0, rank, world)

    whole, shards = batches(0, 1), [batches(rank, 2) for rank in range(2)]
    for _ in range(25):
        next(whole), [next(shard) for shard in shards]
    state = json.loads(json.dumps(shards[1].state_dict()))
    shards = [batches(rank, 3) for rank in range(3)]
    for shard in shards:
        shard.load_state_dict(state)
    for _ in range(25):
        expected = next(whole)
        assert all(same_batch(next(shard), [x[2 * i : 2 * i + 2] for x in expected]) for i, shard in enumerate(shards))
