"""Settings, checked in one place: what every config is, DataConfig and TrainConfig. Shapes of models: shapes.py.

All problems of a config are reported at once, each with what was expected.
"""

import difflib
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from pico.base.errors import PicoError
from pico.base.schedules import SCHEDULES, WARMED


class ConfigError(PicoError):
    """Bad values of a `config`."""

    def __init__(self, config: type, problems: list[str]):
        self.config = config.__name__
        super().__init__(f"{self.config}: {'; '.join(problems)}")


LONGEST_PROMPT = 100_000_000  # bytes
MAX_FEED = 64  # bytes that one forward of decoding may read: the last one drawn, and drafts
PREFILL = 1024  # bytes of all texts together that one forward of a prompt reads; longer prompts are read in pieces


BackendName = Literal["dense", "blocked", "flex", "flash", "triton"]


Count = Annotated[int, Field(ge=1)]


Size = Annotated[int, Field(ge=1, le=2**20)]


Interval = Annotated[int, Field(ge=1, le=10**9)]


NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


MOST_STEPS = 10**8 - 1  # a checkpoint's folder has eight digits
MOST_RATE = 1e6  # far beyond what any run survives, and its products are still finite in fp32
Rate = Annotated[Positive, Field(le=MOST_RATE)]


class Config(BaseModel):
    """A frozen, strict pydantic model whose errors read as one line."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @classmethod
    def build(cls, /, **values):
        """Like the constructor, but raises ConfigError with every problem in one line."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise ConfigError(cls, [_problem(cls, each) for each in error.errors()]) from None

    @classmethod
    def flag(cls, field: str) -> str:
        """What a person types on the command line to set a field."""
        return f"--{field.replace('_', '-')}"


def _problem(config: type[Config], error: ErrorDetails) -> str:
    message = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return message
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"unknown key '{name}': {_keys(config, error['loc'])}"
    return f"{name} = {error['input']!r}: {message[0].lower()}{message[1:]}"


def _keys(config: type[Config], place: tuple) -> str:
    """What could have been meant by the unknown key at this place, and all that is valid there."""
    *way, key = place
    for step in way:
        if isinstance(step, str):  # a number is a place in a list of the same kind
            config = nested_config(config.model_fields[step].annotation) or config
    return meant(key, config.model_fields)


def meant(name: str, valid) -> str:
    """What could have been meant by an unknown name, and all names that are valid."""
    near = difflib.get_close_matches(name, valid, n=1)
    return "".join(f"did you mean {each}? " for each in near) + f"valid: {', '.join(valid)}"


def nested_config(annotation) -> type[Config] | None:
    """The Config inside of an annotation such as `list[Configuration]`, or None."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    return next(filter(None, map(nested_config, get_args(annotation))), None)


class DataConfig(Config):
    """Where documents come from: a built-in corpus, local files, or a dataset of the Hugging Face Hub."""

    dataset: str = Field("stories", description="stories, spelling, identity, a path, a Hub dataset")
    column_name: str | None = Field(None, description="column of the text; of chats, or QUESTION,ANSWER")
    format: Literal["auto", "bytes", "bin", "chat"] = Field("auto", description="read as")
    loss_on: Literal["assistant", "all"] = Field("assistant", description="scored of chats")
    exclude_words: str | None = Field(None, description="file of words that 'spelling' leaves out")
    document_separator: str | None = Field(None, description="what stands between documents in a file")
    csv_separator: str | None = Field(None, description="what stands between cells of a .csv file, 'tab' a tab")
    train_file: str | None = Field(None, description="file of the dataset to train on")
    validation_file: str | None = Field(None, description="file of the dataset to validate on")
    train_split: str | None = Field(None, description="split to train on (default: train)")
    validation_split: str | None = Field(None, description="split to validate on")
    validation_size: Positive | None = Field(None, description="held out: documents, or a fraction (default 1 %)")
    streaming: bool = Field(False, description="stream a Hub dataset instead of downloading it")

    @classmethod
    def flag(cls, field: str) -> str:
        if field == "dataset":
            return "DATASET"
        bare = ("loss_on", "exclude_words", "document_separator", "streaming")
        return super().flag(field if field in bare else f"dataset_{field}")

    @field_validator("dataset", "train_file", "validation_file", "train_split", "validation_split", "exclude_words")
    @classmethod
    def _named(cls, name):
        if name == "":
            raise ValueError("expected a name; an empty one would be the current folder")
        return name

    @field_validator("exclude_words")
    @classmethod
    def _spelled(cls, file, info):
        if file and info.data.get("dataset") != "spelling":
            raise ValueError("expected with the built-in 'spelling'")
        return file

    @field_validator("csv_separator")
    @classmethod
    def _one(cls, separator):
        separator = {"\\t": "\t", "tab": "\t"}.get(separator, separator)
        if separator is not None and not (len(separator) == 1 and separator.isascii() and separator not in '"\r\n\0'):
            raise ValueError("expected one ASCII character that is neither a quote nor a line's end")
        return separator


class TrainConfig(Config):
    """One training run. Intervals in optimizer steps; a step sees batch_size * grad_accumulation_steps chunks."""

    context_len: Size = Field(512, description="symbols in a chunk; a gpt: its context")
    batch_size: Size = Field(8, description="chunks in a batch, over all processes")
    grad_accumulation_steps: Size = Field(1, description="batches in an optimizer step")
    optimizer: Literal["soap", "adamw", "muon"] = Field("soap", description="how gradients become steps")
    soap_exact: bool = Field(False, description="SOAP to the letter of its paper, slow, to compare with")
    soap_beta2: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.95, description="memory of SOAP's second moment; its bases keep theirs of 0.95"
    )
    soap_cautious: bool = Field(False, description="SOAP decays only the numbers that its step takes towards 0 too")
    tail_average: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share in the final weights of their average over the end of the run"
    )
    learning_rate: Rate = Field(1e-2, description="peak learning rate")
    embedding_rate: Rate | None = Field(None, description="peak of the embedding, if it differs")
    head_rate: Rate | None = Field(None, description="of the heads")
    vector_rate: Rate | None = Field(None, description="of gains, biases and the router")
    muon_step: Literal["rms", "original"] = Field("rms", description="Muon's step: as long as AdamW's, or its author's")
    weight_decay: Annotated[NonNegative, Field(le=MOST_RATE)] = Field(
        0.01, description="decoupled; not on norms, biases, router"
    )
    dropout: Annotated[float, Field(ge=0, le=0.9)] = Field(
        0.1, description="of what blocks add, left out when small text is read again"
    )
    gradient_clip: Annotated[Positive, Field(le=1e12)] = Field(1.0, description="largest global gradient norm")
    router_loss_weight: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="share of the router's own loss in the total"
    )
    epochs: Annotated[Positive, Field(le=1e6)] | None = Field(
        None, description="passes over the data (default 1 if no other limit)"
    )
    max_steps: Annotated[Count, Field(le=MOST_STEPS)] | None = Field(None, description="optimizer steps")
    max_minutes: Annotated[Positive, Field(le=1e7)] | None = Field(None, description="wall-clock training time")
    max_flops: Annotated[Positive, Field(le=1e30)] | None = Field(
        None, description="FLOPs of training, charged by the bytes that were routed"
    )
    schedule: Literal[tuple(SCHEDULES)] = Field("wsd", description="of the rate")
    warmup_steps: Annotated[int, Field(ge=0, le=MOST_STEPS)] = Field(
        50, description="linear, before the schedule (steps has its own)"
    )
    validation_interval: Interval = Field(500, description="steps between validations")
    checkpoint_interval: Interval = Field(500, description="steps between checkpoints")
    sample_interval: Interval = Field(500, description="steps between printed samples")
    keep_last: Interval = Field(3, description="newest valid checkpoints kept, besides the best")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="of weights, order, samples, held-out part")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="bf16 where it is fast")
    attention_backend: BackendName | None = Field(None, description="by device when not given")
    gradient_checkpointing: bool = Field(
        False, description="keep what goes into each block alone, and run it again: less memory, a third more time"
    )
    compile: bool = Field(False, description="torch.compile each block")
    cuda_graph: bool = Field(True, description="on one GPU, replay each step as a CUDA graph")
    tracker: Literal["none", "wandb", "tensorboard", "trackio"] = Field("none", description="log to")
    tracker_project_name: str = Field("pico", description="project of the tracker")

    @property
    def warmup(self) -> int:
        """Steps of the warm-up: none where the schedule has one of its own."""
        return 0 if self.schedule in WARMED else self.warmup_steps

    @property
    def step_chunks(self) -> int:
        """Chunks that an optimizer step reads, over all processes."""
        return self.batch_size * self.grad_accumulation_steps

    @property
    def step_symbols(self) -> int:
        """Bytes or tokens that an optimizer step reads, control symbols included, over all processes."""
        return self.step_chunks * self.context_len
