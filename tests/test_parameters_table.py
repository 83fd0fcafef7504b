"""docs/parameters.md names every parameter of vLLM 0.33, and says of each what the code does with it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from paged_backend import SamplingParams
from paged_backend.handlers.openai.protocol.base import HARMLESS, RequestBody
from paged_backend.handlers.openai.protocol.chat import ChatRequest
from paged_backend.handlers.openai.protocol.completions import CompletionRequest

TABLE = Path(__file__).resolve().parent.parent / "docs" / "parameters.md"

# What vLLM 0.33 has, but for what begins with an underscore.
VLLM_SAMPLING = """
n presence_penalty frequency_penalty repetition_penalty temperature watermarking top_p top_k min_p seed stop
stop_token_ids ignore_eos max_tokens min_tokens logprobs prompt_logprobs prompt_logprob_token_ids prompt_logprob_start
logprob_token_ids flat_logprobs detokenize skip_special_tokens spaces_between_special_tokens include_stop_str_in_output
output_kind stream_interval skip_clone output_text_buffer_length structured_outputs logit_bias allowed_token_ids
extra_args bad_words skip_reading_prefix_cache thinking_token_budget repetition_detection routed_experts_prompt_start
trace_decode_token_ids
""".split()
VLLM_BOTH_ROUTES = """
model frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop stream stream_options temperature
top_p user use_beam_search top_k min_p repetition_penalty watermarking length_penalty stop_token_ids
include_stop_str_in_output ignore_eos min_tokens skip_special_tokens spaces_between_special_tokens
truncate_prompt_tokens truncation_side allowed_token_ids prompt_logprobs logprob_token_ids bad_words echo
add_special_tokens response_format structured_outputs priority request_id session_id return_tokens_as_token_ids
return_token_ids return_weight_versions routed_experts_prompt_start return_token_offsets mm_payload return_mm_kwargs
cache_salt kv_transfer_params ec_transfer_params vllm_xargs repetition_detection thinking_token_budget stream_interval
""".split()
VLLM_COMPLETIONS = [*VLLM_BOTH_ROUTES, *"prompt suffix prompt_embeds".split()]
VLLM_CHAT = [
    *VLLM_BOTH_ROUTES,
    *"""
messages top_logprobs max_completion_tokens tools tool_choice reasoning_effort include_reasoning parallel_tool_calls
add_generation_prompt continue_final_message documents chat_template chat_template_kwargs media_io_kwargs
mm_processor_kwargs return_prompt_text
""".split(),
]
OURS = "best_of early_stopping bad_words_token_ids logits_processors timeout_s".split()

ROWS = {
    match[1]: (match[2], match[3], match[4], match[5].strip())
    for match in re.finditer(
        r"^\| `(\w+)` \| ([\w-]+) \| ([\w-]+) \| ([\w-]+) \|(.*)\|$", TABLE.read_text(encoding="utf-8"), re.MULTILINE
    )
}


def status(kind: type[RequestBody], name: str) -> str:
    """What a body of that kind does with a field."""
    if name in kind.model_fields:
        return "yes"
    if name in HARMLESS:
        return "ignored"
    return "refused" if name in kind.unsupported else "-"


def test_the_table_names_all() -> None:
    assert set(ROWS) == {*VLLM_SAMPLING, *VLLM_COMPLETIONS, *VLLM_CHAT, *OURS}


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_row_says_what_the_code_does(name: str) -> None:
    python, completions, chat, words = ROWS[name]
    fields = {field.name for field in dataclasses.fields(SamplingParams)}
    assert python == ("yes" if name in fields else "-")
    assert (completions, chat) == (status(CompletionRequest, name), status(ChatRequest, name))
    if name in VLLM_SAMPLING and python == "-" and "yes" not in (completions, chat):
        assert words, f"{name}: say why not"


@pytest.mark.parametrize(("kind", "published"), [(CompletionRequest, VLLM_COMPLETIONS), (ChatRequest, VLLM_CHAT)])
def test_every_published_field_is_known(kind: type[RequestBody], published: list[str]) -> None:
    assert not [name for name in published if status(kind, name) == "-"]


@pytest.mark.parametrize("kind", [CompletionRequest, ChatRequest])
def test_refusals_say_why(kind: type[RequestBody]) -> None:
    assert all(refusal.why and not refusal.why.endswith(".") for refusal in kind.unsupported.values())
