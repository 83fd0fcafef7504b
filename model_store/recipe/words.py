"""Word lists that the corpus is written from."""

from __future__ import annotations

import random
from typing import Final

GIRLS: Final = (
    "Ana Mia Lily Zoe Emma Nora Ruby Clara Ivy Luna Rosa Maya Ella Sara Anna Tara Nina Lucy Eva Iris "
    "June Kira Lena "
    "Alice Sofia Olga Mina Hana Yuki Amara Leila Priya Greta Wanda Daisy Poppy Hazel Maria Elsa Freya"
).split()
BOYS: Final = (
    "Tom Ben Max Leo Sam Finn Jack Oscar Theo Hugo Milo Noah Adam Ravi Omar Felix Otto Kai Luca Ivan "
    "Paul Peter Nico "
    "Bruno Diego Emil Jonas Karim Liam Marco Pablo Ken Tim Bob Dan Rico Anton Gus Walter Yusuf"
).split()
ANIMALS: Final = (
    "fox rabbit bear mouse owl cat dog frog duck turtle squirrel hedgehog deer wolf lion elephant "
    "monkey penguin horse "
    "pig goat sheep badger otter beaver crow sparrow snail bee butterfly dragon whale dolphin tiger "
    "giraffe zebra koala "
    "panda kangaroo hamster crab octopus bat mole swan"
).split()
PEOPLE: Final = (
    "girl",
    "boy",
    "robot",
    "farmer",
    "baker",
    "sailor",
    "knight",
    "princess",
    "prince",
    "wizard",
    "pirate",
    "painter",
    "gardener",
    "child",
    "king",
    "queen",
    "teacher",
    "fisherman",
    "witch",
    "shepherd",
)
TRAITS: Final = (
    "small brave curious kind shy clever happy lonely quiet cheerful young old gentle lazy hungry "
    "sleepy funny proud "
    "careful friendly little silly patient honest"
).split()
COLOURS: Final = (
    "red",
    "blue",
    "green",
    "yellow",
    "golden",
    "silver",
    "white",
    "purple",
    "orange",
    "brown",
    "pink",
)
THINGS: Final = (
    "ball kite boat key lamp book hat drum bell map box coin ring flute basket blanket scarf stone "
    "feather button "
    "whistle wagon umbrella mirror crown cup toy shell ribbon lantern"
).split()
PLACES: Final = (
    "the forest",
    "the river",
    "the village",
    "the hill",
    "the garden",
    "the meadow",
    "the lake",
    "the old mill",
    "the mountain",
    "the beach",
    "the market",
    "the bridge",
    "the castle",
    "the cave",
    "the farm",
    "the big oak tree",
    "the park",
    "the lighthouse",
    "the school",
    "the library",
    "the valley",
    "the harbour",
)
FOODS: Final = (
    "apple pear plum cherry carrot cake cookie pie berry nut pancake muffin peach grape tomato potato orange banana"
).split()
FRUITS: Final = (
    "apple",
    "banana",
    "orange",
    "pear",
    "grape",
    "cherry",
    "plum",
    "peach",
    "mango",
    "lemon",
    "kiwi",
    "melon",
)
VEGETABLES: Final = (
    "carrot",
    "potato",
    "onion",
    "tomato",
    "cabbage",
    "pea",
    "bean",
    "spinach",
    "pumpkin",
    "leek",
)
VEHICLES: Final = ("car", "bus", "train", "bicycle", "boat", "truck", "plane", "tram")
SPORTS: Final = ("football", "tennis", "swimming", "running", "basketball", "cycling", "skiing", "chess")
INSTRUMENTS: Final = ("piano", "guitar", "violin", "flute", "drum", "trumpet", "harp", "cello")
TOOLS: Final = ("hammer", "saw", "screwdriver", "drill", "wrench", "shovel", "rake", "axe")
CLOTHES: Final = ("shirt", "coat", "hat", "scarf", "shoes", "socks", "gloves", "dress")
FURNITURE: Final = ("table", "chair", "bed", "sofa", "desk", "shelf", "lamp", "cupboard")
CITIES: Final = (
    "Paris London Rome Berlin Madrid Lisbon Vienna Oslo Cairo Tokyo Delhi Lima Athens Dublin Prague "
    "Warsaw Boston "
    "Toronto Sydney Nairobi Geneva Porto Milan Kyoto Osaka"
).split()
JOBS: Final = (
    "teacher",
    "doctor",
    "baker",
    "pilot",
    "farmer",
    "engineer",
    "nurse",
    "painter",
    "writer",
    "cook",
    "singer",
)
HOBBIES: Final = (
    "reading",
    "painting",
    "dancing",
    "cooking",
    "singing",
    "hiking",
    "gardening",
    "fishing",
    "chess",
    "running",
)

_ONSETS: Final = (
    "b",
    "br",
    "d",
    "dr",
    "f",
    "g",
    "gr",
    "h",
    "j",
    "k",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "t",
    "tr",
    "v",
    "w",
    "z",
)
_VOWELS: Final = ("a", "e", "i", "o", "u", "ee", "oo", "ai")
_CODAS: Final = ("", "", "", "n", "r", "s", "l", "x", "m", "k", "t")


def invented_name(rng: random.Random) -> str:
    """A name that is in no list, so that the model learns to copy names instead of remembering them."""
    syllables = [
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(rng.choice((1, 2, 2, 2, 3)))
    ]
    return "".join(syllables).capitalize()


def any_name(rng: random.Random) -> str:
    """A given name; one in six is invented."""
    return invented_name(rng) if rng.random() < 1 / 6 else rng.choice(rng.choice((GIRLS, BOYS)))


def article(noun: str) -> str:
    """`noun` with "a" or "an" before it."""
    return ("an " if noun[0] in "aeio" or noun.startswith(("um", "honest")) else "a ") + noun


def plural(noun: str) -> str:
    """The regular plural of the nouns in these lists."""
    irregular = {
        "mouse": "mice",
        "wolf": "wolves",
        "sheep": "sheep",
        "deer": "deer",
        "shelf": "shelves",
        "butterfly": "butterflies",
        "child": "children",
        "shoes": "shoes",
        "socks": "socks",
        "gloves": "gloves",
        "fisherman": "fishermen",
    }
    if noun in irregular:
        return irregular[noun]
    if noun.endswith(("s", "x", "ch", "sh", "to")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def join(items: list[str] | tuple[str, ...], last: str = "and") -> str:
    """`items` as a phrase: "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}"
