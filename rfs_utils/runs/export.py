"""A trained model as a directory of its own, with a card that says how to ask it."""

from pathlib import Path

from ..data import ask_as, render_prompt
from ..hub.families import to_hf_config
from ..hub.weights import load_weights
from ..models import check_new, load_model_and_tokenizer, own_model, read_prompt, save_model
from ..qwen3 import Qwen3Model
from ..tokenizer import ModelTokenizer, stop_ids

EXPORT_CARD = """---
library_name: transformers
tags: [{family}, reinforcement-learning]
---
# {name}

A language model of {weights:,} weights and the architecture of {title}, written by `rfs export` from `{source}`.

## How to ask it

{form} PROBLEM stands for the problem:

````text
{shown}
````

The answer ends with `{eos}`{at_stop}, and its final result stands in `\\boxed{{}}`. Greedy decoding, as
`rfs eval` does it by default:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # where this file is
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)

problem = "Tom has 7 coins. In May he finds 5 more. In June he loses 3. How many coins does Tom have now?"
prompt = {prompt!r}.replace("{{problem}}", problem)
{chat}inputs = tokenizer(prompt, return_tensors="pt"{whole})
output = model.generate(**inputs, do_sample=False, max_new_tokens={max_new_tokens}{stop})
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :]))
```
"""
PLAIN = "The prompt is plain text, with no chat format around it."
CHAT = "The prompt is one user's turn in the chat format, which the tokenizer's template writes."
CHAT_LINES = """messages = [{"role": "user", "content": prompt}]
prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
"""


def export_card(name: str, source: str, model: Qwen3Model, tokenizer: ModelTokenizer) -> str:
    """The text of a model card; its program prints the model's greedy answer to a problem."""
    chat, stop = tokenizer.apply_chat_template, getattr(tokenizer, "stop", None)
    family = to_hf_config(model.cfg, model.tok_emb.weight.dtype)["model_type"]
    return EXPORT_CARD.format(
        name=name,
        source=source,
        weights=sum(weight.numel() for weight in model.parameters()),
        form=CHAT if chat else PLAIN,
        prompt=render_prompt("{problem}", tokenizer),
        shown=render_prompt("PROBLEM", tokenizer),
        stop=f", stop_strings=[{stop!r}], tokenizer=tokenizer" if stop else "",
        at_stop=f" or where its text comes to `{stop!r}`" if stop else "",
        eos="` or `".join(filter(None, map(tokenizer.backend.id_to_token, stop_ids(tokenizer)))),
        chat=CHAT_LINES if chat else "",
        whole=", add_special_tokens=False" if chat else "",  # the template has written them
        family=family,
        title=family.capitalize(),
        max_new_tokens=min(2048, model.cfg["context_length"] // 2),
    )


def export_model(
    source: str | Path,
    directory: str | Path,
    which_model: str | Path | None = None,
    prompt: str | None = None,
    stop: str | None = None,
    chat: str | None = None,
) -> Path:
    """Write a trained model as a directory that `transformers`, TRL and vLLM open, with a card; returns the directory.

    `source` is a run folder of `rfs train`, a model directory, or a checkpoint file, for which `which_model`
    says what was trained. `prompt`, `stop` and `chat` are how to ask it, where that is not as it was trained.
    Raises ValueError for anything else, and when `directory` holds something already.
    """
    source, directory = Path(source), Path(directory)
    check_new(directory, "already and is not empty")
    if source.is_file():
        if which_model is None:
            raise ValueError(f"{source} holds weights only; say with --model which model they belong to")
        model, tokenizer = load_model_and_tokenizer(which_model, "cpu")
        load_weights(model, source)
        read_prompt(source.parent, tokenizer)
    else:
        origin = own_model(source)
        if origin is None:
            raise ValueError(
                f"{source} is neither a run folder with a trained model in it, nor a model directory, nor a checkpoint"
            )
        model, tokenizer = load_model_and_tokenizer(origin, "cpu")
    ask_as(tokenizer, prompt, stop, chat)
    card = export_card(directory.resolve().name, source.resolve().name, model, tokenizer)
    return save_model(model, tokenizer, directory, card)
