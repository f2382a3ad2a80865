"""The shapes of models: ModelConfig is Pico's, GPTConfig that of its twin, a dense decoder.

    ModelConfig.build(dim=64), shape({"kind": "gpt", "num_blocks": 2})

Both say how large everything is without building anything. model.json holds one of them; `kind` says which.
"""

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from pico.base.config import MAX_FEED, Config, ConfigError, Count, Positive
from pico.base.errors import PicoError
from pico.base.routers import GUESS_WIDTHS, ROUTERS, TEACHERS, Rule
from pico.base.symbols import VOCABULARY

RouterName = Literal[tuple(ROUTERS)]  # the rules there are
TeacherName = Literal[tuple(TEACHERS)]  # those that a training may begin with
Share = Annotated[float, Field(ge=1e-4, le=1)]
EXTRAS = "latent_embedding_skip", "latent_update"  # of a Pico that torch alone can run
HEADS_FROM = 0.8  # share of a training after which the heads after the first learn too
RISEN, RISES = 0.8, 12  # a capacity that rises is there after this share of a training, in so many steps
Matrices = dict[str, list[tuple[int, int, int]]]
Blocks = Annotated[int, Field(ge=0, le=1000)]
NGramMax = Annotated[int, Field(ge=0, le=16)]


class Sizes(Config):
    """What both shapes can tell."""

    if TYPE_CHECKING:  # fields of both
        dim: int
        ngram_max: int
        ngram_rows: int
        ngram_dim: int
        ngram_shared: bool

        @property
        def matrices(self) -> Matrices: ...

    @property
    def ngram_orders(self) -> int:
        """How many n-gram lengths there are, 2 to ngram_max."""
        return max(0, self.ngram_max - 1)

    @property
    def history(self) -> int:
        """How many symbols before the current one the embedding (and Pico's router) reads, at least 1."""
        return max(1, self.ngram_max - 1)

    @property
    def ngram_tables(self) -> tuple[int, int]:
        """Rows of a hash table, and how many rows further that of the next length begins: none where all share one."""
        return (self.ngram_orders * self.ngram_rows, 0) if self.ngram_shared else (self.ngram_rows, self.ngram_rows)

    @property
    def parameters(self) -> dict[str, int]:
        """How many there are in each part."""
        return {part: sum(n * r * c for n, r, c in shapes) for part, shapes in self.matrices.items()}

    @property
    def ngram_matrices(self) -> Matrices:
        """Those of the n-gram tables, if there are any: the tables of all lengths as one, and what projects them."""
        lookup = self.ngram_orders * self.ngram_dim
        tables = [(1, self.ngram_orders * self.ngram_rows, self.ngram_dim), (1, self.dim, lookup)]
        return {"ngrams": tables} if self.ngram_max else {}

    @field_validator("ngram_max", check_fields=False)
    @classmethod
    def _pairs(cls, longest):
        if longest == 1:
            raise ValueError("expected 0 (off) or at least 2: single symbols have their embedding already")
        return longest

    @field_validator("att_kv_heads", check_fields=False)
    @classmethod
    def _divides(cls, kv_heads, info):
        q_heads = info.data.get("att_q_heads", 0)  # missing when it was wrong itself
        if q_heads % kv_heads:
            raise ValueError(f"att_q_heads = {q_heads} is not divisible by it")
        return kv_heads


class ModelConfig(Sizes):
    """The shape of a Pico model. Widths in channels, windows in positions before the current one."""

    kind: Literal["pico"] = Field("pico", description="which model this is the shape of")
    dim: Count = Field(128, le=2**16, description="width D of the residual stream")
    next_tokens: Count = Field(4, le=64, description="prediction heads N: bytes predicted at once")
    att_q_heads: Count = Field(9, le=2**10, description="query heads H")
    att_kv_heads: Count = Field(3, le=2**10, description="key/value heads, divides the query heads")
    ngram_max: NGramMax = Field(12, description="longest n-gram looked up for every byte, from 2 bytes on; 0 is off")
    ngram_rows: Count = Field(65536, le=2**28, description="rows of the hash table for each n-gram length")
    ngram_dim: Count = Field(16, le=2**16, description="width of an n-gram's embedding")
    ngram_shared: bool = Field(True, description="n-grams of all lengths share one table, as large as theirs together")
    qk_norm: bool = Field(True, description="normalise queries and keys")
    embedding_skip: bool = Field(True, description="local blocks may mix the embedding back in")
    latent_embedding_skip: bool = Field(False, description="latent blocks may too")
    chained_heads: bool = Field(True, description="show heads the bytes drafted before theirs")
    mlp_ratio: Positive = Field(1.0, le=64, description="SwiGLU hidden width over dim (the seed's 1, usually 8/3)")
    fb_num_blocks: Blocks = Field(2, description="local blocks before, and again after, the latent stack")
    fb_att_window_size: Count = Field(16, le=2**20, description="attention window of the local blocks, in bytes")
    latent_capacity_factor: Share = Field(0.25, description="fraction of bytes sent through the latent blocks")
    latent_num_blocks: Blocks = Field(12, description="latent blocks")
    latent_att_window_size: Count = Field(512, le=2**20, description="window of the latent blocks, in routed bytes")
    router: RouterName = Field("topk", description="which bytes are routed")
    latent_update: Literal["routed", "hold", "smooth"] = Field(
        "routed", description="which bytes get what the latent blocks found: the routed ones, or all after them too"
    )
    router_teacher: TeacherName | None = Field(
        None, description="what the router learns to foresee in the first 12 % of a training (topk: surprise)"
    )
    latent_capacity_start: Share | None = Field(
        None, description="that fraction as a training begins; it is latent_capacity_factor after 80 % of it"
    )

    max_context: ClassVar[None] = None  # it reads texts of any length
    context_len: ClassVar[int] = 512  # of a training's chunks, unless that says otherwise
    unit: ClassVar[str] = "byte"  # what a symbol is
    routes: ClassVar[bool] = True  # some symbols go another way than others

    @property
    def trains_all(self) -> bool:
        """Whether every parameter gets a gradient in every step: a router that has nothing to route gets none, and
        the heads after the first wait."""
        return self.latent_blocks > 0 and self.next_tokens == 1

    def heads_at(self, progress: float) -> int:
        """How many heads learn after this fraction of a training: they cost much, and learn fast from a stream that
        knows the text."""
        return self.next_tokens if progress >= HEADS_FROM else 1

    @property
    def vocabulary(self) -> int:
        """Ids V that a model reads and predicts: bytes and control symbols."""
        return VOCABULARY

    @property
    def head_dim(self) -> int:
        """Head width E: dim / att_q_heads rounded to a multiple of 8 (at least 8)."""
        return max(8, 8 * round(self.dim / self.att_q_heads / 8))

    @property
    def rule(self) -> Rule:
        """Which bytes are routed."""
        return ROUTERS[self.router](self.latent_capacity_factor)

    @property
    def scorer(self) -> str:
        """Which of the routers in pico/model/scorers.py."""
        return self.rule.scorer if self.latent_update == "routed" else self.latent_update

    @property
    def torch_alone(self) -> list[str]:
        """What of it nothing but Pico itself can do: neither numpy's readers nor transformers' form of it."""
        found = [name for name in EXTRAS if getattr(self, name) != type(self).model_fields[name].default]
        found += ["router"] if self.rule.scorer != "linear" else []
        return [f"{name} = {getattr(self, name)!r}" for name in found]

    @property
    def first_teacher(self) -> type[Rule] | None:
        """Who routes as a training begins, and says what the router shall foresee."""
        name = self.router_teacher or self.rule.first_teacher
        return TEACHERS[name] if name else None

    def rule_at(self, progress: float) -> Rule:
        """The rule after this fraction of a training. Its capacity rises step by step: a GPU sees few shapes."""
        start, end = self.latent_capacity_start, self.latent_capacity_factor
        if start is None or progress >= RISEN:
            return self.rule
        return ROUTERS[self.router](start + (end - start) * int(RISES * progress / RISEN) / RISES)

    @property
    def latent_blocks(self) -> int:
        """How many latent blocks are built: none where nothing is routed."""
        return self.latent_num_blocks if self.rule.rate else 0

    @property
    def stacks(self) -> list[tuple[int, int]]:
        """Layers and window of the blocks that all symbols go through, and of those for the routed ones."""
        local = 2 * self.fb_num_blocks, self.fb_att_window_size
        return [local, (self.latent_blocks, self.latent_att_window_size)]

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
    def carry(self) -> int:
        """Numbers that the router keeps of a text between two forwards, besides what is in the history."""
        return {"cosine": 2, "hold": 1, "smooth": 2}.get(self.scorer, 0) * self.dim

    @property
    def router_matrices(self) -> list[tuple[int, int, int]]:
        """Those of the router."""
        if self.rule.scorer == "cosine":
            return [(1, 2 * self.dim, self.dim)]
        beside, (width, hidden) = [], GUESS_WIDTHS
        if self.rule.scorer == "entropy":
            seen = (self.history + 1) * width
            beside = [(1, self.vocabulary, width), (1, hidden, seen), (1, self.vocabulary, hidden)]
        return [(1, 1, self.dim), (1, 1, 1), *beside]

    @property
    def matrices(self) -> Matrices:
        """{part: [(how many, rows, columns)]} of every parameter: a vector counts as a row. Nothing has to be built."""
        c, attention = self, self.att_q_heads * self.head_dim
        qkv = attention + 2 * c.att_kv_heads * c.head_dim
        block = [(1, qkv, c.dim), (1, c.dim, attention), (1, 2 * c.mlp_dim, c.dim), (1, c.dim, c.mlp_dim)]
        block.append((int(c.qk_norm), 1, 1))
        skip = int(c.embedding_skip), 1, 2
        local = [(c.fb_num_blocks * n, rows, columns) for n, rows, columns in [*block, skip]]
        latent = [*block, (int(c.latent_embedding_skip), 1, 2)]
        return {
            "embedding": [(1, c.vocabulary, c.dim)],
            **c.ngram_matrices,
            "local_in": local,
            "router": self.router_matrices,
            "latent": [(c.latent_blocks * n, rows, columns) for n, rows, columns in latent],
            "local_out": local,
            "heads": [(1, c.next_tokens * c.vocabulary, c.dim)],
            "chain": [((c.next_tokens - 1) * c.chained_heads, c.dim, c.dim)],
        }

    @field_validator("dim")
    @classmethod
    def _multiple(cls, dim):
        if dim % 4:
            raise ValueError(f"expected a multiple of 4 (try {4 * math.ceil(dim / 4)})")
        return dim

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

    @field_validator("latent_update")
    @classmethod
    def _scored(cls, update, info):
        router = info.data.get("router", "topk")  # missing when it was wrong itself
        if update != "routed" and ROUTERS[router].scorer != "linear":
            raise ValueError(f"router = {router!r} has a way of its own: expected routed")
        return update

    @field_validator("router_teacher", "latent_capacity_start")
    @classmethod
    def _learned(cls, value, info):
        router = info.data.get("router", "topk")  # missing when it was wrong itself
        learns = [name for name, rule in ROUTERS.items() if rule.learned and rule.scorer == "linear"]
        if value is not None and router not in learns:
            raise ValueError(f"router = {router!r} cannot be taught: expected {' or '.join(learns)} with it")
        if info.field_name == "router_teacher" and value:
            TEACHERS[value].check(info.data.get("latent_capacity_factor", 1))
        return value


class GPTConfig(Sizes):
    """The shape of a dense decoder: every symbol, a byte or a token, goes through all blocks and sees all before it."""

    kind: Literal["gpt"] = Field("gpt", description="which model this is the shape of")
    dim: Count = Field(128, le=2**16, description="width D of the residual stream")
    num_blocks: Annotated[int, Field(ge=1, le=1000)] = Field(4, description="blocks L, every symbol")
    att_q_heads: Count = Field(4, le=2**10, description="query heads H")
    att_kv_heads: Count = Field(2, le=2**10, description="key/value heads K, divides the query heads")
    head_dim: Count = Field(32, le=2**12, description="width E of a head")
    tokenizer: Literal["bytes", "bpe"] = Field("bytes", description="what a symbol is: a byte, or a token of a BPE")
    vocab_size: Count = Field(VOCABULARY, le=2**24, description="symbols V, control symbols included")
    tokenizer_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = Field(
        None, description="of the tokenizer.json in the model's folder, which init --tokenizer puts there"
    )
    max_context: Count = Field(512, le=2**20, description="symbols that one sees: itself and those before it")
    window: Annotated[Count, Field(le=2**20)] | None = Field(
        None, description="attention window in symbols before the current one, if it sees fewer than max_context"
    )
    rope_theta: Annotated[Positive, Field(ge=1, le=1e12)] = Field(1e4, description="base of the rotations of RoPE")
    rope_fraction: Annotated[float, Field(ge=0, le=1)] = Field(1.0, description="part of a head that rotates")
    qk_norm: Literal["none", "before", "after"] = Field(
        "after", description="normalise queries and keys, before or after they rotate"
    )
    sandwich_norm: bool = Field(False, description="normalise also what attention and MLP add")
    norm_gain: bool = Field(False, description="every RMSNorm has gains: of blocks, of queries and keys, the last one")
    mlp: Literal["swiglu", "relu2"] = Field("swiglu", description="its nonlinearity; relu2 is the squared ReLU")
    mlp_ratio: Annotated[Positive, Field(le=64)] = Field(8 / 3, description="hidden width over dim, of the first block")
    mlp_ratio_last: Annotated[Positive, Field(le=64)] | None = Field(
        None, description="of the last block, if it differs: those between lie on a line"
    )
    gate: Literal["none", "query", "input"] = Field(
        "none",
        description="what a head's output is multiplied by: sigmoid(W q), one W for all heads, or sigmoid(W x)",
    )
    qkv_bias: bool = Field(False, description="biases on queries, keys and values; there are no others")
    embedding_scale: Literal["none", "sqrt", "norm"] = Field(
        "none", description="the embedding times sqrt(dim), or normalised"
    )
    tied: bool = Field(False, description="the head's matrix is the embedding's")
    logit_softcap: Annotated[Positive, Field(le=1e6)] | None = Field(
        None, description="logits become c tanh(logits / c)"
    )
    init: Literal["standard", "zero", "depth"] = Field(
        "zero",
        description="zero: output projections and head start at zero; depth: the MLP's instead at a deviation that "
        "falls with depth, and its linear branch at zero",
    )
    ngram_max: NGramMax = Field(0, description="longest n-gram of symbols that is looked up, from 2 on; 0 is off")
    ngram_rows: Count = Field(65536, le=2**28, description="rows of the hash table for each n-gram length")
    ngram_dim: Count = Field(16, le=2**16, description="width of an n-gram's embedding")
    ngram_shared: bool = Field(True, description="n-grams of all lengths share one table, as large as theirs together")

    carry: ClassVar[int] = 0
    next_tokens: ClassVar[int] = 1  # it predicts one symbol, and drafts none
    drafts: ClassVar[int] = 0
    routes: ClassVar[bool] = False
    trains_all: ClassVar[bool] = True

    def heads_at(self, progress: float) -> int:
        """How many heads learn after this fraction of a training."""
        return 1

    @property
    def unit(self) -> str:
        """What a symbol is."""
        return "byte" if self.tokenizer == "bytes" else "token"

    @property
    def vocabulary(self) -> int:
        """Ids V that a model reads and predicts."""
        return self.vocab_size

    @property
    def context_len(self) -> int:
        """Of a training's chunks, unless that says otherwise."""
        return self.max_context

    @property
    def reach(self) -> int:
        """How many symbols before the current one attention sees at most."""
        return min(self.max_context - 1, self.window or self.max_context - 1)

    @property
    def stacks(self) -> list[tuple[int, int]]:
        """Layers and window of the blocks that all symbols go through, and of those for routed ones: none."""
        return [(self.num_blocks, self.reach), (0, 0)]

    @property
    def mlp_dims(self) -> list[int]:
        """Hidden width of each block: dim times a ratio that grows on a line, to the nearest multiple of 16."""
        first, last = self.mlp_ratio, self.mlp_ratio_last or self.mlp_ratio
        steps = max(1, self.num_blocks - 1)
        ratios = [first + (last - first) * layer / steps for layer in range(self.num_blocks)]
        return [max(16, 16 * round(self.dim * ratio / 16)) for ratio in ratios]

    @property
    def matrices(self) -> Matrices:
        """{part: [(how many, rows, columns)]} of every parameter: a vector counts as a row. Nothing has to be built."""
        c, n, width = self, self.num_blocks, self.head_dim
        attention, gain = c.att_q_heads * width, int(c.norm_gain)
        qkv = attention + 2 * c.att_kv_heads * width
        blocks = [(n, qkv, c.dim), (n * c.qkv_bias, 1, qkv), (n, c.dim, attention)]
        blocks += {"none": [], "query": [(n, width, width)], "input": [(n, attention, c.dim)]}[c.gate]
        blocks += [(gain * n * (4 if c.sandwich_norm else 2), 1, c.dim)]
        blocks += [(gain * 2 * n * (c.qk_norm != "none"), 1, width)]
        for hidden in c.mlp_dims:
            blocks += [(1, hidden * (2 if c.mlp == "swiglu" else 1), c.dim), (1, c.dim, hidden)]
        return {
            "embedding": [(1, c.vocab_size, c.dim)],
            **c.ngram_matrices,
            "blocks": blocks,
            "norm": [(gain, 1, c.dim)],
            "head": [(int(not c.tied), c.vocab_size, c.dim)],
        }

    @field_validator("head_dim")
    @classmethod
    def _pairwise(cls, width):
        if width % 2:
            raise ValueError(f"expected an even number (try {width + 1}): RoPE rotates pairs")
        return width

    @field_validator("vocab_size")
    @classmethod
    def _of_bytes(cls, size, info):
        if info.data.get("tokenizer") == "bytes" and size != VOCABULARY:
            raise ValueError(f"expected {VOCABULARY}, bytes and control symbols, unless the tokenizer is bpe")
        return size


Shape = ModelConfig | GPTConfig
KINDS: dict[str, type[Shape]] = {"pico": ModelConfig, "gpt": GPTConfig}


def shape(values: dict) -> Shape:
    """The config of these values, of the class that their `kind` names; Pico's where there is none.

    Raises PicoError with all that is wrong.
    """
    kind = values.get("kind", "pico")
    if kind not in list(KINDS):
        raise PicoError(f"kind = {kind!r}: expected {' or '.join(map(repr, KINDS))}")
    fields, every = KINDS[kind].model_fields, {name for other in KINDS.values() for name in other.model_fields}
    if foreign := [name for name in values if name in every and name not in fields]:
        raise ConfigError(KINDS[kind], [f"{name} = {values[name]!r}: a {kind} has none" for name in foreign])
    return KINDS[kind].build(**values)


def check_routes(config: Shape, **flags) -> None:
    """Raises PicoError for flags that are set, of what only a model that routes can do."""
    for name in (name for name, value in flags.items() if value and not config.routes):
        raise PicoError(f"--{name.replace('_', '-')} is for a Pico: this model is a gpt, which routes nothing")


def check_context(config: Shape, context_len: int) -> None:
    """Raises PicoError for a context that is longer than the model's."""
    if config.max_context and context_len > config.max_context:
        raise PicoError(
            f"--context-len {context_len}: this model sees {config.max_context} {config.unit}s; use that or less"
        )
