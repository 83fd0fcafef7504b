"""How a request's tokens are chosen and where it ends. Names and defaults are vLLM's."""

from paged_backend.sampling_params.bad_words import MAX_BAD_WORD_TOKENS, MAX_BAD_WORDS, BadWords
from paged_backend.sampling_params.beam_search import BeamSearchParams
from paged_backend.sampling_params.logits_processors import LogitsProcessor, LogitsProcessorConstructor
from paged_backend.sampling_params.params import MAX_STOP_STRINGS, SamplingParams
from paged_backend.sampling_params.repetition import RepetitionDetectionParams
from paged_backend.sampling_params.structured_outputs import ReasoningTokens, StructuredOutputsParams

__all__ = [
    "MAX_BAD_WORDS",
    "MAX_BAD_WORD_TOKENS",
    "MAX_STOP_STRINGS",
    "BadWords",
    "BeamSearchParams",
    "LogitsProcessor",
    "LogitsProcessorConstructor",
    "ReasoningTokens",
    "RepetitionDetectionParams",
    "SamplingParams",
    "StructuredOutputsParams",
]
