"""Tests what stands between the driver and Ray Tune: trials go out and results come in. Needs no cluster."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from collections.abc import Callable
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from ray import tune
from ray.exceptions import ActorDiedError, RayActorError
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from erat.errors import UserError
from erat.result import RunResult
from orchestration.cluster import execution, session
from orchestration.run.places import EVERYWHERE, Place, Places
from orchestration.run.retries import Retry
from orchestration.search.tune import (
    COUNT_SECONDS,
    METRIC,
    SAY_AFTER,
    Held,
    Progress,
    QueueScheduler,
    QueueSearcher,
    _what_a_listener_raised,
)
from orchestration.study.trial import Trial


class FakeDriver:
    """Three trials, the last of which waits until the others have ended."""

    width = 3

    def __init__(self) -> None:
        self.queue: Any = self
        self.ends: list[int] = []
        self.stops_asked: list[tuple[int, int]] = []
        self.idle: list[bool] = []
        self.verdicts: list[Retry] = []
        self.words: list[tuple[int, str]] = []
        self.places = Places()
        self.made = 0

    @property
    def exhausted(self) -> bool:
        return self.made == 3

    def next(self, *, idle: bool) -> Trial | None:
        self.idle.append(idle)
        if self.exhausted or (self.made == 2 and len(self.ends) < 2):
            return None
        self.made += 1
        return Trial(self.made - 1, "cell", {}, "paper")

    def stops(self, number: int, epoch: int, best_val_accuracy: float) -> bool:
        return best_val_accuracy < 0.5

    def trial_parameters(self, trial: Trial) -> dict[str, Any]:
        return {"number": trial.number}

    def started(self, number: int) -> None: ...

    def landed(self, number: int, place: Place) -> bool:
        return self.places.landed(number, place)

    def epoch(self, number: int) -> None: ...

    def ended(self, number: int) -> RunResult | Retry:
        if self.verdicts:
            verdict = self.verdicts.pop(0)
            if verdict.cause == "memory":
                self.places.lacked_memory(number, of_device=False)
            elif verdict.cause == "death":
                self.places.died(number, verdict.reason, again=verdict.again)
            return verdict
        self.places.ended(number)
        self.ends.append(number)
        return RunResult("cell", "done")

    def heard(self, number: int, words: str) -> None:
        self.words.append((number, words))

    def stop(self, number: int, epoch: int) -> None:
        self.stops_asked.append((number, epoch))


class TestTuneSide:
    def test_waiting_and_the_end_are_told_apart(self) -> None:
        driver = FakeDriver()
        search = QueueSearcher(driver, fit=1, ahead=True)
        assert [search.suggest(name) for name in "ab"] == [{"number": 0}, {"number": 1}]
        assert search.suggest("c") is None
        search.on_trial_complete("b")
        search.on_trial_complete("a", error=True)
        assert driver.ends == [1, 0]
        assert search.suggest("c") == {"number": 2}
        assert search.suggest("d") is None, "the last may have to run again"
        search.on_trial_complete("c")
        assert search.suggest("d") == Searcher.FINISHED
        assert driver.idle == [True, False, False, True, False, True]

    def test_a_trial_that_is_to_run_again_comes_first_and_ends_once(self) -> None:
        driver = FakeDriver()
        search = QueueSearcher(driver, fit=2, ahead=True)
        assert [search.suggest(name)["number"] for name in "ab"] == [0, 1]
        driver.verdicts = [Retry("death", "the worker died after epoch 3")]
        search.on_trial_complete("a", error=True)
        assert not driver.ends
        assert search.suggest("c") == {"number": 0}
        search.on_trial_complete("c")
        search.on_trial_complete("b")
        assert [search.suggest("d"), sorted(driver.ends)] == [{"number": 2}, [0, 1]]

    def test_after_a_want_of_memory_fewer_run_side_by_side(self) -> None:
        driver = FakeDriver()
        search = QueueSearcher(driver, fit=2, ahead=True)
        for name, number in zip("ab", (0, 1), strict=True):
            assert search.suggest(name)["number"] == number
            driver.places.started(number)
        driver.verdicts = [Retry("memory", "out of memory")]
        search.on_trial_complete("a", error=True)
        assert search.suggest("c") is None, "the other one still runs"
        search.on_trial_complete("b")
        assert search.suggest("c") == {"number": 0}
        assert search.suggest("d") is None
        search.on_trial_complete("c")
        assert search.suggest("d") == {"number": 2}

    def test_a_storage_that_cannot_be_written_ends_the_search_and_no_trial(self) -> None:
        driver = FakeDriver()
        search = QueueSearcher(driver, fit=1, ahead=True)
        search.suggest("a")
        search.on_trial_complete("a", {"storage_fault": "the disk is full (on a)"})
        search.on_trial_complete("a", error=True)
        assert search.suggest("b") is None
        with pytest.raises(UserError, match=r"the disk is full \(on a\); nothing finished is lost"):
            search.held()
        assert not driver.ends

    def test_what_the_driver_raises_ends_the_search_and_no_trial(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Tune takes an error of the searcher at a trial's end for an error of the trial, and runs the trial again."""
        driver = FakeDriver()
        search = QueueSearcher(driver, fit=1, ahead=True)
        search.suggest("a")

        def full(number: int) -> RunResult:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(driver, "ended", full)
        search.on_trial_complete("a")
        progress = Progress(driver, search.held, lambda: "", patience=100)
        with pytest.raises(OSError, match="No space left"):
            progress.on_step_end(1, [])
        assert not driver.ends

    def test_what_ray_says_of_a_death_reaches_the_driver(self) -> None:
        driver = FakeDriver()
        trial: Any = SimpleNamespace(
            trial_id="a",
            config={"number": 1},
            get_error=lambda: RuntimeError("the node died"),
            get_pickled_error=lambda: None,
        )
        QueueScheduler(driver).on_trial_error(None, trial)
        assert driver.words == [(1, "the node died")]
        QueueScheduler(driver, "a".__eq__).on_trial_error(None, trial)
        assert driver.words == [(1, "the node died")], "a parked worker's death is none of its trial's"

    def test_no_more_trials_are_begun_than_have_room(self) -> None:
        """Data-parallel trials ask Tune for almost nothing: without a limit all would start, and none get workers."""
        search = QueueSearcher(FakeDriver(), fit=1, ahead=False)
        assert search.suggest("a") == {"number": 0}
        assert search.suggest("b") is None
        search.on_trial_complete("a")
        assert search.suggest("b") == {"number": 1}

    def test_a_stop_is_a_request_and_never_kills(self) -> None:
        driver = FakeDriver()
        scheduler = QueueScheduler(driver)
        trial: Any = SimpleNamespace(config={"number": 1})
        results = [{"epoch": 2, "best_val_accuracy": value} for value in (0.6, 0.4)]
        decisions = [scheduler.on_trial_result(None, trial, result) for result in results]
        assert decisions == [TrialScheduler.CONTINUE] * 2
        assert driver.stops_asked == [(1, 2)]

    def test_tune_sees_validation_accuracy_alone(self) -> None:
        assert METRIC == "val_accuracy"
        assert QueueSearcher(FakeDriver(), fit=1, ahead=False).metric == METRIC

    def test_the_driver_neither_is_copied_nor_travels(self) -> None:
        driver = FakeDriver()
        held = Held(driver)
        assert copy.deepcopy(held)() is driver
        with pytest.raises(AssertionError, match="does not travel"):
            pickle.loads(pickle.dumps(held))()


class Endless(FakeDriver):
    """A driver whose queue never waits and never ends."""

    exhausted = False
    width = 100

    def next(self, *, idle: bool) -> Trial | None:
        self.made += 1
        return Trial(self.made - 1, "cell", {}, "paper")


class TestSlots:
    """Tests that slots are counted anew when nodes come or go, whatever limits them besides."""

    @staticmethod
    def begin(search: QueueSearcher) -> int:
        """Begin as many trials as the searcher gives, 50 at most, and return how many there were."""
        for count in range(50):
            if search.suggest(f"{len(search._running)}-{count}") is None:
                return count
        return 50

    def test_nodes_that_come_are_used(self) -> None:
        """Trials of several workers, which nobody but the searcher holds back."""
        search = QueueSearcher(Endless(), fit=2, ahead=False)
        assert self.begin(search) == 2
        search.resize(5)
        assert [self.begin(search), search.slots] == [3, 5]

    def test_nodes_that_go_get_no_new_trials(self) -> None:
        search = QueueSearcher(Endless(), fit=3, ahead=False)
        assert self.begin(search) == 3
        search.resize(1)
        names = list(search._running)
        for left, name in zip((0, 0, 1), names, strict=True):
            search.on_trial_complete(name)
            assert self.begin(search) == left, "there is room again only when the last has ended"

    def test_no_more_run_than_the_user_allows(self) -> None:
        search = QueueSearcher(Endless(), fit=1, at_most=3, ahead=True)
        assert self.begin(search) == 50, "there is no limit but the cluster, which is Tune's concern"
        search = QueueSearcher(Endless(), fit=1, at_most=3, ahead=False)
        assert self.begin(search) == 1
        search.resize(8)
        assert self.begin(search) == 2

    def test_with_more_room_than_the_user_allows_none_is_asked_ahead(self) -> None:
        search = QueueSearcher(Endless(), fit=8, at_most=3, ahead=True)
        assert self.begin(search) == 3
        search.resize(2)
        assert self.begin(search) == 50, "the cluster is the limit, and more may wait for it"

    def short_of_memory(self) -> QueueSearcher:
        """Return a searcher with four trials at work, a to d, of which the next to end lacks memory."""
        driver = Endless()
        search = QueueSearcher(driver, fit=4, ahead=True)
        for number, name in enumerate("abcd"):
            search.suggest(name)
            driver.places.started(number)
        driver.verdicts = [Retry("memory", "out of memory")]
        return search

    @pytest.mark.parametrize(("fit", "slots"), [(1, 1), (3, 2), (8, 2), (0, 0)])
    def test_a_want_of_memory_stays_in_force_when_the_cluster_changes(self, fit: int, slots: int) -> None:
        search = self.short_of_memory()
        for name in "abcd":
            search.on_trial_complete(name, error=name == "a")
        assert search.slots == 2
        search.resize(fit)
        assert search.slots == slots
        assert self.begin(search) == slots, "none is asked ahead"

    def test_one_trial_always_may_run(self) -> None:
        driver = Endless()
        search = QueueSearcher(driver, fit=2, ahead=True)
        driver.verdicts = [Retry("memory", "out of memory")] * 5
        for name in "abcde":
            search.suggest(name)
            search.on_trial_complete(name, error=True)
        assert search.slots == 1

    def test_after_successes_as_many_run_as_before(self) -> None:
        search = self.short_of_memory()
        search.on_trial_complete("a", error=True)
        assert search.slots == 2
        slots = []
        for name in "bcd":
            search.on_trial_complete(name)
        for number in range(10):
            search.suggest(f"more {number}")
            search.on_trial_complete(f"more {number}")
            slots.append(search.slots)
        assert slots == [3, 3, 3, 3, 3, 3, 4, 4, 4, 4], "one more after twice as many successes as there are slots"

    def test_a_study_without_any_place_is_one_that_waits(self) -> None:
        driver = FakeDriver()
        search = QueueSearcher(driver, fit=0, ahead=False)
        assert [search.suggest("a"), search.held()] == [None, 1]
        search.resize(1)
        assert search.held() == 0
        search.suggest("a")
        assert search.held() == 1

    @pytest.mark.parametrize(("at_most", "wanted"), [(None, 100), (7, 7), (200, 100)])
    def test_what_is_wanted_of_a_cluster_that_grows(self, at_most: int | None, wanted: int) -> None:
        assert QueueSearcher(Endless(), fit=1, at_most=at_most, ahead=True).wanted() == wanted


class Cluster:
    """Two nodes of two GPUs each, a searcher, and the workers that Ray starts wherever there is room.

    Args:
        bad: GPUs on which every worker dies.
        trials: number of trials of the study.
    """

    def __init__(self, *bad: tuple[str, str], trials: int = 12) -> None:
        self.bad, self.trials = bad, trials
        self.free = [Place(node, f"10.0.0.{node}", (device,)) for node in "12" for device in "01"]
        self.driver = Listed(trials)
        self.search = QueueSearcher(self.driver, 4, ahead=True, park=lambda name: None, unpark=self.unparked)
        self.search.resize(4, {"1": 2, "2": 2})
        self.pending: list[str] = []
        self.at: dict[str, Place] = {}
        self.parked: list[str] = []  # how many are parked while there are trials to run
        self.names = iter(f"{number}" for number in range(1000))
        self.over = False

    def unparked(self, name: str) -> None:
        self.free.append(self.at.pop(name))
        self.over_now.append(name)

    over_now: ClassVar[list[str]] = []

    def step(self) -> None:
        """Let Tune ask for a trial, start what has room, and end what runs longest."""
        while len(self.pending) < 1 and not self.over:
            name = next(self.names)
            given = self.search.suggest(name)
            if given is None:
                break
            self.over = given == Searcher.FINISHED
            self.pending += [] if self.over else [name]
        self.flush()
        if self.pending and self.free:
            name = self.pending.pop(0)
            place = self.at[name] = self.free.pop(0)
            self.driver.places.started(self.search._running[name].number)
            self.search.on_trial_result(name, {execution.PLACE: json.dumps(asdict(place))})
            self.flush()
            if name in self.at and not self.search.is_parked(name):
                self.driver.visits.append((self.search._running[name].number, place))
                if (place.node, place.devices[0]) in self.bad:
                    self.end(name, died=True)

    def end(self, name: str, *, died: bool = False) -> None:
        self.free.insert(0, self.at.pop(name))  # the place that has just been left is the next to be taken
        if died:
            self.driver.verdicts = [Retry("death", "the worker died")]
        else:
            self.driver.places.progressed(self.search._running[name].number)
        self.search.on_trial_complete(name, error=died)
        self.flush()

    def flush(self) -> None:
        while self.over_now:
            self.search.on_trial_complete(self.over_now.pop())

    @property
    def training(self) -> list[str]:
        return [name for name in self.at if not self.search.is_parked(name)]

    def run(self) -> list[int]:
        """Run the study, and return how many trained whenever no more could start."""
        busy = []
        for _ in range(10 * self.trials):
            for _ in range(8):
                self.step()
            if self.over and not self.at:
                return busy
            busy.append(len(self.training))
            if self.training:
                self.end(self.training[0])
        raise AssertionError("it does not end")


class Listed(FakeDriver):
    """A driver with a list of trials, which keeps in what order they were given and where they ran."""

    def __init__(self, trials: int) -> None:
        super().__init__()
        self.trials = trials
        self.visits: list[tuple[int, Place]] = []

    @property
    def exhausted(self) -> bool:
        return self.made == self.trials

    def next(self, *, idle: bool) -> Trial | None:
        if self.exhausted:
            return None
        self.made += 1
        return Trial(self.made - 1, "cell", {}, "paper")


class TestABadPlace:
    """Tests that one bad GPU costs one GPU, and that no trial goes back to where its worker died."""

    def test_it_costs_one_gpu_and_no_trial(self) -> None:
        cluster = Cluster(("1", "0"))
        busy = cluster.run()
        assert sorted(cluster.driver.ends) == list(range(12)), "each ends once"
        deaths = [number for number, place in cluster.driver.visits if (place.node, place.devices) == ("1", ("0",))]
        assert len(deaths) == len(set(deaths)) == 3, "three trials die there, each once, and then none goes there"
        assert list(cluster.driver.places.out) == [("1", "0")]
        full = busy[: -3 if len(busy) > 3 else None]
        assert full and set(full) == {3}, "three good GPUs are never idle while there is something to run"

    def test_without_a_bad_one_nobody_is_parked(self) -> None:
        cluster = Cluster()
        busy = cluster.run()
        assert set(busy[:-4]) == {4}
        assert [number for number, _ in cluster.driver.visits] == list(range(12))

    def test_two_trials_and_a_bad_gpu(self) -> None:
        """At the end of a study nothing else may take the bad place: it stays taken until the trial runs elsewhere."""
        cluster = Cluster(("1", "0"), trials=2)
        cluster.run()
        assert sorted(cluster.driver.ends) == [0, 1]
        assert not cluster.driver.places.out

    def test_a_worker_that_died_before_it_said_where_it_was(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ray knows at least on which node that was."""
        actor = {"Address": {"NodeID": "1", "IPAddress": "10.0.0.1"}}
        monkeypatch.setattr(session.state, "actors", lambda actor_id: actor if actor_id == "ab" else {})
        assert session.place_of_death(RuntimeError("x")) is None
        assert session.place_of_death(ActorDiedError()) is None
        cluster = Cluster()
        assert [cluster.search.suggest(name)["number"] for name in "abc"] == [0, 1, 2]
        for number, name in enumerate("abc"):
            error = RayActorError(actor_id="ab")
            trial: Any = SimpleNamespace(
                trial_id=name,
                config={"number": number},
                get_error=lambda error=error: error,
                get_pickled_error=lambda error=error: error,
            )
            QueueScheduler(cluster.driver).on_trial_error(None, trial)
            cluster.driver.verdicts = [Retry("death", "the worker died")]
            cluster.search.on_trial_complete(name, error=True)
        assert cluster.driver.places.left(4) == 3, "one at a time on that node"
        assert not cluster.driver.places.landed(0, Place("1", "10.0.0.1", ("1",)))

    def test_a_death_without_a_known_place_changes_nothing(self) -> None:
        """This is so for a trial of several workers."""
        driver = Endless()
        search = QueueSearcher(driver, fit=8, ahead=False)
        search.suggest("a")
        driver.verdicts = [Retry("death", "the worker died")]
        search.on_trial_complete("a", error=True)
        assert search.slots == 8
        assert EVERYWHERE not in driver.places.out


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class TestNoRoom:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Clock:
        made = Clock()
        monkeypatch.setattr("orchestration.search.tune.time.monotonic", made)
        return made

    def progress(self, waiting: int = 1) -> Progress:
        return Progress(FakeDriver(), lambda: waiting, lambda: "a trial needs 1 CPU, free are 0 of 2 CPU", patience=100)

    def test_it_is_said_once_and_then_given_up(self, clock: Clock) -> None:
        progress = self.progress()
        progress.on_step_end(1, [])
        clock.now = SAY_AFTER
        with pytest.warns(UserWarning, match=r"no trial could start yet: a trial needs 1 CPU, free are 0 of 2 CPU"):
            progress.on_step_end(2, [])
        clock.now = 99
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            progress.on_step_end(3, [])
        clock.now = 100
        with pytest.raises(UserError, match=r"no trial could start for 100 s: a trial needs 1 CPU"):
            progress.on_step_end(4, [])

    def test_a_trial_that_runs_or_none_that_waits_is_no_want(self, clock: Clock) -> None:
        progress, idle = self.progress(), self.progress(waiting=0)
        trial: Any = SimpleNamespace(trial_id="a", config={"number": 1})
        progress.on_trial_start(1, [], trial)
        for clock.now in (0, 50, 150, 300):
            progress.on_step_end(1, [])
            idle.on_step_end(1, [])
        progress.on_trial_complete(2, [], trial)
        progress.on_step_end(2, [])
        clock.now = 390
        with pytest.warns(UserWarning, match="no trial could start yet"):
            progress.on_step_end(3, [])
        progress.on_trial_start(4, [], trial)
        progress.on_step_end(4, [])
        progress.on_trial_error(5, [], trial)
        clock.now = 450
        progress.on_step_end(5, [])

    def test_the_cluster_is_counted_once_a_second(self, clock: Clock) -> None:
        counted: list[float] = []
        progress = Progress(FakeDriver(), lambda: 0, lambda: "", patience=100, count=lambda: counted.append(clock.now))
        for clock.now in (0.0, 0.5 * COUNT_SECONDS, 0.9 * COUNT_SECONDS, COUNT_SECONDS, 1.5 * COUNT_SECONDS):
            progress.on_step_end(1, [])
        assert counted == [0.0, COUNT_SECONDS]

    def test_it_is_saved_without_what_it_listens_to(self) -> None:
        assert pickle.loads(pickle.dumps(self.progress()))._waiting is None


class TestWhatAListenerRaised:
    """Tests that errors of callbacks are found again: Tune turns them into an error of its own, with only the text."""

    @staticmethod
    def wrapped(raiser: Callable[[], None]) -> tune.TuneError:
        try:
            try:
                try:
                    raiser()
                except Exception as error:
                    raise KeyError("while handling it") from error
            except Exception as error:
                raise tune.TuneError(str(error))  # noqa: B904 - as Tune does
        except tune.TuneError as error:
            return error

    @pytest.mark.parametrize("error", [UserError("eta must be in [0, 1]"), OSError(28, "No space left on device")])
    def test_what_a_person_can_mend_is_found(self, error: Exception) -> None:
        def raiser() -> None:
            raise error

        assert _what_a_listener_raised(self.wrapped(raiser)) is error

    def test_a_fault_of_the_program_stays_tune_s(self) -> None:
        assert _what_a_listener_raised(self.wrapped(lambda: [][0])) is None
