"""A trained model for other tools: a folder that transformers loads without Pico, and the way to the Hugging Face Hub.

python picolm.py export models/my-model my-run to-share --format hf --push my-name/my-model

The folder is one of Pico's too. Its code (pico/runs/standalone) imports torch and transformers alone.
"""

import re
import shutil
from pathlib import Path

from safetensors.torch import save_file

from pico.base.errors import PicoError
from pico.base.files import remove, write_json, write_whole, writing
from pico.base.shapes import EXTRAS, GPTConfig, ModelConfig, Shape
from pico.base.symbols import Alphabet
from pico.data import hub
from pico.data.bpe import BPE, read_tokenizer
from pico.runs import checkpoint
from pico.runs.card import model_card
from pico.runs.export import export_run
from pico.runs.folder import TOKENIZER, is_chat, read_alphabet, run_folder
from pico.runs.llama import is_llama, llama_config, llama_weights

CODE = Path(__file__).parent / "standalone"
PAD = 262  # the first id that stands for nothing in a vocabulary of bytes
CONTROL = {"system": "system", "user": "user", "assistant": "assistant", "end_of_turn": "end-of-turn"}
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
  {%- if message.content is string -%}
    {%- set text = message.content -%}
  {%- else -%}
    {%- set text = message.content | map(attribute='text') | join -%}
  {%- endif -%}
  {%- if message.role in ['system', 'developer'] and loop.first -%}
    {{- system_token + text + end_of_turn_token -}}
  {%- elif message.role == 'user' -%}
    {{- user_token + text + end_of_turn_token -}}
  {%- elif message.role == 'assistant' -%}
    {{- assistant_token -}}
    {%- generation -%}
      {{- text + end_of_turn_token -}}
    {%- endgeneration -%}
    {%- if loop.last -%}
      {{- eos_token -}}
    {%- endif -%}
  {%- else -%}
    {{- raise_exception('expected a system message first, if at all, then users and assistants') -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- assistant_token -}}
{%- endif -%}
"""


def export_for_transformers(
    path: str | Path, run: str, target: str | Path, step: int | str = "best", name: str | None = None
) -> Path:
    """Writes the folder `target` for AutoModelForCausalLM and AutoTokenizer, and returns it.

    name: what the model is called on the Hub, if it goes there. Weights are fp32, or fp16 where that changes none of
    them. Raises PicoError where there is something already, no such run or checkpoint, or no room; then nothing is
    written.
    """
    target = Path(target)
    if target.exists():
        raise PicoError(f"{target} already exists: choose another path, or remove that folder first")
    beside = target.with_name(f".{target.name}.tmp")
    remove(beside)
    try:
        with writing(target):
            made = export_run(path, run, beside, step, exact=True)
            _add(beside, run_folder(path, run), made, name or target.name)
            beside.rename(target)
    finally:
        remove(beside)
    return target


def _add(folder: Path, source: Path, made: Path, name: str) -> None:
    """What transformers needs, to what was exported of the run `source`. made: its checkpoint."""
    state = checkpoint.read_state(made)
    config = checkpoint.saved_config(folder, made)
    alphabet = read_alphabet(folder, config)
    if isinstance(alphabet, BPE) and isinstance(config, GPTConfig):
        alphabet, config = _portable_tokenizer(folder, alphabet, config)
        write_json(folder / "model.json", config.model_dump())
        checkpoint.write_state(made, {**state, "model": config.model_dump()}, [checkpoint.WEIGHTS])

    weights = checkpoint.read_tensors(made / checkpoint.WEIGHTS)
    place = f"{made.parent.name}/{made.name}/{checkpoint.WEIGHTS}"
    if is_llama(config):
        save_file(llama_weights(config, weights), folder / checkpoint.WEIGHTS, {"format": "pt"})
        (folder / checkpoint.WEIGHTS).chmod((made / checkpoint.STATE).stat().st_mode)
    else:  # Pico's own file serves both
        size = sum(x.nbytes for x in weights.values())
        index = {"metadata": {"total_size": size}, "weight_map": dict.fromkeys(sorted(weights), place)}
        write_json(folder / f"{checkpoint.WEIGHTS}.index.json", index)
    for file in code_files(config):
        shutil.copyfile(CODE / file, folder / file)
    write_json(folder / "config.json", transformers_config(config, alphabet))
    write_json(folder / "generation_config.json", generation_config(alphabet, is_chat(source)))
    write_json(folder / "tokenizer_config.json", tokenizer_config(config, alphabet))
    if set(CONTROL.values()) <= set(alphabet.control):
        write_whole(folder / "chat_template.jinja", CHAT_TEMPLATE.encode())
    write_whole(folder / "README.md", model_card(source, made, name, config, alphabet).encode())


def _portable_tokenizer(folder: Path, alphabet: BPE, config: GPTConfig) -> tuple[BPE, GPTConfig]:
    """Writes the tokenizer.json by which transformers gives the same ids, and returns it with the shape for it."""
    remove(folder / TOKENIZER)
    write_whole(folder / TOKENIZER, alphabet.portable().encode())
    written = read_tokenizer(folder / TOKENIZER)
    if written.table != alphabet.table or written.control != alphabet.control:
        raise PicoError("its tokenizer has added tokens that no merge makes: it cannot be written for transformers")
    return written, config.model_copy(update={"tokenizer_sha256": written.fingerprint})


def code_files(config: Shape) -> list[str]:
    """What of CODE goes along: a Llama of tokens needs nothing."""
    model = [] if is_llama(config) else ["modeling_pico.py", *["modeling_pico_gpt.py"] * (config.kind == "gpt")]
    return model + ["tokenization_pico.py"] * (bool(model) or config.unit == "byte")


def control_ids(alphabet: Alphabet) -> dict[str, int]:
    """Of generation and padding: a vocabulary of tokens has no id to spare, and pads with eos."""
    pad = alphabet.eos if alphabet.unit == "token" else PAD
    return {"bos_token_id": alphabet.bos, "eos_token_id": alphabet.eos, "pad_token_id": pad}


def transformers_config(config: Shape, alphabet: Alphabet) -> dict:
    """config.json"""
    common = {"dtype": "float32", **control_ids(alphabet)}
    if isinstance(config, ModelConfig):
        sizes = {"head_dim": config.head_dim, "mlp_dim": config.mlp_dim, "latent_num_blocks": config.latent_blocks}
        if config.torch_alone:
            raise PicoError(f"{', '.join(config.torch_alone)}: transformers' form of Pico knows nothing of it")
        unsaid = {"kind", "mlp_ratio", "router_teacher", "latent_capacity_start", *EXTRAS}
        own = config.model_dump(exclude=unsaid) | sizes | {"vocab_size": config.vocabulary}
        return _with_code("modeling_pico", "Pico", "pico") | own | common
    if is_llama(config):
        return llama_config(config) | common
    unsaid = {"kind", "tokenizer", "tokenizer_sha256", "window", "mlp_ratio", "mlp_ratio_last", "tied", "init"}
    own = config.model_dump(exclude=unsaid) | {"reach": config.reach, "mlp_dims": config.mlp_dims}
    own["tie_word_embeddings"] = config.tied
    return _with_code("modeling_pico_gpt", "PicoGPT", "pico_gpt") | own | common


def _with_code(file: str, name: str, kind: str) -> dict:
    classes = {"AutoConfig": f"{file}.{name}Config", "AutoModelForCausalLM": f"{file}.{name}ForCausalLM"}
    return {"model_type": kind, "architectures": [f"{name}ForCausalLM"], "auto_map": classes}


def generation_config(alphabet: Alphabet, chat: bool) -> dict:
    """How `run` samples; the end of an answer ends the text of a model that was trained on conversations.

    It sets no length: a max_new_tokens of a model outweighs the max_length that a caller gives, such as lm-eval.
    """
    ends = [alphabet.eos, *([alphabet.control["end-of-turn"]] if chat else [])]
    never = [id for id, symbol in enumerate(alphabet.table) if not symbol and id not in ends]
    settings = {
        "do_sample": True,
        "temperature": 0.8,
        "top_k": 0,
    }  # no length: it would outweigh the max_length of others
    return {**control_ids(alphabet), "eos_token_id": ends, "suppress_tokens": never, **settings}


def tokenizer_config(config: Shape, alphabet: Alphabet) -> dict:
    common = {"padding_side": "left", "clean_up_tokenization_spaces": False}
    if not isinstance(alphabet, BPE):
        code = {"AutoTokenizer": ["tokenization_pico.PicoTokenizer", None]}
        return {"tokenizer_class": "PicoTokenizer", "auto_map": code, **common}
    names = {id: name for name, id in alphabet.special.items()}
    turns = {theirs: ours for theirs, ours in CONTROL.items() if ours in alphabet.control}
    own = {f"{theirs}_token": names[alphabet.control[ours]] for theirs, ours in turns.items()}
    own |= {"bos_token": names[alphabet.bos], "eos_token": names[alphabet.eos], "pad_token": names[alphabet.eos]}
    if is_llama(config):
        return {"tokenizer_class": "PreTrainedTokenizerFast", **own, **common}
    code = {"AutoTokenizer": [None, "tokenization_pico.PicoBPETokenizer"]}
    return {"tokenizer_class": "PicoBPETokenizer", "auto_map": code, "split_special_tokens": True, **own, **common}


def check_hub_name(name: str) -> None:
    """Raises PicoError for what cannot be the name of a model on the Hub."""
    if not re.fullmatch(hub.NAME, name):
        raise PicoError(f"--push {name}: expected OWNER/NAME, a model on the Hugging Face Hub")


def push_folder(folder: Path, name: str) -> str:
    """Uploads a folder to the Hub as the model OWNER/NAME, which is made if it is not there; returns its address.

    Raises PicoError for whatever the Hub refuses.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(name, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"Upload {folder.name}"))
    except Exception as error:  # of a dozen unrelated classes
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise PicoError(
            f"{folder} is written, but not uploaded to {name}: {why}; log in with `hf auth login`, then type "
            f"hf upload {name} {folder}"
        ) from None
