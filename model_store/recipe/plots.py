"""The plots of the stories, and the sentences around them.

A plot is a list of beats, a beat a choice of sentences with slots: {H} is the hero, {k} the kind, {he}
{him} {his} and {He} {His} the pronouns; the friend's are {F}, {fk}, {fhe}, {fhim}, {fhis}, {Fhe}. {t} is
a thing, {p} and {q} are places, {food} and {foods} food, {c} a colour. {a:k} is a slot with its article,
{A:k} with a capital too.
"""

from __future__ import annotations

from typing import Final

PLOTS: Final[dict[str, list[tuple[str, ...]]]] = {
    "a lost thing": [
        (
            "{H} had {a:ct} that {he} loved very much.",
            "{H} took {a:ct} everywhere.",
            "{His} favourite thing was {a:ct}.",
        ),
        (
            "One day, the {t} was gone.",
            "One morning, {he} could not find the {t}.",
            "But one windy day, the {t} was lost near {p}.",
        ),
        (
            "{H} looked under the bed and behind the door, but it was not there.",
            "{H} looked everywhere and felt very sad.",
            "{He} searched the whole day and found nothing.",
        ),
        (
            "Then {he} met {F} the {fk}, who wanted to help.",
            '{A:fk} named {F} saw {him} and asked, "Why are you sad?"',
            "{F} the {fk} heard about it and came to help.",
        ),
        (
            "Together they walked to {q}.",
            '"Let us look near {q}," said {F}.',
            "They followed some small tracks to {q}.",
        ),
        (
            "There, in the tall grass, was the {t}.",
            "Behind a big stone they saw something shine: it was the {t}!",
            "A bird had put the {t} in its nest, and gave it back.",
        ),
        (
            '{H} hugged {F} and said, "Thank you!"',
            "{H} was so happy that {he} danced.",
            '"Thank you, {F}," said {H}. "You are a true friend."',
        ),
    ],
    "a new friend": [
        ("{H} had no one to play with.", "Every day, {H} played alone.", "{H} wished for a friend."),
        (
            "One day, {he} went to {p}.",
            "One sunny morning, {he} walked to {p}.",
            "On a warm afternoon, {H} sat near {p}.",
        ),
        (
            "There {he} saw {a:fk} named {F}, who was alone too.",
            '{A:fk} came along the path. "I am {F}," {fhe} said.',
            "Someone was crying. It was {F}, {a:fk} who was new here.",
        ),
        (
            "{H} was shy, but {he} said hello.",
            '"Would you like to play?" asked {H}.',
            "{H} gave {F} {a:food} and smiled.",
        ),
        (
            "They played with {a:ct} until the sun went down.",
            "They built a little house out of sticks.",
            "They ran, laughed and told each other stories.",
        ),
        (
            "From that day on, {H} was never lonely again.",
            "After that, they met at {p} every day.",
            "{H} and {F} became the best of friends.",
        ),
    ],
    "a storm": [
        (
            "One evening, dark clouds came over {p}.",
            "One night, the wind began to blow.",
            "It started to rain, and the rain did not stop.",
        ),
        (
            "The rain fell hard and the thunder was loud.",
            "The trees bent in the wind.",
            "Lightning lit up the sky.",
        ),
        (
            "{H} was afraid, but {he} heard someone call for help.",
            "{H} was safe at home when {he} heard a small voice outside.",
            "Then {H} saw a light near {q}.",
        ),
        (
            "It was {F} the {fk}, who was stuck in the mud.",
            "{F} the {fk} was cold and wet and could not find the way home.",
            "{A:fk} named {F} was holding on to a branch.",
        ),
        (
            "{H} took a rope and pulled {fhim} out.",
            '{H} held out {his} hand and said, "Come with me!"',
            "Step by step, {H} led {F} through the rain.",
        ),
        (
            "They sat by the fire and drank warm milk.",
            "At home, {H} made hot soup for both of them.",
            "They wrapped themselves in a blanket and waited.",
        ),
        (
            "In the morning the sun came out, and there was a rainbow over {p}.",
            "When the storm was over, the air smelled of flowers.",
            'The next day the sky was blue again, and {F} said, "You are very brave."',
        ),
    ],
    "sharing": [
        (
            "{H} had a big basket of {foods}.",
            "One day, {H} found many {foods} near {p}.",
            "{H} baked for the whole morning and made a lot of {foods}.",
        ),
        (
            "{He} wanted to keep them all.",
            '"These are all mine," said {H}.',
            "{He} hid them so that no one could see.",
        ),
        (
            "Then {F} the {fk} came by, and {fhe} was very hungry.",
            'Soon {a:fk} named {F} knocked at the door. "I have had nothing to eat," {fhe} said.',
            "But {he} saw {F} the {fk}, who had nothing to eat.",
        ),
        (
            "{H} thought about it for a while.",
            "{H} looked at the {foods} and then at {F}.",
            "{H} felt bad in {his} heart.",
        ),
        (
            '"Here," {he} said, "take half of them."',
            "At last {he} gave {F} half of the {foods}.",
            '"Come and eat with me," said {H}.',
        ),
        (
            "They sat down together, and the food tasted better than ever.",
            "They ate and laughed until the evening.",
            "{F} smiled and sang a song to say thank you.",
        ),
        (
            "{H} learned that sharing makes everyone happy.",
            "From then on, {H} always shared.",
            "That day, {H} learned that food is best when it is shared.",
        ),
    ],
    "learning something new": [
        (
            "{H} wanted to learn how to {skill}.",
            "More than anything, {H} wanted to {skill}.",
            "{H} dreamed of the day when {he} could {skill}.",
        ),
        (
            "{He} tried once, but it did not work.",
            "The first time, {he} fell down and everyone laughed.",
            "{He} tried and tried, but it was too hard.",
        ),
        (
            '"I will never do it," {he} said.',
            "{H} was sad and went to {p} to be alone.",
            "{H} almost gave up.",
        ),
        (
            '{F} the {fk} said, "Try again, a little every day."',
            "But {F}, an old {fk}, showed {him} how to do it slowly.",
            'Then {F} the {fk} came and said, "I will help you."',
        ),
        (
            "So {H} practised every morning.",
            "Day after day, {H} practised near {p}.",
            "{H} tried again, and again, and again.",
        ),
        (
            "At last, {he} could {skill}!",
            "One day, it worked, and {H} could {skill}.",
            "And then, suddenly, {he} could do it.",
        ),
        (
            "Everyone cheered, and {H} was proud.",
            '"You see?" said {F}. "Never give up."',
            "{H} smiled, because {he} had not given up.",
        ),
    ],
    "a treasure": [
        ("One day, {H} found an old map.", "{H} found a map inside {a:ct}.", "An old sailor gave {H} a map."),
        (
            "The map showed a way to {p}.",
            "On it was a red cross near {p}.",
            '"There is a treasure at {p}," the map said.',
        ),
        (
            "{H} asked {F} the {fk} to come along.",
            "{H} packed some {foods} and left with {F} the {fk}.",
            '{F} the {fk} said, "Let us go together!"',
        ),
        (
            "They crossed a river and climbed a steep path.",
            "They walked for three days, past {q} and over the hills.",
            "The way was long, and they got tired.",
        ),
        (
            "Under a big stone they found a box.",
            "They dug a hole, and there was a wooden box.",
            "At last they saw a box behind the tree.",
        ),
        (
            "Inside was {a:ct} and a letter.",
            "In the box there was no gold, only {a:ct}.",
            "It was full of gold coins.",
        ),
        (
            '"The best treasure is a good friend," said {F}.',
            "They took it home and shared it with everyone.",
            "{H} laughed, because the journey had been the real treasure.",
        ),
    ],
    "a secret door": [
        (
            "Near {p}, {H} saw a tiny door.",
            "One day, {H} found a {c} door in {p}.",
            "Behind the trees there was a door that {H} had never seen.",
        ),
        (
            "{He} knocked three times, and the door opened.",
            "It was locked, but {he} had {a:c} key.",
            "{H} pushed, and the door opened slowly.",
        ),
        (
            "Inside was a room full of light.",
            "Inside there was a garden with {c} flowers.",
            "Behind it was a long stair that went down.",
        ),
        (
            "{A:fk} named {F} lived there.",
            '"Welcome," said {F} the {fk}.',
            "There sat {F}, {a:fk}, drinking tea.",
        ),
        (
            '"You may make one wish," {fhe} said.',
            '"No one has come here for a hundred years," said {F}.',
            '{F} gave {H} {a:ct} and said, "Keep it safe."',
        ),
        (
            "{H} thought hard and wished that everyone would be happy.",
            "They talked for hours and became friends.",
            "{H} promised to come back.",
        ),
        (
            "When {he} came home, no one believed {him}, but {he} only smiled.",
            "The next day the door was gone, but {H} never forgot it.",
            "From then on, {H} visited {F} every week.",
        ),
    ],
    "a race": [
        (
            "There was a race from {p} to {q}.",
            "One day, all the animals wanted to race.",
            '{F} the {fk} said, "I am the fastest of all!"',
        ),
        (
            "{F} the {fk} was very fast, and {H} was slow.",
            "Everyone thought that {F} the {fk} would win.",
            '"You can never win," {F} told {H}.',
        ),
        ("They started to run.", "One, two, three, and they ran.", "The bell rang and the race began."),
        (
            "{F} was far ahead and stopped to sleep under a tree.",
            "On the way, {F} stopped to eat {foods}.",
            "But {F} fell and hurt {fhis} foot.",
        ),
        (
            "{H} did not stop. {He} went on, step by step.",
            "{H} could have passed, but {he} stopped to see what was wrong.",
            "{H} kept on going and never looked back.",
        ),
        (
            "In the end, they crossed the line together.",
            "In the end, {H} won the race.",
            "Everyone cheered when {H} came to the end.",
        ),
        (
            '"Slow and steady wins," said {H}.',
            '{F} said, "You ran well, my friend."',
            "After that, {F} was never so proud again.",
        ),
    ],
    "helping": [
        (
            "Every morning, {H} walked past {p}.",
            "{H} was on the way home from {p}.",
            "It was a cold day, and {H} was going to {q}.",
        ),
        (
            "There {he} saw {F} the {fk}, who carried a heavy bag.",
            "{F} the {fk} was sitting on the ground and looked tired.",
            "{F} the {fk} had broken {fhis} wagon.",
        ),
        (
            '"Can I help you?" asked {H}.',
            "{H} stopped at once.",
            "{H} did not have much time, but {he} stopped.",
        ),
        (
            "They worked together until the evening.",
            "{H} carried the bag all the way to {q}.",
            "{H} found some wood and fixed it.",
        ),
        ('"How can I thank you?" asked {F}.', "{F} was very thankful.", "{F} gave {him} {a:ct}."),
        (
            '"Just help someone else one day," said {H}.',
            '"It was nothing," {H} said and smiled.',
            "{H} did not want anything for it.",
        ),
        (
            "Some days later, {H} needed help, and {F} was there.",
            "A little help can change a whole day.",
            "That night, {H} slept very well.",
        ),
    ],
    "a birthday": [
        (
            "It was {H}'s birthday.",
            "Tomorrow was {H}'s birthday.",
            "{H} woke up early, because it was {his} birthday.",
        ),
        (
            "But no one said anything.",
            "{He} thought that everyone had forgotten.",
            "{H} waited and waited, but nobody came.",
        ),
        (
            "{H} walked to {p} and felt sad.",
            "Sadly, {he} went for a walk near {p}.",
            '"Maybe they do not like me," {he} thought.',
        ),
        (
            "Then {he} heard music.",
            'Then {F} the {fk} called, "Come quickly!"',
            "On the way back, {he} saw many lights.",
        ),
        (
            "All {his} friends were there with a big cake.",
            '"Surprise!" they all shouted.',
            '{F} the {fk} jumped out from behind a tree and shouted, "Happy birthday!"',
        ),
        (
            "{F} gave {him} {a:ct}.",
            "There was {a:ct} for {him}, and a cake with {foods}.",
            "They danced and ate {foods}.",
        ),
        (
            "It was the best birthday ever.",
            "{H} had never been so happy.",
            '"Thank you all," said {H} with a big smile.',
        ),
    ],
    "the moon": [
        (
            "{H} loved to look at the moon.",
            "Every night, {H} looked up at the moon.",
            "{H} wanted to touch the moon.",
        ),
        (
            "One night, the moon did not come.",
            "One night, {he} climbed up to the top of {p}.",
            "One night, the sky was all dark.",
        ),
        (
            '"Where is the moon?" {he} asked {F} the {fk}.',
            "{F} the {fk} was there too, looking at the stars.",
            "{H} asked {F} the {fk} what had happened.",
        ),
        (
            '"It is only hiding behind the clouds," said {F}.',
            '"The moon is far away, but its light comes to you," said {F}.',
            '"Wait," said {F}, "and be quiet."',
        ),
        (
            "They sat together and waited.",
            "So they lay in the grass and counted the stars.",
            "They sang a soft song to the sky.",
        ),
        (
            "Then the clouds moved, and the moon was there, big and round.",
            "Slowly, a silver light came over {q}.",
            "At last the moon came up over {q}.",
        ),
        (
            "{H} smiled and fell asleep.",
            '"Good night, moon," said {H}.',
            "{H} felt that the moon was smiling back.",
        ),
    ],
    "a lie": [
        (
            "{H} broke {a:ct} that belonged to {F} the {fk}.",
            "One day, {H} played with {F}'s {ct} and broke it. {F} was {a:fk} who lived next door.",
        ),
        ("{He} was afraid and hid it.", '"I did not do it," said {H}.', "{H} told no one about it."),
        (
            "{F} looked for the {t} everywhere.",
            "{F} was very sad.",
            "Everyone thought that the wind had done it.",
        ),
        (
            "That night, {H} could not sleep.",
            "{H} did not feel good, and even the {foods} did not taste right.",
            "The secret felt heavy like a stone.",
        ),
        (
            "In the morning, {he} went to {F} and told the truth.",
            '"It was me," {he} said at last. "I am sorry."',
        ),
        (
            "{F} was quiet for a moment. Then {fhe} smiled.",
            '"Thank you for telling me," said {F}.',
            '"I am not angry," said {F}.',
        ),
        (
            "Together they fixed the {t}.",
            "{H} felt light again, and never told a lie after that.",
            "{H} learned that it is better to be honest.",
        ),
    ],
    "a garden": [
        (
            "{H} planted a small seed near {p}.",
            "{H} had one seed and put it in the ground.",
            "One spring day, {H} found a strange seed.",
        ),
        (
            "Every day {he} gave it water.",
            "{He} watered it each morning and sang to it.",
            "{H} waited for many days.",
        ),
        (
            "But nothing grew.",
            "For a long time, nothing happened.",
            '"Nothing will grow there," said {F} the {fk}.',
        ),
        (
            "{H} did not give up.",
            '"I will wait," said {H}.',
            '{H} asked {F} the {fk} what to do, and {fhe} said, "Be patient."',
        ),
        (
            "Then it rained, and a green leaf came up.",
            "One morning, there was a tiny green leaf.",
            "After the first warm rain, something green looked out of the ground.",
        ),
        (
            "It grew and grew, until it was a tall tree full of {foods}.",
            "Soon there was {a:c} flower as big as a hat.",
            "In summer, the whole place was full of {c} flowers.",
        ),
        (
            "{H} gave some to everyone.",
            "Everyone came to see it, and {H} was proud.",
            "Good things need time, and {H} knew it.",
        ),
    ],
    "a dream": [
        (
            "One night, {H} had a strange dream.",
            "{H} fell asleep near {p} and began to dream.",
            "After a long day, {H} closed {his} eyes.",
        ),
        (
            "In the dream, {he} could fly.",
            "{He} was flying over {p}, high above the trees.",
            "A {c} cloud carried {him} up into the sky.",
        ),
        (
            "There {he} met {F}, {a:fk} who lived on a star.",
            "{A:fk} named {F} flew beside {him}.",
            "On the cloud sat {F} the {fk}.",
        ),
        (
            '"What do you wish for?" asked {F}.',
            "{F} showed {him} the whole world from above.",
            "They jumped from star to star.",
        ),
        (
            "{H} looked down and saw {q}, as small as a toy.",
            "{H} laughed and was not afraid at all.",
            "{F} gave {him} {a:ct} made of light.",
        ),
        (
            "Then {he} woke up.",
            "When the sun came up, {H} was in {his} bed again.",
            "A bird sang, and the dream was over.",
        ),
        (
            "But in {his} hand was {a:ct}.",
            "{H} smiled and could not wait for the next night.",
            "All day long, {H} thought about {F}.",
        ),
    ],
}
THEMES: Final[dict[str, tuple[str, ...]]] = {
    "a lost thing": ("something that was lost",),
    "a new friend": ("friendship", "a new friend", "being lonely"),
    "a storm": ("a storm", "being brave", "the rain"),
    "sharing": ("sharing", "food"),
    "learning something new": ("never giving up", "learning something new"),
    "a treasure": ("a treasure", "an adventure", "a map"),
    "a secret door": ("a secret door", "magic", "a wish"),
    "a race": ("a race", "being slow"),
    "helping": ("helping others", "kindness"),
    "a birthday": ("a birthday", "a party", "a surprise"),
    "the moon": ("the moon", "the night", "the stars"),
    "a lie": ("telling the truth", "a lie", "being honest"),
    "a garden": ("a garden", "a seed", "being patient"),
    "a dream": ("a dream", "flying"),
}
SKILLS: Final = (
    "swim",
    "fly a kite",
    "sing",
    "ride a bike",
    "read",
    "dance",
    "bake bread",
    "play the flute",
    "climb a tree",
    "paint",
    "sail a boat",
    "whistle",
    "juggle",
    "skate",
)
OPENINGS: Final = (
    "Once upon a time, there was {a:ak} named {H}.",
    "Once upon a time, {a:ak} named {H} lived near {home}.",
    "Once upon a time, near {home}, there lived {a:ak} named {H}.",
    "There was once {a:ak} called {H}.",
    "{H} was {a:ak} who lived near {home}.",
    "Long ago, {a:ak} named {H} lived near {home}.",
    "In a small house near {home} lived {H}, {a:ak}.",
)
COLOUR_BEATS: Final = (
    "{His} home was small, but it was warm and full of light.",
    "Every morning {he} ate {a:food} for breakfast.",
    "{H} liked {foods} more than anything else.",
    "Everyone in {home2} knew {him}.",
    "{H} liked to sing when the sun came up.",
    "{He} had a {c} hat that {he} always wore.",
    "People said that {H} was the most {trait2} {k} of all.",
)
ENDINGS: Final = (
    "The end.",
    "And they all lived happily ever after.",
    "And that was the end of a good day.",
    "And so the day ended well.",
)
LINKS: Final = (
    "The next day was quiet.",
    "Some weeks went by.",
    "But the story does not end there.",
    "A year later, something new happened.",
    "Soon winter was over.",
)
