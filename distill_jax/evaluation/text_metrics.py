"""How good a written answer is: ROUGE-L and exact match with a reference, a text each.

Both are fractions in [0, 1] of one answer; the figure of a set is their mean. Pure functions of
text. Left out on purpose: stemming, ROUGE-N and scores by another model.
"""

import re
import string
from collections.abc import Callable, Mapping
from fractions import Fraction

MARKER = "####"  # before the final answer, in GSM8K
LONGEST = 1000  # characters of a number; Python reads none of many more

_WORD = re.compile(r"[a-z0-9]+")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)

# A sign counts where it follows no word or number and a number follows it at once: 20-3 ends in 3,
# and the dash of a list is none.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w.)\]])[-\u2212](?=[$€£]?\.?\d))?[$€£]?\s?"
    r"(?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?P<part>(?(whole)(?:\.\d+)?|(?<!\d)\.\d+))"
    r"(?:/(?P<below>0*[1-9]\d*))?\s?%?"
)


def rouge_l(answer: str, reference: str) -> float:
    """The F-measure of the longest common subsequence of words.

    That of the package rouge-score, "rougeL" with its defaults: words are runs of [a-z0-9] in the
    lower-case text, not stemmed, the text is one sequence whatever its sentences, and precision
    and recall weigh the same. Some publications stem words first, which makes more of them equal.

    Args:
      answer: what was written.
      reference: what is right.

    Returns:
      In [0, 1]; 0 where either has no word.
    """
    ours, theirs = (_WORD.findall(text.lower()) for text in (answer, reference))
    if not ours or not theirs:
        return 0.0
    common = _common(ours, theirs)
    precision, recall = common / len(ours), common / len(theirs)
    return 2 * precision * recall / (precision + recall) if common else 0.0


def _common(ours: list[str], theirs: list[str]) -> int:
    """The length of the longest common subsequence, a row of the table at a time.

    Bit i of `row` is 0 where the table's row grows from column i to column i + 1; an addition
    carries each growth to the next place at which a word stands.
    """
    places: dict[str, int] = {}
    for i, word in enumerate(theirs):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(theirs)) - 1
    row = full
    for word in ours:
        here = row & places.get(word, 0)
        row = ((row + here) | (row - here)) & full
    return len(theirs) - row.bit_count()


def exact_match(answer: str, reference: str) -> float:
    """Whether an answer is the reference's.

    A reference with "####", as those of GSM8K (Cobbe et al., 2021), has its answer after the last
    of them. If that is a number, it is compared, as a number, with the first one after the last
    "####" of `answer`, or with its last one where it has no "####": 1,000 is $1000.00, 18 is 18.,
    0.5 is 1/2, and 50% is 50. If it is no number, the texts after "####" are compared as below.
    The authors' own check is stricter: the first "####" alone, and digits that are the same text.

    Any other reference is compared as SQuAD does (Rajpurkar et al., 2016): whole, in lower case,
    without ASCII punctuation, the words a, an, the, and white space but single spaces.

    Args:
      answer: what was written.
      reference: what is right.

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
    """The first or the last number in a text, exactly; None where that is none, or endless."""
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
    """A text as SQuAD compares it; see `exact_match`."""
    plain = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLE.sub(" ", plain).split())


def unscorable(metric: str, reference: str) -> str:
    """Why no answer could ever score with a metric by this reference; "" where one can."""
    if metric == "rouge_l":
        return "" if _WORD.search(reference.lower()) else "has no word of [a-z0-9]"
    right = reference.rpartition(MARKER)[2]
    return "" if normalised(right) else "has no answer"


#: By name, from (answer, reference) to a fraction in [0, 1].
METRICS: Mapping[str, Callable[[str, str], float]] = {
    "rouge_l": rouge_l,
    "exact_match": exact_match,
}
