"""The licence of a model is read from its folder, and known or unknown, never guessed."""

import json
import pathlib

import pytest

from distill_jax import provenance
from distill_jax.errors import UsageError
from distill_jax.provenance import page
from distill_jax.provenance.licences import answer, parts_of

MIT = "Permission is hereby granted, free of charge, to any person obtaining a copy\nof this"
APACHE = "\n                                 Apache License\n                           Version 2.0"


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("---\nlicense: llama3.1\n---\n", "llama3.1"),
        ('---\r\ntags:\r\n- x\r\nlicense: "mit" # free\r\n---\r\n# A', "mit"),
        ("\ufeff---\nlicense: other\nlicense_name: qwen-research\n---\n", "qwen-research"),
        ("---\nlicense:\n- mit\n- llama2\n---\n", "llama2"),  # the stricter of the two
        ("---\ntags: x\n---\nlicense: mit\n", None),
        ("# A\nlicense: mit\n", None),
        ("---\nlicense: other\n---\n", None),
        ("---\nlicense: no\n---\n", None),  # a truth value of YAML
        ("---\nlicense: [mit\n---\n", None),
        ("---\nlicense: {mit: 1}\n---\n", None),
        ("---\n" + "[" * 5000 + "\n---\n", None),
    ],
)
def test_the_licence_in_the_metadata_of_a_card(tmp_path, readme, expected):
    (tmp_path / "README.md").write_bytes(readme.encode())
    assert provenance.read_licence(tmp_path)["name"] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (APACHE, "apache-2.0"),
        (f"MIT License\n\nCopyright (c) 2024 A\n\n{MIT}", "mit"),
        (f"Copyright (c) 2024 A\n\n{MIT}", "mit"),
        (f"Modified MIT License\n\n{MIT}", None),
        (f"{MIT}\n" + "Further terms. " * 400, None),
        ("LLAMA 2 COMMUNITY LICENSE AGREEMENT\t\nLlama 2 Version", "llama2"),
        (" LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n\n Llama 3.1 Version", "llama3.1"),
        ("Tongyi Qianwen RESEARCH LICENSE AGREEMENT\n", "tongyi-qianwen-research"),
        ("Qwen LICENSE AGREEMENT\n\nQwen LICENSE AGREEMENT Release Date", "qwen"),
        ("Attribution-NonCommercial 4.0 International\n\n====", "cc-by-nc-4.0"),
        ("Attribution 4.0 International\n", "cc-by-4.0"),
        ("GNU AFFERO GENERAL PUBLIC LICENSE\n   Version 3, 19 November 2007", "agpl-3.0"),
        ("My licence. Code is licensed under the Apache License, Version 2.0.", None),
        ("All rights reserved.", None),
        ("", None),
    ],
)
def test_a_text_is_recognised_by_its_title_or_by_nothing(text, expected):
    assert provenance.recognise(text) == expected


def test_a_readme_and_a_license_that_differ_are_read_as_the_stricter(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (tmp_path / "LICENSE.txt").write_text("META LLAMA 3 COMMUNITY LICENSE AGREEMENT")
    found = provenance.read_licence(tmp_path)
    assert (found["name"], found["read_from"]) == ("llama3", "LICENSE.txt")
    assert answer(found) == "no" and "1.b.v" in found["clause"]


def test_what_names_no_licence_is_unknown(tmp_path):
    for content in ("{}", '{"license": "other"}', "[" * 5000, "\x00"):
        (tmp_path / "config.json").write_text(content)
        found = provenance.read_licence(tmp_path)
        assert found["name"] is None and answer(found) == "unknown"
    (tmp_path / "config.json").write_text('{"license": "mit"}')
    assert provenance.read_licence(tmp_path)["read_from"] == "config.json"
    assert answer(provenance.read_licence(tmp_path / "none")) == "unknown"
    assert answer(provenance.record_of("some-licence-of-2031", "README.md")) == "unknown"


@pytest.mark.parametrize(
    ("name", "stated", "expected"),
    [
        ("apache-2.0", None, "yes"),
        ("Apache 2.0", None, "yes"),
        ("llama3.1", None, "conditions"),
        ("llama3", None, "no"),
        ("llama3", True, "yes"),
        ("apache-2.0", False, "no"),
        (None, None, "unknown"),
    ],
)
def test_a_statement_counts_before_the_licence(name, stated, expected):
    record = provenance.stated_record(provenance.record_of(name, "README.md"), stated)
    assert answer(record) == expected
    if expected == "no":
        with pytest.raises(UsageError, match="teacher.path='t'"):
            provenance.check_permitted("t", record)
    else:
        provenance.check_permitted("t", record)
    assert bool(provenance.note_on("t", record)) == (expected in ("conditions", "unknown"))


def test_a_model_of_ours_has_the_licences_of_what_it_was_made_from(tmp_path):
    def manifest(*licences: dict) -> None:
        teachers = [{"path": "t", "fingerprint": "f", "licence": one} for one in licences]
        content = {"teachers": teachers, "data": {"name": "text"}}
        (tmp_path / "manifest.json").write_text(json.dumps(content))

    manifest()
    alone = provenance.read_licence(tmp_path)
    assert answer(alone) == "yes" and alone["name"] is None and not provenance.note_on("t", alone)
    manifest(provenance.record_of("mit", "LICENSE"), provenance.record_of("llama2", "LICENSE"))
    for folder in (tmp_path, tmp_path / "model"):  # a path may name the model in the workdir
        folder.mkdir(exist_ok=True)
        found = provenance.read_licence(folder)
        assert answer(found) == "no"
        assert [part["name"] for part in parts_of(found)] == ["mit", "llama2"]
    stated = provenance.stated_record(provenance.record_of("llama2", "LICENSE"), True)
    manifest(stated)
    assert answer(provenance.read_licence(tmp_path)) == "yes"
    (tmp_path / "manifest.json").write_text('{"teachers": [{"path": "t"}], "data": {}}')
    assert answer(provenance.read_licence(tmp_path)) == "unknown"  # of an earlier version


def test_every_entry_answers_and_has_a_source():
    for terms in provenance.TERMS.values():
        assert terms.source.startswith("https://") and terms.clause and terms.title
        assert provenance.canonical(terms.name) == terms.name
        assert terms.answer != "no" or re_clause(terms.clause), terms


def re_clause(clause: str) -> bool:
    """Whether a refusal names its clause, or the heading that it stands under."""
    return any(character.isdigit() for character in clause) or ":" in clause


def test_the_page_has_the_table():
    file = pathlib.Path(__file__).parents[2] / "docs" / "licences.md"
    written = file.read_text(encoding="utf-8")
    assert written == page.updated(written), f"run: python -m {page.__name__} docs/licences.md"
