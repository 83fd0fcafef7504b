"""Turns about stories: told on request, continued, and asked about."""

from __future__ import annotations

from model_store.recipe import plots, stories, words
from model_store.recipe.writer import Turn, Writer


def story(writer: Writer) -> Turn:
    """A story on request: about somebody, something, a theme, or anything."""
    rng = writer.rng
    size = rng.choices(("", "short", "long"), (5, 4, 1))[0]
    num_plots = rng.choice((2, 3)) if size == "long" else 1
    adjective = f"{size} " if size else ""
    about = rng.choices(
        ("kind", "trait", "name", "both", "thing", "place", "theme", "none", "bedtime"),
        (6, 3, 2, 3, 2, 1, 3, 2, 1),
    )[0]
    kind = rng.choice((*words.ANIMALS, *words.PEOPLE))
    name = words.any_name(rng)
    if about == "both" and kind in ("girl", "princess", "queen", "witch"):
        name = rng.choice(words.GIRLS)
    elif about == "both" and kind in ("boy", "prince", "king", "wizard", "fisherman"):
        name = rng.choice(words.BOYS)
    short = size == "short" and rng.random() < 0.7
    if about in ("kind", "trait"):
        trait = rng.choice(words.TRAITS)
        topic = words.article(kind) if about == "kind" else words.article(f"{trait} {kind}")
        told = stories.write(rng, kind=kind, num_plots=num_plots, short=short)
        if about == "trait":
            told = stories.with_trait(told, trait)
    elif about == "name":
        topic, told = name, stories.write(rng, name=name, num_plots=num_plots, short=short)
    elif about == "both":
        topic = f"{words.article(kind)} {rng.choice(('named', 'called'))} {name}"
        told = stories.write(rng, kind=kind, name=name, num_plots=num_plots, short=short)
    elif about == "thing":
        thing = rng.choice(words.THINGS)
        topic, told = words.article(thing), stories.write(rng, thing=thing, short=short)
    elif about == "place":
        place = rng.choice(words.PLACES)
        topic, told = place, stories.write(rng, place=place, num_plots=num_plots, short=short)
    elif about == "theme":
        theme = rng.choice(sorted(plots.PLOTS))
        topic, told = rng.choice(plots.THEMES[theme]), stories.write(rng, theme=theme, short=short)
    else:
        story = f"a {adjective}story" if about == "none" else "a bedtime story"
        return writer.wording(
            f"Tell me {story}.|Write {story}.|Can you tell me {story}?"
            f"|{story[0].upper() + story[1:]}, please.|I would like to hear {story}."
        ), stories.write(rng, num_plots=num_plots if about == "none" else 1, short=short).text
    return writer.wording(
        f"Tell me a {adjective}story about {topic}.|Write a {adjective}story about {topic}."
        f"|Can you tell me a {adjective}story about {topic}?"
        f"|A {adjective}story about {topic}, please."
        f"|Please write a {adjective}story about {topic}."
        f"|I want a {adjective}story about {topic}.|Tell a {adjective}story about {topic}."
        f"|Could you write me a {adjective}story about {topic}?"
    ), told.text


def continuation(writer: Writer) -> Turn:
    """The beginning of a story in the prompt, its rest in the answer."""
    told = stories.write(writer.rng, short=writer.rng.random() < 0.3)
    cut = writer.rng.randint(1, min(4, len(told.sentences) - 2))
    head, tail = " ".join(told.sentences[:cut]), " ".join(told.sentences[cut:])
    return writer.wording(
        f"Continue this story: {head}|Continue the story. {head}"
        f"|How does this story go on? {head}|Please finish this story: {head}"
        f"|{head} What happens next?|Go on with this story: {head}"
    ), tail


def reading(writer: Writer) -> list[Turn]:
    """A story in the prompt and questions about it."""
    rng = writer.rng
    told = stories.write(rng, short=rng.random() < 0.6)
    asked = [
        (
            writer.wording(
                f"What is the name of the {told.kind}?|What is the {told.kind} called?|How is the {told.kind} called?"
            ),
            f"The {told.kind} is called {told.hero}.",
        ),
        (
            writer.wording(f"Who is {told.hero}?|What is {told.hero}?|What kind of hero is {told.hero}?"),
            f"{told.hero} is {words.article(told.kind)}.",
        ),
        (
            writer.wording(
                f"Who is {told.friend}?|What is {told.friend}?|What kind of person or animal is {told.friend}?"
            ),
            f"{told.friend} is {words.article(told.friend_kind)}.",
        ),
        (
            writer.wording("Who is the story about?|Who is the hero of the story?|Who is the main character?"),
            f"The story is about {words.article(told.kind)} named {told.hero}.",
        ),
        (
            writer.wording("What is the story about?|What is the theme of the story?|Sum up the story in a few words."),
            f"It is a story about {words.article(told.kind)} named {told.hero} and {told.theme}.",
        ),
    ]
    chosen = rng.sample(asked, rng.randint(1, 3))
    question, answer = chosen[0]
    opening = writer.wording(
        f"Read this story. {told.text} {question}|{told.text}\n\n{question}|Here is a story: {told.text} {question}"
    )
    return [(opening, answer), *chosen[1:]]


def story_then_questions(writer: Writer) -> list[Turn]:
    """A story on request, and the user's questions about it afterwards."""
    rng = writer.rng
    kind = rng.choice(words.ANIMALS)
    told = stories.write(rng, kind=kind, short=True)
    ask = writer.wording(
        f"Tell me a short story about {words.article(kind)}."
        f"|Write a story about {words.article(kind)}.|A story about {words.article(kind)}, please."
    )
    after = [
        (
            writer.wording(f"What was the name of the {kind}?|What was the {kind} called?|How was the {kind} called?"),
            f"The {kind} was called {told.hero}.",
        ),
        (
            writer.wording(f"Who was {told.friend}?|Who is {told.friend}?|What was {told.friend}?"),
            f"{told.friend} was {words.article(told.friend_kind)}.",
        ),
        ("Thank you!", "You are welcome! Is there anything else?"),
        (
            writer.wording("Tell me another story.|Another one!|One more story, please.|Now another story, please."),
            stories.write(rng, short=True).text,
        ),
    ]
    return [(ask, told.text), *rng.sample(after, rng.randint(1, 2))]
