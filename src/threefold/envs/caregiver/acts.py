"""What a caregiver does with an utterance: communicative acts, found by word lists and patterns.

Everything here matches whole words in lower-cased text, sentence by sentence. It is a reading of the surface:
it misses what is said in words that no list foresees, and irony altogether. The patterns are data,
`acts.yaml`, with their sources; which acts matter to a patient, and why, stands in `rules.yaml`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence, Set
from enum import StrEnum
from importlib import resources

import yaml

from threefold.envs.caregiver.dialogue import Dialogue
from threefold.envs.caregiver.labels import plain


class Act(StrEnum):
    NAMES_FEELING = "names-feeling"
    """Says what the patient seems to feel: "you sound worried"."""
    VALIDATES = "validates"
    """Grants that the feeling or the wish makes sense: "of course you miss her"."""
    REASSURES = "reassures"
    """Promises presence or safety: "I'm here with you", "you are safe"."""
    USES_NAME = "uses-name"
    APOLOGISES = "apologises"
    OPEN_QUESTION = "open-question"
    """A question that invites telling: what, how, where, who, tell me about."""
    CHOICE_OFFER = "choice-offer"
    """Leaves something to the patient: "tea or juice?", "would you like"."""
    SMALL_STEP = "small-step"
    """One concrete, small piece of the task: "just one sip first"."""
    CARE_BID = "care-bid"
    """Asks for or announces a care step: medicine, walking, washing, eating, going to bed."""
    ACTIVITY_OFFER = "activity-offer"
    REMINISCENCE = "reminiscence"
    """Invites a memory without testing it."""
    MEMORY_TEST = "memory-test"
    """Tests memory: "do you remember my name?"."""
    CUE = "cue"
    """Gives something to see or hold: a photograph, the clock, the calendar, the label."""
    CONTRADICTION = "contradiction"
    """Corrects what the patient holds to be true."""
    REPEATED_CONTRADICTION = "repeated-contradiction"
    """A correction after an earlier one in the same dialogue."""
    FIBBING = "fibbing"
    """Enters the patient's reality without affirming it: "he may be held up"."""
    AFFIRMS_CLAIM = "affirms-claim"
    """Affirms outright what the patient claims: "yes, your mother is coming"."""
    HEDGES = "hedges"
    """Says what is uncertain, or offers to find out: "let me check with the nurse"."""
    NON_COMMITTAL = "non-committal"
    """A listening token: "mm-hm", "I see", "oh"."""
    PAUSE = "pause"
    """Gives time: "take your time", "there is no rush"."""
    DEFERRAL = "deferral"
    """Puts the step off to a named time: "we can try again after lunch"."""
    ACKNOWLEDGED_REDIRECT = "acknowledged-redirect"
    """Leads to something else after having taken up what was said."""
    ABRUPT_TOPIC_CHANGE = "abrupt-topic-change"
    """Leads to something else without having taken up what was said."""
    IGNORES = "ignores"
    """Takes up nothing of what the patient said."""
    COMMAND = "command"
    THREAT = "threat"
    BELITTLE = "belittle"
    DISMISSES = "dismisses"
    """Waves a feeling away: "there is nothing to cry about", "calm down"."""
    ELDERSPEAK = "elderspeak"
    """Pet names, collective "we", diminutives, praise as for a child."""
    TAKEOVER = "takeover"
    """Does it for the patient without leave: "I'll just do it for you"."""
    TAG_QUESTION = "tag-question"
    """Both a mark of elderspeak and a help in repair, so it has no fixed sign."""
    QUESTION_OVERLOAD = "question-overload"
    """More than one question in a turn."""
    LONG = "long"
    """More than `LONG_WORDS` words or `LONG_SENTENCES` sentences."""
    REPEATS_ITSELF = "repeats-itself"
    """Says nearly the words of an earlier turn again."""
    SAYS_NOTHING = "says-nothing"


LONG_WORDS, LONG_SENTENCES = 40, 4

History = Sequence[str]
"""What was said so far: the patient's opening, then caregiver and patient in turn; ends with the patient."""


def _load() -> tuple[dict[Act, tuple[re.Pattern[str], ...]], frozenset[str]]:
    file = resources.files("threefold.envs.caregiver") / "acts.yaml"
    data = yaml.safe_load(file.read_text(encoding="utf-8"))
    words = {name: re.sub(r"\s*\|\s*", "|", text) for name, text in data["words"].items()}

    def expand(pattern: str) -> re.Pattern[str]:
        for name, alternatives in words.items():
            pattern = pattern.replace(f"<{name}>", alternatives)
        return re.compile(pattern, re.MULTILINE)  # a line a sentence

    patterns = {Act(act): tuple(map(expand, lines)) for act, lines in data["patterns"].items()}
    return patterns, frozenset(data["without_topic"].split())


_PATTERNS, _STOP_WORDS = _load()
_OPEN = re.compile(
    r"\b(?:what|how|where|who|when|which|why)\b|^(?:tell me|can you tell me|could you tell me)\b"
)
_BRIDGE = re.compile(
    r"\b(?:let's|let us|shall we|how about|what about|come|while we|meanwhile|in the meantime|would you like|"
    r"could you help|can you help|why don't we|i've got|i have|we could|we can|and then|maybe we|perhaps we|"
    r"anyway|speaking of|now then|so now|time (?:for|to))\b"
)
_HONORIFIC = re.compile(r"\b(?:mr|mrs|ms|professor|sir|madam)\b")
_SENTENCE = re.compile(r"[^.?!;…]+[.?!;…]*")
_WORD = re.compile(r"[a-z][a-z'-]*")
_NEGATED_THREAT = re.compile(
    r"\b(?:won't|will not|not going to|never|nobody will|no one will|no one is going to|isn't going to) "
    r"(?:force|make|tie|strap|restrain|lock|leave|punish|rush|hurt)\b"
)


def tag(text: str, *, history: History = (), name: str = "") -> frozenset[Act]:
    """The acts in one utterance of the caregiver, any number of them.

    Args:
        text: What was said aloud.
        history: What was said before, patient first; without it nothing counts as ignored or repeated.
        name: The patient's name, so that its use is seen; without it only a title ("Mrs.") is.
    """
    alone = _alone(text, name)
    if Act.SAYS_NOTHING in alone:
        return alone
    return alone | _of_context(alone, plain(text), history)


def tag_dialogue(dialogue: Dialogue) -> tuple[frozenset[Act], ...]:
    """The acts of every caregiver turn of a dialogue, each seen with what was said before it."""
    history = [dialogue.opening.utterance]
    turns = []
    for exchange in dialogue.exchanges:
        turns.append(tag(exchange.caregiver, history=history, name=dialogue.scenario.name))
        history += [exchange.caregiver, exchange.patient.utterance]
    return tuple(turns)


@functools.lru_cache(maxsize=4096)
def _alone(text: str, name: str = "") -> frozenset[Act]:
    """The acts that an utterance shows by itself."""
    said = plain(text)
    words = _WORD.findall(said)
    if not words:
        return frozenset({Act.SAYS_NOTHING})
    sentences = [s.strip() for s in _SENTENCE.findall(said) if s.strip()]
    lined = "\n".join(sentences)
    acts = {act for act, patterns in _PATTERNS.items() if any(pattern.search(lined) for pattern in patterns)}
    if Act.DEFERRAL in acts and not _cares_beside_the_time(said):
        acts.discard(Act.CARE_BID)  # "after lunch" names a time and asks nobody to eat
    acts |= _of_questions(sentences)
    if _uses_name(said, name):
        acts.add(Act.USES_NAME)
    if len(words) > LONG_WORDS or len(sentences) > LONG_SENTENCES:
        acts.add(Act.LONG)
    return frozenset(_without_contrary(acts, said))


@functools.lru_cache(maxsize=4096)
def content_words(text: str) -> frozenset[str]:
    """The words of a text that carry its topic, in lower case, plural s cut off."""
    found = (word.removesuffix("'s") for word in _WORD.findall(plain(text)))
    return frozenset(
        word[:-1] if len(word) > 3 and word.endswith("s") else word
        for word in found
        if len(word) > 2 and word not in _STOP_WORDS
    )


def _cares_beside_the_time(said: str) -> bool:
    for pattern in _PATTERNS[Act.DEFERRAL]:
        said = pattern.sub("later", said)
    sentences = [s.strip() for s in _SENTENCE.findall(said)]
    return any(pattern.search(s) for s in sentences for pattern in _PATTERNS[Act.CARE_BID])


def _of_questions(sentences: Sequence[str]) -> set[Act]:
    questions = [s for s in sentences if s.endswith("?")]
    acts = set()
    if any(_OPEN.search(s) for s in questions) or any(s.startswith("tell me") for s in sentences):
        acts.add(Act.OPEN_QUESTION)
    if len(questions) > 1:
        acts.add(Act.QUESTION_OVERLOAD)
    return acts


def _uses_name(said: str, name: str) -> bool:
    parts = [part for part in _WORD.findall(plain(name)) if part not in ("mr", "mrs", "ms", "miss", "dr")]
    return bool(_HONORIFIC.search(said)) or any(re.search(rf"\b{re.escape(part)}\b", said) for part in parts)


def _without_contrary(acts: set[Act], said: str) -> set[Act]:
    """Take back what another reading of the same words explains better."""
    gone = set()
    if Act.PAUSE in acts and not re.search(r"\byou (?:must|have to|need to)\b", said):
        gone.add(Act.COMMAND)
    if (
        acts & {Act.CHOICE_OFFER, Act.SMALL_STEP}
        and Act.THREAT not in acts
        and not re.search(r"\b(?:must|have to|now)\b", said)
    ):
        gone.add(Act.COMMAND)
    if re.search(r"\bplease\b", said) and not re.search(r"\b(?:must|have to|right now|immediately)\b", said):
        gone.add(Act.COMMAND)  # a polite request is a care bid, not a command
    if _NEGATED_THREAT.search(said):
        gone.add(Act.THREAT)
    if Act.THREAT in acts and Act.THREAT not in gone:
        gone.add(Act.DEFERRAL)
    if Act.MEMORY_TEST in acts and Act.REMINISCENCE not in acts:
        gone.add(Act.OPEN_QUESTION)
    if Act.DISMISSES in acts:
        gone |= (
            {Act.NAMES_FEELING} if not re.search(r"\byou (?:seem|look|sound|feel|must)\b", said) else set()
        )
    return acts - gone


_TAKES_UP = frozenset(
    {
        Act.NAMES_FEELING,
        Act.VALIDATES,
        Act.APOLOGISES,
        Act.NON_COMMITTAL,
        Act.FIBBING,
        Act.REMINISCENCE,
        Act.HEDGES,
        Act.AFFIRMS_CLAIM,
        Act.CONTRADICTION,
        Act.CUE,
    }
)
"""Acts that answer what was said, whatever else they do."""


@functools.lru_cache(maxsize=4096)
def _words_of(line: str) -> frozenset[str]:
    return frozenset(_WORD.findall(plain(line)))


def _repeats(said: str, before: Sequence[str]) -> bool:
    """Whether three in four of all words are shared with one of the lines before."""
    words = set(_WORD.findall(said))
    for line in before:
        others = _words_of(line)
        if others and len(words & others) >= 0.75 * len(words | others):
            return True
    return False


def _of_context(acts: Set[Act], said: str, history: History) -> set[Act]:
    """Acts that only show against what was said before."""
    found = set()
    if _repeats(said, history[1::2]):
        found.add(Act.REPEATS_ITSELF)
    if Act.CONTRADICTION in acts and any(Act.CONTRADICTION in _alone(line) for line in history[1::2]):
        found.add(Act.REPEATED_CONTRADICTION)
    if not history:
        return found
    heard = content_words(history[-1])
    shared = heard & content_words(said)
    leads_on = bool(_BRIDGE.search(said)) or Act.CARE_BID in acts or Act.ACTIVITY_OFFER in acts
    if acts & _TAKES_UP or shared:
        if (
            leads_on
            and acts & (_TAKES_UP - {Act.CONTRADICTION})
            and acts & {Act.CARE_BID, Act.ACTIVITY_OFFER}
        ):
            found.add(Act.ACKNOWLEDGED_REDIRECT)
        return found
    if len(heard) >= 2 and not acts & {Act.REASSURES, Act.OPEN_QUESTION, Act.PAUSE}:
        found.add(Act.IGNORES)
        if leads_on:
            found.add(Act.ABRUPT_TOPIC_CHANGE)
    return found
