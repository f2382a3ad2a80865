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
from pico.runs.folder import read_record


def model_card(run: Path, made: Path, name: str, config: Shape, alphabet: Alphabet) -> str:
    """run: that was exported, made: its checkpoint in the export. Lines of which nothing is known are left out."""
    from huggingface_hub import EvalResult, ModelCardData

    record, state = read_record(made.parent), checkpoint.read_state(made)
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
        tags=["pico", "byte-level"] if config.unit == "byte" else ["pico"],
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
        chat=CHAT if "user" in alphabet.control else "",
    )


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
```python
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
write = pipeline("text-generation", model=model, tokenizer=tokenizer)
print(write("Once upon a time")[0]["generated_text"])
```

Batches are padded on the left, as the tokenizer does; the padding changes nothing.{chat}

The folder is a model of Pico's too: `picolm run {name} {run} --prompt "Once upon a time"`.

**Limits.** It knows what its training text says, and was not made for advice, facts, or anyone who takes its words for
those of a person.
"""
CHAT = """ `tokenizer.apply_chat_template`
lays a conversation out. Whatever its texts say, they forge no control symbol; the names of control symbols in a plain
text are text too."""
