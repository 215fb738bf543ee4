"""The Qwen3 tokenizer: byte-level BPE from a `tokenizer.json`, with Qwen3's special tokens and chat template."""

from pathlib import Path

from tokenizers import Tokenizer

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


class Qwen3Tokenizer:
    """Turns text into token ids and back.

    With `apply_chat_template`, `encode` wraps the text as a user's turn in Qwen3's chat format, as the
    reasoning models expect it; `add_generation_prompt` opens the assistant's turn, and with `add_thinking`
    off an empty pair of think tags is put there, which asks the model to answer at once.
    A base model ends its text with <|endoftext|>, a chat model with <|im_end|>.
    """

    def __init__(
        self,
        tokenizer_file_path: str | Path = "tokenizer.json",
        apply_chat_template: bool = False,
        add_generation_prompt: bool = True,
        add_thinking: bool = True,
    ):
        path = Path(tokenizer_file_path)
        if not path.is_file():
            raise ValueError(f"there is no tokenizer file {path}; expected a Hugging Face tokenizer.json")
        try:
            self.backend = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception for any malformed file
            raise ValueError(f"{path} is not a valid tokenizer.json: {error}") from None
        self.path = path
        self.add_generation_prompt = add_generation_prompt
        self.add_thinking = add_thinking
        self.pad_token_id = self._special_id("<|endoftext|>")
        self.set_chat(apply_chat_template)

    def set_chat(self, apply_chat_template: bool) -> None:
        """Switch the chat format on or off, and with it the token that ends a text."""
        self.apply_chat_template = apply_chat_template
        self.eos_token = "<|im_end|>" if apply_chat_template else "<|endoftext|>"
        self.eos_token_id = self._special_id(self.eos_token)

    def _special_id(self, token: str) -> int:
        token_id = self.backend.token_to_id(token)
        if token_id is None:
            raise ValueError(f"{self.path} has no token {token}; a Qwen3 tokenizer is expected")
        return token_id

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special tokens included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, prompt: str, chat_wrapped: bool | None = None) -> list[int]:
        """Token ids of a text; `chat_wrapped` overrides the tokenizer's own setting for this call."""
        if self.apply_chat_template if chat_wrapped is None else chat_wrapped:
            prompt = self.wrap_chat(prompt)
        return self.backend.encode(prompt, add_special_tokens=False).ids

    def decode(self, token_ids: list[int]) -> str:
        """The text of token ids, special tokens included."""
        return self.backend.decode(list(token_ids), skip_special_tokens=False)

    def wrap_chat(self, user_message: str) -> str:
        """One user's turn in Qwen3's chat format."""
        text = f"<|im_start|>user\n{user_message}<|im_end|>\n"
        if self.add_generation_prompt:
            text += "<|im_start|>assistant\n"
            if not self.add_thinking:
                text += "<think>\n\n</think>\n\n"
        return text
