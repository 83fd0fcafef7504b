"""Facts that the corpus teaches, as tables."""

from __future__ import annotations

from typing import Final

from model_store.recipe import words


def _table(text: str) -> dict[str, str]:
    """Read "key: value; key: value"."""
    return {
        key.strip(): value.strip() for key, value in (entry.split(":") for entry in text.split(";") if entry.strip())
    }


CAPITALS: Final = _table(
    "France: Paris; Germany: Berlin; Italy: Rome; Spain: Madrid; Portugal: Lisbon; England: London; "
    "the United Kingdom: London;"
    "Ireland: Dublin; Austria: Vienna; Switzerland: Bern; Belgium: Brussels; the Netherlands: "
    "Amsterdam; Denmark: Copenhagen;"
    "Norway: Oslo; Sweden: Stockholm; Finland: Helsinki; Poland: Warsaw; Greece: Athens; Turkey: "
    "Ankara; Egypt: Cairo;"
    "Kenya: Nairobi; Japan: Tokyo; China: Beijing; India: New Delhi; Russia: Moscow; Canada: Ottawa; "
    "Mexico: Mexico City;"
    "the United States: Washington; Brazil: Brasilia; Argentina: Buenos Aires; Chile: Santiago; Peru: "
    "Lima; Cuba: Havana;"
    "Australia: Canberra; New Zealand: Wellington; South Korea: Seoul; Thailand: Bangkok; Vietnam: "
    "Hanoi; Hungary: Budapest;"
    "the Czech Republic: Prague; Romania: Bucharest; Ukraine: Kyiv; Iceland: Reykjavik; Morocco: Rabat"
)
CONTINENTS: Final = _table(
    "France: Europe; Germany: Europe; Italy: Europe; Spain: Europe; Portugal: Europe; Norway: Europe; "
    "Sweden: Europe; Poland: Europe;"
    "Greece: Europe; Egypt: Africa; Kenya: Africa; Morocco: Africa; Japan: Asia; China: Asia; India: "
    "Asia; Thailand: Asia;"
    "Vietnam: Asia; South Korea: Asia; Canada: North America; Mexico: North America; the United "
    "States: North America;"
    "Brazil: South America; Argentina: South America; Chile: South America; Peru: South America"
)
OPPOSITES: Final = _table(
    "hot: cold; big: small; fast: slow; happy: sad; day: night; up: down; left: right; open: closed; "
    "old: young; new: old; light: dark;"
    "high: low; hard: soft; wet: dry; full: empty; long: short; loud: quiet; good: bad; rich: poor; "
    "strong: weak; early: late; clean: dirty;"
    "near: far; first: last; true: false; yes: no; black: white; begin: end; win: lose; love: hate; "
    "easy: difficult; thick: thin;"
    "heavy: light; inside: outside; above: below; always: never; cold: hot; small: big; slow: fast; "
    "sad: happy; dark: light; empty: full"
)
COLOURS: Final = _table(
    "the sky: blue; grass: green; snow: white; a banana: yellow; a lemon: yellow; the sun: yellow; "
    "blood: red; a ripe tomato: red; coal: black;"
    "an orange: orange; a carrot: orange; milk: white; chocolate: brown; the sea: blue; a leaf: "
    "green; a frog: green; a flamingo: pink;"
    "an elephant: grey; a strawberry: red; a cucumber: green; the night sky: black; gold: yellow; a "
    "crow: black; a polar bear: white"
)
MIXES: Final = _table(
    "red and yellow: orange; blue and yellow: green; red and blue: purple; red and white: pink; black "
    "and white: grey;"
    "yellow and red: orange; yellow and blue: green; blue and red: purple; white and red: pink; white "
    "and black: grey"
)
SOUNDS: Final = _table(
    "dog: woof; cat: meow; cow: moo; duck: quack; sheep: baa; pig: oink; lion: roar; horse: neigh; "
    "frog: ribbit; owl: hoot; bee: buzz;"
    "snake: hiss; rooster: cock-a-doodle-doo; mouse: squeak; crow: caw; wolf: howl"
)
BABIES: Final = _table(
    "dog: puppy; cat: kitten; cow: calf; horse: foal; sheep: lamb; pig: piglet; duck: duckling; "
    "chicken: chick; bear: cub; lion: cub;"
    "frog: tadpole; goat: kid; deer: fawn; kangaroo: joey; swan: cygnet; fox: cub; elephant: calf; "
    "goose: gosling"
)
LEGS: Final = _table(
    "dog: 4; cat: 4; horse: 4; cow: 4; elephant: 4; spider: 8; ant: 6; bee: 6; butterfly: 6; duck: 2; "
    "chicken: 2; bird: 2; snake: 0; fish: 0;"
    "crab: 10; octopus: 0; frog: 4; human: 2; lion: 4; beetle: 6"
)
HABITATS: Final = _table(
    "fish: in water; bee: in a hive; bird: in a nest; penguin: in cold southern seas and on ice; "
    "camel: in the desert; monkey: in the jungle;"
    "fox: in a den in the forest; rabbit: in a burrow; lion: in the grasslands of Africa; frog: near "
    "ponds; bear: in the forest;"
    "whale: in the ocean; polar bear: in the Arctic; spider: in a web; horse: in a stable; dolphin: "
    "in the sea; owl: in trees; ant: in a nest in the ground"
)
DIETS: Final = _table(
    "cow: grass; rabbit: grass and carrots; lion: meat; panda: bamboo; bee: nectar; horse: hay and "
    "grass; frog: insects; owl: mice; cat: meat and fish;"
    "squirrel: nuts; koala: leaves; bear: berries and fish; sheep: grass; fox: mice and berries; "
    "monkey: fruit; penguin: fish; snail: leaves; giraffe: leaves"
)
SIDES: Final = _table(
    "triangle: 3; square: 4; rectangle: 4; pentagon: 5; hexagon: 6; octagon: 8; heptagon: 7; decagon: 10"
)
UNITS: Final = {
    ("seconds", "a minute"): "60",
    ("minutes", "an hour"): "60",
    ("hours", "a day"): "24",
    ("days", "a week"): "7",
    ("months", "a year"): "12",
    ("weeks", "a year"): "52",
    ("days", "a year"): "365",
    ("years", "a century"): "100",
    ("years", "a decade"): "10",
    ("metres", "a kilometre"): "1000",
    ("grams", "a kilogram"): "1000",
    ("centimetres", "a metre"): "100",
    ("bits", "a byte"): "8",
    ("eggs", "a dozen"): "12",
    ("letters", "the alphabet"): "26",
    ("seasons", "a year"): "4",
    ("planets", "the solar system"): "8",
    ("colours", "a rainbow"): "7",
    ("players", "a football team"): "11",
    ("fingers", "one hand"): "5",
    ("continents", "the world"): "7",
    ("tokens", "a default block of this engine"): "16",
}
DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS: Final = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
SEASONS: Final = ("spring", "summer", "autumn", "winter")
PLANETS: Final = ("Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune")
RAINBOW: Final = ("red", "orange", "yellow", "green", "blue", "indigo", "violet")
HELLOS: Final = _table(
    "French: Bonjour; Spanish: Hola; German: Hallo; Italian: Ciao; Portuguese: Ola; Japanese: "
    "Konnichiwa; Dutch: Hallo; Swedish: Hej; Polish: Czesc"
)
THANKS: Final = _table(
    "French: Merci; Spanish: Gracias; German: Danke; Italian: Grazie; Portuguese: Obrigado; Japanese: "
    "Arigato; Swedish: Tack"
)

CATEGORIES: Final = (
    ("fruits", words.FRUITS),
    ("animals", tuple(words.ANIMALS)),
    ("colours", words.COLOURS),
    ("vegetables", words.VEGETABLES),
    ("vehicles", words.VEHICLES),
    ("cities", tuple(words.CITIES)),
    ("sports", words.SPORTS),
    ("instruments", words.INSTRUMENTS),
    ("tools", words.TOOLS),
    ("jobs", words.JOBS),
    ("planets", PLANETS),
)
KIND_OF: Final = {
    "fruits": "fruit",
    "animals": "animal",
    "colours": "colour",
    "vegetables": "vegetable",
    "vehicles": "vehicle",
    "cities": "city",
    "sports": "sport",
    "instruments": "instrument",
    "tools": "tool",
    "jobs": "job",
    "planets": "planet",
}


def country_of(city: str) -> str:
    """The country whose capital `city` is; the last one where two names fit."""
    return [country for country, capital in CAPITALS.items() if capital == city][-1]
