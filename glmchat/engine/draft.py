"""Speculation: tokens that are guessed ahead, to be checked by the model several in one forward.

Each guess is one fixed token, so checking it loses nothing: the token is sampled from the model's own
distribution as ever, and where it is the guessed one, the forward that would follow has been made already.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .cache import Branch
    from .loaded import LoadedModel
    from .mtp import MtpHead

LONGEST_LOOKUP, LONGEST_MTP = 16, 5
"""Tokens guessed at most."""
_MATCHED = (4, 3)  # tokens that must have stood there before; fewer are too often followed by something else
_SLOW = 0.05  # share of the newest guess in the average of how many were right
_USUAL = 0.7  # what that average is before anything was seen
_SEEN = 7  # times of steps that are remembered; their median is what a step takes
_FIRST, _PLAIN_EVERY = 3, 64  # steps without a guess: what guessing is compared with
_PROBE_EVERY, _PROBE = 32, (1, 2)  # where guessing did not pay, it is tried again in these of so many steps


class Pace:
    """How many tokens to guess, so that the most come out in a second.

    From what was seen lately: the time of a plain step, what each guess adds to it, and how often a guess is
    right. Where that says that no guess pays, one is made now and then all the same, to see; in two steps, as
    the first after others takes longer: an MTP layer reads first what came meanwhile.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._plain: deque[float] = deque(maxlen=_SEEN)
        self._added: deque[float] = deque(maxlen=_SEEN)
        self._plain_s = self._guess_s = 0.0
        self._right = _USUAL
        self._steps = 0
        self._chosen = 0
        self._catches_up = False

    def choose(self) -> int:
        """How many to guess in the next step."""
        before, self._chosen = self._chosen, self._choice()
        self._catches_up = not before
        return self._chosen

    def _choice(self) -> int:
        self._steps += 1
        if self._steps <= _FIRST or self._steps % _PLAIN_EVERY == 0:
            return 0
        if len(self._added) < _FIRST:
            return min(2, self._longest)
        best = max(range(self._longest + 1), key=self._rate)
        if best == 0:  # what was bad luck is forgotten little by little
            self._right = _towards(self._right, _USUAL, _SLOW / 5)
        return best or int(self._steps % _PROBE_EVERY in _PROBE)

    def observe(self, guessed: int, right: int, seconds: float) -> None:
        """A step with so many guesses took so long."""
        if not guessed:
            self._plain.append(seconds)
            self._plain_s = median(self._plain)
            return
        if not self._catches_up:
            self._added.append(max(0.01 * self._plain_s, (seconds - self._plain_s) / guessed))
            self._guess_s = median(self._added)
        for _ in range(right):
            self._right = _towards(self._right, 1.0)
        if right < guessed:
            self._right = _towards(self._right, 0.0)

    def _rate(self, guesses: int) -> float:
        """Tokens in a second with so many guesses, each as often right as those before it."""
        tokens = sum(self._right**n for n in range(guesses + 1))
        return tokens / (self._plain_s + guesses * self._guess_s or 1.0)


def _towards(average: float, newest: float, share: float = _SLOW) -> float:
    return average + share * (newest - average)


class Drafter(Protocol):
    """Guesses what follows, in one turn."""

    def read(self, ids: list[int], states: Any) -> None:
        """The model has read these tokens; `states` [1, n, H] are its own of them, if it has an MTP layer."""
        ...

    def draft(self, token_id: int, most: int) -> list[int]:
        """At most so many tokens that may follow `token_id`, which follows what was read."""
        ...

    def settle(self) -> None:
        """Compute what can be, for another turn that begins like this one."""
        ...

    @property
    def settled(self) -> bool:
        """Whether another turn could go on right here with the state of the last token read."""
        ...


class Lookup:
    """What followed the newest tokens where they stood before, in the prompt or the answer.

    Tokens are kept as characters, among which Python finds some in microseconds: the last place of each three
    or four in a dictionary takes longer to make, for 128,000 tokens a third of a second, than all searches.
    """

    def __init__(self, ids: list[int]) -> None:
        """With what the model has read before."""
        self._text = ""
        self._more = list(ids)  # which is put there when it is asked for and the first token is out

    def read(self, ids: list[int], states: Any) -> None:
        self._more += ids

    def draft(self, token_id: int, most: int) -> list[int]:
        # All token ids are characters: of these there are a million, more than in any vocabulary.
        self._text += "".join(map(chr, self._more))
        self._more.clear()
        text = self._text
        for length in _MATCHED:
            newest = text[1 - length :] + chr(token_id)
            at = text.rfind(newest, 0, -1)  # not at the end, where nothing follows yet
            if at >= 0:
                return [*map(ord, text[at + length : at + length + most])]
        return []

    def settle(self) -> None:
        """Nothing of it outlasts the turn."""

    @property
    def settled(self) -> bool:
        return True


class Mtp:
    """GLM's own MTP layer, run again on its own output for more than one token."""

    def __init__(self, head: MtpHead, loaded: LoadedModel, branch: Branch) -> None:
        if branch.drafts is None:
            branch.drafts = head.new_cache()
            branch.drafts_from = len(branch.ids) - (branch.last is not None)
        self._head = head
        self._loaded = loaded
        self._cache = branch.drafts
        self._states: Any = branch.last[1] if branch.last else None
        """Of tokens read whose last has no successor yet."""
        self._ids: list[int] = []  # their successors, less that one

    def read(self, ids: list[int], states: Any) -> None:
        if self._states is None:
            self._states, self._ids = states, ids[1:]
        else:
            self._states = self._loaded.join(self._states, states)
            self._ids += ids
        if len(self._ids) >= 64:  # a prompt, or an answer in which little is guessed
            self._follow(len(self._ids))

    def settle(self) -> None:
        if self._ids:
            self._follow(len(self._ids))

    @property
    def settled(self) -> bool:
        return self._states is not None and not self._ids

    def _follow(self, count: int) -> Any:
        """Run the layer on so many of the tokens that were read; its states."""
        out = self._head.forward(self._loaded.ids(self._ids[:count]), self._states[:, :count], self._cache)
        self._states, self._ids = self._states[:, count:], self._ids[count:]
        return out

    def draft(self, token_id: int, most: int) -> list[int]:
        if not most:
            return []
        self._ids.append(token_id)
        at_once = self._head.draft(self._ids, self._states, self._cache, most)
        if at_once is not None:
            self._states, self._ids = None, []
            self._cache.crop(1 - most)  # what follows a guess
            return at_once
        state = self._follow(len(self._ids))[:, -1:]
        self._states = None
        guesses: list[Any] = []
        for number in range(most):
            if number:
                state = self._head.forward(guesses[-1], state, self._cache)
            guesses.append(self._head.logits(state).argmax(-1))
        self._cache.crop(1 - most)  # what follows a guess
        return [int(guess) for guess in guesses]
