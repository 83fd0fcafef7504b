"""The corpus: an endless, seeded stream of documents, plain text and chats, from the grammar of this folder.

`documents(seed, split)` is deterministic: a seed and a split give the same documents
on every machine. The "heldout" split asks the questions in wordings that the "train" split never uses.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from model_store.recipe import concepts, knowledge, stories, tasks, telling, words
from model_store.recipe.writer import Split, Turn, Writer


@dataclass(frozen=True)
class Document:
    """Either plain text (`turns` is empty) or a chat, with an optional system prompt."""

    text: str = ""
    turns: tuple[Turn, ...] = ()
    system: str = ""


SYSTEM_PROMPTS: Final = (
    "You are a helpful assistant.",
    "You are paged-tiny, a small and friendly assistant.",
    "You are a helpful assistant. Answer briefly.",
    "Answer the questions of the user.",
    "You are a kind teacher.",
    "Be concise.",
    "You are a helpful AI assistant.",
    "Always be polite and short.",
)


def remembering(writer: Writer) -> list[Turn]:
    """A chat in which the user's name or liking must be remembered over other turns."""
    rng = writer.rng
    name, colour, animal = words.any_name(rng), rng.choice(words.COLOURS), rng.choice(words.ANIMALS)
    first = rng.choice(
        (
            (
                writer.wording(f"My name is {name}.|I am {name}.|Hello, I am {name}.|Hi, my name is {name}."),
                f"Hello {name}! How can I help you?",
                writer.wording("What is my name?|Who am I?|Do you remember my name?|Can you recall my name?"),
                f"Your name is {name}.",
            ),
            (
                writer.wording(
                    f"My favourite colour is {colour}.|I like the colour {colour} best.|The colour I love is {colour}."
                ),
                f"{colour.capitalize()} is a nice colour!",
                writer.wording("What is my favourite colour?|Which colour do I like?|What colour do I like best?"),
                f"Your favourite colour is {colour}.",
            ),
            (
                writer.wording(
                    f"I have {words.article(animal)}.|My pet is {words.article(animal)}."
                    f"|At home, I have {words.article(animal)}."
                ),
                f"That is nice! {words.article(animal).capitalize()} is a good friend.",
                writer.wording("What pet do I have?|Which animal do I have?|Which animal lives with me?"),
                f"You have {words.article(animal)}.",
            ),
        )
    )
    between = [turn(writer) for _ in range(rng.choice((0, 1, 1, 2)))]
    return [(first[0], first[1]), *between, (first[2], first[3])]


def turn(writer: Writer) -> Turn:
    """One short turn on anything."""
    write = writer.rng.choices(
        (
            knowledge.from_a_table,
            knowledge.general,
            knowledge.concept,
            tasks.arithmetic,
            tasks.json_value,
            tasks.listing,
            tasks.copying,
            knowledge.advice,
            knowledge.joke,
            knowledge.category,
            knowledge.unknown,
            knowledge.hello,
        ),
        (14, 12, 16, 30, 10, 6, 5, 3, 1, 3, 3, 6),
    )[0]
    asked, answer = write(writer)
    return writer.dress(asked), answer


def chat(writer: Writer) -> Document:
    """A chat of one to five turns."""
    rng = writer.rng
    kind = rng.choices(("short", "story", "continuation", "reading", "remembering", "after"), (62, 22, 5, 5, 4, 4))[0]
    if kind == "short":
        turns = [turn(writer) for _ in range(rng.choices((1, 2, 3, 4, 5), (40, 25, 15, 10, 10))[0])]
    elif kind == "story":
        turns = [turn(writer) for _ in range(rng.choices((0, 1), (4, 1))[0])] + [telling.story(writer)]
    elif kind == "continuation":
        turns = [telling.continuation(writer)]
    elif kind == "reading":
        turns = telling.reading(writer)
    elif kind == "remembering":
        turns = remembering(writer)
    else:
        turns = telling.story_then_questions(writer)
    return Document(turns=tuple(turns), system=rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.2 else "")


def plain(writer: Writer) -> Document:
    """Plain text: mostly stories, and now and then a paragraph about serving."""
    rng = writer.rng
    if rng.random() < 0.85:
        return Document(text=stories.write(rng, num_plots=rng.choices((1, 2, 3), (8, 2, 1))[0]).text)
    ideas = rng.sample(concepts.CONCEPTS, rng.randint(1, 3))
    return Document(text=" ".join(f"{idea.what} {idea.how} {idea.why}" for idea in ideas))


def documents(seed: int, split: Split = "train") -> Iterator[Document]:
    """An endless stream of documents: 18 % plain text, the rest chats."""
    writer = Writer(random.Random(f"{split}-{seed}"), split)
    while True:
        yield plain(writer) if writer.rng.random() < 0.18 else chat(writer)
