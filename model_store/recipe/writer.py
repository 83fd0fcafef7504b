"""A writer holds the random stream of a document and decides which wordings may be used."""

from __future__ import annotations

import random
from typing import Final, Literal

Split = Literal["train", "heldout"]
Turn = tuple[str, str]  # what the user says, what the assistant answers

PREFIXES: Final = (
    "Please tell me: ",
    "Quick question: ",
    "Hi! ",
    "Hello, ",
    "Tell me, ",
    "Can you tell me: ",
    "I have a question. ",
    "Hey, ",
    "Question: ",
    "I would like to know: ",
    "Please answer: ",
    "One more question: ",
    "And ",
    "So, ",
    "Can you help me? ",
    "Dear model, ",
)
SUFFIXES: Final = (
    " Thanks!",
    " Please answer briefly.",
    " Thank you.",
    " Please.",
    " Answer in one sentence.",
    " Be short.",
    " I want to know.",
)


class Writer:
    """The random stream, and how questions are worded."""

    def __init__(self, rng: random.Random, split: Split) -> None:
        self.rng = rng
        self.split = split

    def wording(self, templates: tuple[str, ...] | str) -> str:
        """One of the wordings ("a|b|c" or a tuple): the last in the held-out split, any other in training."""
        options = tuple(templates.split("|")) if isinstance(templates, str) else templates
        if len(options) < 3:
            return self.rng.choice(options)
        return options[-1] if self.split == "heldout" else self.rng.choice(options[:-1])

    def dress(self, question: str) -> str:
        """A question as people type it: a word before or after, no capital letter, no question mark."""
        rng = self.rng
        if rng.random() < 0.15 and not question.startswith(PREFIXES):
            question = rng.choice(PREFIXES) + question
        draw = rng.random()
        if draw < 0.1:
            question += rng.choice(SUFFIXES)
        elif draw < 0.25:
            question = question.rstrip("?.!")
        if rng.random() < 0.12:
            question = question[0].lower() + question[1:]
        return question
