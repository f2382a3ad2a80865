"""Pico in one file, for transformers: bytes in, the next byte out. It imports torch and transformers alone.

    bytes -> embeddings of the byte and of the n-grams that end with it -> local blocks, on every byte
          -> the router picks some bytes -> latent blocks, on those alone, as a sequence of their own
          -> gated back into the stream -> local blocks -> norm -> N heads, of which the first gives the logits

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

B batch, T bytes, D width, H query heads, K key/value heads, E head width, N heads of prediction, V vocabulary,
M bytes of the fullest row that go through the latent blocks.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

EPS = torch.finfo(torch.float32).eps  # of every norm
QUERIES = 256  # attended at a time: the scores of a long text are never there whole


class PicoConfig(PretrainedConfig):
    """Widths in channels, windows in positions before the current one."""

    model_type = "pico"
    keys_to_ignore_at_inference = ["cache", "router_weight", "routed"]
    attribute_map = {
        "hidden_size": "dim",
        "num_attention_heads": "att_q_heads",
        "num_key_value_heads": "att_kv_heads",
    }

    def __init__(
        self,
        dim=128,
        next_tokens=4,  # N
        att_q_heads=9,
        att_kv_heads=3,
        head_dim=16,
        ngram_max=12,  # longest n-gram looked up; 0: none
        ngram_rows=65536,  # of the hash table for each length
        ngram_dim=16,
        ngram_shared=True,  # one table for all lengths, as large as theirs together
        qk_norm=True,
        embedding_skip=True,  # local blocks may mix the embedding back in
        chained_heads=True,  # a drafting head is shown the byte before the one it predicts
        mlp_dim=128,
        fb_num_blocks=2,  # local blocks before, and again after, the latent ones
        fb_att_window_size=16,
        latent_num_blocks=12,
        latent_att_window_size=512,  # in routed bytes
        latent_capacity_factor=0.25,  # share of the bytes that is routed
        router="topk",
        vocab_size=264,  # 256 bytes, then control symbols
        use_cache=True,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=262,
        **others,
    ):
        self.dim, self.next_tokens, self.vocab_size = dim, next_tokens, vocab_size
        self.att_q_heads, self.att_kv_heads, self.head_dim, self.qk_norm = att_q_heads, att_kv_heads, head_dim, qk_norm
        self.ngram_max, self.ngram_rows, self.ngram_dim = ngram_max, ngram_rows, ngram_dim
        self.ngram_shared = ngram_shared
        self.embedding_skip, self.chained_heads, self.mlp_dim = embedding_skip, chained_heads, mlp_dim
        self.fb_num_blocks, self.fb_att_window_size = fb_num_blocks, fb_att_window_size
        self.latent_num_blocks, self.latent_att_window_size = latent_num_blocks, latent_att_window_size
        self.latent_capacity_factor, self.router = latent_capacity_factor, router
        self.num_hidden_layers, self.use_cache = 2 * fb_num_blocks + latent_num_blocks, use_cache
        control = {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id}
        super().__init__(**{**control, "tie_word_embeddings": False, **others})


# --- memory ----------------------------------------------------------------------------------------------------------


class Stack:
    """What some blocks still see of the past: keys and values of the last W positions of each row, oldest first.

    Rows count their own positions: padding has none (-1), and neither has, in the latent stack, a byte that is not
    routed. So rows of one batch may be of other lengths, and route otherwise.
    """

    def __init__(self, window: int, keep: bool):
        self.window, self.keep, self.tensors = window, keep, {}

    def open(self, real: Tensor) -> Tensor:
        """Make room for n more in each row, where real (B, n) says so; returns their positions (B, n)."""
        if "length" not in self.tensors:
            zero = torch.zeros(len(real), dtype=torch.long, device=real.device)
            self.tensors |= {"length": zero, "positions": zero[:, None][:, :0]}
        length = self.tensors["length"]
        self.queries = (length[:, None] + real.cumsum(1) - 1).masked_fill(~real, -1)
        self.keys = torch.cat([self.tensors["positions"], self.queries], dim=1)  # (B, S + n)
        newest, order = self.keys.sort(dim=1, stable=True)  # what is no position comes first
        self.kept = order[:, -self.window :]
        self.tensors |= {"length": length + real.sum(1), "positions": newest[:, -self.window :]}
        return self.queries

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, alibi: Tensor | None) -> Tensor:
        """q (B, n, H, E) and k, v (B, n, K, E) of what was opened -> (B, n, H, E)."""
        if layer in self.tensors:
            before = self.tensors[layer]  # (B, S, 2, K, E)
            k, v = torch.cat([before[:, :, 0], k], dim=1), torch.cat([before[:, :, 1], v], dim=1)
        if self.keep:
            kept = self.kept[:, :, None, None, None].expand(-1, -1, 2, *k.shape[2:])
            self.tensors[layer] = torch.stack([k, v], dim=2).gather(1, kept)
        return attention(q, k, v, self.queries, self.keys, self.window, alibi)


class PicoCache(Cache):
    """The past of a batch of texts, for `generate`: its memory stays the same however long they grow."""

    is_linear = (False,)
    is_croppable = False

    def __init__(self, windows: list[int], keep: bool = True):
        super().__init__(layers=[])
        self.stacks, self.history, self.columns = [Stack(window, keep) for window in windows], None, 0

    def read(self, ids: Tensor, real: Tensor, history: int, bos: int) -> Tensor:
        """The ids (B, T), padding turned into BOS, behind those before them: (B, history + T)."""
        if self.history is None:
            self.history = ids.new_full((len(ids), history), bos)
        text = torch.cat([self.history, ids.where(real, bos)], dim=1)
        self.history, self.columns = text[:, -history:], self.columns + ids.shape[1]
        return text

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.columns

    def select(self, rows: Tensor) -> None:
        """These rows from now on, in this order."""
        for stack in self.stacks:
            stack.tensors = {name: x.index_select(0, rows.to(x.device)) for name, x in stack.tensors.items()}
        if self.history is not None:
            self.history = self.history.index_select(0, rows.to(self.history.device))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.history is not None:
            self.select(torch.arange(len(self.history)).repeat_interleave(repeats))

    def reset(self) -> None:
        self.__init__([stack.window for stack in self.stacks])


def attention(q, k, v, q_positions, k_positions, window: int, alibi: Tensor | None) -> Tensor:
    """Query i sees keys i-W .. i, with bias -m_h (i-j) where there are slopes m: alibi (H,), arXiv 2108.12409."""
    past, out = k.shape[1] - q.shape[1], []
    for start in range(0, q.shape[1], QUERIES):
        queries = slice(start, min(start + QUERIES, q.shape[1]))
        keys = slice(max(0, past + start - window), past + queries.stop)
        places = k_positions[:, None, None, keys]
        distance = q_positions[:, None, queries, None] - places  # (B, 1, Q, S)
        seen = (distance >= 0) & (distance <= window) & (places >= 0)
        bias = q.new_zeros(()) if alibi is None else (-alibi[:, None, None] * distance).to(q.dtype)
        bias = bias.where(seen, torch.finfo(q.dtype).min / 2)  # no -inf: what is no position gives no NaN
        parts = (x.transpose(1, 2) for x in (q[:, queries], k[:, keys], v[:, keys]))
        out.append(F.scaled_dot_product_attention(*parts, attn_mask=bias, enable_gqa=True).transpose(1, 2))
    return torch.cat(out, dim=1)


# --- what the network is made of -------------------------------------------------------------------------------------


def linear(inputs: int, outputs: int, std: float | None = None, bias: bool = False) -> nn.Linear:
    """std: of new weights."""
    module = nn.Linear(inputs, outputs, bias)
    module.std = inputs**-0.5 if std is None else std
    return module


def embedding(rows: int, width: int, std: float) -> nn.Embedding:
    module = nn.Embedding(rows, width)
    module.std = std
    return module


def norm(x: Tensor) -> Tensor:
    """RMSNorm without a gain: the Linear that follows absorbs it."""
    return F.rms_norm(x, x.shape[-1:], eps=EPS)


class NGrams(nn.Module):
    """Embeddings of the n-grams of 2 to `ngram_max` symbols that end with a symbol (BLT, arXiv 2412.09871).

    There are too many n-grams for a table of all, so each is hashed to a row. None reaches over its text's start.
    """

    def __init__(self, config):
        super().__init__()
        orders = config.ngram_max - 1
        self.orders, self.bos, rows = orders, config.bos_token_id, orders * config.ngram_rows
        self.rows, self.apart = (rows, 0) if config.ngram_shared else (config.ngram_rows, config.ngram_rows)
        self.table = embedding(rows, config.ngram_dim, 0.0)
        self.project = linear(orders * config.ngram_dim, config.dim)

    def forward(self, text: Tensor) -> Tensor:
        """(B, orders + T), the symbols after those before them -> (B, T, D)."""
        mask, length = (1 << 48) - 1, text.shape[1] - self.orders
        hashed = newest = text[:, self.orders :]
        rows = []
        for order in range(self.orders):
            before = text[:, self.orders - order - 1 :][:, :length]
            newest = before.where(newest != self.bos, self.bos)
            hashed = (hashed * 0x2C1B3C6D + newest + 1) & mask
            mixed = ((hashed ^ (hashed >> 15)) * 0x85EBCA6B) & mask
            rows.append((mixed ^ (mixed >> 17)) % self.rows + order * self.apart)
        return self.project(self.table(torch.stack(rows, dim=-1)).flatten(2))


class Attention(nn.Module):
    """Grouped query heads, a sliding window, ALiBi, and QK-norm with a learned sharpness (arXiv 2010.04245)."""

    def __init__(self, config: PicoConfig):
        super().__init__()
        self.heads, self.kv_heads, self.width = config.att_q_heads, config.att_kv_heads, config.head_dim
        self.qkv = linear(config.dim, (self.heads + 2 * self.kv_heads) * self.width)
        self.sharpness = nn.Parameter(torch.full((1,), 1.5)) if config.qk_norm else None
        self.out = linear(self.heads * self.width, config.dim, 0.0)

    def forward(self, x: Tensor, stack: Stack, layer: int) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (-1, self.width))  # (B, T, H + 2K, E)
        q, k, v = heads.split((self.heads, self.kv_heads, self.kv_heads), dim=2)
        if self.sharpness is not None:
            q, k = norm(q) * self.sharpness.to(q.dtype), norm(k)
        slopes = 2.0 ** (-8.0 * torch.arange(1, self.heads + 1, device=x.device) / self.heads)
        return self.out(stack.attend(layer, q, k, v, slopes).flatten(2))


class SwiGLU(nn.Module):
    """arXiv 2002.05202; gate and value in one matmul."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.up, self.down = linear(dim, 2 * hidden), linear(hidden, dim, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


class Block(GradientCheckpointingLayer):
    """Attention and SwiGLU. A local block may begin by mixing the embedding back into the stream."""

    def __init__(self, config: PicoConfig, mixes: bool = False):
        super().__init__()
        self.mix = nn.Parameter(torch.tensor([1.0, 0.0])) if mixes else None
        self.attention = Attention(config)
        self.mlp = SwiGLU(config.dim, config.mlp_dim)

    def forward(self, x: Tensor, stack: Stack, layer: int, embedding: Tensor | None = None) -> Tensor:
        if self.mix is not None:
            keep, add = self.mix.to(x.dtype)
            x = keep * x + add * embedding
        x = x + self.attention(norm(x), stack, layer)
        return x + self.mlp(norm(x))


class Router(nn.Module):
    """Which bytes go through the latent blocks, decided by what came so far, and how much of the result is kept."""

    threshold: Tensor

    def __init__(self, config: PicoConfig):
        super().__init__()
        self.rule, self.share = config.router, config.latent_capacity_factor
        self.weight, self.bias = nn.Parameter(torch.empty(1, config.dim)), nn.Parameter(torch.zeros(1))
        self.register_buffer("threshold", torch.zeros(()))

    def forward(self, x: Tensor, tokens: Tensor, previous: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, D), integers (B, T) -> routed (B, T) bool, gate (B, T) fp32 in [0, 1]."""
        score = F.linear(F.rms_norm(x.float(), x.shape[-1:]), self.weight.float(), self.bias.float()).squeeze(-1)
        # the first byte after a word (SpaceByte, arXiv 2404.14408), and a coin of 16 bits
        space = spacelike(tokens) & (~spacelike(previous) | (tokens > 255))
        mixed = (positions * 0x9E3779B1 + tokens * 0x85EBCA6B) & 0xFFFFFFFF
        mixed = ((mixed ^ (mixed >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
        coin = (mixed ^ (mixed >> 13)) & 0xFFFF
        if self.rule in ("topk", "threshold"):  # the threshold of topk is 0
            routed = score > self.threshold
        elif self.rule == "space":
            routed = space
        elif self.rule == "space+topk":
            routed = space | (score > 0)
        elif self.rule == "space+random":
            routed = space | (coin - round(0x10000 * (1 - self.share)) > self.threshold)
        elif self.rule == "stride":
            routed = positions % round(1 / self.share) == 0
        elif self.rule == "random":
            routed = coin < self.share * 0x10000
        else:
            routed = torch.full_like(tokens, self.rule == "all", dtype=torch.bool)
        return routed, torch.sigmoid(score)


def spacelike(tokens: Tensor) -> Tensor:
    """Not a letter, a digit or a byte inside of a UTF-8 character."""
    letter = ((tokens | 32) >= ord("a")) & ((tokens | 32) <= ord("z"))
    digit = (tokens >= ord("0")) & (tokens <= ord("9"))
    inside = (tokens >= 0x80) & (tokens < 0xC0)
    return ~(letter | digit | inside) | (tokens > 255)


# --- the model -------------------------------------------------------------------------------------------------------


@dataclass
class PicoOutput(CausalLMOutputWithPast):
    router_weight: Tensor | None = None  # (B, T) gate in [0, 1]
    routed: Tensor | None = None  # (B, T) bool, True where the latent blocks ran


class PicoPreTrainedModel(PreTrainedModel):
    """What Pico and its dense twin share: padding, cache, loss. `read` and `logits` are the network."""

    config: PicoConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    _input_embed_layer = "embedding"
    _is_stateful = True  # what a cache has forgotten cannot be brought back

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _init_weights(self, module: nn.Module) -> None:
        if hasattr(module, "std"):
            init.normal_(module.weight, std=module.std)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)

    def forward(
        self,
        input_ids: Tensor | None = None,  # (B, T)
        attention_mask: Tensor | None = None,  # (B, T, or all that was read so far and T), 0 where there is padding
        labels: Tensor | None = None,  # (B, T) as the input_ids, -100 where nothing is to be learned
        cache: PicoCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,  # of the last so many positions; 0: of all
        disable_latent: bool = False,  # skip the latent blocks
        **others,
    ) -> PicoOutput:
        """Logits of the next byte (B, T, V). The loss is the cross-entropy of the labels, in nats."""
        if input_ids is None:
            raise ValueError("give input_ids: this model looks n-grams up and cannot begin with inputs_embeds")
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and cache is None:
            cache = self.new_cache()
        ids = input_ids.long()
        real = self.not_padding(ids, attention_mask, cache is not None)
        past = self.new_cache(keep=False) if cache is None else cache
        x, gate, routed = self.read(ids, real, past, disable_latent)
        logits = self.logits(x[:, -logits_to_keep:] if logits_to_keep else x)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **others)
        return PicoOutput(loss=loss, logits=logits, cache=cache, router_weight=gate, routed=routed)

    def not_padding(self, ids: Tensor, mask: Tensor | None, goes_on: bool) -> Tensor:
        """(B, T) bool. Padding may stand before a text, or behind one that does not go on."""
        if mask is None:
            return torch.ones_like(ids, dtype=torch.bool)
        if mask.ndim != 2 or mask.shape[1] < ids.shape[1]:
            raise ValueError(f"attention_mask {tuple(mask.shape)}: expected one number for each of {tuple(ids.shape)}")
        real = mask[:, -ids.shape[1] :].bool()
        if goes_on and not real[:, -1].all():
            raise ValueError("a text that goes on ends with padding: set tokenizer.padding_side = 'left'")
        if ((real[:, 1:] & ~real[:, :-1]).sum(1) + real[:, 0] > 1).any():
            raise ValueError("attention_mask has a hole: expected padding before or behind a text")
        return real


class PicoForCausalLM(PicoPreTrainedModel, GenerationMixin):
    config_class = PicoConfig
    _keep_in_fp32_modules_strict = ["router"]

    def __init__(self, config: PicoConfig):
        super().__init__(config)
        c = config
        self.embedding = embedding(c.vocab_size, c.dim, 0.5)
        self.ngrams = NGrams(c) if c.ngram_max else None
        self.local_in = nn.ModuleList(Block(c, c.embedding_skip) for _ in range(c.fb_num_blocks))
        self.router = Router(c)
        self.latent = nn.ModuleList(Block(c) for _ in range(c.latent_num_blocks))
        self.local_out = nn.ModuleList(Block(c, c.embedding_skip) for _ in range(c.fb_num_blocks))
        self.heads = linear(c.dim, c.next_tokens * c.vocab_size, 0.02)
        self.chain = nn.ModuleList(linear(c.dim, c.dim) for _ in range((c.next_tokens - 1) * c.chained_heads))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Router):
            init.normal_(module.weight, std=0.02)

    def new_cache(self, keep: bool = True) -> PicoCache:
        return PicoCache([self.config.fb_att_window_size, self.config.latent_att_window_size], keep)

    def read(self, ids: Tensor, real: Tensor, cache: PicoCache, disable_latent: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The stream behind the last norm (B, T, D), the router's gate and which bytes were routed (B, T)."""
        text = cache.read(ids, real, max(1, self.config.ngram_max - 1), self.config.bos_token_id)
        local, latent = cache.stacks
        positions = local.open(real)
        embedding = x = self.embed(text, ids.shape[1])
        for layer, block in enumerate(self.local_in):
            x = block(x, local, layer, embedding)

        length = ids.shape[1]
        routed, gate = self.router(x, text[:, -length:], text[:, -length - 1 : -1], positions)
        routed = routed & real & bool(self.latent) & (not disable_latent)
        if most := int(routed.sum(1).max()):
            index = torch.argsort(~routed, dim=1, stable=True)[:, :most]  # (B, M), then bytes that are not routed
            valid, rows = routed.gather(1, index), index[..., None].expand(-1, -1, x.shape[2])
            chosen = y = x.gather(1, rows)  # (B, M, D)
            latent.open(valid)
            for layer, block in enumerate(self.latent):
                y = block(y, latent, layer)
            weight = (gate.gather(1, index) * valid).to(x.dtype)[..., None]
            x = x.scatter_add(1, rows, (y - chosen) * weight)

        for layer, block in enumerate(self.local_out, start=len(self.local_in)):
            x = block(x, local, layer, embedding)
        return norm(x), gate, routed

    def embed(self, text: Tensor, length: int) -> Tensor:
        x = self.embedding(text[:, -length:])
        return x if self.ngrams is None else x + self.ngrams(text)

    def logits(self, x: Tensor) -> Tensor:
        return self.heads(x).unflatten(-1, (-1, self.config.vocab_size))[..., 0, :]

    @torch.no_grad()
    def draft(self, input_ids: Tensor) -> Tensor:
        """The N bytes (B, N) that the heads say come next, each the likeliest after those before it.

        Pico checks such drafts in one forward. A chained head is shown the byte before the one that it predicts.
        """
        ids, heads = input_ids.long(), self.heads.weight.chunk(self.config.next_tokens)
        x = self.read(ids, torch.ones_like(ids, dtype=torch.bool), self.new_cache(keep=False), False)[0][:, -1]
        history = max(1, self.config.ngram_max - 1)
        text = F.pad(ids, (history, 0), value=self.config.bos_token_id)
        for number, head in enumerate(heads):
            y = x
            if number and self.chain:
                y = norm(x + self.chain[number - 1](norm(self.embed(text[:, -history - 1 :], 1)[:, 0])))
            text = torch.cat([text, F.linear(y, head).argmax(-1, keepdim=True)], dim=1)
        return text[:, -len(heads) :]
