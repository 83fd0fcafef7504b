"""Turns on what the model knows: facts, serving, itself, small talk, and what it does not know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from model_store.recipe import concepts, facts, questions, words
from model_store.recipe.writer import Turn, Writer

UNKNOWN: Final = tuple(
    "quantum physics;the stock market;general relativity;the French Revolution;organic chemistry;the "
    "Roman Empire;differential equations;blockchain;opera;philosophy;"
    "the Second World War;tax law;genetics;cricket rules;jazz;Napoleon;the Middle Ages;black "
    "holes;medicine;politics;Buddhism;the theory of evolution;operating systems;"
    "compilers;calculus;democracy;impressionism;Einstein;Mozart;Shakespeare's sonnets;climate "
    "change;nuclear fusion;string theory;game theory;economics;inflation;"
    "the Bible;Greek mythology;World Cup results;the "
    "internet;Linux;Kubernetes;Docker;databases;cryptography;C++;Rust;JavaScript;the human "
    "brain;DNA;vaccines".split(";")
)


def from_a_table(writer: Writer) -> Turn:
    """A question whose answer is in one of the tables."""
    return writer.rng.choice(TABLE_QUESTIONS)(writer)


def capital(writer: Writer) -> Turn:
    country, city = writer.rng.choice(sorted(facts.CAPITALS.items()))
    if writer.rng.random() < 0.15:
        return writer.wording(
            f"{city} is the capital of which country?|Which country has the capital {city}?"
            f"|Of which country is {city} the capital?"
        ), f"{city} is the capital of {facts.country_of(city)}."
    asked = writer.wording(
        f"What is the capital of {country}?|Which city is the capital of {country}?"
        f"|Name the capital of {country}.|capital of {country}?"
        f"|Do you know the capital of {country}?|Tell me the capital of {country}."
        f"|What's the capital of {country}?|What is the capital city of {country}?"
        f"|What is {country}'s capital?|{country}'s capital city is called what?"
    )
    return asked, f"The capital of {country} is {city}."


def continent(writer: Writer) -> Turn:
    country, where = writer.rng.choice(sorted(facts.CONTINENTS.items()))
    verb = "are" if country.endswith("States") else "is"
    name = country[0].upper() + country[1:]
    return writer.wording(
        f"On which continent {verb} {country}?|Where {verb} {country}?"
        f"|In which part of the world {verb} {country}?|Which continent {verb} {country} in?"
    ), f"{name} {verb} in {where}."


def opposite(writer: Writer) -> Turn:
    word, other = writer.rng.choice(sorted(facts.OPPOSITES.items()))
    return writer.wording(
        f"What is the opposite of {word}?|Tell me the opposite of {word}.|Opposite of {word}?"
        f"|Which word is the opposite of {word}?|What is the antonym of {word}?"
        f'|Give me the opposite of "{word}".|What\'s the opposite of {word}?'
    ), f"The opposite of {word} is {other}."


def colour(writer: Writer) -> Turn:
    thing, colour = writer.rng.choice(sorted(facts.COLOURS.items()))
    spelling = writer.rng.choice(("colour", "color"))
    return writer.wording(
        f"What {spelling} is {thing}?|Which {spelling} is {thing}?"
        f"|What is the {spelling} of {thing}?|Tell me the {spelling} of {thing}."
        f"|What {spelling} does {thing} have?"
    ), f"{thing[0].upper() + thing[1:]} is {colour}."


def mix(writer: Writer) -> Turn:
    pair, colour = writer.rng.choice(sorted(facts.MIXES.items()))
    return writer.wording(
        f"What do you get when you mix {pair}?|Which colour is {pair} together?"
        f"|What colour do {pair} make?|I mix {pair}. What do I get?"
    ), f"{pair[0].upper() + pair[1:]} make {colour}."


def animal(writer: Writer) -> Turn:
    which = writer.rng.randrange(5)
    table = (facts.SOUNDS, facts.BABIES, facts.LEGS, facts.HABITATS, facts.DIETS)[which]
    animal, value = writer.rng.choice(sorted(table.items()))
    an, many = words.article(animal), words.plural(animal)
    subject = an[0].upper() + an[1:]
    if which == 0:
        return writer.wording(
            f"What sound does {an} make?|What does {an} say?|Which noise does {an} make?|How does {an} sound?"
        ), f"{subject} says {value}."
    if which == 1:
        return writer.wording(
            f"What is a baby {animal} called?|What do you call a baby {animal}?"
            f"|What is the name for a young {animal}?|How is a baby {animal} called?"
        ), f"A baby {animal} is called {words.article(value)}."
    if which == 2:
        return writer.wording(
            f"How many legs does {an} have?|How many legs has {an} got?"
            f"|What is the number of legs of {an}?|Count the legs of {an}."
        ), f"{subject} has {value if value != '0' else 'no'} legs."
    if which == 3:
        return writer.wording(
            f"Where does {an} live?|What is the home of {an}?|Where do you find {an}?|In what place does {an} live?"
        ), f"{subject} lives {value}."
    return writer.wording(
        f"What does {an} eat?|What do {many} eat?|What food does {an} like?"
        f"|What is the food of {an}?|Which food do {many} eat?"
    ), f"{subject} eats {value}."


def sides(writer: Writer) -> Turn:
    shape, count = writer.rng.choice(sorted(facts.SIDES.items()))
    an = words.article(shape)
    return writer.wording(
        f"How many sides does {an} have?|How many sides has {an}?"
        f"|What is the number of sides of {an}?|{an[0].upper() + an[1:]} has how many sides?"
    ), f"{an[0].upper() + an[1:]} has {count} sides."


def unit(writer: Writer) -> Turn:
    (small, large), count = writer.rng.choice(sorted(facts.UNITS.items()))
    return writer.wording(
        f"How many {small} are in {large}?|How many {small} are there in {large}?"
        f"|How many {small} does {large} have?|Tell me how many {small} are in {large}."
        f"|What is the number of {small} in {large}?"
    ), f"There are {count} {small} in {large}."


def order(writer: Writer) -> Turn:
    ring, noun = writer.rng.choice(((facts.DAYS, "day"), (facts.MONTHS, "month"), (facts.SEASONS, "season")))
    i = writer.rng.randrange(len(ring))
    this, after, before = ring[i], ring[(i + 1) % len(ring)], ring[i - 1]
    draw = writer.rng.random()
    if draw < 0.6:
        return writer.wording(
            f"What comes after {this}?|Which {noun} comes after {this}?"
            f"|What {noun} follows {this}?|Which {noun} is after {this}?"
            f"|What is the {noun} after {this}?"
        ), f"After {this} comes {after}."
    if draw < 0.9 or noun == "season":
        return writer.wording(
            f"What comes before {this}?|Which {noun} comes before {this}?"
            f"|Which {noun} is before {this}?|What is the {noun} before {this}?"
        ), f"Before {this} comes {before}."
    ordinal = (
        "first",
        "second",
        "third",
        "fourth",
        "fifth",
        "sixth",
        "seventh",
        "eighth",
        "ninth",
        "tenth",
        "eleventh",
        "twelfth",
    )[i]
    return (
        f"What is the {ordinal} {noun} of the {'week' if noun == 'day' else 'year'}?",
        f"The {ordinal} {noun} is {this}.",
    )


def greeting_in(writer: Writer) -> Turn:
    table, phrase = writer.rng.choice(((facts.HELLOS, "hello"), (facts.THANKS, "thank you")))
    language, said = writer.rng.choice(sorted(table.items()))
    return writer.wording(
        f'How do you say {phrase} in {language}?|What is "{phrase}" in {language}?'
        f'|Say {phrase} in {language}.|Translate "{phrase}" to {language}.'
        f"|What does one say for {phrase} in {language}?"
    ), f'In {language}, {phrase} is "{said}".'


def general(writer: Writer) -> Turn:
    """A question about science, the world, the model itself, or small talk."""
    group = writer.rng.choice(
        (questions.SCIENCE, questions.SCIENCE, questions.SELF, questions.SELF, questions.SMALL_TALK)
    )
    return _one_of(writer, writer.rng.choice(group))


def _one_of(writer: Writer, question: questions.Question) -> Turn:
    return writer.wording(question.asked), writer.rng.choice(question.answers)


def hello(writer: Writer) -> Turn:
    """Small talk."""
    return _one_of(writer, writer.rng.choice(questions.SMALL_TALK))


def advice(writer: Writer) -> Turn:
    goal, answer = writer.rng.choice(sorted(questions.ADVICE.items()))
    return writer.wording(
        f"How do I {goal}?|How can I {goal}?|Tell me how to {goal}.|What should I do to {goal}?"
        f"|Give me some advice: how can one {goal}?|I want to {goal}. What should I do?"
    ), answer


def joke(writer: Writer) -> Turn:
    return writer.wording(
        "Tell me a joke.|Do you know a joke?|Make me laugh.|Tell me something funny.|A joke, please."
    ), writer.rng.choice(questions.JOKES)


def concept(writer: Writer) -> Turn:
    """An idea of serving: what it is, how it works, why one wants it."""
    rng = writer.rng
    if rng.random() < 0.12:
        asked, answer = rng.choice(concepts.COMPARISONS)
        return writer.wording(asked), answer
    idea = rng.choice(concepts.CONCEPTS)
    name = rng.choice(idea.names)
    draw = rng.random()
    if draw < 0.55:
        asked = writer.wording(
            f"What is {name}?|Explain {name}.|Tell me about {name}.|Can you explain {name}?"
            f"|What do you know about {name}?|Define {name}.|I do not understand {name}."
            f"|What does {name} mean?|Describe {name}.|Explain {name} to me."
            f"|Do you know what {name} is?|What exactly is {name}?|Explain {name} in simple words."
            f"|Please give me a short explanation of {name}."
        )
        return asked, idea.what if rng.random() < 0.6 else f"{idea.what} {idea.why}"
    if draw < 0.75:
        return writer.wording(
            f"How does {name} work?|Explain how {name} works.|Tell me how {name} works."
            f"|How is {name} done?|What is the idea behind {name}?"
            f"|Can you explain how {name} works?"
        ), idea.how
    if draw < 0.92:
        return writer.wording(
            f"Why is {name} useful?|Why do we need {name}?|What is {name} good for?"
            f"|Why should I use {name}?|What are the advantages of {name}?|Why {name}?"
            f"|What is the benefit of {name}?"
        ), idea.why
    return writer.wording(
        f"Explain {name} in detail.|Tell me everything about {name}."
        f"|Write a paragraph about {name}.|Give me a long explanation of {name}."
    ), f"{idea.what} {idea.how} {idea.why}"


def category(writer: Writer) -> Turn:
    """What kind of thing something is."""
    noun, items = writer.rng.choice(facts.CATEGORIES)
    one = facts.KIND_OF[noun]
    item = writer.rng.choice(items)
    if noun not in ("cities", "sports") and writer.rng.random() < 0.4:
        other = writer.rng.choice(sorted(facts.KIND_OF))
        truth = item in dict(facts.CATEGORIES)[other]
        a_item = words.article(item) if item not in words.COLOURS and not item.endswith("s") else item
        verb = "Are" if item.endswith("s") else "Is"
        kind = facts.KIND_OF[other]
        return (
            f"{verb} {a_item} {words.article(kind)}?",
            f"Yes, {item} is {words.article(kind)}."
            if truth
            else f"No, {item} is {words.article(one)}, not {words.article(kind)}.",
        )
    choices = words.join([*writer.rng.sample(sorted(facts.KIND_OF.values()), 2), one], "or")
    return writer.wording(
        f"What kind of thing is {item}?|What is {item}: {choices}?|What sort of thing is {item}?"
    ), f"{item[0].upper() + item[1:]} is {words.article(one)}."


def unknown(writer: Writer) -> Turn:
    """A question on something far away, which the model should admit not to know."""
    rng = writer.rng
    topic = rng.choice(UNKNOWN) if rng.random() < 0.6 else words.invented_name(rng)
    return writer.wording(
        f"What is {topic}?|Tell me about {topic}.|Explain {topic}.|Who is {topic}?"
        f"|Write an essay about {topic}.|What do you think about {topic}?"
        f"|What do you know about {topic}?"
        f"|How does {topic} work?|Give me the history of {topic}."
    ), f"I am sorry, I am a very small model and I do not know enough about {topic}."


TABLE_QUESTIONS: Final[tuple[Callable[[Writer], Turn], ...]] = (
    capital,
    capital,
    capital,
    continent,
    opposite,
    opposite,
    colour,
    mix,
    animal,
    animal,
    animal,
    sides,
    unit,
    unit,
    order,
    order,
    greeting_in,
)
