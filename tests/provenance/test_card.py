"""The card of an exported folder: metadata that the Hub reads, whatever the names are."""

import pytest
import yaml

from distill_jax import provenance
from distill_jax.provenance import card
from distill_jax.provenance.licences import answer

HOSTILE = [
    "a: b\nlicense: mit",
    "---\n---",
    "x | y | <script>alert(1)</script>",
    "[link](javascript:x) `code` **b**",
    "!!python/object/apply:os.system ['true']",
    "*anchor &a \u2028 'quote\" \x07",
]


def of(**values) -> card.Card:
    entry = {"role": "teacher", "path": "t", "fingerprint": "f" * 64}
    entry["licence"] = provenance.record_of("llama3.1", "LICENSE")
    given = {"title": "student", "kind": "text", "library": "transformers", "made_from": [entry]}
    return card.Card(**{**given, **values})


def metadata(page: str) -> dict:
    head, block, body = page.split("---\n", 2)
    assert head == "" and body
    return yaml.safe_load(block)


def test_a_card_names_what_the_model_was_made_from():
    page = card.render(
        of(figures={"test": {"nll": 1.23456789, "accuracy": 0.5}}, licence="llama3.1")
    )
    found = metadata(page)
    assert found["license"] == "llama3.1" and found["library_name"] == "transformers"
    assert found["distill_jax"]["made_from"][0]["fingerprint"] == "f" * 64
    for words in ("Built with Llama", "1.b.i", "no legal advice", "| test | nll | 1.23457 |"):
        assert words in page, words
    assert "Its name begins with “Llama”" in page


def test_a_licence_that_the_hub_has_not_is_other_and_no_licence_is_unknown():
    found = metadata(card.render(of(licence="Qwen License")))
    assert (found["license"], found["license_name"]) == ("other", "qwen")
    assert found["license_link"].startswith("https://")
    assert metadata(card.render(of()))["license"] == "unknown"
    weights = {**of().made_from[0], "role": card.WEIGHTS}
    place = "/cache/models--HuggingFaceTB--SmolLM2-135M/snapshots/12ab/"
    found = metadata(card.render(of(made_from=[{**weights, "path": place}])))
    assert found["license"] == "llama3.1"
    assert found["base_model"] == ["HuggingFaceTB/SmolLM2-135M"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_breaks_out_of_nothing(tmp_path, name):
    entry = {**of().made_from[0], "path": name, "licence": provenance.record_of(name, name)}
    page = card.render(
        of(
            title=name,
            made_from=[entry],
            data={name: name},
            settings={name: [name]},
            figures={name: {name: 1.0}},
            licence=name,
            datasets=(name,),
        )
    )
    found = metadata(page)
    assert found["license"] == "other"
    assert set(found) <= {"license", "license_name", "library_name", "pipeline_tag", "tags",
                          "datasets", "distill_jax"}  # fmt: skip
    assert found["distill_jax"]["made_from"][0]["path"] == " ".join(name.split())
    body = page.split("---\n", 2)[2]
    assert "<script" not in body and "](javascript" not in body.replace("\\]\\(", "")
    for line in body.splitlines():  # each row has its cells, and no more
        if line.startswith("| ") and "---" not in line:
            cells = line.replace("\\|", "").count("|") - 1
            assert cells in (2, 3, 5)
    (tmp_path / "README.md").write_text(page, encoding="utf-8")
    again = provenance.read_licence(tmp_path)
    assert answer(again) == "unknown"


def test_an_exported_student_keeps_the_licences_of_its_teachers(tmp_path):
    for licence in ("", "mit"):
        forbidding = {**of().made_from[0], "licence": provenance.record_of("llama2", "LICENSE")}
        page = card.render(of(made_from=[forbidding], licence=licence))
        (tmp_path / "README.md").write_text(page, encoding="utf-8")
        assert answer(provenance.read_licence(tmp_path)) == "no"
