"""Metrics of generated text: ROUGE-L and exact match of an answer with a reference.

Both are pure functions of two texts and give one answer a score in [0, 1]; the figure of a set is
the mean. Left out on purpose: stemming, ROUGE-N and scores by another model.
"""

import re
import string
from collections.abc import Callable, Mapping
from fractions import Fraction

MARKER = "####"  # GSM8K's, before the final answer
LONGEST = 1000  # characters of a number; Python refuses to convert much longer ones

_WORD = re.compile(r"[a-z0-9]+")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)

# A minus is a sign if a number follows it directly and no word or number precedes it: 20-3 ends in
# 3, and the dash of a list is no sign.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w.)\]])[-\u2212](?=[$€£]?\.?\d))?[$€£]?\s?"
    r"(?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?P<part>(?(whole)(?:\.\d+)?|(?<!\d)\.\d+))"
    r"(?:/(?P<below>0*[1-9]\d*))?\s?%?"
)


def rouge_l(answer: str, reference: str) -> float:
    """The F-measure of the longest common subsequence of words.

    This is "rougeL" of the package rouge-score with its defaults: words are runs of [a-z0-9] in the
    lower-case text, not stemmed; sentences are not treated separately; precision and recall have
    the same weight. Some publications stem words first, which makes more of them equal.

    Args:
      answer: the generated text.
      reference: the correct text.

    Returns:
      In [0, 1]; 0 if either text has no word.
    """
    ours, theirs = (_WORD.findall(text.lower()) for text in (answer, reference))
    if not ours or not theirs:
        return 0.0
    common = _common(ours, theirs)
    precision, recall = common / len(ours), common / len(theirs)
    return 2 * precision * recall / (precision + recall) if common else 0.0


def _common(ours: list[str], theirs: list[str]) -> int:
    """The length of the longest common subsequence, one row of the dynamic program at a time.

    Bit i of `row` is 0 if the row's value grows from column i to column i + 1. The addition carries
    each growth to the next column in which the word occurs.
    """
    columns: dict[str, int] = {}
    for i, word in enumerate(theirs):
        columns[word] = columns.get(word, 0) | 1 << i
    full = (1 << len(theirs)) - 1
    row = full
    for word in ours:
        matches = row & columns.get(word, 0)
        row = ((row + matches) | (row - matches)) & full
    return len(theirs) - row.bit_count()


def exact_match(answer: str, reference: str) -> float:
    """Whether an answer equals that of the reference.

    The answer of a reference with "####", as in GSM8K (Cobbe et al., 2021), follows the last
    "####". If it is a number, it is compared as a number with the first one after the last "####"
    of `answer`, or with the last number of an answer without "####": 1,000 is $1000.00, 18 is 18.,
    0.5 is 1/2, and 50% is 50. Otherwise the texts after "####" are compared as below. The authors'
    own check is stricter: it takes the first "####" and compares digits as text.

    Any other reference is compared as in SQuAD (Rajpurkar et al., 2016): the whole text, in lower
    case, without ASCII punctuation and the words a, an, the, with single spaces.

    Args:
      answer: the generated text.
      reference: the correct text.

    Returns:
      1.0 or 0.0.
    """
    _, marked, right = reference.rpartition(MARKER)
    if not marked:
        return float(normalised(answer) == normalised(reference))
    found = number(right) if _NUMBER.fullmatch(right.strip().removesuffix(".")) else None
    own = answer.rpartition(MARKER)
    if found is None:
        return float(normalised(own[2]) == normalised(right))
    return float(found == number(own[2], last=not own[1]))


def number(text: str, *, last: bool = False) -> Fraction | None:
    """The first or the last number in a text, exactly; None if it has none, or one too long."""
    matches = list(_NUMBER.finditer(text))
    if not matches:
        return None
    match = matches[-1 if last else 0]
    if len(match[0]) > LONGEST:
        return None
    digits = (match["whole"] or "0").replace(",", "") + match["part"]
    value = Fraction(digits) / int(match["below"] or 1)
    return -value if match["sign"] else value


def normalised(text: str) -> str:
    """A text in SQuAD's normal form; see `exact_match`."""
    plain = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLE.sub(" ", plain).split())


def unscorable(metric: str, reference: str) -> str:
    """Why every answer scores 0 with this reference, for an error message; "" if one can score."""
    if metric == "rouge_l":
        return "" if _WORD.search(reference.lower()) else "has no word of [a-z0-9]"
    right = reference.rpartition(MARKER)[2]
    return "" if normalised(right) else "has no answer"


#: Metrics by name: functions of (answer, reference) with values in [0, 1].
METRICS: Mapping[str, Callable[[str, str], float]] = {
    "rouge_l": rouge_l,
    "exact_match": exact_match,
}
