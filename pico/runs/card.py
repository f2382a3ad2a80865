"""README.md of an exported model: what the Hugging Face Hub shows of it, filled from what its run recorded."""

import math
from pathlib import Path

from pico import __version__
from pico.base.errors import PicoError
from pico.base.files import read_json
from pico.base.shapes import Shape
from pico.base.symbols import Alphabet
from pico.runs import checkpoint
from pico.runs.export import last_part
from pico.runs.folder import is_chat, read_record
from pico.runs.llama import is_llama


def model_card(run: Path, made: Path, name: str, config: Shape, alphabet: Alphabet) -> str:
    """run: that was exported, made: its checkpoint in the export. Lines of which nothing is known are left out."""
    from huggingface_hub import EvalResult, ModelCardData

    record, state = read_record(made.parent), checkpoint.read_state(made)
    chat = is_chat(run)
    data, train = record.get("data", {}), record.get("train", {})
    dataset = last_part(str(data.get("dataset") or "unknown"))
    bits = _score(run).get("bits_per_byte", state.get("validation_bpb"))
    known = isinstance(bits, (int, float)) and math.isfinite(bits)
    result = EvalResult(
        task_type="text-generation",
        dataset_type=dataset,
        dataset_name=dataset,
        metric_type="bits_per_byte",
        metric_name="bits per byte, causal",
        metric_value=round(bits, 4) if known else None,
    )
    front = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["pico", *["byte-level"] * (config.unit == "byte"), *["conversational"] * chat],
        model_name=name,
        eval_results=[result] if known else None,
    )
    weights = {part: count for part, count in config.parameters.items() if count}
    tables, commit = weights.pop("ngrams", 0), record.get("git_revision")
    facts = {
        "bits per byte, causal, on held-out text": f"**{bits:.3f}**" if known else None,
        "parameters": f"{sum(weights.values()):,}" + (f", and {tables:,} in n-gram tables" if tables else ""),
        "reads and writes": f"{config.unit}s" + (f", {config.max_context} at a time" if config.max_context else ""),
        "trained on": f"`{dataset}`" + (f", {state['bytes']:,} bytes" if state.get("bytes") else ""),
        "steps": f"{state['step']:,}",
        "optimizer": train.get("optimizer"),
        "peak learning rate": train.get("learning_rate"),
        "seconds of training": f"{state['seconds']:,.0f}" if state.get("seconds") else None,
        "seed": train.get("seed"),
        "made with": f"Pico {__version__}" + (f", commit {commit[:12]}" if commit else ""),
    }
    table = "".join(f"| {fact} | {value} |\n" for fact, value in facts.items() if value is not None)
    return CARD.format(
        front=front.to_yaml(line_break="\n").strip(),
        name=name,
        kind=KINDS[config.kind],
        table=table,
        run=made.parent.name,
        example=ASK if chat else WRITE,
        place=f"hf://{name}" if "/" in name else name,
        notes=_notes(config, alphabet),
    )


def _notes(config: Shape, alphabet: Alphabet) -> str:
    """What else its user should know."""
    notes = CHAT if "user" in alphabet.control else ""
    if is_llama(config):
        notes += f" It is a Llama for texts of up to {config.max_context} {config.unit}s."
    return notes + (FORGES if is_llama(config) and config.unit == "token" else FORGES_NOT)


def _score(run: Path) -> dict:
    """score.json of a run, as `compare` writes it; {} if it has none."""
    try:
        return read_json(run / "score.json")
    except (FileNotFoundError, PicoError):
        return {}


KINDS = {
    "pico": "A language model of bytes. Cheap blocks read every byte, and a learned router picks those that go through "
    "the deep ones.",
    "gpt": "A dense decoder-only language model, trained with Pico.",
}
CARD = """\
---
{front}
---

# {name}

{kind}

| | |
|---|---|
{table}
Tested with transformers 5.24:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
write = pipeline("text-generation", model=model, tokenizer=tokenizer)
{example}
```

Batches are padded on the left, as the tokenizer does; the padding changes nothing.{notes}

The folder is a model of Pico's too: `picolm run {place} {run} --prompt "Once upon a time"`.

**Limits.** It knows what its training text says, and was not made for advice, facts, or anyone who takes its words for
those of a person.
"""
WRITE = 'print(write("Once upon a time")[0]["generated_text"])'
ASK = 'print(write([{"role": "user", "content": "Who are you?"}])[0]["generated_text"][-1]["content"])'
CHAT = " `tokenizer.apply_chat_template` lays a conversation out."
FORGES = (
    " Its tokenizer takes the name of a control symbol in a text for the symbol: with texts of others, give "
    "`split_special_tokens=True`, and to the template `sanitize_control_tokens=True`."
)
FORGES_NOT = " The name of a control symbol in a text, or in a conversation's, is text: nothing can be forged."
