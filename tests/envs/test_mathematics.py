"""The verifier, the rewards and the prompts of mathematics problems."""

import itertools
import json
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from threefold.answers import BOXED, FINAL_ANSWER, TAGS, AnswerFormat
from threefold.envs import symbolic
from threefold.envs.mathematics import (
    GENERIC,
    QWEN_MATH,
    SMALL,
    PromptStyle,
    accuracy_reward,
    completion_text,
    format_reward,
    messages,
    plain_prompt,
    score,
    style_for,
    verify,
)
from threefold.envs.problems import Problem
from threefold.envs.verifier import MAX_ANSWER_CHARS

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "math"
PROBLEM = Problem("p", "What is 29 + 44?", "73")

SAME = [
    # units, prices and percentages
    ("9 apples", "9"),
    ("9", "9 apples"),
    ("9 red apples", "9 apples"),
    ("$18", "18"),
    (r"\$18", "18"),
    ("$18$", "18"),
    ("18 dollars", "$18"),
    ("18.00", "18"),
    ("25%", "25"),
    (r"25\%", "0.25"),
    ("0.25", "25%"),
    ("25 percent", "25%"),
    ("5cm", "5"),
    ("5 cm^2", "5"),
    ("5 m/s", "5"),
    (r"5\text{ m}", "5"),
    ("5 million", "5,000,000"),
    (r"90^\circ", "90"),
    ("90°", "90 degrees"),
    ("6th", "6"),
    # numbers
    ("1,234", "1234"),
    ("1{,}234", "1234"),
    (r"10\,000", "10000"),
    ("3/4", "0.75"),
    (r"\frac{3}{4}", "0.75"),
    (r"\dfrac34", "3/4"),
    (r"-\frac{1}{2}", "-0.5"),
    (r"\frac{-1}{2}", r"-\frac{1}{2}"),
    ("1 1/2", "1.5"),
    (r"1\frac{1}{2}", "3/2"),
    ("−5", "-5"),
    ("0.333333", "1/3"),
    ("1e3", "1000"),
    ("**42**", "42"),
    (r"$\boxed{204}$", "204"),
    # words
    ("blue", "Blue"),
    ("Blue.", "blue"),
    (r"\text{east}", "East"),
    ("Mrs Hilt", "Mrs. Hilt"),
    ("3:30 pm", "3:30 p.m."),
    ("the 60th caller", "60th caller."),
    ("Sam's dog", "Sams dog"),
    # formulas
    ("(3,4)", "(3, 4)"),
    (r"(3,\pi/2)", r"\left( 3, \frac{\pi}{2} \right)"),
    ("x=5", "5"),
    ("5", "x=5"),
    (r"3\sqrt{2}", r"\sqrt{18}"),
    ("1+x", "x + 1"),
    ("-2, 1", "1,-2"),
    ("$69$,$84$", "69,84"),
    (r"\frac{1}{\tan x}", r"\cot x"),
]
DIFFERENT = [
    # a number inside prose is not an answer
    ("7 or maybe 8", "8"),
    ("7 or maybe 8", "7"),
    ("7 or 8", "7"),
    ("not 7", "7"),
    ("The answer is 7", "7"),
    ("3", "February 3rd"),
    ("February 3rd", "3"),
    # other words, letters and units
    ("west", "east"),
    ("on", "no"),
    ("light blue", "blue"),
    ("3:30 am", "3:30 p.m."),
    ("5 km", "5 m"),
    ("9 oranges", "9 apples"),
    ("$5", "5%"),
    ("2x", "2"),
    ("2", "2x"),
    ("2xy", "2"),
    ("2 pi", "2"),
    # other numbers and formulas
    ("5 million", "5"),
    ("26%", "25"),
    ("12,34", "1234"),
    ("1000001", "1000000"),
    ("0.333", "1/3"),
    ("0.333335", "1/3"),
    ("(4,3)", "(3,4)"),
    ("x-1", "x+1"),
    ("5:7", "5:6"),
    # malformed
    (r"\frac{1}{2", "0.5"),
    ("1/0", "1"),
    (r"\frac{1}{0}", "1"),
    ("{" * 400, "1"),
    (r"\\\\", "1"),
    ("", "5"),
    ("5", ""),
    (" . ", "5"),
    (r"\text{}", "5"),
    ("the", "5"),
    ("<answer>", "5"),
    (r"\,", "5"),
]


@pytest.mark.parametrize(("predicted", "gold"), SAME)
def test_same_answers(predicted, gold):
    assert verify(predicted, gold)


@pytest.mark.parametrize(("predicted", "gold"), DIFFERENT)
def test_different_answers(predicted, gold):
    assert not verify(predicted, gold)


@given(
    st.integers(-(10**9), 10**9),
    st.sampled_from(["{:,}", "{}.0", "${}$", "{} apples", r"\boxed{{{}}}", "{}."]),
)
def test_a_number_is_right_in_every_notation_and_its_neighbour_in_none(number, notation):
    assert verify(notation.format(number), str(number))
    assert not verify(notation.format(number), str(number + 1))


@given(st.fractions(min_value=-100, max_value=100, max_denominator=99))
def test_fractions_are_exact(value):
    assert verify(rf"\frac{{{value.numerator}}}{{{value.denominator}}}", str(value))
    assert not verify(str(value), str(value + 1))


PIECES = [
    "\\frac",
    "{",
    "}",
    "\\text{",
    "$",
    "%",
    "1",
    "7.5",
    "/",
    "x",
    " ",
    "the",
    "or",
    "\\pi",
    ",",
    "(",
    ")",
    "_",
    "=",
]


@settings(deadline=None)
@given(
    st.one_of(
        st.text(max_size=40).filter(lambda text: "^" not in text),  # a power tower would cost its time limit
        st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
    ),
    st.sampled_from(["17", "blue", "3/4"]),
)
def test_nothing_makes_the_verifier_raise(text, gold):
    assert verify(text, gold) in (True, False)


def test_an_overlong_answer_is_right_only_letter_by_letter():
    gold = "1+" * MAX_ANSWER_CHARS + "1"
    assert verify(gold, gold)
    assert not verify("0+" + gold, gold)


def test_formulas_are_compared_in_threads_of_their_own():
    results = []
    threads = [
        threading.Thread(target=lambda k=k: results.append(verify(rf"\sqrt{{{k * k}}} + x", f"x + {k}")))
        for k in range(2, 6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4


def test_a_formula_that_never_ends_is_wrong_and_the_next_one_is_still_compared(tmp_path):
    """9^{9^9} has 370 million digits. In a fresh process, with a shorter time limit."""
    script = tmp_path / "symbolic_with_short_limit.py"
    source = Path(symbolic.__file__).read_text(encoding="utf-8")
    assert "TIME_LIMIT_SECONDS = 5.0" in source
    script.write_text(
        source.replace("TIME_LIMIT_SECONDS = 5.0", "TIME_LIMIT_SECONDS = 1.5"), encoding="utf-8"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from symbolic_with_short_limit import same_formula as same\n"
        "print(same('9^{9^9}', '3'), same('1+x', 'x+1'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_an_answer_that_was_not_waited_for_is_not_the_next_formula_s():
    """As in a notebook: an interrupt while Math-Verify is at work, and the next formula."""
    code = (
        "import signal\n"
        "from threefold.envs.symbolic import same_formula as same\n"
        "same('1', 'x')  # the child has started\n"
        "signal.signal(signal.SIGALRM, signal.default_int_handler)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.5)\n"
        "try:\n"
        "    print(same('9^{9^9}', '3'))\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
        "print(same('1+x', 'x+1'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["interrupted", "True"]


@pytest.mark.skipif(not DATA.is_dir(), reason="the development data of ../shared/data/math are absent")
@pytest.mark.parametrize("name", ["asdiv", "math500", "olympiadbench", "gsm8k_test"])
def test_every_gold_answer_is_its_own_answer_and_not_the_next_ones(name):
    golds = [json.loads(line)["answer"] for line in (DATA / f"{name}.jsonl").open(encoding="utf-8")]
    assert all(verify(gold, gold) for gold in golds)
    numbers = [gold for gold in golds if gold.lstrip("-").isdigit()]
    assert not any(verify(a, b) for a, b in itertools.pairwise(numbers) if int(a) != int(b))


@pytest.mark.skipif(not DATA.is_dir(), reason="the development data of ../shared/data/math are absent")
def test_gold_formulas_are_found_in_other_notation():
    golds = [json.loads(line)["answer"] for line in (DATA / "math500.jsonl").open(encoding="utf-8")]
    fractions = [gold for gold in golds if gold.startswith("\\frac{") and "\\text" not in gold][:25]
    assert len(fractions) >= 20
    wrong = [
        gold for gold in fractions if not verify("$" + gold.replace("\\frac", "\\dfrac ") + " + 0$", gold)
    ]
    assert wrong == []


def test_scores_tell_format_and_number_apart():
    right = score(r"29 + 44 = 73. The answer is \boxed{73}.", PROBLEM, BOXED)
    unboxed = score("It is 73.", PROBLEM, BOXED)
    wrong = score(r"\boxed{72}, or rather 73", PROBLEM, BOXED)
    silent = score("I do not know.", PROBLEM, BOXED)
    assert (right.strict, right.last_number, right.formatted) == (True, True, True)
    assert (unboxed.strict, unboxed.last_number, unboxed.formatted) == (False, True, False)
    assert (wrong.strict, wrong.last_number, wrong.formatted) == (False, True, True)
    assert (silent.strict, silent.last_number, silent.formatted) == (False, False, False)


COMPLETIONS = [r"\boxed{73}", r"\boxed{74}", "73", r"\boxed{73"]


@pytest.mark.parametrize("conversational", [False, True])
def test_rewards_of_plain_and_of_conversational_completions(conversational):
    completions = [
        [{"role": "assistant", "content": text}] if conversational else text for text in COMPLETIONS
    ]
    columns = {
        "answer": ["73"] * 4,
        "question": ["?"] * 4,
        "completion_ids": [[1]] * 4,
        "trainer_state": None,
    }
    assert accuracy_reward(BOXED)(completions=completions, **columns) == [1.0, 0.0, 0.0, 0.0]
    assert format_reward(BOXED)(completions=completions, **columns) == [1.0, 1.0, 0.0, 0.0]


def test_the_last_message_of_the_assistant_counts():
    chat = [
        {"role": "assistant", "content": "first"},
        {"role": "tool", "content": "result"},
        {"role": "assistant", "content": [{"type": "text", "text": "la"}, {"type": "text", "text": "st"}]},
        {"role": "tool", "content": "late"},
    ]
    assert completion_text(chat) == "last"
    assert completion_text([{"role": "assistant", "content": None}]) == ""
    assert completion_text([]) == ""


def test_rewards_have_the_names_that_trl_logs_and_survive_pickling():
    from trl.trainer.utils import get_callable_name, is_async_callable

    for reward, name in ((accuracy_reward(TAGS), "accuracy"), (format_reward(TAGS), "format")):
        assert get_callable_name(reward) == name
        assert not is_async_callable(reward)
        assert pickle.loads(pickle.dumps(reward)) == reward


def test_a_missing_answer_column_is_named_with_its_nearest():
    reward = accuracy_reward(BOXED, column="target")
    assert reward(COMPLETIONS, target=[73, 74, 73, 73]) == [1.0, 1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match=r"column 'target'.*prompts, targets.*column='targets'"):
        reward(COMPLETIONS, targets=["73"] * 4, prompts=[""] * 4)


def test_a_small_model_is_shown_one_worked_example():
    style = style_for("HuggingFaceTB/SmolLM2-135M-Instruct", "llama")
    assert style == SMALL
    assert messages(PROBLEM, style, BOXED) == [
        {"role": "system", "content": "Answer the question."},
        {"role": "user", "content": r"What is 2 + 3? Put the answer in \boxed{}."},
        {"role": "assistant", "content": r"2 + 3 = 5. The answer is \boxed{5}."},
        {"role": "user", "content": r"What is 29 + 44? Put the answer in \boxed{}."},
    ]


def test_qwen_math_gets_the_prompt_it_was_trained_with():
    style = style_for("Qwen/Qwen2.5-Math-7B", "qwen2")
    assert style == QWEN_MATH
    assert messages(PROBLEM, style, BOXED) == [
        {
            "role": "system",
            "content": r"Please reason step by step, and put your final answer within \boxed{}.",
        },
        {"role": "user", "content": "What is 29 + 44?"},
    ]
    assert style_for("Qwen/Qwen2.5-Math-7B", "qwen2", TAGS) == GENERIC
    with pytest.raises(ValueError, match=r"'boxed', but the format in use is 'tags'"):
        messages(PROBLEM, style, TAGS)


@pytest.mark.parametrize(
    ("name", "style"),
    [
        ("Qwen/Qwen2.5-Coder-0.5B-Instruct", SMALL),
        ("models/smollm2", SMALL),
        ("google/gemma-3-270m-it", SMALL),
        ("meta-llama/Llama-3.2-1B-Instruct", SMALL),
        ("meta-llama/Llama-3.1-8B-Instruct", GENERIC),
        ("Qwen/Qwen3-1.7B", GENERIC),
        ("runs/smollm-135m/checkpoint-100", GENERIC),
    ],
)
def test_the_size_in_the_name_chooses_the_style(name, style):
    assert style_for(name) == style


def test_models_without_a_system_role_get_no_system_message():
    chat = messages(PROBLEM, style_for("google/gemma-3-270m-it", "gemma3_text"), BOXED)
    assert [message["role"] for message in chat] == ["user", "assistant", "user"]
    assert messages(PROBLEM, GENERIC, TAGS) == [
        {
            "role": "user",
            "content": "What is 29 + 44?\nReason step by step. Put the answer in <answer></answer>.",
        }
    ]


@pytest.mark.parametrize("fmt", [BOXED, TAGS, FINAL_ANSWER])
def test_worked_examples_are_in_the_asked_format(fmt):
    shown = messages(PROBLEM, SMALL, fmt)[2]["content"]
    assert fmt.find(shown).text == "5"


def test_a_format_without_template_is_asked_for_without_examples():
    fmt = AnswerFormat.from_pattern(r"=> (\d+)", instruction="Write => and the number.")
    assert messages(PROBLEM, PromptStyle(examples=SMALL.examples), fmt) == [
        {"role": "user", "content": "What is 29 + 44?\nWrite => and the number."}
    ]


def test_a_base_model_gets_a_text_to_continue():
    assert plain_prompt(PROBLEM, PromptStyle(question_template="{question}"), BOXED) == (
        "Question: What is 2 + 3?\nAnswer: 2 + 3 = 5. The answer is \\boxed{5}.\n\n"
        "Question: What is 29 + 44?\nAnswer:"
    )


def test_braces_in_a_question_are_left_alone():
    problem = Problem("q", r"Simplify \frac{6}{8} in {instruction} and {0}", "3/4")
    assert (
        messages(problem, PromptStyle(question_template="{question}"), BOXED)[0]["content"]
        == problem.question
    )
