"""Every number of RESULTS.md and experiments/*/README.md is that of the JSON it comes from."""

import json
import re

import pytest

from scripts import results

PAGES = results.pages()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_numbers_are_those_of_their_files(page):
    text = page.read_text("utf-8")
    assert results.render(text, page) == text, "python scripts/results.py writes it anew"
    assert not results.unsourced(text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_pages_are_short():
    lines = {page: page.read_text("utf-8").count("\n") for page in PAGES}
    assert all(n <= (150 if page.name == "RESULTS.md" else 40) for page, n in lines.items())
    assert {page.parent.name for page in PAGES[1:]} >= {path.name for path in results.ROOT.glob("experiments/*/")}


def test_no_file_names_a_place_on_the_machine_that_made_it():
    for file in results.ROOT.glob("experiments/**/*.json"):
        assert not re.search(r'": "/', file.read_text("utf-8")), file


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A page with one comparison of two seeds."""
    monkeypatch.setattr(results, "ROOT", tmp_path)

    def row(name, *scores):
        runs = {str(seed): {} for seed in range(len(scores))}
        return {"name": name, "runs": runs, "routed_fraction": {"mean": 0.25}, "bits_per_byte": results_of(scores)}

    def results_of(scores):
        return {"mean": sum(scores) / len(scores), "sd": 0.01, "interval": [1.0, 1.4]}

    against = {"mean": 0.1234, "interval": [0.1, 0.15], "p": 0.004, "p_holm": 0.004, "document_interval": [0.1, 0.2]}
    found = {
        "dataset": "tinystories",
        "budget": {"flops": 8e12},
        "seeds": [0, 1],
        "configurations": [row("topk", 1.2, 1.3), row("random", 1.3, 1.4) | {"against_first": against}],
        "failed": {},
        "missing": [],
    }
    file = tmp_path / "experiments/routers/tinystories/compare.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(found))
    page = tmp_path / "RESULTS.md"
    page.write_text("It is 0.1234 worse.\n\n<!-- from experiments/routers/tinystories/compare.json -->\n<!-- end -->\n")
    return page


def test_a_digit_that_changes_is_found(page):
    text = results.render(page.read_text(), page)
    assert "| random | 25.0% | 1.3500 ± 0.0100 | +0.1234 (+0.1000 to +0.1500) | 0.004 |" in text
    assert results.render(text, page) == text and not results.unsourced(text)
    assert results.render(text.replace("1.3500", "1.3600"), page) == text
    assert results.unsourced(text.replace("0.1234 worse", "0.1235 worse")) == ["0.1235"]
    assert not results.unsourced(text + "`torch 2.15`\n\n    --rate 0.55\n")


def test_claims_are_judged_by_what_is_kept(page):
    def verdict(**claim):
        made = results.claims([{"claim": "c", "other_is": "o", **claim}], folder)
        return made.splitlines()[-1].split(" | ")[-1].removesuffix(" |")

    folder = page.parent / "experiments"
    (folder / "eval.json").write_text(json.dumps({"gain": 0.3, "interval": [0.2, 0.4], "chance": 0.25}))
    compared = {"file": "routers/tinystories/compare.json", "configuration": "random"}
    assert verdict(**compared, **{"is": "above"}) == "yes"
    assert verdict(**compared, **{"is": "below"}) == "no: the reverse"
    assert verdict(**compared | {"configuration": "space"}, **{"is": "above"}) == "open"
    gain = {"value": "eval.json:gain", "form": ".2f", "is": "above"}
    assert verdict(**gain, interval="eval.json:interval") == "yes, of this model"
    assert verdict(**gain, interval="eval.json:interval", other="eval.json:chance") == "not shown"
    assert verdict(**gain | {"value": "nothing.json:gain"}) == "open"
