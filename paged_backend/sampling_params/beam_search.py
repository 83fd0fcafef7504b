"""Parameters of a beam search, as `LLM.beam_search` takes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from paged_backend.sampling_params.params import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSearchParams:
    """Parameters of `LLM.beam_search`, under vLLM's names. They are checked when they are used.

    Attributes:
        beam_width: beams, and continuations returned for each prompt.
        max_tokens: new tokens at most.
        ignore_eos: go on past EOS until max_tokens.
        temperature: 0, or 1, which is the same: nothing is drawn.
        length_penalty, early_stopping: as in `SamplingParams`.
        include_stop_str_in_output: let the text end with that of the token that ended it.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    include_stop_str_in_output: bool = False

    def sampling_params(self) -> SamplingParams:
        """The same as a request's parameters.

        Raises:
            InvalidRequestError: a value is out of range.
        """
        return SamplingParams(
            n=self.beam_width,
            use_beam_search=True,
            max_tokens=self.max_tokens,
            ignore_eos=self.ignore_eos,
            temperature=self.temperature,
            length_penalty=self.length_penalty,
            early_stopping=self.early_stopping,
            include_stop_str_in_output=self.include_stop_str_in_output,
        )
