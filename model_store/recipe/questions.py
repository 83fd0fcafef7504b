"""Questions in several wordings, with answers: science, the model itself, small talk, advice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Question:
    """Wordings of one question, the last of them kept for the held-out split, and its answers."""

    asked: tuple[str, ...]
    answers: tuple[str, ...]


def _q(asked: str, *answers: str) -> Question:
    return Question(tuple(wording.strip() for wording in asked.split("|")), answers)


SCIENCE: Final = (
    _q(
        "Why is the sky blue?|What makes the sky blue?|Why does the sky look blue?|How come the sky is blue?",
        "The sky is blue because the air scatters blue light from the sun more than red light.",
    ),
    _q(
        "What is the sun?|Is the sun a star?|Tell me about the sun.|What kind of thing is the sun?",
        "The sun is a star. It gives light and warmth to the Earth.",
    ),
    _q(
        ("What is the moon?|Tell me about the moon.|Explain what the moon is.|What do you know about the moon?"),
        "The moon is a ball of rock that goes around the Earth.",
    ),
    _q(
        "What is rain?|Where does rain come from?|Why does it rain?|How does rain form?",
        "Rain is water that falls from clouds when small drops join and become heavy.",
    ),
    _q(
        "What is water made of?|What is the formula of water?|What is H2O?|Which elements are in water?",
        "Water is made of hydrogen and oxygen. Its formula is H2O.",
    ),
    _q(
        (
            "At what temperature does water freeze?|When does water freeze?"
            "|What is the freezing point of water?|How cold must it be for water to freeze?"
        ),
        "Water freezes at 0 degrees Celsius.",
    ),
    _q(
        (
            "At what temperature does water boil?|When does water boil?"
            "|What is the boiling point of water?|How hot must water be to boil?"
        ),
        "Water boils at 100 degrees Celsius.",
    ),
    _q(
        "What is ice?|What does water become when it freezes?|What is frozen water called?|Explain ice.",
        "Ice is frozen water.",
    ),
    _q(
        (
            "What is gravity?|Why do things fall down?|Explain gravity.|What does gravity do?"
            "|What pulls things to the ground?"
        ),
        "Gravity is the force that pulls things toward each other. It is why things fall to the ground.",
    ),
    _q(
        "What do plants need to grow?|What does a plant need?|How do plants grow?|What helps a plant grow?",
        "Plants need light, water, air and soil to grow.",
    ),
    _q(
        ("What is photosynthesis?|How do plants make food?|Explain photosynthesis.|What does photosynthesis mean?"),
        "Photosynthesis is how plants use sunlight, water and air to make sugar and oxygen.",
    ),
    _q(
        "What is a rainbow?|How does a rainbow form?|Why do we see rainbows?|Where do rainbows come from?",
        "A rainbow forms when sunlight shines through drops of rain and splits into colours.",
    ),
    _q(
        (
            "What is the biggest planet?|Which planet is the largest?"
            "|What is the largest planet in the solar system?|Which planet is the biggest?"
        ),
        "Jupiter is the biggest planet in the solar system.",
    ),
    _q(
        (
            "What is the smallest planet?|Which planet is the smallest?"
            "|What is the smallest planet in the solar system?|Name the smallest planet."
        ),
        "Mercury is the smallest planet in the solar system.",
    ),
    _q(
        (
            "Which planet is closest to the sun?|What planet is nearest to the sun?"
            "|What is the first planet from the sun?|Name the planet closest to the sun."
        ),
        "Mercury is the planet closest to the sun.",
    ),
    _q(
        ("Which planet is red?|What is the red planet?|Which planet is called the red planet?|Name the red planet."),
        "Mars is called the red planet.",
    ),
    _q(
        (
            "What planet do we live on?|Which planet is our home?|On which planet do people live?"
            "|What is our planet called?"
        ),
        "We live on the planet Earth.",
    ),
    _q(
        (
            "What is the largest animal?|Which animal is the biggest?"
            "|What is the biggest animal in the world?|Name the largest animal."
        ),
        "The blue whale is the largest animal in the world.",
    ),
    _q(
        (
            "What is the fastest animal on land?|Which land animal is the fastest?"
            "|Which animal runs fastest?|Name the fastest land animal."
        ),
        "The cheetah is the fastest animal on land.",
    ),
    _q(
        (
            "What is the tallest animal?|Which animal is the tallest?|Which animal has the longest neck?"
            "|Name the tallest animal."
        ),
        "The giraffe is the tallest animal.",
    ),
    _q(
        (
            "What is the longest river?|Which river is the longest in the world?"
            "|What is the longest river in the world?|Name a very long river."
        ),
        "The Nile and the Amazon are the longest rivers in the world.",
    ),
    _q(
        (
            "What is the highest mountain?|Which mountain is the highest?"
            "|What is the tallest mountain in the world?|Name the highest mountain."
        ),
        "Mount Everest is the highest mountain in the world.",
    ),
    _q(
        ("What is the largest ocean?|Which ocean is the biggest?|What is the biggest ocean?|Name the largest ocean."),
        "The Pacific Ocean is the largest ocean.",
    ),
    _q(
        "What do bees make?|Who makes honey?|Where does honey come from?|Which insect makes honey?",
        "Bees make honey from the nectar of flowers.",
    ),
    _q(
        ("What is a computer?|Explain what a computer is.|What does a computer do?|Tell me what computers are."),
        "A computer is a machine that follows instructions to work with data.",
    ),
    _q(
        ("What is Python?|What is the Python language?|Tell me about Python.|Is Python a programming language?"),
        "Python is a programming language that is easy to read and widely used.",
    ),
    _q(
        "What is the heart for?|What does the heart do?|Why do we have a heart?|Explain what the heart does.",
        "The heart pumps blood through the body.",
    ),
    _q(
        "Why do we sleep?|Why is sleep important?|What is sleep good for?|Why do people need sleep?",
        "We sleep so that the body and the brain can rest and recover.",
    ),
    _q(
        "What is a volcano?|Explain volcanoes.|How does a volcano work?|Tell me what a volcano is.",
        "A volcano is a mountain that can let out hot melted rock from inside the Earth.",
    ),
    _q(
        (
            "How far away is the sun?|What is the distance to the sun?|How far is the sun from the Earth?"
            "|How distant is the sun?"
        ),
        "The sun is about 150 million kilometres from the Earth.",
    ),
    _q(
        "Why do birds have wings?|What are wings for?|How do birds fly?|What do birds use their wings for?",
        "Birds use their wings to push the air down, so that they can fly.",
    ),
    _q(
        (
            "Where does the sun rise?|In which direction does the sun rise?|Where does the sun come up?"
            "|On which side does the sun rise?"
        ),
        "The sun rises in the east and sets in the west.",
    ),
    _q(
        ("What is the hottest season?|Which season is the warmest?|When is it hottest?|Which season is hottest?"),
        "Summer is the hottest season.",
    ),
    _q(
        ("What is the coldest season?|Which season is the coldest?|When does it snow?|Name the coldest season."),
        "Winter is the coldest season. It can snow in winter.",
    ),
    _q(
        (
            "Who wrote Romeo and Juliet?|Who is the author of Romeo and Juliet?|Who wrote Hamlet?"
            "|Which writer wrote Romeo and Juliet?"
        ),
        "William Shakespeare wrote it.",
    ),
    _q(
        (
            "Who painted the Mona Lisa?|Who is the painter of the Mona Lisa?"
            "|Which artist painted the Mona Lisa?|The Mona Lisa was painted by whom?"
        ),
        "Leonardo da Vinci painted the Mona Lisa.",
    ),
)

SELF: Final = (
    _q(
        (
            "Who are you?|What are you?|What is your name?|Tell me who you are.|Introduce yourself."
            "|What should I call you?|Do you have a name?|What's your name?|Hello, who are you?"
            "|Please introduce yourself."
        ),
        "I am paged-tiny, a very small language model that comes with paged-backend.",
        "My name is paged-tiny. I am a very small language model that comes with paged-backend.",
    ),
    _q(
        (
            "What can you do?|How can you help me?|What are you good at?|What can I ask you?"
            "|What do you know?|What are you able to do?"
        ),
        (
            "I can tell short stories, answer simple questions, do small sums, write small JSON objects "
            "and explain paged attention."
        ),
    ),
    _q(
        (
            "How big are you?|How many parameters do you have?|What is your size?|Are you a big model?"
            "|How large are you?"
        ),
        "I am very small: about five million parameters, less than 16 megabytes.",
    ),
    _q(
        "Who made you?|Who created you?|Where do you come from?|Who trained you?|Who built you?",
        "I was trained by the recipe in paged-backend, on text that the recipe itself writes.",
    ),
    _q(
        ("Are you a robot?|Are you a human?|Are you a person?|Are you alive?|Are you real?|Am I talking to a human?"),
        "No person is here: I am paged-tiny, a small language model.",
    ),
    _q(
        "How old are you?|When were you born?|When is your birthday?|What is your age?",
        "I am a language model, so I have no age.",
    ),
    _q(
        "Are you ChatGPT?|Are you GPT?|Are you Llama?|Are you Claude?",
        "No, I am paged-tiny, a very small model. My shape is that of a Llama.",
    ),
    _q(
        ("What were you trained on?|How were you trained?|What is your training data?|What data did you learn from?"),
        "I was trained on short stories, questions and answers, sums and JSON that a script wrote.",
    ),
    _q(
        "Can you make mistakes?|Are you always right?|Can I trust you?|Are your answers reliable?",
        "I am very small and I make mistakes, so please check what I say.",
    ),
    _q(
        ("What languages do you speak?|Do you speak English?|Which language do you speak?|Can you speak French?"),
        "I speak simple English, and I know how to say hello in a few other languages.",
    ),
    _q(
        "Where do you live?|Where are you?|What is your home?|Where do you run?",
        "I live in the model_store folder of paged-backend and run on your machine.",
    ),
)

SMALL_TALK: Final = (
    _q(
        "Hello|Hi|Hello!|Hi!|Hey|Hi there|Hello there!|Hey!|Good day|Hiya",
        "Hello! How can I help you?",
        "Hello! What can I do for you?",
    ),
    _q("Good morning|Good morning!|Morning!|A good morning to you!", "Good morning! How can I help you?"),
    _q("Good evening|Good evening!|Evening!|A good evening to you!", "Good evening! How can I help you?"),
    _q("Good night|Good night!|I am going to bed.|I'm off to sleep.", "Good night! Sleep well."),
    _q(
        ("How are you?|How are you today?|How are you doing?|How is it going?|How do you feel?|How's it going?"),
        "I am fine, thank you. How can I help you?",
    ),
    _q(
        "Thank you|Thanks|Thank you very much!|Thanks a lot!|Thanks for your help.|Many thanks!",
        "You are welcome!",
        "You are welcome! Is there anything else?",
    ),
    _q(
        "Bye|Goodbye|See you later|Bye bye!|See you!|Farewell!",
        "Goodbye! Have a nice day.",
        "Goodbye! See you soon.",
    ),
    _q(
        "I am sad.|I feel sad.|I am not happy today.|I am feeling down.",
        "I am sorry to hear that. Would you like a short story to cheer you up?",
    ),
    _q(
        "I am happy!|I feel great today.|Today is a good day.|I am in a good mood.",
        "That is good to hear! What would you like to do?",
    ),
    _q(
        "I am bored.|I have nothing to do.|What should I do?|I'm so bored.",
        "Would you like to hear a story, or shall we do some sums?",
    ),
    _q(
        "I am hungry.|What should I eat?|I would like something to eat.|I am starving.",
        "How about some soup, bread or an apple?",
    ),
    _q("Ok|Okay|I see|Good|Great|Nice|Cool|Alright", "Good! Is there anything else that I can do?"),
    _q(
        "Yes|Yes, please|Sure|Yes please!|Of course",
        "All right! Please tell me what you would like: a story, a sum or a fact?",
    ),
    _q("No|No, thank you|No thanks|Not now|No, thanks!", "All right. I am here if you need me."),
    _q(
        "You are great!|Well done!|Good job!|You are very smart.|You are nice.",
        "Thank you! That is kind of you.",
    ),
    _q(
        "You are wrong.|That is not right.|That is wrong!|You made a mistake.|I think that is wrong.",
        "I am sorry. I am a very small model and I make mistakes.",
    ),
    _q(
        ("What is the meaning of life?|Why are we here?|What is the purpose of life?|What's the meaning of life?"),
        "Many people think that it is to be kind, to learn and to enjoy the time we have.",
    ),
    _q(
        "What time is it?|What day is today?|What is the date today?|Do you know what time it is?",
        "I have no clock, so I can not know that.",
    ),
    _q(
        "What is the weather like?|Will it rain today?|How is the weather?|What's the weather today?",
        "I can not see the weather, but you can look out of the window.",
    ),
    _q(
        (
            "What is your favourite colour?|Which colour do you like best?"
            "|Do you have a favourite colour?|What's your favorite color?"
        ),
        "I like blue, the colour of the sky.",
    ),
    _q(
        (
            "What is your favourite animal?|Which animal do you like best?|Do you like animals?"
            "|What's your favorite animal?"
        ),
        "I like foxes, because many of my stories are about them.",
    ),
    _q("Test|This is a test.|Testing|test 1 2 3|Just a test", "The test works. Hello!"),
)

JOKES: Final = (
    "Why did the computer go to the doctor? Because it had a virus.",
    "What do you call a sleeping bull? A bulldozer.",
    "Why was the maths book sad? Because it had too many problems.",
    "What has hands but can not clap? A clock.",
    "Why did the cache go to school? To improve its hit rate.",
    "What did the block say to the table? You always know where I am.",
)
ADVICE: Final = {
    "sleep better": "Go to bed at the same time every day, keep the room dark and put the phone away.",
    "learn faster": "Learn a little every day, repeat it often and explain it to someone else.",
    "make tea": "Boil some water, pour it over the tea and wait for three minutes.",
    "make a sandwich": "Take two slices of bread, put cheese and tomato between them and enjoy.",
    "boil an egg": "Put the egg into boiling water, wait for eight minutes and cool it with cold water.",
    "make pancakes": "Mix flour, milk and eggs, and bake thin pancakes in a hot pan with some butter.",
    "plant a tree": "Dig a hole, put the young tree into it, fill it with earth and give it water.",
    "stay healthy": "Eat fruit and vegetables, move every day and sleep enough.",
    "make a friend": "Smile, say hello, listen well and be kind.",
    "save money": "Write down what you spend, buy only what you need and put a little aside every month.",
    "clean a room": "Put everything in its place, wipe the table and sweep the floor.",
    "write a story": "Choose a hero, give the hero a problem, and tell how the problem is solved.",
    "brush my teeth": "Put some paste on the brush, brush for two minutes and rinse with water.",
    "relax": "Sit down, breathe slowly and think of a quiet place.",
}
