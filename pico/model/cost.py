"""What a model costs: FLOPs per symbol (a byte, or a token) and bytes of cache, without building it."""

import torch

from pico.base.memory import training_bytes
from pico.base.routers import GUESS_WIDTHS
from pico.base.shapes import HEADS_FROM, GPTConfig, ModelConfig, Shape
from pico.model.cache import MAX_FEED, Cache
from pico.model.causal import BLOCK


def flops_per_symbol(
    config: Shape, context_len: int, routed: float | None = None, heads: int | None = None
) -> tuple[float, float]:
    """(forward, training) FLOPs per symbol: 2 a multiply-add of matmuls and attention; training is 3 forwards of all.

    routed: fraction of the bytes that Pico's latent blocks run on; None is the rate that the config names. heads: how
    many are trained; None is all.
    """
    if config.kind == "gpt":
        forward = 2 * _gpt_multiplications(config, context_len)
        return forward, 3 * forward
    return _pico_flops(config, context_len, routed, heads or config.next_tokens)


def training_flops(config: Shape, context_len: int) -> float:
    """FLOPs per symbol of a training, the mean of its steps: in the most of them one head learns."""
    first, last = (flops_per_symbol(config, context_len, heads=config.heads_at(progress))[1] for progress in (0, 1))
    return HEADS_FROM * first + (1 - HEADS_FROM) * last


def keys_seen(window: int, length: float) -> float:
    """By an average query of so many positions that sees `window` before it and itself; the first ones have fewer."""
    before = min(window, length - 1)
    return (before + 1) * (1 - before / max(length, 1) / 2)


def _gpt_multiplications(c: GPTConfig, context_len: int) -> float:
    """Of one forward, for a symbol: those of every matrix but the tables, of which reading a row costs none."""
    parts = {part: shapes for part, shapes in c.matrices.items() if part not in ("embedding", "norm", "ngrams")}
    linear = sum(n * rows * columns for shapes in parts.values() for n, rows, columns in shapes if rows > 1)
    linear += c.num_blocks * (c.att_q_heads - 1) * c.head_dim**2 * (c.gate == "query")  # shared: once for each head
    linear += c.ngram_orders * c.ngram_dim * c.dim + c.tied * c.dim * c.vocab_size
    return linear + c.num_blocks * 2 * c.att_q_heads * c.head_dim * keys_seen(c.reach, context_len)


def _pico_flops(config: ModelConfig, context_len: int, routed: float | None, heads: int) -> tuple[float, float]:
    c, width = config, config.head_dim
    linear = c.dim * width * (c.att_q_heads + 2 * c.att_kv_heads) + c.att_q_heads * width * c.dim
    linear += 3 * c.dim * c.mlp_dim

    def block(window: int, length: float) -> float:
        return linear + 2 * c.att_q_heads * width * keys_seen(window, length)

    if routed is None:
        routed = c.rule.rate
    local = 2 * c.fb_num_blocks * block(c.fb_att_window_size, context_len)
    latent = routed * c.latent_num_blocks * block(c.latent_att_window_size, routed * context_len)
    width, hidden = GUESS_WIDTHS
    beside = (c.history + 1) * width * hidden + hidden * c.vocabulary
    router = {"linear": c.dim, "cosine": 2 * c.dim**2, "entropy": c.dim + beside}[c.rule.scorer]
    lookup = c.ngram_orders * c.ngram_dim * c.dim  # their projection: reading a row costs no FLOP
    rest = 2 * (lookup + local + latent + router)
    chain = 2 * c.chained_heads * (heads - 1) * c.dim**2  # only drafting and the loss need it
    return rest + 2 * c.dim * c.next_tokens * c.vocabulary, 3 * (rest + 2 * c.dim * heads * c.vocabulary + chain)


def cache_bytes(config: Shape, dtype=torch.float32, feed: int = MAX_FEED) -> int:
    """Bytes of key/value state that generation needs for one text, however long; `feed` of it in one forward."""
    return Cache(config, 1, dtype, "meta", feed).memory_bytes()


def activation_bytes(c: GPTConfig, batch: int, context_len: int, checkpointing=False, device: str = "cpu") -> int:
    """What a gpt's forward in fp32 keeps for its backward pass: 4 bytes for each of these numbers.

    For a symbol, in a block with F hidden channels, A = H E channels of queries and C = K E of keys:

        2 D, (A + C), 2 D           its norms: of the block, of queries and keys, of a sandwich; and a size for each
        2 D                         what gains make of the first two
        A + 2 C, H S, A             what attention reads, the weights of S keys, what it gives. S: with FlashAttention
                                    on CUDA none, on MPS the context, on a CPU those that a query sees in blocks of 64
        3 A, or 2 A                 the gate of a query, or of the input
        4 F, or 2 F                 SwiGLU, or the squared ReLU

    Then what the last norm gives, and that of the embedding; the gradient of the last; once, that of the head, which
    the loss makes on its way. With gradient checkpointing: what goes into each block, and the above for one of them.
    """
    queries, keys, qk = c.att_q_heads * c.head_dim, c.att_kv_heads * c.head_dim, c.qk_norm != "none"
    on_cpu = keys_seen(c.reach, context_len) + (min(BLOCK, context_len) - 1) / 2
    seen = {"cuda": 0, "mps": context_len}.get(device, on_cpu)
    norms = 2 + 2 * c.sandwich_norm
    block = norms * (c.dim + 1) + qk * (queries + keys + c.att_q_heads + c.att_kv_heads) + 2 * c.norm_gain * c.dim
    block += 2 * (queries + keys) + c.att_q_heads * seen
    block += {"none": 0, "query": 3, "input": 2}[c.gate] * queries
    blocks = [block + (4 if c.mlp == "swiglu" else 2) * hidden for hidden in c.mlp_dims]
    kept = c.num_blocks * c.dim + max(blocks) if checkpointing else sum(blocks)
    kept += (
        2 * c.dim + (c.embedding_scale == "norm" and not checkpointing) * c.dim
    )  # else it is kept as a block's input
    return round(4 * (batch * context_len * kept + c.vocab_size * c.dim))


def model_facts(config: Shape, context_len: int | None = None) -> dict:
    """Parameters of each part, FLOPs per symbol at that context (None: as in training), bytes of key/value cache.

    Builds no weights.
    """
    parts, context_len = config.parameters, context_len or config.context_len
    return {
        "parameters": sum(parts.values()),
        "parts": parts,
        "unit": config.unit,
        "context_len": context_len,
        "forward_flops_per_symbol": flops_per_symbol(config, context_len)[0],
        "training_flops_per_symbol": training_flops(config, context_len),
        "kv_cache_bytes": cache_bytes(config),
        **({"memory_bytes": memory_facts(config, context_len)} if config.kind == "gpt" else {}),
    }


def memory_facts(config: GPTConfig, context_len: int) -> dict:
    """Bytes in fp32: weights, gradients, what each optimizer remembers, and the activations of one text of that length,
    with gradient checkpointing and without, on each kind of device."""
    weights = 4 * sum(config.parameters.values())
    gradients = weights - 4 * config.ngram_orders * config.ngram_rows * config.ngram_dim  # of rows looked up alone

    def activations(checkpointing: bool) -> dict:
        devices = ("cpu", "mps", "cuda")
        return {device: activation_bytes(config, 1, context_len, checkpointing, device) for device in devices}

    return {
        "weights": weights,
        "gradients": gradients,
        "optimizer": {name: training_bytes(config, name) - weights - gradients for name in ("muon", "adamw", "soap")},
        "activations": activations(False),
        "activations_checkpointed": activations(True),
    }
