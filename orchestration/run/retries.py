"""Decide which trials are resumed after their worker died or ran out of memory, and when a trial is given up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# A trial is given up after its worker died this many times without finishing an epoch in between. A trial whose node
# is taken away now and then loses only the epoch in progress, and never reaches the limit; a trial that kills its
# worker every time does.
DEATHS = 3
# A trial is given up after it ran out of memory this many times, or once more where fewer than usual ran beside it.
SHORTAGES = 3
OUT_OF_MEMORY = "out of memory"
WORKER_DIED = "the worker died after epoch"  # begins what is said of a death
DEVICE_FAULT = "device fault"  # begins the error of a run whose GPU failed: its process can use that GPU no more


@dataclass(frozen=True)
class Retry:
    """The decision that a trial is to run again.

    Attributes:
        cause: "death" of its worker, want of "memory", or "departure" of its worker, which was told to leave.
        reason: one line that tells the user why.
        again: whether its worker died before, with no epoch in between.
    """

    cause: Literal["death", "memory", "departure"]
    reason: str
    again: bool = False


class Retries:
    """The worker deaths and memory shortages of each trial in a running study."""

    def __init__(self) -> None:
        self._deaths: dict[int, tuple[int, int]] = {}  # trial -> epochs done at its last death, deaths since that epoch
        self._shortages: dict[int, int] = {}  # trial -> how often it ran out of memory
        self._words: dict[int, str] = {}  # trial -> Ray's message on the death of its worker

    def heard(self, number: int, words: str) -> None:
        """Remember Ray's message on the death of a trial's worker, for the call of `died` that follows.

        Args:
            number: number of the trial.
            words: the message, of any number of lines.
        """
        self._words[number] = words

    def died(self, number: int, epochs: int, error: str = "") -> Retry | str:
        """Decide what to do with a trial whose worker ended without a result, or whose GPU failed.

        Args:
            number: number of the trial.
            epochs: number of epochs that the trial had finished.
            error: one line that says how its GPU failed; empty: it did not.

        Returns:
            The retry, or one line that says why the trial is given up.
        """
        words = self._words.pop(number, "")
        before, deaths = self._deaths.get(number, (-1, 0))
        deaths = deaths + 1 if epochs <= before else 1
        # What was trained since the last checkpoint is trained again, which is no progress.
        self._deaths[number] = (max(before, epochs), deaths)
        why = error or _last_line(words)
        if deaths >= DEATHS:
            return f"{WORKER_DIED} {epochs}, {deaths} times ({why or 'killed, or out of memory?'})"
        reason = f"{WORKER_DIED} {epochs}" + (f" ({why})" if why else "")
        return Retry("death", reason, again=deaths > 1)

    def lacked_memory(self, number: int, epochs: int) -> str | None:
        """Return one line if Ray ended a trial's worker because its node ran low on memory; None otherwise.

        Ray does so before the kernel would.
        """
        if "low on memory" not in self._words.get(number, ""):
            return None
        del self._words[number]
        return f"{OUT_OF_MEMORY} on its node after epoch {epochs}"

    def out_of_memory(self, number: int, error: str, *, fewer: bool) -> Retry | str:
        """Decide what to do with a trial that ran out of memory.

        Args:
            number: number of the trial.
            error: one line that says where memory ran out.
            fewer: whether fewer trials than usual ran beside it.

        Returns:
            A retry the first time, and until it ran with fewer beside it; then one line that says what the user can
            change.
        """
        times = self._shortages[number] = self._shortages.get(number, 0) + 1
        if times == SHORTAGES or (times > 1 and fewer):
            return f"{error}; again with fewer side by side: lower train.batch_size, or raise train.accumulate"
        return Retry("memory", error)


def _last_line(words: str) -> str:
    """Return the last line, at most 200 characters, of an exception that the worker itself raised.

    Return an empty text if the worker's process just died, of which Ray's message gives no further reason.
    """
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    return lines[-1][:200] if lines and "RayTaskError" in words else ""
