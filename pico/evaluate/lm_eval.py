"""lm-eval (EleutherAI's Language Model Evaluation Harness): a model of ours among its models, and its tasks.

A quiet advantage of bytes: a tokenizer merges the end of a question with the start of its answer, so harnesses move
spaces from one to the other, and a context that ends inside of a word is still another text than its tokens say. Here
the context ends where it ends, and the bytes of the continuation are what is scored, all of them and no other.

Where there is a local copy of a task's questions, it is read in place of the Hub's. Its columns say how it is asked.
"""

import json
import logging
import re
import secrets
import sys
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from difflib import get_close_matches
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import torch

from pico.base.errors import PicoError
from pico.data.chat import check_turns
from pico.data.tables import read_rows
from pico.decode.generation import Prompt, generate
from pico.decode.sampling import Sampling
from pico.evaluate.questions import evenly
from pico.evaluate.tasks import KNOWN

try:
    from datasets import Dataset
    from lm_eval.api import task as lm_eval_task
    from lm_eval.api.model import TemplateLM
    from lm_eval.evaluator import evaluate
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.tasks import TaskManager
except ImportError as error:
    raise PicoError(f"tasks of lm-eval need the package lm-eval: pip install lm-eval ({error})") from None

SYMBOLS = {"cpu": 2**12}  # of a batch that is read at once; elsewhere MANY
MANY, LONGEST, PIECE = 2**15, 2**14, 256  # a text longer than LONGEST is read through a cache, in pieces
TEXTS = 64  # that are written at a time
MARK = secrets.token_hex(16)  # drawn anew in each process: no text of a task can hold it
MARKED = re.compile(f"{MARK}([a-z-]+);")
OFFLINE = "where there is no network, --tasks-folder names a folder with local copies, NAME.jsonl"


class PicoLM(TemplateLM):
    """A model as lm-eval asks for one; of tokens as of bytes. No text is cut: memory is bounded by the windows.

    status: told how much is done. chat: an answer ends where the assistant's turn does.
    """

    def __init__(self, model, status: Callable[[str], None] = lambda text: None, chat: bool = False):
        super().__init__()
        self.model, self.status, self.alphabet = model.eval(), status, model.alphabet
        self.ends = {self.alphabet.eos, *([self.alphabet.control["end-of-turn"]] if chat else [])}
        self.where = next(model.parameters()).device

    # --- texts to ids

    @property
    def eot_token_id(self) -> int:
        return self.alphabet.eos

    @property
    def prefix_token_id(self) -> int:
        return self.alphabet.bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        """BOS and the symbols of a text, those of turns where `apply_chat_template` has marked them."""
        ids = [] if add_special_tokens is False else [self.alphabet.bos]
        for i, part in enumerate(MARKED.split(string)):
            said = self.alphabet.encode(part.encode(errors="surrogatepass")).tolist()
            ids += [self.alphabet.control[part]] if i % 2 else said
        return ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation, and where the assistant is to answer; else its last turn goes on."""
        end = f"{MARK}end-of-turn;"
        text = "".join(f"{MARK}{turn['role']};{turn['content']}{end}" for turn in chat_history)
        return f"{text}{MARK}assistant;" if add_generation_prompt else text.removesuffix(end)

    @property
    def tokenizer_name(self) -> str:
        return f"pico-{self.alphabet.unit}-{MARK}"

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if self.alphabet.unit == "byte":
            return self.tok_encode(context), self.tok_encode(continuation, add_special_tokens=False)
        return super()._encode_pair(context, continuation)  # of the tokens of both, as lm-eval divides them

    # --- what lm-eval asks for

    def _loglikelihood_tokens(self, requests: Sequence[tuple], **_) -> list[tuple[float, bool]]:
        return self.likelihoods(
            [([*context, *continuation], len(continuation)) for _, context, continuation in requests]
        )

    def loglikelihood(self, requests, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Nats of continuations of contexts, and whether each symbol was the likeliest."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Nats of whole texts, each read from its start to its end."""
        texts = [self.tok_encode(request.args[0]) for request in requests]
        return [nats for nats, _ in self.likelihoods([(ids, len(ids) - 1) for ids in texts])]

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Continuations up to a stop text, EOS or `max_gen_toks` symbols; those with the same settings together."""
        alike, out = defaultdict(list), [""] * len(requests)
        for i, request in enumerate(requests):
            alike[json.dumps(request.args[1], sort_keys=True, default=str)].append(i)
        for group in alike.values():
            settings = normalize_gen_kwargs(requests[group[0]].args[1], 256)
            texts: dict[int, Prompt] = {i: self.tok_encode(requests[i].args[0]) for i in group}
            group.sort(key=lambda i: len(texts[i]))
            for first in range(0, len(group), TEXTS):
                self.status(f"{first:,} of {len(group):,} answers written")
                batch = group[first : first + TEXTS]
                for i, text in zip(batch, self._continued([texts[i] for i in batch], dict(settings))):
                    out[i] = text
        return out

    def _continued(self, texts: list[Prompt], settings: dict) -> list[str]:
        most, until = settings["max_gen_toks"], settings.get("until") or []
        until = [until] if isinstance(until, str) else until
        sampling = Sampling.build(
            temperature=settings.get("temperature", 0.0),
            top_k=settings.get("top_k", 0),
            top_p=settings.get("top_p", 1.0),
            max_bytes=most * int(self.alphabet.lengths.max()),
            stop=[text.encode() for text in until if text],
        )
        made = [[] for _ in texts]
        generation = generate(self.model, texts, sampling, stop_symbols=self.ends)
        ended = generation.ended
        for step in generation:
            if generation.ended is not ended:  # a new forward: what those before it gave is here
                if all(done or len(text) >= most for done, text in zip(ended, made)):
                    break
                ended = generation.ended
            made[step.row].append(step.bytes)
        return [b"".join(text[:most]).decode(errors="replace") for text in made]

    # --- likelihoods

    def likelihoods(self, texts: Sequence[tuple[list[int], int]]) -> list[tuple[float, bool]]:
        """Of each (ids, n): nats of the last n given those before, and whether each was the likeliest."""
        out, done = [(0.0, True)] * len(texts), 0
        for batch in self._batches([len(ids) for ids, _ in texts]):
            self.status(f"{done:,} of {len(texts):,} texts")
            for i, found in zip(batch, self._read([texts[i] for i in batch])):
                out[i] = found
            done += len(batch)
        return out

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        """Texts of about one length, the longest first: what does not fit into memory shows at the start."""
        order, most = sorted(range(len(lengths)), key=lambda i: -lengths[i]), SYMBOLS.get(self.where.type, MANY)
        while order:
            count = max(1, most // lengths[order[0]])
            yield order[:count]
            order = order[count:]

    @torch.inference_mode()
    def _read(self, texts: list[tuple[list[int], int]]) -> list[tuple[float, bool]]:
        length = max(1, *(len(ids) - 1 for ids, _ in texts))
        tokens = torch.zeros(len(texts), length, dtype=torch.long)
        targets = torch.full_like(tokens, -100)  # what is never scored, as is all that stands behind shorter texts
        for row, (ids, n) in enumerate(texts):
            tokens[row, : len(ids) - 1] = torch.tensor(ids[:-1])
            targets[row, len(ids) - 1 - n : len(ids) - 1] = torch.tensor(ids[len(ids) - n :])
        tokens, targets = tokens.to(self.where), targets.to(self.where)
        piece = length if length <= LONGEST else PIECE
        cache = self.model.new_cache(len(texts), piece) if piece < length else None
        nats, likeliest = torch.zeros(len(texts), dtype=torch.double), torch.ones(len(texts), dtype=torch.bool)
        for start in range(0, length, piece):
            here = slice(start, start + piece)
            logits = self.model(tokens[:, here], cache=cache).logits[:, :, 0].float()  # (B, T, V) of head 0
            wanted = targets[:, here]
            scored = wanted >= 0
            chosen = logits.gather(-1, wanted.clamp(min=0)[..., None])[..., 0] - logits.logsumexp(-1)
            nats += torch.where(scored, chosen, 0).cpu().double().sum(1)
            likeliest &= (~scored | (logits.argmax(-1) == wanted)).all(1).cpu()
        return list(zip(nats.tolist(), likeliest.tolist()))


# --- local copies of tasks --------------------------------------------------------------------------------------------

MEAN = {"aggregation": "mean", "higher_is_better": True}
ACC, ACC_NORM, EXACT = ({"metric": name, **MEAN} for name in ("acc", "acc_norm", "exact_match"))
CHOSEN = {"output_type": "multiple_choice", "doc_to_text": "text", "doc_to_target": "gold", "doc_to_choice": "choices"}
ENDED = {"output_type": "loglikelihood", "doc_to_text": "text", "doc_to_target": "target"}
WRITTEN = ENDED | {
    "output_type": "generate_until",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 64, "do_sample": False},
}
CUES = {"arc_easy": "\nAnswer:", "arc_challenge": "\nAnswer:", "piqa": "Answer:", "jeopardy_all": "\nAnswer:"}


class LocalForm(NamedTuple):
    """Rows of a file as documents of a task: the columns it must have, the function of a row and of what stands before
    every answer, and the task's settings."""

    columns: tuple[str, ...]
    read: Callable[[dict, str], dict]
    settings: dict


def _activity(row: dict, _: str) -> dict:
    from lm_eval.tasks.hellaswag.utils import preprocess

    text = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return {"text": preprocess(text), "choices": list(map(preprocess, row["endings"])), "gold": int(row["label"])}


def _ending(row: dict, cue: str) -> dict:
    apart = "" if row["continuation"][:1] == " " or row["context"].endswith("=") else " "
    return {"text": row["context"] + cue, "target": apart + row["continuation"]}


FORMS = [
    LocalForm(
        ("sentence_good", "sentence_bad"),
        lambda row, _: {"text": "", "choices": [row["sentence_good"], row["sentence_bad"]], "gold": 0},
        CHOSEN | {"metric_list": [ACC]},
    ),
    LocalForm(
        ("context_options", "continuation", "gold"),
        lambda row, _: {"text": row["gold"], "choices": row["context_options"], "gold": row["continuation"]},
        CHOSEN | {"metric_list": [ACC]},
    ),
    LocalForm(
        ("activity_label", "ctx_a", "ctx_b", "endings", "label"),
        _activity,
        CHOSEN | {"metric_list": [ACC, ACC_NORM]},
    ),
    LocalForm(
        ("query", "choices", "gold"),
        lambda row, cue: {"text": row["query"] + cue, "choices": row["choices"], "gold": row["gold"]},
        CHOSEN | {"metric_list": [ACC, ACC_NORM]},
    ),
    LocalForm(
        ("context", "continuation"),
        _ending,
        ENDED | {"metric_list": [ACC, {"metric": "perplexity", "aggregation": "perplexity"}]},
    ),
    LocalForm(
        ("context", "answer"),
        lambda row, _: {"text": row["context"] + "\nAnswer:", "target": row["answer"]},
        WRITTEN | {"metric_list": [EXACT]},
    ),
]


def _document(form: LocalForm, row: dict, cue: str, where: str) -> dict:
    """Raises PicoError unless it is text throughout and names one of its choices as the right one."""
    try:
        found = form.read(row, cue)
        options, text, right = found.get("choices", [found.get("target")]), found["text"], found.get("gold")
        if isinstance(right, str):  # what all options go on with: the right one is where the text would be
            text, right = right, text
        "".join([text, *options]).encode()
        sound = isinstance(options, list) and all(options)
        sound = sound and ("choices" not in found or (type(right) is int and 0 <= right < len(options)))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise PicoError(
            f"{where} is no question: expected text in {', '.join(form.columns)}, no choice that is empty, and of the "
            "right one its number from 0 on"
        )
    return found


def local_task(name: str, file: Path, limit: int | None = None) -> dict:
    """A task of lm-eval on a file of its questions, or of so many of them, evenly spaced.

    Raises PicoError for a file without rows, of other columns than FORMS knows, or with a row that asks nothing.
    """
    columns, rows = read_rows(file)
    if not columns:
        raise PicoError(f"{file} has no rows: expected the questions of {name}")
    form = next((form for form in FORMS if set(form.columns) <= set(columns)), None)
    if form is None:
        known = "; ".join(", ".join(form.columns) for form in FORMS)
        raise PicoError(f"{file}: no task has columns {', '.join(columns)}; expected one of {known}")
    asked = evenly([*enumerate(rows(columns), 1)], limit)
    documents = [_document(form, row, CUES.get(name, ""), f"{file}, row {number}") for number, row in asked]

    def dataset(**_) -> dict:
        return {"test": Dataset.from_list(documents)}

    return {"task": name, "custom_dataset": dataset, "test_split": "test", "num_fewshot": 0, **form.settings}


# --- running ----------------------------------------------------------------------------------------------------------


def judge(
    model,
    loaded: dict,
    limit: int | None = None,
    status: Callable[[str], None] = lambda text: None,
    chat: bool = False,
) -> dict[str, dict[str, dict]]:
    """{task: {metric: figures}} of the tasks of `load_tasks`, those of a group besides the group's.

    limit: questions of each task. chat: they are asked in a conversation, which takes a model that was trained on some.
    Raises PicoError for one whose tokenizer has no symbols for turns.
    """
    if chat:
        check_turns(model.alphabet)
    options = dict(limit=limit, bootstrap_iters=0, log_samples=True, apply_chat_template=chat)
    with quiet():
        results = evaluate(PicoLM(model, status, chat), loaded, **options)
    assert results is not None, "this is the only process"
    return {name: _figures(name, results) for name in results["results"]}


@contextmanager
def quiet() -> Generator[None]:
    """lm-eval tells of every choice it makes, and of each step: only errors are shown, and none of it on stdout."""
    bar, vars(lm_eval_task)["tqdm"] = lm_eval_task.tqdm, lambda items, **_: items
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        for logger, level in zip(loggers, before):
            logger.setLevel(level)
        vars(lm_eval_task)["tqdm"] = bar


def load_tasks(tasks: dict[str, Path | None], limit: int | None = None, status: Callable = print) -> dict:
    """Tasks of lm-eval, with local copies of their questions where there is a file, as `lm_eval.evaluate` takes them.

    limit: so many questions of a local copy. Raises PicoError for a task that lm-eval does not know, or whose questions
    cannot be had. The index of lm-eval's own takes long to read; local copies need none.
    """
    own = any(file is None for file in tasks.values())
    if own:
        status("reading the list of lm-eval's tasks")
    tasks_found, groups, members = {}, {}, {}
    with quiet():
        manager = TaskManager(include_defaults=own)
        for name, file in tasks.items():
            if file is None and name not in manager.task_index:
                near = "".join(f"did you mean {each}? " for each in get_close_matches(name, manager.all_tasks, n=1))
                raise PicoError(f"--tasks: no '{name}': {near}expected some of Pico's own, {KNOWN}")
            status(f"reading the questions of {name}")
            try:
                found = manager.load([name if file is None else local_task(name, file, limit)])
            except PicoError:
                raise
            except Exception as error:  # whatever a task's own code, the Hub and the network raise
                reason = next(iter(str(error).splitlines()), "") or type(error).__name__
                raise PicoError(f"cannot read the questions of {name} ({reason}): {OFFLINE}") from None
            tasks_found |= found["tasks"]
            groups |= found.get("groups", {})
            members |= found.get("group_map", {})
    for task in tasks_found.values():
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(1234)  # of lm-eval's own command
    return {"tasks": tasks_found, "groups": groups, "group_map": members}


def _figures(name: str, results: dict) -> dict[str, dict]:
    """{metric: value, its standard error, what chance gives, and of how many questions}, None where it is unknown."""
    samples = results.get("samples", {}).get(name, [])
    rows = {}
    for key, value in results["results"][name].items():
        metric, _, kind = key.partition(",")
        if not kind or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        mine = [sample for sample in samples if sample["filter"] == kind and metric in sample]
        each = [sample[metric] for sample in mine]
        averaged = len(each) > 1 and all(isinstance(x, (int, float)) for x in each) and abs(fmean(each) - value) < 1e-9
        choices = [len(sample["arguments"]) for sample in mine]
        chosen = metric in ("acc", "acc_norm") and choices and min(choices) > 1
        rows[metric if kind == "none" else f"{metric} ({kind})"] = {
            "value": float(value),
            "stderr": stdev(map(float, each)) / len(each) ** 0.5 if averaged else None,
            "chance": fmean(1 / n for n in choices) if chosen else None,
            "questions": len(mine) or results["results"][name].get("sample_len"),
        }
    return rows
