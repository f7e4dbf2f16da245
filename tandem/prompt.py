"""From text or chat messages to token ids, with the model's own tokenizer and chat template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from tandem.errors import InvalidRequest
from tandem.request import Message

TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"


class PromptEncoder:
    """Reads the tokenizer files of an engine directory."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer: Tokenizer = Tokenizer.from_file(str(directory / TOKENIZER_FILE))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        template = directory / TEMPLATE_FILE
        self._template = template.read_text() if template.is_file() else None
        self._special_tokens = _special_tokens(directory / TOKENIZER_CONFIG_FILE)

    def render(self, messages: Sequence[Message]) -> str:
        """Text of a chat, ready for the model's answer.

        Raises:
            InvalidRequest: the model has no chat template, or its template refuses the messages.
        """
        if self._template is None:
            raise InvalidRequest("messages: this model has no chat template; send text_input instead")
        try:
            rendered, _ = render_jinja_template(
                [list(messages)], chat_template=self._template, add_generation_prompt=True, **self._special_tokens
            )
        except TemplateError as error:
            raise InvalidRequest(f"messages: the model's chat template refuses them: {error}") from None
        text: str = rendered[0]
        return text

    def encode(self, text: str, *, special_tokens: bool) -> list[int]:
        """Token ids; `special_tokens` adds what the tokenizer puts around raw text (a chat template brings its own)."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=special_tokens).ids
        return ids

    def encode_word(self, word: str) -> tuple[tuple[int, ...], ...]:
        """The token sequences of a word at the start of a text and after a space, without repetition."""
        forms = (word, word if word[:1].isspace() else " " + word)
        encoded = (tuple(self.encode(form, special_tokens=False)) for form in forms)
        return tuple(dict.fromkeys(ids for ids in encoded if ids))


def _special_tokens(config: Path) -> dict[str, str]:
    """The special tokens that chat templates refer to by name."""
    if not config.is_file():
        return {}
    entries = json.loads(config.read_text())
    tokens = {name: entries.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    return {name: token["content"] if isinstance(token, dict) else token for name, token in tokens.items() if token}
