"""What the packages of the field say of pairs of texts: the tests compare with scores.json.

    python make.py                    writes scores.json beside this file

needs rouge-score and transformers; the file was written with rouge-score 0.1.2 ("rougeL", its
defaults, the F-measure) and transformers 4.49.0 (`squad_metrics.compute_exact`).
"""

import json
import pathlib
import random

from rouge_score import rouge_scorer
from transformers.data.metrics.squad_metrics import compute_exact

HERE = pathlib.Path(__file__).parent

#: (answer, reference), written here.
PAIRS = [
    ("The cat sat on the mat.", "A cat is sitting on the mat"),
    ("the cat", "The Cat!"),
    ("", "something"),
    ("...", "something"),
    ("something", "!?"),
    ("", ""),
    ("b a", "a b"),
    ("a an the", "the"),
    ("the theatre and an anthem", "theatre and anthem"),
    ("It's 3.5%, isn't it?", "its 35 isnt it"),
    ("-3", "3"),
    ("18.0", "18"),
    ("18", "18.0"),
    ("1,000", "1000"),
    ("snake_case and kebab-case", "snakecase and kebabcase"),
    ("École naïve Straße", "ecole naive strasse"),
    ("İstanbul K (Kelvin)", "istanbul k kelvin"),
    ("\u201cquoted\u201d \u2014 dashed", "quoted dashed"),
    ("tab\tand\nnew\r\nlines\u00a0nbsp\u2028sep", "tab and new lines nbsp sep"),
    ("東京 1234 Москва", "1234"),
    ("one two three four five six seven", "seven six five four three two one"),
    ("x1 x2 x3", "X1x2 x3"),
    ("running runs ran", "run run run"),
    ("word " * 70 + "end", "end " + "word " * 67),
]


def generated() -> list[tuple[str, str]]:
    """Pairs of many lengths over few words, so that they share much."""
    draw = random.Random(5)
    words = "the a sun sea tree 7 x bird Under, over. AND-or".split()
    pairs = []
    for longest in (3, 8, 20, 64, 65, 130) * 6:
        one, two = (
            " ".join(draw.choice(words) for _ in range(draw.randint(1, longest))) for _ in "ab"
        )
        pairs.append((one, two))
    return pairs


def main() -> None:
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    rows = [
        {
            "answer": answer,
            "reference": reference,
            "rouge_l": scorer.score(reference, answer)["rougeL"].fmeasure,
            "squad_exact": compute_exact(reference, answer),
        }
        for answer, reference in [*PAIRS, *generated()]
    ]
    (HERE / "scores.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
