"""What of a model's text is said aloud: thinking is private, and a caregiver speaks for nobody else.

Every kind of malformed text has a defined meaning here and is counted, because a model under training will
produce all of them.

    only thinking                  nothing is said aloud
    nothing, or an end token       nothing is said aloud
    another role's markers         the words before the marker are said aloud, the rest is dropped
    a patient's line, imitated     likewise
    more than MAX_WORDS words      the patient hears the first MAX_WORDS, and of words without spaces between
                                   them the first MAX_CHARACTERS characters
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from threefold.envs.caregiver.labels import default_lookup

MAX_WORDS = 120
"""About three times what the prompt allows; who listens to more loses the thread."""
MAX_CHARACTERS = 1200
"""Ten for each of these words: a model may write ten thousand tokens without a space."""

_MARK = r"[ \t*_]*"
"""Spaces, and the signs with which models print names in bold."""
_LINE = r"[ \t*_#>-]*"
"""What may stand at the beginning of a line before a name: those, and the signs of headings and lists."""
_ROLE = re.compile(
    r"<[|\uff5c][^|\uff5c<>\n]{1,40}[|\uff5c]>|</?(?:s|bos|eos|pad|unk)>|\[/?INST\]|<</?SYS>>"
    r"|<(?:start|end)_of_turn>|</?(?:system|user|human|assistant|model|tool)>"
    rf"|(?:^|\n){_LINE}(?:system|user|human|assistant|tool){_MARK}(?::|\n)",
    re.IGNORECASE,
)
_SPEAKER = re.compile(r"^[\s*_]*(?:assistant|caregiver|carer|nurse|response)[ \t*_]*:[\s*_]*", re.IGNORECASE)
_THINK = re.compile(r"<(/?)think(?:ing)?\b[^<>]*>", re.IGNORECASE)
_RESPONSE = re.compile(r"<response>(.*?)(?:</response>|<response>|\Z)", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"</?(?:think|thinking|response)>?", re.IGNORECASE)
_CUES = re.compile(r"\[([^\]\n]{2,160})\]")


@dataclass(frozen=True)
class Heard:
    """What was said aloud, and what was wrong with the text it came from."""

    said: str
    only_thinking: bool = False
    """There was text, but all of it was private."""
    other_role: bool = False
    """Markers of another role were in it."""
    imitates_patient: bool = False
    """It went on to speak as the patient."""
    overlong: bool = False
    """More than `MAX_WORDS` words or `MAX_CHARACTERS` characters."""

    @property
    def silent(self) -> bool:
        """Nothing was said aloud."""
        return not self.said

    @property
    def malformed(self) -> bool:
        return self.silent or self.other_role or self.imitates_patient or self.overlong


def hear(text: str, patient_name: str = "") -> Heard:
    """The words of a model's turn that patient and judges hear; never raises.

    Private thinking goes first, whatever it holds. Then, where there is a <response>, only its content
    counts. Then what follows a marker of another role, or a line as the patient, is cut off.
    """
    spoken = _without_thinking(text)
    had_thinking = spoken != text
    response = _RESPONSE.search(spoken)
    if response:
        spoken = response.group(1)
    spoken = _SPEAKER.sub("", _TAG.sub(" ", spoken))
    role = _ROLE.search(spoken)
    if role:
        spoken = spoken[: role.start()]
    imitation = _imitation(spoken, patient_name)
    if imitation is not None:
        spoken = spoken[:imitation]
    words = spoken.split()
    whole = " ".join(words)
    said = " ".join(words[:MAX_WORDS])[:MAX_CHARACTERS].rstrip()
    return Heard(
        said,
        only_thinking=not said and had_thinking,
        other_role=role is not None,
        imitates_patient=imitation is not None,
        overlong=said != whole,
    )


def before_markers(text: str) -> str:
    """The text up to the first marker of another role: what may stand in somebody else's context."""
    role = _ROLE.search(text)
    return text[: role.start()] if role else text


def _without_thinking(text: str) -> str:
    """The text outside of <think> ... </think>; what no tag closes is private to the end.

    A closing tag that nothing opened makes all before it private: templates that open the thinking themselves
    leave only its end to be seen, and of thinking within thinking the inner end comes first.
    """
    aloud: list[str] = []
    start, private = 0, False
    for tag in _THINK.finditer(text):
        if tag[1] and not private:
            aloud.clear()
        elif not private:
            aloud.append(text[start : tag.start()])
        private, start = not tag[1], tag.end()
    if not private:
        aloud.append(text[start:])
    return " ".join(aloud)


@functools.lru_cache(maxsize=4096)
def _speaks_as(name: str) -> re.Pattern[str]:
    names = ["patient", "resident", *re.findall(r"\w+", name), name]
    alternatives = "|".join(re.escape(part) for part in names if part)
    # Spaces and tabs only: \s here would take quadratic time over thousands of empty lines.
    aside = r"(?:\([^()\n]{0,40}\)[ \t*_]*)?"
    return re.compile(
        rf"(?:(?:^|\n){_LINE}|(?<=[.?!\]]\s){_MARK})(?:{alternatives}){_MARK}{aside}:", re.IGNORECASE
    )


def _imitation(text: str, patient_name: str) -> int | None:
    """Where the text begins to speak as the patient: "Patient: ...", "- **Rosa:** ...", "Rosa (smiling):
    ...", "[frowning] ..."."""
    speaks = _speaks_as(patient_name).search(text)
    starts = [speaks.start()] if speaks else []
    labels = default_lookup().labels
    for cue in _CUES.finditer(text):
        if all(part.strip().lower() in labels for part in re.split("[;,]", cue.group(1))):
            starts.append(cue.start())
    return min(starts, default=None)
