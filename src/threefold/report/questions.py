"""Three questions to a run, answered in words with numbers: is it learning, is the signal real, is it safe?

An answer is a verdict and the findings that it rests on. Held-out figures count before those of training, and
an interval decides, never a mean alone. What was not measured is said, not passed over.
"""

from __future__ import annotations

from collections.abc import Sequence

from threefold.report.findings import Answer, Finding
from threefold.report.learning import learning
from threefold.report.reading import Run
from threefold.report.realness import signal
from threefold.report.safety import safety

__all__ = ["Answer", "Finding", "answers", "learning", "safety", "signal"]


def answers(run: Run, controls: Sequence[Finding] = ()) -> tuple[Answer, Answer, Answer]:
    """The three answers.

    Args:
        run: What was read.
        controls: What a noise control among the runs says of this one, the decisive finding first; see
            `arms.control_pairs`.
    """
    return learning(run), signal(run, controls), safety(run)
