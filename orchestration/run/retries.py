"""Which trials are begun again after their worker died or ran out of memory, and when one is given up."""

from __future__ import annotations

from dataclasses import dataclass

# Deaths of a trial's worker without an epoch between them. A node that is taken away now and then costs a trial no
# more than the epoch it was in; a trial that kills its worker each time is told by this.
DEATHS = 3
OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True)
class Retry:
    """A trial is to run again. `fewer`: with fewer beside it; `reason`: one line for a person."""

    fewer: bool
    reason: str


class Retries:
    """Remembers what befell each trial of a running sweep."""

    def __init__(self) -> None:
        self._deaths: dict[int, tuple[int, int]] = {}  # trial -> epochs done then, deaths since
        self._crowded: set[int] = set()
        self._words: dict[int, str] = {}

    def heard(self, number: int, words: str) -> None:
        """What Ray said of a worker's death, before it is asked what to do."""
        self._words[number] = words

    def died(self, number: int, epochs: int) -> Retry | str:
        """A worker left no result: once more, or why not.

        Args:
            epochs: that the trial had done.
        """
        words = self._words.pop(number, "")
        if "low on memory" in words:  # Ray ended the worker before the kernel would
            return self.out_of_memory(number, f"{OUT_OF_MEMORY} on its node after epoch {epochs}")
        before, deaths = self._deaths.get(number, (-1, 0))
        deaths = deaths + 1 if epochs <= before else 1
        self._deaths[number] = (epochs, deaths)
        why = _last_line(words)
        if deaths >= DEATHS:
            return f"the worker died after epoch {epochs}, {deaths} times ({why or 'killed, or out of memory?'})"
        # The kernel's end of a process that takes too much memory cannot be told from any other.
        reason = f"the worker died after epoch {epochs}" + (f" ({why})" if why else "")
        return Retry(fewer=deaths == DEATHS - 1, reason=reason)

    def out_of_memory(self, number: int, error: str) -> Retry | str:
        """A trial ran out of memory: once more among fewer, or why not."""
        if number in self._crowded:
            return f"{error}; again with fewer side by side: lower train.batch_size, or raise train.accumulate"
        self._crowded.add(number)
        return Retry(fewer=True, reason=error)


def _last_line(words: str) -> str:
    """What an error of the worker's own came to; nothing of a death, of which Ray knows no more than that."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    return lines[-1][:200] if lines and "RayTaskError" in words else ""
