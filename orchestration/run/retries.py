"""Decide which trials are resumed after their worker died or ran out of memory, and when a trial is given up."""

from __future__ import annotations

from dataclasses import dataclass

# A trial is given up after its worker died this many times without finishing an epoch in between. A trial whose node
# is taken away now and then loses only the epoch in progress, and never reaches the limit; a trial that kills its
# worker every time does.
DEATHS = 3
OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True)
class Retry:
    """The decision that a trial is to run again.

    Attributes:
        fewer: whether fewer trials should run beside it.
        reason: one line that tells the user why.
    """

    fewer: bool
    reason: str


class Retries:
    """The worker deaths and memory shortages of each trial in a running study."""

    def __init__(self) -> None:
        self._deaths: dict[int, tuple[int, int]] = {}  # trial -> epochs done at its last death, deaths since that epoch
        self._crowded: set[int] = set()  # trials that ran out of memory once
        self._words: dict[int, str] = {}  # trial -> Ray's message on the death of its worker

    def heard(self, number: int, words: str) -> None:
        """Remember Ray's message on the death of a trial's worker, for the call of `died` that follows.

        Args:
            number: number of the trial.
            words: the message, of any number of lines.
        """
        self._words[number] = words

    def died(self, number: int, epochs: int) -> Retry | str:
        """Decide what to do with a trial whose worker ended without a result.

        Args:
            number: number of the trial.
            epochs: number of epochs that the trial had finished.

        Returns:
            The retry, or one line that says why the trial is given up.
        """
        words = self._words.pop(number, "")
        if "low on memory" in words:  # Ray killed the worker before the kernel would have done so
            return self.out_of_memory(number, f"{OUT_OF_MEMORY} on its node after epoch {epochs}")
        before, deaths = self._deaths.get(number, (-1, 0))
        deaths = deaths + 1 if epochs <= before else 1
        # What was trained since the last checkpoint is trained again, which is no progress.
        self._deaths[number] = (max(before, epochs), deaths)
        why = _last_line(words)
        if deaths >= DEATHS:
            return f"the worker died after epoch {epochs}, {deaths} times ({why or 'killed, or out of memory?'})"
        # A process that the kernel killed because memory ran out looks like any other that was killed. The last attempt
        # therefore runs with fewer trials beside it.
        reason = f"the worker died after epoch {epochs}" + (f" ({why})" if why else "")
        return Retry(fewer=deaths == DEATHS - 1, reason=reason)

    def out_of_memory(self, number: int, error: str) -> Retry | str:
        """Decide what to do with a trial that ran out of memory.

        Args:
            number: number of the trial.
            error: one line that says where memory ran out.

        Returns:
            A retry with fewer trials beside it the first time; after that one line that says what the user can change.
        """
        if number in self._crowded:
            return f"{error}; again with fewer side by side: lower train.batch_size, or raise train.accumulate"
        self._crowded.add(number)
        return Retry(fewer=True, reason=error)


def _last_line(words: str) -> str:
    """Return the last line, at most 200 characters, of an exception that the worker itself raised.

    Return an empty text if the worker's process just died, of which Ray's message gives no further reason.
    """
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    return lines[-1][:200] if lines and "RayTaskError" in words else ""
