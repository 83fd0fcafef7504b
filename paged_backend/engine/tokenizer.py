"""Text to tokens and back. transformers and tokenizers do the work; this is the little of them that we use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from paged_backend.config import is_template_path
from paged_backend.engine.token_length import longest_token_characters
from paged_backend.engine.token_text import TokenTexts
from paged_backend.errors import InvalidRequestError, ModelLoadError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Tokenizer:
    """A model's tokenizer. Safe to share between threads: after loading, nothing but a memory of tokens' texts changes.

    Attributes:
        vocab_size: tokens that it knows, the added ones included.
        added_tokens: by id, what is written for those that were added to its vocabulary, the special ones.
        longest_token_characters: most characters of a text that one token stands for: a longer text has more tokens
            than its length divided by it. None where there is no such bound.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        # The backend keeps truncation and padding as mutable state: set once here, never per call.
        self._backend.no_truncation()
        self._backend.no_padding()
        self.vocab_size: int = self._backend.get_vocab_size(with_added_tokens=True)
        added = self._backend.get_added_tokens_decoder()
        self.added_tokens: Mapping[int, str] = {token_id: token.content for token_id, token in added.items()}
        self.longest_token_characters: int | None = longest_token_characters(self._backend)
        self._texts = {skip: TokenTexts(self._backend, skip) for skip in (False, True)}

    @classmethod
    def load(cls, folder: Path, chat_template: str | None = None, *, trust_remote_code: bool = False) -> Tokenizer:
        """Loads the tokenizer of a model folder.

        Args:
            chat_template: a file, or a template, that replaces the model's own.
            trust_remote_code: run the code that comes with it, if it has any.

        Raises:
            ModelLoadError: there is none, or only a slow one (no tokenizer.json), or no such template.
        """
        from transformers import AutoTokenizer

        try:
            # Given, as transformers would otherwise ask whoever sits at the terminal.
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=trust_remote_code
            )
        except (OSError, ValueError, KeyError) as error:
            raise ModelLoadError(
                f"No usable tokenizer in {folder}: {error} Give `tokenizer`, or set skip_tokenizer_init and send "
                "token ids."
            ) from error
        if not getattr(tokenizer, "is_fast", False):
            raise ModelLoadError(
                f"The tokenizer in {folder} has no tokenizer.json. Convert it once with transformers' "
                "AutoTokenizer.from_pretrained(...).save_pretrained(...)."
            )
        if chat_template is not None:
            tokenizer.chat_template = _read_template(chat_template)
        return cls(cast("PreTrainedTokenizerFast", tokenizer))

    def to_json(self) -> str:
        """What a tokenizer.json of it holds."""
        text: str = self._backend.to_str()
        return text

    def template_source(self, *, has_tools: bool) -> str | None:
        """The chat template's source, or None where the model has none; some have one of its own for tools."""
        template: str | dict[str, str] | None = self._tokenizer.chat_template
        if not isinstance(template, dict):
            return template
        name = "tool_use" if has_tools and "tool_use" in template else "default"
        return template.get(name)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        # The batch call releases the GIL, the single one holds it: a long text would stop the engine's thread.
        ids: list[int] = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        return ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids; bytes that make no character come as U+FFFD."""
        text: str = self._backend.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def token_texts(self, skip_special_tokens: bool = True) -> TokenTexts:
        """What each token adds to a text, where that does not depend on its neighbours."""
        return self._texts[skip_special_tokens]

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, str]] | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt text of a conversation, rendered in transformers' template sandbox.

        Args:
            chat_template: a template in place of the model's own. The sandbox keeps it from the machine, but nothing
                bounds its time and memory.
            kwargs: more variables of the template.

        Raises:
            InvalidRequestError: the model has no chat template, or the template refuses the messages.
        """
        import jinja2

        if chat_template is None and self.template_source(has_tools=bool(tools)) is None:
            raise InvalidRequestError(
                "This model has no chat template: use /v1/completions, or give the model folder a chat_template.jinja.",
                param="messages",
            )
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=[dict(tool) for tool in tools] if tools else None,
                documents=[dict(document) for document in documents] if documents else None,
                chat_template=chat_template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **kwargs,
            )
        except (*_TEMPLATE_ERRORS, jinja2.TemplateError) as error:
            raise InvalidRequestError(
                f"The chat template cannot render these messages: {error or type(error).__name__}",
                param="messages" if chat_template is None else "chat_template",
            ) from error
        assert isinstance(text, str)
        return text


_TEMPLATE_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What a template's expressions may raise, on values that it was not written for."""


def _read_template(chat_template: str) -> str:
    if not is_template_path(chat_template):
        return chat_template
    path = Path(chat_template).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelLoadError(
            f"chat_template: {path} cannot be read: {error.strerror or error}. Give a file, or a template."
        ) from error
    except UnicodeDecodeError as error:
        raise ModelLoadError(f"chat_template: {path} is not UTF-8 text: {error.reason}.") from error
