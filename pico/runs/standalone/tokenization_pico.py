"""The tokenizers of exported models, for transformers. No text can forge a control symbol:

    tokenizer("<|user|>")                       # the bytes of this text, behind BOS
    tokenizer.apply_chat_template(messages)     # BOS [SYSTEM text END] (USER text END ASSISTANT text END)+ EOS

of which only the names here in capitals are control symbols, whatever the messages say. Where a text is all your own,
`tokenizer(text, split_special_tokens=False)` reads the names of control symbols in it as these.
"""

import re

from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

CONTROL = ("bos", "eos", "system", "user", "assistant", "end-of-turn", "pad")  # ids from 256 up
NAMES = {f"{name.replace('-', '_')}_token": f"<|{name}|>" for name in CONTROL}  # as transformers calls them, as shown
MARKS = {name: chr(0xD800 + place) for place, name in enumerate(NAMES)}  # characters that no valid text has


class PicoTokenizer(PreTrainedTokenizer):
    """Ids 0 to 255 are the bytes of a text in UTF-8, shown as characters of Latin-1; control symbols follow."""

    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, split_special_tokens=True, padding_side="left", **options):
        self.ids = {chr(value): value for value in range(256)}
        self.ids |= {name: 256 + place for place, name in enumerate(NAMES.values())}
        self.symbols = {index: symbol for symbol, index in self.ids.items()}
        options = {**NAMES, "split_special_tokens": split_special_tokens, "padding_side": padding_side, **options}
        super().__init__(**options)

    @property
    def vocab_size(self) -> int:
        return len(self.ids)

    def get_vocab(self) -> dict[str, int]:
        return dict(self.ids)

    def tokenize(self, text: str, split_special_tokens: bool | None = None, marked: bool = False, **_) -> list[str]:
        """marked: the control symbols in it are those of MARKS."""
        if marked:
            symbols = {MARKS[name]: symbol for name, symbol in NAMES.items()}
        elif self.split_special_tokens if split_special_tokens is None else split_special_tokens:
            symbols = {}
        else:
            symbols = {symbol: symbol for symbol in NAMES.values()}
        tokens = []
        for place, piece in enumerate(re.split(f"({'|'.join(map(re.escape, symbols)) or '(?!)'})", text)):
            if place % 2:
                tokens.append(symbols[piece])
            else:
                tokens += piece.encode("utf-8", "surrogatepass").decode("latin-1")
        return tokens

    def _convert_token_to_id(self, token: str) -> int | None:
        return self.ids.get(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.symbols.get(index, "")

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Bytes that are no UTF-8 become U+FFFD."""
        return "".join(tokens).encode("latin-1").decode("utf-8", "replace")

    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: list[int] | None = None):
        return [self.bos_token_id, *token_ids_0, *(token_ids_1 or [])]

    def get_special_tokens_mask(self, token_ids_0, token_ids_1=None, already_has_special_tokens=False) -> list[int]:
        first = token_ids_0 if already_has_special_tokens else [self.bos_token_id, *token_ids_0]
        return [int(index > 255) for index in [*first, *(token_ids_1 or [])]]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple:
        return ()

    def apply_chat_template(self, conversation, tokenize=True, tokenizer_kwargs=None, **options):
        """As ids, the control symbols are those that the template writes; as a text, it is to be looked at."""
        if tokenize:
            conversation, options = unmarked(conversation), {**MARKS, **options}
            tokenizer_kwargs = {**(tokenizer_kwargs or {}), "marked": True}
        return super().apply_chat_template(
            conversation, tokenize=tokenize, tokenizer_kwargs=tokenizer_kwargs, **options
        )


class PicoBPETokenizer(PreTrainedTokenizerFast):
    """The byte-level BPE of tokenizer.json."""  # without an __init__: transformers would make its BPE anew

    def apply_chat_template(self, conversation, tokenize=True, **options):
        """As ids, the control symbols are those that the template writes; as a text, it is to be looked at."""
        options = {"sanitize_control_tokens": tokenize and not options.get("return_assistant_tokens_mask"), **options}
        before, self.split_special_tokens = self.split_special_tokens, False
        try:
            return super().apply_chat_template(conversation, tokenize=tokenize, **options)
        finally:
            self.split_special_tokens = before


def unmarked(value):
    """Messages without the characters of MARKS, which are invalid in UTF-8 anyway."""
    if isinstance(value, str):
        return re.sub(f"[{''.join(MARKS.values())}]", "\ufffd", value)
    if isinstance(value, dict):
        return {key: unmarked(inner) for key, inner in value.items()}
    return [unmarked(inner) for inner in value] if isinstance(value, (list, tuple)) else value
