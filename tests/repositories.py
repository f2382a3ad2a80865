"""A folder laid out like a repository of the Hub, and caches of its own for what is read from it."""

CARD = """---
license: cc0-1.0
configs:
- config_name: main
  default: true
  data_files:
  - split: train
    path: main/part-*
  - split: validation
    path: main/held.parquet
- config_name: other
  data_files:
  - split: train
    path: other/*.parquet
---
# A dataset
"""
STORIES = [f"story {i} " + "abc " * (i % 7) for i in range(120)]


def encoded(texts):
    return [text.encode() for text in texts]


def first_pass(stream):
    """The documents of a stream's first pass."""
    documents = []
    while True:
        block = stream.block(0)
        if stream.place["pass"]:
            return documents
        documents += list(block)
