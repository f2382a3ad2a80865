"""The words that questions on letters ask about, which training leaves out: python words.py valid.jsonl > words.txt"""

import json
import re
import sys

with open(sys.argv[1], encoding="utf-8") as file:
    questions = [json.loads(line)["messages"][0]["content"] for line in file]
print("\n".join(sorted({word for question in questions for word in re.findall(r"(?:word|in) ([a-z]+)", question)})))
