"""Short stories from a grammar: a hero, a friend, a thing, places, a plot with a setup, a turn and an end."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field, replace
from typing import Final

from model_store.recipe import plots, words

_PRONOUNS: Final = {"f": ("she", "her", "her"), "m": ("he", "him", "his"), "n": ("it", "it", "its")}
_GENDERS: Final = {
    "girl": "f",
    "boy": "m",
    "robot": "n",
    "princess": "f",
    "prince": "m",
    "king": "m",
    "queen": "f",
    "witch": "f",
    "wizard": "m",
    "fisherman": "m",
}
_SLOT = re.compile(r"\{(\w+)(?::(\w+))?\}")


@dataclass
class Story:
    """A story as sentences, and what a reader may be asked about."""

    hero: str
    kind: str
    friend: str
    friend_kind: str
    thing: str
    place: str
    theme: str
    sentences: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The whole story on one line."""
        return " ".join(self.sentences)


def _person(rng: random.Random, kind: str | None, name: str | None) -> tuple[str, str, str]:
    """A name, a kind and a gender ("f", "m" or "n") that go together; what is given is kept."""
    kind = kind or rng.choice(words.ANIMALS if rng.random() < 0.7 else words.PEOPLE)
    gender = _GENDERS.get(kind) or rng.choice("fm")
    if name is None:
        name = (
            words.invented_name(rng)
            if rng.random() < 0.15
            else rng.choice(words.BOYS if gender == "m" else words.GIRLS)
        )
    elif kind not in _GENDERS:
        gender = "f" if name in words.GIRLS else "m" if name in words.BOYS else gender
    return name, kind, gender


def write(
    rng: random.Random,
    *,
    kind: str | None = None,
    name: str | None = None,
    thing: str | None = None,
    place: str | None = None,
    theme: str | None = None,
    num_plots: int = 1,
    short: bool = False,
) -> Story:
    """Write one story.

    Args:
        num_plots: plots told one after the other about the same hero; 1 is about 130 tokens, 3 about 350.
        short: leave beats out, for about 70 tokens.
    """
    hero, kind, gender = _person(rng, kind, name)
    themes = [theme] if theme else rng.sample(sorted(plots.PLOTS), num_plots)
    if thing and theme is None:
        themes[0] = rng.choice(("a lost thing", "a lost thing", "a lie"))
    story: Story | None = None
    home = rng.choice(words.PLACES)
    for number, plot in enumerate(themes):
        friend, friend_kind, friend_gender = _person(rng, None, None)
        while friend == hero or friend_kind == kind:
            friend, friend_kind, friend_gender = _person(rng, None, None)
        near, far = rng.sample(words.PLACES, 2)
        if place:
            near, far = place, far if far != place else near
        the_thing = thing or rng.choice(words.THINGS)
        colour, food = rng.choice(words.COLOURS), rng.choice(words.FOODS)
        he, him, his = _PRONOUNS[gender]
        fhe, fhim, fhis = _PRONOUNS[friend_gender]
        trait, trait2 = rng.sample(words.TRAITS, 2)
        slots = {
            "H": hero,
            "k": kind,
            "ak": f"{trait} {kind}",
            "he": he,
            "him": him,
            "his": his,
            "He": he.capitalize(),
            "His": his.capitalize(),
            "F": friend,
            "fk": friend_kind,
            "fhe": fhe,
            "fhim": fhim,
            "fhis": fhis,
            "Fhe": fhe.capitalize(),
            "t": the_thing,
            "ct": f"{colour} {the_thing}",
            "c": colour,
            "p": near,
            "q": far,
            "food": food,
            "foods": words.plural(food),
            "home": place or home,
            "home2": place or home,
            "trait2": trait2,
            "skill": rng.choice(plots.SKILLS),
        }

        def fill(sentence: str, slots: dict[str, str] = slots) -> str:
            def value(match: re.Match[str]) -> str:
                head, tail = match.groups()
                if tail is None:
                    return slots[head]
                phrase = words.article(slots[tail])
                return phrase if head == "a" else phrase[0].upper() + phrase[1:]

            return _SLOT.sub(value, sentence)

        beats = plots.PLOTS[plot]
        told = [fill(rng.choice(beat)) for beat in beats]
        if not any(friend in sentence and friend_kind in sentence for sentence in told):
            # The plot's choices did not introduce the friend: draw the beats again until one does.
            while not any(friend in sentence and friend_kind in sentence for sentence in told):
                told = [fill(rng.choice(beat)) for beat in beats]
        first = next(i for i, sentence in enumerate(told) if friend in sentence)
        intro = next(i for i, sentence in enumerate(told) if friend in sentence and friend_kind in sentence)
        if first < intro:
            told[first] = re.sub(rf"\b{friend}\b", f"{friend} the {friend_kind}", told[first], count=1)
        if story is None:
            story = Story(hero, kind, friend, friend_kind, the_thing, near, plot)
            story.sentences.append(fill(rng.choice(plots.OPENINGS[:3] if rng.random() < 0.6 else plots.OPENINGS)))
            if not short and rng.random() < 0.5:
                story.sentences.append(fill(rng.choice(plots.COLOUR_BEATS)))
        else:
            story.sentences.append(plots.LINKS[(rng.randrange(len(plots.LINKS)) + number) % len(plots.LINKS)])
        if short:
            told = told[:4] + told[-2:] if len(told) > 6 and rng.random() < 0.5 else told
        story.sentences.extend(told)
    assert story is not None
    if rng.random() < 0.5:
        story.sentences.append(rng.choice(plots.ENDINGS))
    return story


def with_trait(story: Story, trait: str) -> Story:
    """The same story with `trait` as the word that describes its hero in the first sentence."""
    first = story.sentences[0]
    described = re.sub(
        rf"\b([Aa])n? \w+ {story.kind}\b",
        lambda m: f"{m[1]}{words.article(trait)[1:]} {story.kind}",
        first,
        count=1,
    )
    return replace(story, sentences=[described, *story.sentences[1:]])
