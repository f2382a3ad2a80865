"""One name, one thing: no two public functions or classes of the package are called alike.

Except what an export copies: it stands alone, and is read without the rest.
"""

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "pico"


def test_no_two_public_functions_have_one_name():
    places = defaultdict(list)
    for file in set(PACKAGE.rglob("*.py")) - set(PACKAGE.glob("runs/standalone/*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                places[node.name].append(str(file.relative_to(PACKAGE)))
    assert len(places) > 500 and {name: files for name, files in places.items() if len(files) > 1} == {}
