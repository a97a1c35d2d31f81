"""Where thinking stops and the answer starts."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.answers import (
    BOXED,
    BUILT_IN,
    FINAL_ANSWER,
    SEARCH_CHARS,
    TAGS,
    AnswerFormat,
    answer_format,
    last_number,
)


def answer(fmt: AnswerFormat, text: str) -> str | None:
    span = fmt.find(text)
    return span.text if span else None


def test_the_three_parts_of_a_boxed_completion():
    text = r"2 + 3 = 5. So $\boxed{5}$."
    span = BOXED.find(text)
    assert text[: span.lead_start] == "2 + 3 = 5. So $"
    assert text[span.lead_start : span.start] == r"\boxed{"
    assert text[span.start : span.end] == span.text == "5"


def test_white_space_inside_the_lead_in_is_no_part_of_the_answer():
    text = "thinking\n<answer>\n 7 </answer>"
    span = TAGS.find(text)
    assert (text[: span.lead_start], text[span.lead_start : span.start]) == ("thinking\n", "<answer>\n ")
    assert text[span.start : span.end] == span.text == "7"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed {3}", "3"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{x \\ y} and more }", r"x \\ y"),
        (r"\boxed{}", None),
        (r"\boxed{ }", None),
        (r"\boxed{5", None),
        (r"\boxed{5} and then \boxed{6", None),
        ("no answer: 5", None),
        ("", None),
    ],
)
def test_boxed(text, expected):
    assert answer(BOXED, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer>5</answer>", "5"),
        ("<answer>5</answer> <answer>6</answer> bye", "6"),
        ("<answer>5", None),
        ("<answer>5</answer><answer>", None),
        ("<answer> </answer>", None),
        ("5</answer>", None),
        ("<answer>\\frac{1}{2}</answer>", "\\frac{1}{2}"),
    ],
)
def test_tags(text, expected):
    assert answer(TAGS, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The final answer is 42.", "42"),
        ("the final answer is: 3.5.", "3.5"),
        ("Final Answer: 3.5\nI hope it is right.", "3.5"),
        ("The final answer is 7. I hope it is right.", "7"),
        ("**Final answer:** 12 apples", "12 apples"),
        ("**Final answer**: 12", "12"),
        ("The final answer is 5. Wait. The final answer is 6.", "6"),
        (r"The final answer is $\frac{1}{2}$.", r"$\frac{1}{2}$"),
        ("Final answer:\n9", "9"),
        ("The final answer is", None),
        ("The final answer is .", None),
        ("The answer is 5", None),
        ("I am at the final answer 5", None),
    ],
)
def test_final_answer(text, expected):
    assert answer(FINAL_ANSWER, text) == expected


def test_the_lead_in_of_a_final_answer_is_the_whole_phrase():
    text = "So 6. The final answer is 6."
    span = FINAL_ANSWER.find(text)
    assert text[span.lead_start : span.start] == "The final answer is "


balanced = st.recursive(
    st.text(st.characters(blacklist_characters="{}\\", blacklist_categories=("Cs",)), min_size=1, max_size=8),
    lambda inner: st.builds(lambda a, b: f"{a}\\frac{{{b}}}{{x}}", inner, inner),
    max_leaves=8,
)


@given(balanced.filter(lambda text: text.strip()), st.text(max_size=30), st.text("ab }", max_size=10))
def test_what_was_put_into_a_box_comes_out(inside, before, after):
    text = before + r"\boxed{" + inside + "}" + after
    span = BOXED.find(text)
    assert span.text == inside.strip()
    assert span.text == text[span.start : span.end]
    assert text[span.lead_start :].startswith(r"\boxed{")


@given(st.sampled_from([*BUILT_IN.values()]), st.integers().map(str))
def test_every_format_finds_what_it_states(fmt, number):
    assert answer(fmt, "Thinking. " + fmt.state(number)) == number


@given(st.sampled_from([*BUILT_IN.values()]), st.text("\\boxed{}<answer>/fil :.\n", max_size=200))
def test_a_span_is_always_inside_the_text_and_never_empty(fmt, text):
    span = fmt.find(text)
    if span is not None:
        assert 0 <= span.lead_start <= span.start < span.end <= len(text)
        assert text[span.start : span.end] == span.text == span.text.strip() != ""


@pytest.mark.parametrize(
    "text",
    [
        "{" * 100_000,
        r"\boxed{" * 100_000,
        r"\boxed{" + "{" * 100_000,
        r"\boxed{" * 50_000 + "}" * 49_999,
        "<answer>" * 100_000,
        "final answer is " * 50_000,
        "the " * 100_000,
        "final" + " " * 100_000,
        "1," * 100_000,
        "1" * 100_000,
        "1,111" * 30_000,
        "-" * 100_000,
        "\\" * 100_000,
    ],
    ids=lambda text: text[:12],
)
def test_hostile_texts_are_answered(text):
    """Each of these would take minutes with a search that is quadratic."""
    custom = AnswerFormat.from_pattern(r"answer\s*:\s*(.+)")
    for fmt in (BOXED, TAGS, FINAL_ANSWER, custom):
        assert fmt.find(text) is None or fmt.find(text).text
    assert last_number(text) is None or last_number(text)


def test_a_custom_pattern_takes_group_one_or_the_named_group():
    assert answer(AnswerFormat.from_pattern(r"#### (\S+)"), "work\n#### 72") == "72"
    named = AnswerFormat.from_pattern(r"(result|answer)=(?P<answer>\d+)")
    span = named.find("x answer=1 result=22")
    assert (span.text, span.lead_start) == ("22", len("x answer=1 "))


def test_a_custom_pattern_sees_the_end_of_the_text_only():
    fmt = AnswerFormat.from_pattern(r"#### (\d+)")
    assert fmt.find("#### 1" + " " * SEARCH_CHARS) is None
    late = fmt.find("x" * SEARCH_CHARS + "#### 12")
    assert (late.lead_start, late.text) == (SEARCH_CHARS, "12")


@pytest.mark.parametrize(
    ("regex", "message"),
    [
        ("(", "not a valid regular expression"),
        ("answer: .+", "no group"),
        ("(a+)+b", "exponential"),
        (r"((?:\d+,?)*)", "exponential"),
        ("((a|aa)*)", "exponential"),
        ("((?:x*){2,})", "exponential"),
    ],
)
def test_unusable_patterns_are_refused(regex, message):
    with pytest.raises(ValueError, match=message):
        AnswerFormat.from_pattern(regex)


@pytest.mark.parametrize(
    "regex", [r"#### (.+)", r"(?:is|=)\s*([0-9.,]+)", r"[(+*]+ (\d+)", r"\(a+\)+(b)", r"(a{2})+"]
)
def test_harmless_patterns_are_accepted(regex):
    assert AnswerFormat.from_pattern(regex).name == f"pattern {regex}"


def test_a_template_has_to_fit_its_pattern():
    fmt = AnswerFormat.from_pattern(r"#### (.+)", template="#### {answer}")
    assert fmt.state("5") == "#### 5"
    assert fmt.instruction == "State the answer as #### ..."
    with pytest.raises(ValueError, match="do not fit"):
        AnswerFormat.from_pattern(r"#### (.+)", template="Answer: {answer}")
    with pytest.raises(ValueError, match="no template"):
        AnswerFormat.from_pattern(r"#### (.+)").state("5")


def test_formats_by_name():
    assert answer_format("boxed") is BOXED
    assert answer_format("tags") is TAGS
    assert answer_format("final-answer") is FINAL_ANSWER
    assert answer(answer_format(r"=> (\d+)"), "=> 8") == "8"
    with pytest.raises(ValueError, match=r"'boxed', 'tags', 'final-answer'.*Did you mean 'boxed'"):
        answer_format("box")


@pytest.mark.parametrize("fmt", [BOXED, TAGS, FINAL_ANSWER, AnswerFormat.from_pattern(r"#### (.+)")])
def test_formats_are_picklable(fmt):
    text = r"The final answer is 5 \boxed{5} <answer>5</answer> #### 5"
    assert pickle.loads(pickle.dumps(fmt)).find(text) == fmt.find(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("it is 1,234", "1234"),
        ("$1,234,567.50 in all", "1234567.50"),
        ("x = -5", "-5"),
        ("10 - 5", "5"),
        ("7-5", "5"),
        ("f(x)-5", "5"),
        ("−5", "-5"),
        ("-$5", "-5"),
        ("3.5", "3.5"),
        ("the answer is 42.", "42"),
        ("3/4 of it", "3/4"),
        (r"-\frac{3}{4}", "-3/4"),
        (r"\frac{-3}{4}", "-3/4"),
        ("1, 2, 3", "3"),
        (".5", "0.5"),
        ("25%", "25"),
        ("two", None),
        ("", None),
    ],
)
def test_last_number(text, number):
    assert last_number(text) == number


@given(st.integers(-(10**12), 10**12), st.text("abc .!?\n", max_size=10))
def test_last_number_reads_thousands_separators(number, after):
    assert last_number(f"first 77 and then {number:,}{after}") == str(number)
