"""What must be measured on a model before credit can be given.

`locate` splits a completion into reasoning, lead-in and answer, in tokens; `ablate` builds the short second
scoring in which the reasoning is left out; `measure` runs the few forward passes that an estimator asks for.
None of them ever holds a (B, T, V) tensor: scoring goes through a callable that returns log-probabilities and
entropies per token.
"""

from threefold.signals.answer_tokens import AnswerTokens, locate
from threefold.signals.measure import AblatedBatch, ScoreTokens, ablate, measure

__all__ = ["AblatedBatch", "AnswerTokens", "ScoreTokens", "ablate", "locate", "measure"]
