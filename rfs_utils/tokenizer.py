"""Tokenizers from a `tokenizer.json`: Qwen3's, and any other whose special tokens its directory names."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

import tokenizers
from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .files.kinds import shown

# In the order of Qwen3's own tokenizer, where they are the ids 151643 to 151668.
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>",
    "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>",
    "<|quad_start|>", "<|quad_end|>",
    "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
    "<tool_call>", "</tool_call>",
    "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
    "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip

# How Qwen2 and Qwen3 cut text before BPE: contractions, words, single digits, punctuation, line ends, blanks.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Qwen3's turns as a template for `transformers`; `Qwen3Tokenizer.wrap_chat` writes the same text for one user's turn.
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- endif %}"
    "{%- endif %}"
)
PLACEHOLDER = "a-message"  # where the user's message stands, to see what a template puts around it


class Tokenizer(Protocol):
    """What sampling and training need of a tokenizer: one of your own with these four will do."""

    eos_token_id: int
    pad_token_id: int

    def encode(self, text: str, /) -> list[int]:
        """Token ids of a text."""

    def decode(self, token_ids: list[int], /) -> str:
        """The text of token ids."""


class ModelTokenizer(Tokenizer, Protocol):
    """What a model directory needs besides, which is written with its tokenizer."""

    eos_token: str
    apply_chat_template: bool

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special tokens included."""

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The same tokenizer as the `tokenizers` library has it."""


class MissingToken(ValueError):
    """A tokenizer lacks a token that it needs."""


@dataclass(frozen=True)
class Source:
    """The files that came with a tokenizer, by name, and what they say: they are written again where a model goes."""

    content: dict[str, bytes]
    vocab_size: int
    eos_token_ids: tuple[int, ...]


class HFTokenizer:
    """Turns text into token ids and back, by any `tokenizer.json` of Hugging Face's format.

    `eos_token`, a token or its id, ends a text; `pad_token`, the same unless it is given, fills rows of a batch.
    With `apply_chat_template`, `encode` wraps the text as a user's turn as the Jinja text `chat_template` says, and
    `add_generation_prompt` opens the assistant's turn. A model directory may name further ids at which a response
    ends, `more_eos_token_ids`. How problems are put to the model, `prompt`, and the text that ends its answers, `stop`,
    are what `set_prompt` has set, if anything.
    """

    def __init__(
        self,
        tokenizer_file_path: str | Path,
        eos_token: str | int,
        pad_token: str | int | None = None,
        chat_template: str | None = None,
        apply_chat_template: bool = False,
        add_generation_prompt: bool = True,
    ):
        path = Path(tokenizer_file_path)
        if not path.is_file():
            raise ValueError(f"there is no tokenizer file {path}; expected a Hugging Face tokenizer.json")
        try:
            self.backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception for any malformed file
            raise ValueError(f"{path} is not a valid tokenizer.json: {error}") from None
        self.path = path
        self.eos_token, self.eos_token_id = self._special(eos_token)
        self.pad_token_id = self.eos_token_id if pad_token is None else self._special(pad_token)[1]
        self.chat_template = chat_template
        self.add_generation_prompt = add_generation_prompt
        self.more_eos_token_ids: tuple[int, ...] = ()
        self.prompt: str | None = None
        self.stop: str | None = None
        self.chat: bool | None = None  # what `set_prompt` said of the chat format
        self.source: Source | None = None  # where `models.load_tokenizer` has read a model directory's own files
        self.set_chat(apply_chat_template)

    def set_chat(self, apply_chat_template: bool) -> None:
        """Switch the chat format on or off; ValueError where there is none."""
        if apply_chat_template and self.chat_template is None:
            raise ValueError(f"the directory of {self.path} has no chat template; its model reads plain text")
        self.apply_chat_template = apply_chat_template

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """All ids at which a response ends, the main one first."""
        return (self.eos_token_id, *(i for i in self.more_eos_token_ids if i != self.eos_token_id))

    def _special(self, token: str | int) -> tuple[str, int]:
        """A special token and its id, of which one is given."""
        text = self.backend.id_to_token(token) if isinstance(token, int) else token
        token_id = token if isinstance(token, int) else self.backend.token_to_id(token)
        if text is None or token_id is None:
            raise MissingToken(f"{self.path} has no token {token}")
        return text, token_id

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special tokens included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, prompt: str, chat_wrapped: bool | None = None) -> list[int]:
        """Token ids of a text; `chat_wrapped` overrides the tokenizer's own setting for this call.

        The name of a special token in the text stands for that token; `encode_prompt` reads it as text.
        """
        if self.apply_chat_template if chat_wrapped is None else chat_wrapped:
            prompt = self.wrap_chat(prompt)
        return self.backend.encode(prompt, add_special_tokens=False).ids

    def encode_prompt(self, prompt: str) -> list[int]:
        """Token ids of a prompt, whose text has no power: the only special tokens are those of the format.

        That is the chat format, or what a text begins with in the model's training, as Llama's with <|begin_of_text|>.
        """
        if not self.apply_chat_template:
            return self._opening_ids() + self._encode_text(prompt)
        opening, turn, closing = self._chat_parts(prompt)
        return self.encode(opening, False) + self._encode_text(turn) + self.encode(closing, False)

    def _opening_ids(self) -> list[int]:
        """The special tokens that `tokenizer.json` puts before a text."""
        marked = self.backend.encode("0")
        return [i for i, special in zip(marked.ids, marked.special_tokens_mask, strict=True) if special]

    def _encode_text(self, text: str) -> list[int]:
        """Token ids without special tokens, those of the vocabulary's letters in place of "<|im_end|>" and its like."""
        ids = self.backend.encode(text, add_special_tokens=False).ids
        if self.backend.get_added_tokens_decoder().keys().isdisjoint(ids):
            return ids
        if self.backend.normalizer is not None:
            text = self.backend.normalizer.normalize_str(text)
        words = self.backend.pre_tokenizer
        pieces = [text] if words is None else [piece for piece, _ in words.pre_tokenize_str(text)]
        return [token.id for piece in pieces for token in self.backend.model.tokenize(piece)]

    def decode(self, token_ids: list[int]) -> str:
        """The text of token ids, special tokens included."""
        return self.backend.decode(list(token_ids), skip_special_tokens=False)

    def wrap_chat(self, user_message: str) -> str:
        """One user's turn in the chat format."""
        return "".join(self._chat_parts(user_message))

    def _chat_parts(self, user_message: str) -> tuple[str, str, str]:
        """What opens a user's turn, the turn, and what closes it and opens the answer.

        The turn begins behind the special token before the message and ends at the one behind it, because words
        between them and the message become tokens together with it.
        """
        before, found, after = self._render(PLACEHOLDER).partition(PLACEHOLDER)
        text = self._render(user_message)
        if not found or len(text) < len(before + after) or not (text.startswith(before) and text.endswith(after)):
            raise ValueError(f"the chat template beside {self.path} does not write a user's message as it is")
        names = [token.content for token in self.backend.get_added_tokens_decoder().values()]
        start = max([before.rfind(name) + len(name) for name in names if name in before], default=0)
        behind = min([after.find(name) for name in names if name in after], default=len(after))
        end = len(text) - len(after) + behind
        return text[:start], text[start:end], text[end:]

    def _render(self, user_message: str) -> str:
        return render_chat(
            self.chat_template or "",
            messages=[{"role": "user", "content": user_message}],
            add_generation_prompt=self.add_generation_prompt,
            eos_token=self.eos_token,
            bos_token="".join(filter(None, map(self.backend.id_to_token, self._opening_ids()))),
        )


class Qwen3Tokenizer(HFTokenizer):
    """Qwen3's tokenizer, whose special tokens and chat format are known without its directory's other files.

    A base model ends its text with <|endoftext|>, a chat model with <|im_end|>: `eos_token`. With `add_thinking`
    off, an empty pair of think tags stands at the beginning of the answer, which asks the model to answer at once.
    """

    def __init__(
        self,
        tokenizer_file_path: str | Path = "tokenizer.json",
        apply_chat_template: bool = False,
        add_generation_prompt: bool = True,
        add_thinking: bool = True,
    ):
        self.add_thinking = add_thinking
        options = (CHAT_TEMPLATE, apply_chat_template, add_generation_prompt)
        super().__init__(tokenizer_file_path, "<|endoftext|>", "<|endoftext|>", *options)
        self._special("<|im_end|>")  # which the chat format needs, whether it is on or not

    def set_chat(self, apply_chat_template: bool) -> None:
        """Switch the chat format on or off, and with it the token that ends a text."""
        self.apply_chat_template = apply_chat_template
        self.eos_token, self.eos_token_id = self._special("<|im_end|>" if apply_chat_template else "<|endoftext|>")

    def _chat_parts(self, user_message: str) -> tuple[str, str, str]:
        closing = "<|im_end|>\n"
        if self.add_generation_prompt:
            closing += "<|im_start|>assistant\n"
            if not self.add_thinking:
                closing += "<think>\n\n</think>\n\n"
        return "<|im_start|>", f"user\n{user_message}", closing


def render_chat(template: str, **values) -> str:
    """A chat template's text, by Jinja set up as in `transformers`; ValueError when the template is wrong."""

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    try:
        return environment.from_string(template).render(**values)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise ValueError(f"the chat template cannot be used: {error}") from None


def stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids at which a response ends: a tokenizer's `eos_token_ids`, or the one `eos_token_id` of a simpler one."""
    return getattr(tokenizer, "eos_token_ids", None) or (tokenizer.eos_token_id,)


@dataclass(frozen=True)
class StopText:
    """A response ends at one of the ids, or with the first token at which its text contains `text`."""

    text: str
    ids: tuple[int, ...]
    decode: Callable[[list[int]], str]

    @property
    def reach(self) -> int:
        """The last tokens to look at: one for each byte, and one more, as some decoders strip the first blank."""
        return len(self.text.encode()) + 1

    def ends(self, token_ids: list[int]) -> bool:
        """Whether the last token of a response ends it."""
        return token_ids[-1] in self.ids or self.text in self.decode(token_ids[-self.reach :])


def stops(tokenizer: Tokenizer) -> tuple[int, ...] | StopText:
    """What ends a response: `stop_ids`, and the text `stop` where the tokenizer has one."""
    text = getattr(tokenizer, "stop", None)
    return StopText(text, stop_ids(tokenizer), tokenizer.decode) if text else stop_ids(tokenizer)


def set_prompt(
    tokenizer: Tokenizer, prompt: str | None = None, stop: str | None = None, chat: bool | None = None
) -> None:
    """Have problems put as in `prompt`, with {problem} in it, and answers ended by the text `stop`, or as by default.

    `chat` says whether the prompt goes into the chat format; None leaves that. ValueError for a stop text that no
    answer can contain, and for a chat format that is not there.
    """
    if stop is not None:
        if not stop or "\ufffd" in stop or stop not in tokenizer.decode(tokenizer.encode(stop)):
            raise ValueError(f"no answer can come to the stop text {shown(stop)}: the tokenizer does not write it")
    if chat is not None:
        if not hasattr(tokenizer, "set_chat"):
            raise ValueError("this tokenizer has no chat format; its model reads plain text")
        tokenizer.set_chat(chat)
    for name, value in (("prompt", prompt), ("stop", stop), ("chat", chat)):
        setattr(tokenizer, name, value)  # simple tokenizers get them, too


def response_text(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    """The text of a response, as rewards read it: without the token that ends it, unless a tokenizer `shows_end`.

    It goes up to the tokenizer's stop text, whatever the last token holds besides.
    """
    hidden = bool(token_ids) and token_ids[-1] in stop_ids(tokenizer) and not getattr(tokenizer, "shows_end", False)
    text, stop = tokenizer.decode(token_ids[:-1] if hidden else token_ids), getattr(tokenizer, "stop", None)
    return text.partition(stop)[0] if stop else text


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt, read as text where the tokenizer can; ValueError for a prompt without any token."""
    encode = getattr(tokenizer, "encode_prompt", tokenizer.encode)
    encoded = [encode(prompt) for prompt in prompts]
    if not encoded or not all(encoded):
        what = "there is no prompt" if not encoded else "a prompt is empty"
        raise ValueError(f"{what}: a model needs at least one token to go on from")
    return encoded
