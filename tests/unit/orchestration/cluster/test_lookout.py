"""Tests the thread that looks at a cluster beside Tune's loop. Needs no cluster."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event

import pytest

from orchestration.cluster import session
from orchestration.cluster.lookout import Lookout

NEVER = 300.0  # seconds; a test that waits so long has failed


class Head:
    """The head of a cluster, which answers when it may, and the autoscaler, which hears what is wanted."""

    def __init__(self) -> None:
        self.nodes = {"a": 2}
        self.may_answer, self.asked, self.heard = Event(), Event(), Event()
        self.may_answer.set()
        self.wanted: list[int] = []

    def by_node(self, resources: object) -> dict[str, int]:
        self.asked.set()
        assert self.may_answer.wait(NEVER)
        return dict(self.nodes)

    def fitting(self, resources: object, workers: int, fewest: int | None) -> int:
        if not self.nodes:
            raise RuntimeError("the head is gone")
        return sum(self.nodes.values()) // workers

    def ask(self, trials: int) -> None:
        self.wanted.append(trials)
        self.heard.set()


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    made = Head()
    monkeypatch.setattr(session, "by_node", made.by_node)
    monkeypatch.setattr(session, "fitting", made.fitting)
    yield made
    made.may_answer.set()


def lookout(head: Head, workers: int = 1) -> Lookout:
    return Lookout({"CPU": 1.0}, workers, demand=head)  # type: ignore[arg-type]


def test_it_has_counted_when_it_is_made(head: Head) -> None:
    with lookout(head) as made:
        assert made.seen() == (2, {"a": 2})
    with lookout(head, workers=2) as made:
        assert made.seen() == (1, {}), "of trials of several workers, no node holds a whole one"
    assert not head.wanted, "nobody was told a number yet"


def test_nobody_waits_for_a_head_that_does_not_answer(head: Head) -> None:
    with lookout(head) as made:
        head.may_answer.clear()
        head.asked.clear()
        head.nodes = {"a": 2, "b": 1}
        assert made.seen(5) == (2, {"a": 2})
        assert head.asked.wait(NEVER)
        assert made.seen() == (2, {"a": 2}), "it is still being asked"
        assert not head.wanted
        head.may_answer.set()
        assert head.heard.wait(NEVER)
        assert (made.seen(), head.wanted) == ((3, {"a": 2, "b": 1}), [5])


def test_nothing_is_asked_after_its_end(head: Head) -> None:
    """Or a study would ask for nodes after it has withdrawn what it asked for."""
    with lookout(head) as made:
        pass
    made.seen(4)
    assert not head.wanted


def test_an_error_of_a_look_is_raised_for_whoever_asks_next(head: Head) -> None:
    with lookout(head) as made:
        head.nodes = {}
        made.seen(1)
        made._thread._thread.join(NEVER)
        with pytest.raises(RuntimeError, match="the head is gone"):
            made.seen()
