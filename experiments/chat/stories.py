"""Conversations that ask for a story, made of a folder of stories: python experiments/chat/stories.py TINYSTORIES OUT

Each story of up to 900 bytes is asked for by what it tells about: a person, and a thing that is spoken of several
times. So a model learns to tell a story about what it is asked for. Some conversations begin or end with small talk
or the letters of a word, in the wordings of the built-in corpora.
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path
from random import Random

from pico.data.identity import identity_conversation
from pico.data.spelling import spelling_conversation
from pico.data.wordings import lines, worded

LONGEST = 900  # bytes: a question and its story fit into 1,024
ABOUT = """
    [Tell|Write|Tell me|Write me|Please tell me|Please write] a [short |little |small |]story about {it}.
    [Can|Could] you [tell me|tell|write] a [short |]story about {it}?
    [I would like|I want] a story about {it}.
    A story about {it}, please.
    [Do you know|Have you got] a story about {it}?
    [Make up|Invent] a [short |]story about {it}.
    [Tell me|Tell|Write] a story with {it} in it.
    Story about {it}
"""
ANY = """
    [Tell me|Tell|Write|Write me|Please tell me] a [short |little |nice |]story.
    [Can|Could] you tell [me |]a story?
    [I would like|I want] [to hear |]a story.
    Another story[, please|].
    A story, please.
"""
# what a thing is followed by, and an adjective is not
AFTER = r"(?=[.,!?]| (?:was|were|is|and|or|to|in|into|on|had|has|with|from|for|at|that|said|went|saw|looked|could)\b)"
NOT_THINGS, NOT_PEOPLE = (
    set(words.split())
    for words in (
        "time day way lot bit end next first other same big little small new old good bad happy sad one two friend "
        "friends best very girl boy man woman mom mom's dad other's most right left top rest middle whole last",
        "Once One The They Then He She It But And So When Her His After From Mom Dad Mommy Daddy In At As",
    )
)


def subjects(story: str) -> tuple[str | None, str | None]:
    """The person and the thing that a story speaks of most, or None where there is none."""
    words = Counter(re.findall(rf"\b[Tt]he (?:[a-z]+ )?([a-z]+){AFTER}", story))
    begun = set(re.findall(rf"\ban? (?:[a-z]+,? ){{0,2}}?([a-z]+){AFTER}", story))
    things = [word for word, n in words.most_common() if n > 1 and word in begun and word not in NOT_THINGS]
    names = Counter(re.findall(r"(?<=[a-z,] )([A-Z][a-z]+)\b", story))
    people = [name for name, n in names.most_common() if n > 1 and name not in NOT_PEOPLE]
    return (people or [None])[0], (things or [None])[0]


def request(story: str, random: Random) -> str:
    """A question whose answer is the story."""
    person, thing = subjects(story)
    thing = thing and f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"
    asked = [about for about in (person, thing) if about and random.random() < (0.45 if about == person else 0.85)]
    if not asked:
        return worded(random.choice(lines(ANY)), random)
    return worded(random.choice(lines(ABOUT)), random, it=" and ".join(asked))


def conversation(story: str, random: Random) -> list[dict[str, str]]:
    """A story that is asked for, in one of three with another exchange before or after it."""
    asked = [("user", request(story, random)), ("assistant", story)]
    if random.random() < 1 / 3:
        corpus = random.choice((identity_conversation, spelling_conversation))
        other = [(turn.role, turn.text) for turn in corpus(random.randrange(2**31), random.randrange(2**31))[:2]]
        asked = random.choice((other + asked, asked + other))
    return [{"role": role, "content": text} for role, text in asked]


def main(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for split in "train", "valid":
        random = Random(split)
        with (source / f"{split}.jsonl").open(encoding="utf-8") as file:
            stories = [json.loads(line)["text"].strip() for line in file]
        with (target / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for story in stories:
                if len(story.encode()) <= LONGEST:
                    row = {"messages": conversation(story, random)}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
