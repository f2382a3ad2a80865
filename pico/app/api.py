"""OpenAI's requests and replies, as far as a model of bytes or tokens has something to say to them.

What is asked is checked here, all of it, before anything is computed; what is answered gets its shape here. Beside the
standard fields a request may have `"pico": {"trace": true, "disable_latent": true, "top_k": 40, "min_p": 0.05,
"repetition_penalty": 1.1}`: with trace, every choice says of each symbol its bytes, whether it was routed, the router's
weight and its surprise in bits. Numbers of `usage` and `max_tokens` count the model's symbols: bytes, or tokens.
"""

import json
import math
import time
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pico.app.terminal import finite
from pico.base.errors import PicoError
from pico.base.symbols import Utf8Stream
from pico.data.chat import lay_out_question
from pico.decode.batch import GrowingText
from pico.decode.generation import Step, to_ids
from pico.decode.sampling import Sampling

LEAST = -9999.0  # as OpenAI writes the logarithm of no chance at all


class Refused(Exception):
    """A request that gets no answer: the HTTP status, one line of what was expected, the field and a code."""

    def __init__(self, status: int, message: str, field: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.field, self.code = status, field, code

    def body(self) -> dict:
        kind = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}.get(self.status)
        kind = kind or ("server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self)[:500], "type": kind, "param": self.field, "code": self.code}}


class Limits(NamedTuple):
    """What one request may ask for."""

    body: int = 2**21  # bytes
    prompt: int = 2**18  # symbols
    tokens: int = 2**16  # symbols of an answer
    choices: int = 16  # texts
    waiting: int = 64  # texts before them, in the queue
    seconds: float = 900


# --- requests ---------------------------------------------------------------------------------------------------------


class Lenient(BaseModel):
    """Fields of the right type; those that nobody knows are let pass, as clients send many."""

    model_config = ConfigDict(strict=True, extra="ignore")


class Extension(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    trace: bool = False
    disable_latent: bool = False
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


class StreamOptions(Lenient):
    include_usage: bool | None = False


Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]


class Asked(Lenient):
    """What both kinds of request have."""

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stop: str | list[str] | None = None
    seed: Seed | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict, Field(max_length=0)] | None = None
    pico: Extension | None = Extension()


class Completion(Asked):
    prompt: str | list[str] | list[int] | list[list[int]] | None = ""
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Literal[False] | None = False
    suffix: Annotated[str, Field(max_length=0)] | None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None


class ContentPart(Lenient):
    type: str
    text: str


class Message(Lenient):
    role: str
    content: str | list[ContentPart]

    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatCompletion(Asked):
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list, Field(max_length=0)] | None = None


class Wanted(NamedTuple):
    """A request, read."""

    prompts: list[list[int]]  # ids
    samplings: list[Sampling]  # one a choice of each prompt
    most: int  # symbols of each
    chat: bool
    stream: bool
    usage: bool  # also in a stream
    trace: bool
    disable_latent: bool
    top: int | None  # likeliest symbols told beside each; None: no log-probabilities at all


def constant(name: str):
    raise ValueError(f"{name} is no JSON")


def read_request(kind: type[Asked], data: bytes, model, name: str, limits: Limits) -> Wanted:
    """The request in a body. Raises Refused for whatever is wrong with it."""
    try:
        asked = kind.model_validate(json.loads(data, parse_constant=constant))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"][:1]) or None
        raise Refused(400, f"{field or 'the body'}: {first['msg']}", field) from None
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not valid JSON") from None
    if asked.model != name:
        message = f"the model '{asked.model[:100]}' does not exist, this server has '{name}'"
        raise Refused(404, message, "model", "model_not_found")
    extra, chat = asked.pico or Extension(), isinstance(asked, ChatCompletion)
    most = (asked.max_completion_tokens if isinstance(asked, ChatCompletion) else None) or asked.max_tokens or 512
    if most > limits.tokens:
        raise Refused(400, f"max_tokens: {most:,}, expected at most {limits.tokens:,}", "max_tokens")
    if extra.disable_latent and not model.config.routes:
        raise Refused(400, "pico.disable_latent: this model has no latent blocks", "pico")
    if isinstance(asked, ChatCompletion):
        prompts = [chat_ids(asked.messages, model, most)]
        top = (asked.top_logprobs or 0) if asked.logprobs else None
        if asked.top_logprobs and not asked.logprobs:
            raise Refused(400, "top_logprobs: expected with logprobs true", "top_logprobs")
    else:
        assert isinstance(asked, Completion)
        prompts, top = prompts_ids(asked.prompt, model), asked.logprobs
    longest, context = max(map(len, prompts)), model.config.max_context
    if longest > limits.prompt or (context and longest >= context):
        most_ids = min(limits.prompt, context or limits.prompt)
        message = f"the prompt has {longest:,} {model.config.unit}s, expected fewer than {most_ids:,}"
        raise Refused(400, message, "messages" if chat else "prompt", "context_length_exceeded")
    n = asked.n or 1
    if len(prompts) * n > limits.choices:
        raise Refused(400, f"n: {len(prompts) * n:,} texts, expected at most {limits.choices}", "n")
    stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    control = model.alphabet.control
    settings = dict(
        top_k=extra.top_k,
        min_p=extra.min_p,
        repetition_penalty=extra.repetition_penalty,
        max_bytes=10**9,
        stop=[stop.encode(errors="surrogatepass") for stop in stops],
        stop_symbols=frozenset([control["end-of-turn"], control["eos"]]) if chat else None,
        **{key: value for key in ("temperature", "top_p") if (value := getattr(asked, key)) is not None},
    )
    try:
        seeds = [None if asked.seed is None else (asked.seed + i) % 2**64 for i in range(n)]
        samplings = [Sampling.build(**settings, seed=seed) for seed in seeds]
    except PicoError as error:
        message = str(error).removeprefix("Sampling: ")
        field = message.split()[0].split(".")[0]
        if field not in kind.model_fields:
            field, message = "pico", f"pico.{message}"
        raise Refused(400, message, field) from None
    usage = bool(asked.stream_options and asked.stream_options.include_usage)
    return Wanted(
        prompts, samplings, most, chat, bool(asked.stream), usage, extra.trace, extra.disable_latent, top
    )  # fmt: skip


def prompts_ids(prompt, model) -> list[list[int]]:
    """The ids of each prompt: of a text, of ids, or of a list of either."""
    several = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
    each = list(prompt) if several else [prompt or ""]
    if isinstance(prompt, list) and not prompt:
        raise Refused(400, "prompt: expected at least one", "prompt")
    try:
        texts = [text.encode(errors="surrogatepass") if isinstance(text, str) else text for text in each]
        return [to_ids(text, model.alphabet) for text in texts]
    except PicoError as error:
        raise Refused(400, str(error), "prompt") from None


def chat_ids(messages: list[Message], model, most: int) -> list[int]:
    """What the model reads before it answers: of one with a bounded context the latest turns that leave it room."""
    turns = [(message.role, message.text().encode(errors="surrogatepass")) for message in messages]
    turns = [("system" if role == "developer" else role, text) for role, text in turns]
    talk = [role for role, _ in turns[turns[0][0] == "system" :]]
    if not len(talk) % 2 or talk != (["user", "assistant"] * len(talk))[: len(talk)]:
        expected = "expected a system message or none, then user and assistant in turns, a user's last"
        raise Refused(400, f"messages: {expected}", "messages")
    try:
        return lay_out_question(turns, model.alphabet, model.config.max_context, most)[0]
    except PicoError as error:
        raise Refused(400, str(error), "messages") from None


# --- replies ----------------------------------------------------------------------------------------------------------


def as_json(content) -> bytes:
    """What JSON does not know is null; pure ASCII, whatever half a character a text has."""
    return json.dumps(finite(content), separators=(",", ":"), allow_nan=False).encode()


ENDS = {"end": "stop", "stop": "stop", "length": "length", None: None}


class ReplyChoice:
    """One text of a reply, as it grows."""

    def __init__(self, index: int, wanted: Wanted, alphabet):
        self.index, self.wanted, self.alphabet = index, wanted, alphabet
        self.characters, self.offset, self.begun = Utf8Stream(), 0, False
        self.ended: str | None = None
        self.symbols = 0

    def grow(self, steps: list[Step], ended: str | None, told: list) -> dict | None:
        """What is new, as a choice of a streamed chunk; None if that is nothing."""
        self.symbols += len(steps)
        self.ended = ended
        text = self.characters.push(b"".join(step.bytes for step in steps))
        text += self.characters.flush() if ended else ""
        wanted = self.wanted
        if not (text or ended or (steps and (wanted.trace or wanted.top is not None))):
            return None
        choice: dict[str, Any] = {"index": self.index, "finish_reason": ENDS[ended], "logprobs": None}
        if wanted.chat:
            choice["delta"] = {"content": text} if self.begun else {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        if wanted.top is not None:
            choice["logprobs"] = self.logprobs(steps, told)
        if wanted.trace:
            choice["pico"] = [traced(step) for step in steps]
        self.offset += len(text)
        self.begun = True
        return choice

    def logprobs(self, steps: list[Step], told: list) -> dict:
        table = self.alphabet.table
        each = [(step.bytes, -step.surprise * math.log(2)) for step in steps]
        others = [[(table[i], -bits * math.log(2)) for i, bits in choices[: self.wanted.top]] for choices in told]
        others += [[]] * (len(each) - len(others))
        if self.wanted.chat:
            content = [
                {**logprob(*own), "top_logprobs": [logprob(*other) for other in beside]}
                for own, beside in zip(each, others)
            ]
            return {"content": content, "refusal": None}
        return {
            "tokens": [token_text(data) for data, _ in each],
            "token_logprobs": [max(value, LEAST) for _, value in each],
            "top_logprobs": [{token_text(data): max(value, LEAST) for data, value in beside} for beside in others],
            "text_offset": [self.offset] * len(each),
        }


def token_text(data: bytes) -> str:
    """A symbol as OpenAI writes those that are no text."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def logprob(data: bytes, value: float) -> dict:
    return {"token": token_text(data), "logprob": max(value, LEAST), "bytes": list(data)}


def traced(step: Step) -> dict:
    return {"bytes": list(step.bytes), "routed": step.routed, "weight": step.weight, "surprise": step.surprise}


def whole_choice(pieces: list[dict], wanted: Wanted) -> dict:
    """All chunks of a choice as one choice of a reply that is not streamed."""
    whole = {key: value for key, value in pieces[-1].items() if key != "delta"}
    if wanted.chat:
        text = "".join(piece["delta"]["content"] for piece in pieces)
        whole["message"] = {"role": "assistant", "content": text, "refusal": None}
    else:
        whole["text"] = "".join(piece["text"] for piece in pieces)
    if wanted.trace:
        whole["pico"] = [item for piece in pieces for item in piece["pico"]]
    if wanted.top is not None:
        keys = [key for key, value in pieces[0]["logprobs"].items() if isinstance(value, list)]
        lists = {key: [item for piece in pieces for item in piece["logprobs"][key]] for key in keys}
        whole["logprobs"] = {**pieces[0]["logprobs"], **lists}
    return whole


def reply(ident: str, name: str, wanted: Wanted, choices: list[dict], usage: dict | None, chunk: bool) -> dict:
    kind = ("chat.completion" + ".chunk" * chunk) if wanted.chat else "text_completion"
    out = {"id": ident, "object": kind, "created": int(time.time()), "model": name, "choices": choices}
    return out if chunk and not wanted.usage else {**out, "usage": usage}


def usage_of(wanted: Wanted, choices: list[ReplyChoice], texts: list[GrowingText]) -> dict:
    """BOS, which every text has, does not count."""
    prompt, made = sum(len(ids) - 1 for ids in wanted.prompts), sum(choice.symbols for choice in choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": sum(max(0, text.reused - 1) for text in texts)},
    }
