"""Every setting of Pico, checked in one place: ModelConfig, DataConfig, TrainConfig and the presets.

All problems of a config are reported at once, each with what was expected.
"""

import difflib
import math
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pico.base.errors import PicoError
from pico.base.routers import ROUTERS, Rule
from pico.base.symbols import VOCABULARY


class ConfigError(PicoError):
    """Bad values of a `config`."""

    def __init__(self, config: type, problems: list[str]):
        self.config = config.__name__
        super().__init__(f"{self.config}: {'; '.join(problems)}")


LONGEST_PROMPT = 100_000_000  # bytes
MAX_FEED = 64  # bytes that one forward of decoding may read: the last one drawn, and drafts
PREFILL = 1024  # bytes of all texts together that one forward of a prompt reads; longer prompts are read in pieces


RouterName = Literal[tuple(ROUTERS)]  # the rules there are


BackendName = Literal["dense", "blocked", "flex", "flash", "triton"]


Count = Annotated[int, Field(ge=1)]


Size = Annotated[int, Field(ge=1, le=2**20)]


Interval = Annotated[int, Field(ge=1, le=10**9)]


NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


MOST_STEPS = 10**8 - 1  # a checkpoint's folder has eight digits
MOST_RATE = 1e6  # far beyond what any run survives, and its products are still finite in fp32


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


def _problem(config: type[Config], error: dict) -> str:
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
            config = part(config.model_fields[step].annotation)
    return meant(key, config.model_fields)


def meant(name: str, valid) -> str:
    """What could have been meant by an unknown name, and all names that are valid."""
    near = difflib.get_close_matches(name, valid, n=1)
    return "".join(f"did you mean {each}? " for each in near) + f"valid: {', '.join(valid)}"


def part(annotation) -> type[Config] | None:
    """The Config inside of an annotation such as `list[Configuration]`, or None."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    return next(filter(None, map(part, get_args(annotation))), None)


class ModelConfig(Config):
    """The shape of a Pico model. Widths in channels, windows in positions before the current one."""

    dim: Count = Field(128, le=2**16, description="width D of the residual stream")
    next_tokens: Count = Field(4, le=64, description="prediction heads N: bytes predicted at once")
    att_q_heads: Count = Field(9, le=2**10, description="query heads H")
    att_kv_heads: Count = Field(3, le=2**10, description="key/value heads, divides the query heads")
    ngram_max: Annotated[int, Field(ge=0, le=16)] = Field(
        6, description="longest n-gram looked up for every byte, from 2 bytes on; 0 is off"
    )
    ngram_rows: Count = Field(32768, le=2**28, description="rows of the hash table of each n-gram length")
    ngram_dim: Count = Field(32, le=2**16, description="width of an n-gram's embedding")
    qk_norm: bool = Field(True, description="normalise queries and keys")
    embedding_skip: bool = Field(True, description="local blocks may mix the embedding back in")
    chained_heads: bool = Field(True, description="show heads the bytes drafted before theirs")
    mlp_ratio: Positive = Field(1.0, le=64, description="SwiGLU hidden width over dim (the seed's 1, usually 8/3)")
    fb_num_blocks: Annotated[int, Field(ge=0, le=1000)] = Field(
        2, description="local blocks before, and again after, the latent stack"
    )
    fb_att_window_size: Count = Field(16, le=2**20, description="attention window of the local blocks, in bytes")
    latent_capacity_factor: Annotated[float, Field(ge=1e-4, le=1)] = Field(
        0.25, description="fraction of bytes sent through the latent blocks"
    )
    latent_num_blocks: Annotated[int, Field(ge=0, le=1000)] = Field(12, description="latent blocks")
    latent_att_window_size: Count = Field(512, le=2**20, description="window of the latent blocks, in routed bytes")
    router: RouterName = Field("topk", description="which bytes are routed")

    @property
    def vocabulary(self) -> int:
        """Ids V that a model reads and predicts: bytes and control symbols."""
        return VOCABULARY

    @property
    def head_dim(self) -> int:
        """Head width E: dim / att_q_heads rounded to a multiple of 8 (at least 8)."""
        return max(8, 8 * round(self.dim / self.att_q_heads / 8))

    @property
    def ngram_orders(self) -> int:
        """How many n-gram lengths there are, 2 to ngram_max."""
        return max(0, self.ngram_max - 1)

    @property
    def history(self) -> int:
        """How many bytes before the current one the embedding and the router read (at least 1)."""
        return max(1, self.ngram_max - 1)

    @property
    def rule(self) -> Rule:
        """Which bytes are routed."""
        return ROUTERS[self.router](self.latent_capacity_factor)

    @property
    def latent_blocks(self) -> int:
        """How many latent blocks are built: none where nothing is routed."""
        return self.latent_num_blocks if self.rule.rate else 0

    @property
    def drafts(self) -> int:
        """Bytes drafted ahead in generation: by each head after the first, and two more if the last one can go on.

        One forward reads them together with the byte before them.
        """
        drafts = self.next_tokens - 1 + 2 * (self.chained_heads and self.next_tokens > 1)
        return min(drafts, MAX_FEED - 1)

    @property
    def mlp_dim(self) -> int:
        """SwiGLU hidden width, rounded up to a multiple of 8."""
        return 8 * math.ceil(self.dim * self.mlp_ratio / 8)

    @property
    def matrices(self) -> dict[str, list[tuple[int, int, int]]]:
        """{part: [(how many, rows, columns)]} of every parameter: a vector counts as a row. Nothing has to be built."""
        c, attention, lookup = self, self.att_q_heads * self.head_dim, self.ngram_orders * self.ngram_dim
        qkv = attention + 2 * c.att_kv_heads * c.head_dim
        block = [(1, qkv, c.dim), (1, c.dim, attention), (1, 2 * c.mlp_dim, c.dim), (1, c.dim, c.mlp_dim)]
        block.append((int(c.qk_norm), 1, 1))
        local = [(c.fb_num_blocks * n, *shape) for n, *shape in [*block, (int(c.embedding_skip), 1, 2)]]
        ngrams = {"ngrams": [(1, c.ngram_orders * c.ngram_rows, c.ngram_dim), (1, c.dim, lookup)]}
        return {
            "embedding": [(1, c.vocabulary, c.dim)],
            **(ngrams if c.ngram_max else {}),
            "local_in": local,
            "router": [(1, 1, c.dim), (1, 1, 1)],
            "latent": [(c.latent_blocks * n, *shape) for n, *shape in block],
            "local_out": local,
            "heads": [(1, c.next_tokens * c.vocabulary, c.dim)],
            "chain": [((c.next_tokens - 1) * c.chained_heads, c.dim, c.dim)],
        }

    @property
    def parameters(self) -> dict[str, int]:
        """How many there are in each part."""
        return {part: sum(n * r * c for n, r, c in shapes) for part, shapes in self.matrices.items()}

    @field_validator("dim")
    @classmethod
    def _multiple(cls, dim):
        if dim % 4:
            raise ValueError(f"expected a multiple of 4 (try {4 * math.ceil(dim / 4)})")
        return dim

    @field_validator("ngram_max")
    @classmethod
    def _pairs(cls, longest):
        if longest == 1:
            raise ValueError("expected 0 (off) or at least 2: single bytes have their embedding already")
        return longest

    @field_validator("att_kv_heads")
    @classmethod
    def _divides(cls, kv_heads, info):
        q_heads = info.data.get("att_q_heads", 0)  # missing when it was wrong itself
        if q_heads % kv_heads:
            raise ValueError(f"att_q_heads = {q_heads} is not divisible by it")
        return kv_heads

    @field_validator("latent_num_blocks")
    @classmethod
    def _some(cls, blocks, info):
        if not blocks and info.data.get("fb_num_blocks") == 0:
            raise ValueError("expected at least 1 when fb_num_blocks = 0: the model would have no blocks at all")
        return blocks

    @field_validator("router")
    @classmethod
    def _can_be_met(cls, router, info):
        ROUTERS[router].check(info.data.get("latent_capacity_factor", 1))  # missing when it was wrong itself
        return router


ORIGINAL = dict(next_tokens=8, ngram_max=0, qk_norm=False, embedding_skip=False, chained_heads=False)
PRESETS: dict[str, dict] = {
    "xs": {},
    # about 1M parameters, trains on a laptop's CPU
    "tiny": dict(
        dim=128, att_q_heads=4, att_kv_heads=2, mlp_ratio=1.0, fb_num_blocks=2,
        fb_att_window_size=32, latent_num_blocks=6, latent_att_window_size=256,
    ),
    # about 11M besides the tables; widths that are multiples of 64 fill the tiles of a GPU's matrix units
    "s": dict(dim=384, att_q_heads=6, att_kv_heads=2, latent_num_blocks=8, fb_att_window_size=32),
    # about 85M
    "m": dict(
        dim=768, att_q_heads=12, att_kv_heads=4, mlp_ratio=8 / 3, fb_num_blocks=2,
        fb_att_window_size=64, latent_num_blocks=9, latent_att_window_size=1024,
    ),
    # the design of loristns/pico: its defaults, and the model of its README
    "original-xs": ORIGINAL,
    "original-10m": ORIGINAL | dict(dim=372, latent_num_blocks=8, fb_att_window_size=32),
}  # fmt: skip


def preset(name: str = "xs", **overrides) -> ModelConfig:
    """The preset's ModelConfig with some values replaced. Raises PicoError for an unknown name or bad values."""
    if name not in PRESETS:
        raise PicoError(f"unknown preset '{name}': expected one of {', '.join(PRESETS)}")
    return ModelConfig.build(**{**PRESETS[name], **overrides})


class DataConfig(Config):
    """Where documents come from: the built-in `stories`, local files, or a dataset of the Hugging Face Hub."""

    dataset: str = Field("stories", description="'stories', a file or folder, or a Hub dataset (NAME or NAME:CONFIG)")
    column_name: str | None = Field(None, description="column that holds the text")
    format: Literal["auto", "bytes"] = Field("auto", description="'bytes' takes files raw")
    document_separator: str | None = Field(None, description="what stands between documents in a file")
    csv_separator: str | None = Field(
        None, description="what stands between the cells of a .csv file, 'tab' for a tab (default: found)"
    )
    train_file: str | None = Field(None, description="file of the dataset to train on")
    validation_file: str | None = Field(None, description="file of the dataset to validate on")
    train_split: str | None = Field(None, description="split to train on (default: train)")
    validation_split: str | None = Field(None, description="split to validate on")
    validation_size: Positive | None = Field(
        None, description="held out: a fraction below 1, or how many documents (default 1 %)"
    )
    streaming: bool = Field(False, description="stream a Hub dataset instead of downloading it")

    @field_validator("dataset", "train_file", "validation_file", "train_split", "validation_split")
    @classmethod
    def _named(cls, name):
        if name == "":
            raise ValueError("expected a name; an empty one would be the current folder")
        return name

    @field_validator("csv_separator")
    @classmethod
    def _one(cls, separator):
        separator = {"\\t": "\t", "tab": "\t"}.get(separator, separator)
        if separator is not None and not (len(separator) == 1 and separator.isascii() and separator not in '"\r\n\0'):
            raise ValueError("expected one ASCII character that is neither a quote nor a line's end")
        return separator


class TrainConfig(Config):
    """One training run. Intervals in optimizer steps; a step sees batch_size * grad_accumulation_steps chunks."""

    context_len: Size = Field(512, description="bytes in a chunk")
    batch_size: Size = Field(8, description="chunks in a batch, over all processes")
    grad_accumulation_steps: Size = Field(1, description="batches in an optimizer step")
    optimizer: Literal["soap", "adamw", "muon"] = Field("soap", description="how gradients become steps")
    soap_exact: bool = Field(False, description="SOAP to the letter of its paper, slow, to compare with")
    learning_rate: Annotated[Positive, Field(le=MOST_RATE)] = Field(1e-2, description="peak learning rate")
    weight_decay: Annotated[NonNegative, Field(le=MOST_RATE)] = Field(
        0.01, description="decoupled; not on norms, biases, router"
    )
    ngram_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.7, description="lookups left out when small text is read again"
    )
    dropout: Annotated[float, Field(ge=0, le=0.9)] = Field(
        0.1, description="of what blocks add, left out in the same case"
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
    warmup_steps: Annotated[int, Field(ge=0, le=MOST_STEPS)] = Field(
        50, description="linear; then the rate falls on a line to zero"
    )
    validation_interval: Interval = Field(500, description="steps between validations")
    checkpoint_interval: Interval = Field(500, description="steps between checkpoints")
    sample_interval: Interval = Field(500, description="steps between printed samples")
    keep_last: Interval = Field(3, description="newest valid checkpoints kept, besides the best")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="of weights, order, samples, held-out part")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="bf16 where hardware has it")
    attention_backend: BackendName | None = Field(None, description="chosen by device when not given")
    compile: bool = Field(False, description="torch.compile each block")
    cuda_graph: bool = Field(True, description="on one GPU, replay each step as a CUDA graph")
    tracker: Literal["none", "wandb", "tensorboard"] = Field("none", description="metrics also go to")
    tracker_project_name: str = Field("pico", description="project of the tracker")

    @property
    def step_chunks(self) -> int:
        """Chunks that an optimizer step reads, over all processes."""
        return self.batch_size * self.grad_accumulation_steps

    @property
    def step_bytes(self) -> int:
        """Positions that an optimizer step reads, over all processes."""
        return self.step_chunks * self.context_len
