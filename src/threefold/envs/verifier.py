r"""Is a predicted answer the gold one?

Answers are compared in three steps, cheapest first: quantities (`9 apples`, `$18`, `25\%`, `3/4`) by exact
rational arithmetic here, words by words, and only formulas by computer algebra (`threefold.envs.symbolic`).
An answer is compared as a whole: prose with the right number in it is not the right answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from threefold.answers import BOXED
from threefold.envs.symbolic import same_formula

MAX_ANSWER_CHARS = 500
"""A longer answer is right only if it is the gold answer letter by letter."""


def verify(predicted: str, gold: str) -> bool:
    r"""Whether a predicted answer is the gold one. Never raises on bad answers, never hangs, in any thread.

    Numbers are compared exactly, whether written as integer, decimal, fraction or with separators; a decimal
    of six or more places may stand for the fraction that it approximates. A unit may be left out, or added
    where the gold answer has none; two different units are two different answers. A percent sign may be a
    unit or a hundredth: 25% is 25 and 0.25. Words match as a whole, without regard to case, articles and
    punctuation. Formulas, tuples and sets are compared with Math-Verify. A single letter is a
    variable, except for m, g, s, h and l after a number and a space.
    """
    left, right = _strip_markup(predicted), _strip_markup(gold)
    if not left or not right:
        return False
    if _squeeze(left) == _squeeze(right):
        return True
    if max(len(left), len(right)) > MAX_ANSWER_CHARS:
        return False
    left_plain, right_plain = _plain(left), _plain(right)
    left_quantity, right_quantity = _quantity(left_plain), _quantity(right_plain)
    if left_quantity and right_quantity:
        return _same_quantity(left_quantity, right_quantity)
    left_is_text = left_quantity is None and _is_text(left_plain)
    right_is_text = right_quantity is None and _is_text(right_plain)
    if left_is_text or right_is_text:
        return left_is_text and right_is_text and _same_text(left_plain, right_plain)
    return same_formula(_formula(left, left_quantity), _formula(right, right_quantity))


def _formula(answer: str, quantity: _Quantity | None) -> str:
    """What the computer algebra is given: a bare number in plain notation, else the answer."""
    return str(quantity.value) if quantity and not quantity.units else answer


_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_DEGREES = re.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|°")


def _strip_markup(answer: str) -> str:
    """The answer without what only delimits it: dollars, a box, tags, bold, spacing commands, a full stop."""
    if "\\boxed" in answer and (span := BOXED.find(answer)):
        answer = span.text
    answer = answer.strip().replace("−", "-").strip("*").replace("{,}", ",").replace("\\!", "")
    answer = re.sub(r"</?answer>|\\[()\[\]]", "", answer)
    answer = re.sub(r"(?<=\d)\\,(?=\d{3})", "", answer)
    answer = re.sub(r"\\[,;: ]|~", " ", answer)
    answer = re.sub(r"\\([dt])frac", r"\\frac", answer)
    # An odd number of dollars is a price, an even one delimits formulas.
    if len(re.findall(r"(?<!\\)\$", answer)) % 2 == 0:
        answer = re.sub(r"(?<!\\)\$", "", answer)
    return answer.replace("\\$", "$").strip().rstrip(".,;:").strip()


def _plain(answer: str) -> str:
    r"""The answer with its words out of `\text{}`."""
    answer = _TEXT_COMMAND.sub(r" \1 ", answer).replace("\\%", "%")
    words = _DEGREES.sub(" degrees ", answer).split()
    return " ".join(words[1:] if words and words[0].lower() == "the" else words)


def _squeeze(answer: str) -> str:
    return re.sub(r"\s", "", answer)


@dataclass(frozen=True)
class _Quantity:
    value: Fraction
    units: frozenset[str]
    decimals: int
    """Digits after the decimal point."""
    is_fraction: bool


_QUANTITY = re.compile(
    r"""
    (?P<sign> [-+]?) \s* (?P<currency> (?:US\s?)? [$€£¥])? \s* (?P<inner_sign> -?)
    (?: (?P<whole> \d{1,9}) (?: \s+ (?=\d+/) | \s* (?=\\frac)) )?
    (?:   \\frac \s* (?: \{ (?P<top> -?\d+) \} \s* \{ (?P<bottom> \d+) \}
                     | (?P<top1> \d) \s* (?P<bottom1> \d) )
        | (?P<top2> \d+) \s?/\s? (?P<bottom2> \d+)
        | (?P<number> (?: \d{1,3} (?:,\d{3})+ | \d+ )? (?: \.(?P<decimals>\d+) )? (?<=\d) )
          (?P<power> e[-+]?\d{1,2} )?
    )
    (?: (?P<percent> \s? %) | (?P<attached> [A-Za-z][A-Za-z/.]{1,4} ) )?
    (?P<words> (?: \s [A-Za-z][A-Za-z'’/.-]* ){0,4} )
    (?: \^\{?[23]\}? | [²³] )?
    """,
    re.VERBOSE,
)
_SHORT_UNITS = frozenset({
    "m", "g", "s", "h", "l", "mm", "cm", "dm", "km", "mg", "kg", "ml", "dl", "cl", "ft", "in", "yd", "mi",
    "oz", "lb", "lbs", "sq", "hr", "hrs", "min", "sec", "mph", "kph", "kmh", "m/s", "km/h", "km/s", "mi/h",
    "cm/s", "am", "pm", "a.m", "p.m", "o'clock", "st", "nd", "rd", "th", "usd", "eur", "gbp", "of",
})  # fmt: skip
_MATH_WORDS = frozenset({
    "alpha", "beta", "gamma", "delta", "epsilon", "theta", "lambda", "sigma", "omega", "phi", "psi", "rho",
    "tau", "mu", "nu", "pi", "infty", "infinity", "inf", "sqrt", "sin", "cos", "tan", "cot", "sec", "csc",
    "arcsin", "arccos", "arctan", "log", "ln", "exp", "min", "max", "gcd", "lcm", "lim", "mod", "det", "deg",
    "choose", "frac",
})  # fmt: skip
_CONNECTIVES = frozenset({
    "or", "and", "not", "nor", "but", "maybe", "perhaps", "probably", "possibly", "plus", "minus", "to",
    "than", "least", "most", "no", "if", "is", "isn't",
})  # fmt: skip
_MULTIPLIERS = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SAME_UNIT = {
    "$": "dollar", "us$": "dollar", "usd": "dollar", "€": "euro", "eur": "euro", "£": "pound", "gbp": "pound",
    "¥": "yen", "percentage": "percent", "a.m": "am", "p.m": "pm",
}  # fmt: skip


def _quantity(plain: str) -> _Quantity | None:
    match = _QUANTITY.fullmatch(plain)
    if match is None:
        return None
    units = [word.lower().rstrip(".") for word in match["words"].split()]
    if match["attached"]:
        units.insert(0, match["attached"].lower().rstrip("."))
        if units[0] not in _SHORT_UNITS:  # 2xy is a product, 5cm a length
            return None
    if not all(map(_may_be_unit, units)):
        return None
    top = match["top"] or match["top1"] or match["top2"]
    if top is None:
        value = Fraction(match["number"].replace(",", "") + (match["power"] or ""))
    else:
        bottom = int(match["bottom"] or match["bottom1"] or match["bottom2"])
        if bottom == 0:
            return None
        value = Fraction(int(top), bottom)
    value += int(match["whole"] or 0)
    if "-" in match["sign"] + match["inner_sign"]:
        value = -value
    if units and units[0] in _MULTIPLIERS:
        value *= _MULTIPLIERS[units.pop(0)]
    if match["percent"]:
        units.append("percent")
    if match["currency"]:
        units.append(_squeeze(match["currency"]).lower())
    return _Quantity(value, frozenset(map(_unit, units)), len(match["decimals"] or ""), top is not None)


def _may_be_unit(word: str) -> bool:
    if word in _SHORT_UNITS:
        return True
    # The parts of x/y are variables, those of dollars/hour are words.
    parts = re.split(r"[/'’.-]", word)
    return len(word) >= 3 and word not in _CONNECTIVES | _MATH_WORDS and all(len(part) != 1 for part in parts)


def _unit(word: str) -> str:
    word = _SAME_UNIT.get(word, word)
    return word[:-1] if len(word) > 3 and word.endswith("s") else word


def _same_quantity(predicted: _Quantity, gold: _Quantity) -> bool:
    if predicted.units and not gold.units <= predicted.units:
        return False
    if _same_value(predicted, gold, predicted.value, gold.value):
        return True
    if ("percent" in predicted.units) == ("percent" in gold.units):
        return False
    if "percent" in predicted.units:
        return _same_value(predicted, gold, predicted.value / 100, gold.value)
    return _same_value(predicted, gold, predicted.value, gold.value / 100)


def _same_value(predicted: _Quantity, gold: _Quantity, a: Fraction, b: Fraction) -> bool:
    if a == b:
        return True
    for decimal, fraction in ((predicted, gold), (gold, predicted)):
        if decimal.decimals >= 6 and fraction.is_fraction:
            return abs(a - b) <= Fraction(1, 10**decimal.decimals)
    return False


_MATH_CHARS = frozenset("\\=^_{}<>|+*/")
_ABBREVIATION_DOT = re.compile(r"(?<=\b[A-Za-z])\.(?=[A-Za-z]\b|$)")
_ARTICLES = frozenset({"the", "a", "an"})


def _is_text(plain: str) -> bool:
    r"""Whether an answer is words. `xy` is a word, too: read as a product it would make "on" the same as
    "no"."""
    plain = _ABBREVIATION_DOT.sub("", plain)
    runs = re.findall(r"[^\W\d_]+", re.sub(r"\\(?:begin|end)\{\w+\*?\}|\\[A-Za-z]+", " ", plain))
    longest = max((len(run) for run in runs if run.lower() not in _MATH_WORDS), default=0)
    return longest >= 3 or (longest == 2 and not _MATH_CHARS & set(plain))


def _same_text(left: str, right: str) -> bool:
    if _MATH_CHARS & set(left + right):
        return _squeeze(left).casefold() == _squeeze(right).casefold()
    left_words, right_words = _words(left), _words(right)
    return bool(left_words) and left_words == right_words


def _words(text: str) -> list[str]:
    text = _ABBREVIATION_DOT.sub("", text.casefold()).replace("'", "").replace("’", "")
    return [word for word in re.findall(r"\d+(?:[.,]\d+)*|\w+", text) if word not in _ARTICLES]
