"""Turns in which something is to be done: sums, JSON, lists, copying and spelling."""

from __future__ import annotations

import json

from model_store.recipe import facts, words
from model_store.recipe.writer import Turn, Writer


def arithmetic(writer: Writer) -> Turn:
    """Small arithmetic; most operands are at most 12."""
    rng = writer.rng
    most = rng.choices((12, 20, 99), (65, 25, 10))[0]
    kind = rng.choices(("+", "-", "*", "word", "compare", "next", "double", "parity"), (10, 6, 6, 4, 2, 2, 1, 1))[0]
    a, b = rng.randint(0, most), rng.randint(0, most)
    if kind == "+":
        return writer.wording(
            f"What is {a} + {b}?|{a} + {b}|{a}+{b}=|What is {a} plus {b}?|Add {a} and {b}."
            f"|How much is {a} + {b}?|Calculate {a} + {b}.|What's {a} + {b}?|{a} + {b} = ?"
            f"|How much is {a} plus {b}?|Compute {a}+{b}.|What is the sum of {a} and {b}?"
        ), f"{a} + {b} = {a + b}."
    if kind == "-":
        a, b = max(a, b), min(a, b)
        return writer.wording(
            f"What is {a} - {b}?|{a} - {b}|What is {a} minus {b}?|Subtract {b} from {a}."
            f"|How much is {a} - {b}?|Calculate {a} - {b}.|Take {b} away from {a}."
            f"|What is the difference of {a} and {b}?"
        ), f"{a} - {b} = {a - b}."
    if kind == "*":
        a, b = rng.randint(0, 10), rng.randint(0, 10)
        return writer.wording(
            f"What is {a} * {b}?|{a} * {b}|What is {a} times {b}?|Multiply {a} by {b}."
            f"|How much is {a} times {b}?|Calculate {a} * {b}.|{a} x {b}"
            f"|What is the product of {a} and {b}?"
        ), f"{a} * {b} = {a * b}."
    if kind == "word":
        name, thing = words.any_name(rng), words.plural(rng.choice(words.FOODS))
        a, b = rng.randint(2, 12), rng.randint(1, 10)
        if rng.random() < 0.5:
            told = writer.wording(
                f"{name} has {a} {thing} and gets {b} more."
                f"|{name} has {a} {thing} and buys {b} more."
                f"|{name} had {a} {thing}. Then {name} found {b} more."
            )
            return (
                f"{told} How many {thing} does {name} have?",
                f"{a} + {b} = {a + b}, so {name} has {a + b} {thing}.",
            )
        a, b = max(a, b) + 1, min(a, b)
        told = writer.wording(
            f"{name} has {a} {thing} and eats {b}.|{name} has {a} {thing} and gives {b} away."
            f"|{name} had {a} {thing} and lost {b} of them."
        )
        return (
            f"{told} How many {thing} does {name} have left?",
            f"{a} - {b} = {a - b}, so {name} has {a - b} {thing} left.",
        )
    if kind == "compare":
        b = a + 1 if a == b else b
        if rng.random() < 0.6:
            return writer.wording(
                f"Which is bigger, {a} or {b}?|Which number is larger: {a} or {b}?|What is more, {a} or {b}?"
            ), f"{max(a, b)} is bigger than {min(a, b)}."
        return writer.wording(
            f"Which is smaller, {a} or {b}?|Which number is smaller: {a} or {b}?|What is less, {a} or {b}?"
        ), f"{min(a, b)} is smaller than {max(a, b)}."
    if kind == "next":
        return writer.wording(
            f"What comes after {a}?|Which number comes after {a}?|What is the next number after {a}?"
        ), f"After {a} comes {a + 1}."
    if kind == "double":
        return writer.wording(
            f"What is the double of {a}?|Double {a}.|What is twice {a}?"
        ), f"The double of {a} is {2 * a}."
    return writer.wording(
        f"Is {a} even or odd?|Is the number {a} even or odd?|Even or odd: {a}?"
    ), f"{a} is {'odd' if a % 2 else 'even'}."


def json_value(writer: Writer) -> Turn:
    """A JSON object or list, on request or from a sentence."""
    rng = writer.rng
    name, age, city = words.any_name(rng), rng.randint(5, 90), rng.choice(words.CITIES)
    job, hobby, colour = rng.choice(words.JOBS), rng.choice(words.HOBBIES), rng.choice(words.COLOURS)
    kind = rng.choice(
        (
            "user",
            "user",
            "user",
            "extract",
            "extract",
            "keys",
            "list",
            "thing",
            "numbers",
            "story",
            "person_list",
        )
    )
    if kind == "user":
        value = {"name": name, "age": age, "city": city}
        extra = rng.random()
        if extra < 0.25:
            value["job"] = job
        elif extra < 0.5:
            value["email"] = f"{name.lower()}@example.com"
        who = rng.choice(("user", "user", "person", "customer", "player", "student"))
        asked = writer.wording(
            f"Give me a JSON object for a {who} named {name}."
            f"|Write JSON for a {who} called {name}.|Create a JSON object for a {who} named "
            f"{name}.|Give me JSON for a {who} {name}."
            f"|Make a JSON object that describes a {who} named {name}.|JSON for {who} {name}"
            f"|I need a JSON object for a {who} named {name}."
            f"|Generate a {who} named {name} as JSON."
            f"|Return a JSON object for the {who} {name}."
            f"|Please produce a JSON record of a {who} whose name is {name}."
        )
        return asked, json.dumps(value)
    if kind == "extract":
        fields = (
            {"name": name, "age": age, "city": city}
            if rng.random() < 0.7
            else {"name": name, "job": job, "hobby": hobby}
        )
        if "age" in fields:
            sentence = writer.wording(
                f"{name} is {age} years old and lives in {city}."
                f"|{name} lives in {city} and is {age}.|{name}, {age}, from {city}."
            )
        else:
            sentence = writer.wording(
                f"{name} is {words.article(job)} and likes {hobby}."
                f"|{name} works as {words.article(job)} and loves {hobby}."
                f"|{name} likes {hobby} and is {words.article(job)}."
            )
        return writer.wording(
            f"Turn this into JSON: {sentence}|Write this as JSON: {sentence}"
            f"|{sentence} Write that as JSON.|Convert to JSON: {sentence}"
        ), json.dumps(fields)
    if kind == "keys":
        pool = {
            "name": name,
            "age": age,
            "city": city,
            "job": job,
            "hobby": hobby,
            "colour": colour,
            "active": rng.random() < 0.5,
            "id": rng.randint(1, 99),
        }
        keys = rng.sample(sorted(pool), rng.randint(2, 4))
        listed = words.join(keys)
        return writer.wording(
            f"Write a JSON object with the keys {listed}.|Give me JSON with {listed}."
            f"|Return JSON with the fields {listed}.|Make a JSON object with the keys {listed}."
            f"|I want a JSON object that has the fields {listed}."
        ), json.dumps({key: pool[key] for key in keys})
    if kind == "list":
        noun, items = rng.choice(facts.CATEGORIES)
        count = rng.randint(2, 5)
        return writer.wording(
            f"Give me a JSON list of {count} {noun}.|Write a JSON array with {count} {noun}."
            f"|List {count} {noun} as JSON.|{count} {noun} as a JSON array, please."
        ), json.dumps(rng.sample(items, count))
    if kind == "thing":
        thing = rng.choice((*words.THINGS, *words.FOODS))
        value = {"name": thing, "price": rng.randint(1, 50), "colour": colour}
        return writer.wording(
            f"Give me a JSON object for a product called {thing}."
            f"|Describe {words.article(thing)} as JSON.|Write JSON for {words.article(thing)} "
            f"with a price.|JSON for a product: {thing}."
        ), json.dumps(value)
    if kind == "numbers":
        start, count = rng.randint(0, 12), rng.randint(3, 7)
        stop = start + count - 1
        return writer.wording(
            f"Give me the numbers from {start} to {stop} as JSON."
            f"|Write a JSON list of the numbers {start} to {stop}."
            f"|The numbers {start} to {stop} as a JSON array."
        ), json.dumps(list(range(start, stop + 1)))
    if kind == "person_list":
        users = [{"name": words.any_name(rng), "age": rng.randint(5, 90)} for _ in range(2)]
        return writer.wording(
            "Give me a JSON list of two users.|Write a JSON array with two people.|Two users as a JSON list, please."
        ), json.dumps(users)
    animal = rng.choice(words.ANIMALS)
    hero = rng.choice((*words.GIRLS, *words.BOYS))
    return writer.wording(
        f"Write JSON for {words.article(animal)} named {hero}."
        f"|Describe {words.article(animal)} called {hero} as JSON."
        f"|JSON object for the {animal} {hero}."
    ), json.dumps({"name": hero, "animal": animal, "age": rng.randint(1, 15), "colour": colour})


def listing(writer: Writer) -> Turn:
    """A list, in one sentence or one item a line."""
    rng = writer.rng
    draw = rng.random()
    if draw < 0.3:
        ring, noun = rng.choice(
            (
                (facts.DAYS, "days of the week"),
                (facts.MONTHS, "months of the year"),
                (facts.SEASONS, "seasons"),
                (facts.PLANETS, "planets"),
                (facts.RAINBOW, "colours of the rainbow"),
            )
        )
        asked = writer.wording(
            f"What are the {noun}?|List the {noun}.|Name the {noun}.|Tell me the {noun}.|Can you list all the {noun}?"
        )
        return asked, f"The {noun} are {words.join(ring)}."
    if draw < 0.5:
        start = rng.choice((1, 1, 1, rng.randint(0, 15)))
        stop = start + rng.randint(4, 19)
        down = rng.random() < 0.2
        first, last = (stop, start) if down else (start, stop)
        numbers = range(first, last - 1, -1) if down else range(first, last + 1)
        return writer.wording(
            f"Count from {first} to {last}.|Please count from {first} to {last}."
            f"|Write the numbers from {first} to {last}.|Can you count from {first} to {last}?"
        ), ", ".join(map(str, numbers)) + "."
    noun, items = rng.choice(facts.CATEGORIES)
    count = rng.randint(2, 5)
    chosen = rng.sample(items, count)
    word = ("two", "three", "four", "five")[count - 2] if rng.random() < 0.6 else str(count)
    asked = writer.wording(
        f"Name {word} {noun}.|List {word} {noun}.|Give me {word} {noun}.|Tell me {word} {noun}."
        f"|Can you name {word} {noun}?|Write down {word} {noun} for me."
    )
    if asked.startswith(("List", "Write")):
        return asked, "\n".join(f"{i}. {item}" for i, item in enumerate(chosen, 1))
    return asked, f"{words.join(chosen)[0].upper()}{words.join(chosen)[1:]}."


def copying(writer: Writer) -> Turn:
    """Copying, spelling and other work on the words of the prompt."""
    rng = writer.rng
    word = rng.choice((*words.ANIMALS, *words.THINGS, *words.FOODS, words.invented_name(rng).lower()))
    kind = rng.choice(("repeat", "repeat", "spell", "upper", "first", "count", "name"))
    if kind == "repeat":
        phrase = rng.choice(
            (
                word,
                " ".join(rng.sample((*words.THINGS, *words.ANIMALS, *words.COLOURS), rng.randint(2, 6))),
                words.any_name(rng),
            )
        )
        return writer.wording(
            f'Repeat after me: {phrase}|Say "{phrase}".|Repeat: {phrase}|Please say: {phrase}|Say this again: {phrase}'
        ), phrase
    if kind == "spell":
        return writer.wording(
            f'Spell the word {word}.|How do you spell {word}?|Spell {word}.|Can you spell the word "{word}"?'
        ), "-".join(word)
    if kind == "upper":
        return writer.wording(
            f'Write {word} in capital letters.|Write "{word}" in upper case.|Put {word} into capitals.'
        ), word.upper()
    if kind == "first":
        return writer.wording(
            f"What is the first letter of {word}?|With which letter does {word} begin?"
            f"|Tell me the first letter of {word}."
        ), f"The first letter of {word} is {word[0]}."
    if kind == "count":
        return writer.wording(
            f"How many letters does {word} have?|How many letters are in {word}?|Count the letters of {word}."
        ), f"{word} has {len(word)} letters: {'-'.join(word)}."
    name = words.any_name(rng)
    return writer.wording(
        f"My name is {name}.|I am {name}.|Hello, I am {name}.|Hi, my name is {name}.|People call me {name}."
    ), f"Hello {name}! How can I help you?"
