"""Keep trials away from places where workers die or lack memory: a GPU, or a node where trials ask for no GPU.

What is tried never depends on this, only where it runs. A trial does not go back to a place where its worker died. A
place where the workers of several trials died, with no epoch in between, gets one trial at a time, if it had room for
more; if another trial dies there then, no trial goes there any more. The last place of a cluster is never excluded.
Where memory was short, half as many trials run side by side; places are given back after successes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

DEATHS_THERE = 3  # trials whose workers died at a place, with no epoch in between, before it is excluded
Key = tuple[str, str]  # a node and one of its GPUs, or "" for the whole node
EVERYWHERE: Key = ("", "")  # for trials of which it is not known where they run: those of several workers


@dataclass(frozen=True)
class Place:
    """Where a worker runs.

    Attributes:
        node: Ray's id of the node.
        address: address of the node.
        devices: ids of the GPUs that the worker sees; empty: none.
    """

    node: str
    address: str
    devices: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[Key, ...]:
        """Return what can be to blame for a death there: the GPUs, or the node if the worker has none."""
        return tuple((self.node, device) for device in self.devices) or ((self.node, ""),)


class Places:
    """What is known of the places of a cluster, in one session of a study.

    Args:
        shared: number of workers that share one GPU; 1: each has one or more of its own.
        each: number of GPUs that each worker has, if it has whole ones.
    """

    def __init__(self, shared: int = 1, each: int = 1) -> None:
        self._shared, self._each = shared, each
        self._room: Mapping[str, int] = {}  # node -> number of trials that have room there
        self._addresses: dict[str, str] = {}
        self._begun: set[int] = set()  # trials that run
        self._at: dict[int, Place] = {}  # trial -> where it runs, if that is known
        self._avoids: dict[int, set[Key]] = {}  # trial -> where its worker died
        self._deaths: dict[Key, set[int]] = {}  # trials that died there since the last epoch that was finished there
        self._limits: dict[Key, _Limit] = {}  # how many trials may run there side by side
        self.out: dict[Key, str] = {}  # what is excluded -> why, in a few words

    def resize(self, room: Mapping[str, int]) -> None:
        """Take note that the cluster has these nodes now, each with room for so many trials.

        What is known of nodes that have left is forgotten, and if all that is left is excluded, it is used again.
        """
        self._room = room
        if room:
            known: tuple[dict[Key, Any], ...] = (self.out, self._limits, self._deaths)
            for entries in known:
                for key in [key for key in entries if key[0] not in room and key != EVERYWHERE]:
                    del entries[key]
            if not self._leaves_room(()):
                self.out.clear()

    def left(self, fit: int) -> int:
        """Return how many trials may run at the same time where so many fit; at least 1, if one fits."""
        total = 0 if self._room else fit
        for node, room in self._room.items():
            here = room - self._lost_on(node, self.out)
            limits = {key: limit.most for key, limit in self._limits.items() if key[0] == node and key not in self.out}
            here -= sum(max(0, self._shared - most) for key, most in limits.items() if key[1])
            total += max(0, min(here, limits.get((node, ""), here)))
        if (everywhere := self._limits.get(EVERYWHERE)) is not None:
            total = min(total, everywhere.most)
        return max(min(fit, 1), min(fit, total))

    @property
    def whole(self) -> bool:
        """Return whether nothing is excluded or limited."""
        return not self.out and not self._limits

    def started(self, trial: int) -> None:
        """Take note that a trial runs, wherever that is."""
        self._begun.add(trial)

    def landed(self, trial: int, place: Place) -> bool:
        """Take note that a worker for this trial has started there; return whether it may train there."""
        self._addresses[place.node] = place.address
        if not self.is_free(place, trial):
            return False
        self._at[trial] = place
        return True

    def noticed(self, trial: int, place: Place) -> None:
        """Take note where a trial's worker died, as far as Ray knows, if the worker itself has not said it."""
        self._addresses.setdefault(place.node, place.address)
        self._at.setdefault(trial, place)

    def is_free(self, place: Place, trial: int | None = None) -> bool:
        """Return whether a further trial may run at a place, or this trial if one is given."""
        avoided = trial is not None and self._is_avoided(trial, place)
        return not avoided and not any(key in self.out or self._is_full(key) for key in _all(place))

    def progressed(self, trial: int) -> None:
        """Take note that a trial has finished an epoch: deaths before that are not the fault of its place."""
        if (place := self._at.get(trial)) is not None:
            for key in set(place.keys) - self.out.keys():
                self._deaths.pop(key, None)

    def died(self, trial: int, why: str, *, again: bool) -> list[str]:
        """Take note that a trial's worker has died where it ran; return what follows, as lines for a person.

        Args:
            trial: number of the trial.
            why: the last words of the worker, in one line; may be empty.
            again: whether it died before without an epoch in between. If there is no other place to try, it may be that
                memory was short: the kernel kills a process then without a word.
        """
        place = self.left_alone(trial)
        gone = place is not None and bool(self._room) and place.node not in self._room
        said: list[str] = []
        if place is not None and not gone:
            self._avoid(trial, place)
            for key in place.keys:
                died = self._deaths.setdefault(key, set())
                died.add(trial)
                if len(died) >= DEATHS_THERE and key not in self.out:
                    why_there = f"{len(died)} trials died there{', the last with: ' * bool(why)}{why}"
                    said += self._blame(key, trial, why_there)
        if again and not said and not gone and (place is None or not self._leaves_room(self._avoids[trial])):
            said += self._halve(EVERYWHERE if place is None else (place.node, ""), "a worker died again")
        return said

    def gave_up(self, trial: int) -> list[str]:
        """Take note that a trial failed, maybe because its worker died again and again; return what follows.

        If it died on several nodes, the trial itself is to blame, and its deaths no longer count against them; so it is
        if it died in several places of the only node.
        """
        self.left_alone(trial)
        said: list[str] = []
        avoided = self._avoids.pop(trial, set())
        nodes = {node for node, _ in avoided}
        alone = len(self._room) == 1 and len([device for _, device in avoided if device]) > self._each
        if len(nodes) < 2 and not alone:
            return said
        for key, died in self._deaths.items():
            died.discard(trial)
            if key in self.out and len(died) < DEATHS_THERE:
                del self.out[key]
                said.append(f"{self.words(key)} is used again: the trials that died there died elsewhere, too")
        return said

    def lacked_memory(self, trial: int, *, of_device: bool) -> tuple[bool, list[str]]:
        """Take note that a trial ran out of memory where it ran.

        Args:
            trial: number of the trial.
            of_device: whether it was the memory of its GPU.

        Returns:
            Whether fewer trials than usual ran there already; what follows, as lines for a person.
        """
        place = self.left_alone(trial)
        if place is None:
            keys: tuple[Key, ...] = (EVERYWHERE,)
        else:
            keys = place.keys if of_device else ((place.node, ""),)
        fewer = all(key in self._limits for key in keys)
        return fewer, [line for key in keys for line in self._halve(key, "memory was short")]

    def ended(self, trial: int) -> list[str]:
        """Take note that a trial has ended well, or paused; return what follows, as lines for a person."""
        self.progressed(trial)
        place = self.left_alone(trial)
        said = []
        for key in (EVERYWHERE, *(() if place is None else _all(place))):
            if (limit := self._limits.get(key)) is None:
                continue
            limit.successes += 1
            if limit.successes >= limit.most * 2**limit.times:
                limit.most, limit.successes = limit.most + 1, 0
                if limit.most <= limit.whole:
                    said.append(f"{self.words(key)}: {limit.most} trials side by side again")
                if limit.most >= limit.whole:
                    del self._limits[key]
        return said

    def left_alone(self, trial: int) -> Place | None:
        """Take note that a trial no longer runs, for a reason that says nothing of its place, which is returned."""
        self._begun.discard(trial)
        return self._at.pop(trial, None)

    def words(self, key: Key) -> str:
        """Return the name of a place for a person: the address, the beginning of Ray's id of the node, the GPU."""
        if key == EVERYWHERE:
            return "the cluster"
        node, device = key
        return f"{f'GPU {device} of ' * bool(device)}node {self._addresses.get(node, '?')} ({node[:6]})"

    # -- inside -----------------------------------------------------------------------------------------------------

    def _avoid(self, trial: int, place: Place) -> None:
        """Keep a trial away from a place; after deaths in two places of a node, from that node if there is another."""
        avoided = self._avoids.setdefault(trial, set())
        before = {key for key in avoided if key[0] == place.node} - set(place.keys)
        avoided.update(place.keys)
        if before and self._leaves_room({*avoided, (place.node, "")}):
            avoided.add((place.node, ""))

    def _blame(self, key: Key, trial: int, why: str) -> list[str]:
        """Let one trial at a time run at a place of bad repute, or none if that is so already; return what follows.

        That the trials die which ran beside each other there is no reason to let none run: it was not alone.
        """
        limit = self._limits.get(key)
        if limit is not None and trial in limit.beside:
            return []
        if self._capacity(key) > 1 and (limit is None or limit.most > 1):
            beside = frozenset(self._running(key))
            self._limits[key] = _Limit(1, limit.whole if limit else self._capacity(key), 1, beside=beside)
            return [f"{self.words(key)}: one trial at a time, because {why}"]
        if not self._leaves_room({key}):
            return []
        self.out[key] = why
        return [f"{self.words(key)} is excluded: {why}"]

    def _halve(self, key: Key, why: str) -> list[str]:
        """Let half as many trials run at a place as were there with the one that has just gone; return what follows."""
        before, beside = self._limits.get(key), len(self._running(key)) + 1
        whole, times = (before.whole, before.times) if before else (beside, 0)
        most = max(1, min(beside, before.most if before else beside) // 2)
        self._limits[key] = _Limit(most, whole, times + 1)
        return [f"{self.words(key)}: at most {most} side by side, because {why}"] if beside > 1 else []

    def _is_avoided(self, trial: int, place: Place) -> bool:
        """Return whether the trial's worker died at a place, and there are others for it."""
        avoided = self._avoids.get(trial, set())
        return any(key in avoided for key in _all(place)) and self._leaves_room(avoided)

    def _leaves_room(self, keys: Iterable[Key]) -> bool:
        return sum(self._room.values()) > self._lost({*self.out, *keys})

    def _is_full(self, key: Key) -> bool:
        return (limit := self._limits.get(key)) is not None and len(self._running(key)) >= limit.most

    def _running(self, key: Key) -> list[int]:
        if key == EVERYWHERE:
            return list(self._begun)
        return [trial for trial, place in self._at.items() if key in _all(place)]

    def _capacity(self, key: Key) -> int:
        return self._shared if key[1] else self._room.get(key[0], 1)

    def _lost(self, keys: Iterable[Key]) -> int:
        """Return how many of the present places would be lost without these."""
        known = list(keys)
        return sum(self._lost_on(node, known) for node in self._room)

    def _lost_on(self, node: str, keys: Iterable[Key]) -> int:
        mine = {device for there, device in keys if there == node}
        return self._room[node] if "" in mine else min(self._room[node], self._shared * -(-len(mine) // self._each))


@dataclass
class _Limit:
    """How many trials may run side by side at a place.

    Attributes:
        most: the number.
        whole: the number before the first shortage, which ends the limit.
        times: how often the number was lowered.
        successes: trials that ended well there since the number last changed.
        beside: trials that still ran there when the number became one.
    """

    most: int
    whole: int
    times: int
    successes: int = 0
    beside: frozenset[int] = frozenset()


def _all(place: Place) -> tuple[Key, ...]:
    """Return the keys of a place and of its node."""
    return tuple({*place.keys, (place.node, "")})
