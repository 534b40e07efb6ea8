"""What a model was made from: its licences, and the card that an exported folder carries.

`licence_table` has what common licences ask, `licences` reads the licence of a teacher and decides
whether its outputs may train a student, and `card` writes README.md. Left out on purpose: licences
of data, which a data set's own page gives, and advice: this is none.
"""

from distill_jax.provenance.card import Card
from distill_jax.provenance.licence_table import TERMS, Terms, canonical, recognise
from distill_jax.provenance.licences import (
    ANSWER,
    answer,
    as_record,
    check_permitted,
    licence_texts,
    made_from,
    note_on,
    parts_of,
    read_licence,
    record_of,
    stated_record,
)

__all__ = [
    "ANSWER",
    "Card",
    "TERMS",
    "Terms",
    "answer",
    "as_record",
    "canonical",
    "check_permitted",
    "licence_texts",
    "made_from",
    "note_on",
    "parts_of",
    "read_licence",
    "recognise",
    "record_of",
    "stated_record",
]
