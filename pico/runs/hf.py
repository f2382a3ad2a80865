"""After `import pico.runs.hf`, AutoModelForCausalLM and AutoTokenizer load exported models without remote code.

from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("to-share")
"""

from pico.base.errors import PicoError

try:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
except ImportError:
    raise PicoError("pico.runs.hf needs the package transformers: pip install transformers") from None

from pico.runs.standalone.modeling_pico import PicoConfig, PicoForCausalLM
from pico.runs.standalone.modeling_pico_gpt import PicoGPTConfig, PicoGPTForCausalLM
from pico.runs.standalone.tokenization_pico import PicoBPETokenizer, PicoTokenizer

for config, model in ((PicoConfig, PicoForCausalLM), (PicoGPTConfig, PicoGPTForCausalLM)):
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModelForCausalLM.register(config, model, exist_ok=True)
for tokenizer in (PicoBPETokenizer, PicoTokenizer):  # tokenizer_config.json says which
    AutoTokenizer.register(PicoConfig, tokenizer, exist_ok=True)
    AutoTokenizer.register(PicoGPTConfig, tokenizer, exist_ok=True)
