"""Tests where trials may run after workers have died or lacked memory there."""

from __future__ import annotations

import pytest

from orchestration.run.places import DEATHS_THERE, Place, Places

A0, A1 = (Place("aaaaaaaa", "10.0.0.1", (device,)) for device in "01")
B0, B1 = (Place("bbbbbbbb", "10.0.0.2", (device,)) for device in "01")
A, B = Place("aaaaaaaa", "10.0.0.1"), Place("bbbbbbbb", "10.0.0.2")


def die(places: Places, trial: int, place: Place, *, again: bool = False) -> list[str]:
    assert places.landed(trial, place)
    return places.died(trial, "the worker died", again=again)


@pytest.fixture
def gpus() -> Places:
    """Two nodes of two GPUs each; every trial has one."""
    made = Places()
    made.resize({"aaaaaaaa": 2, "bbbbbbbb": 2})
    return made


@pytest.fixture
def nodes() -> Places:
    """Two nodes with room for four trials each, without GPUs."""
    made = Places()
    made.resize({"aaaaaaaa": 4, "bbbbbbbb": 4})
    return made


class TestDeaths:
    def test_a_trial_does_not_go_back(self, gpus: Places) -> None:
        assert die(gpus, 1, A0) == []
        assert not gpus.landed(1, A0)
        assert gpus.landed(2, A0), "others may"
        assert gpus.landed(1, A1), "the other GPU of the node is another place"
        assert gpus.left(4) == 4

    def test_several_trials_exclude_a_gpu_for_all(self, gpus: Places) -> None:
        assert [die(gpus, trial, A0) for trial in range(DEATHS_THERE - 1)] == [[], []]
        (said,) = die(gpus, 7, A0)
        assert said == (
            "GPU 0 of node 10.0.0.1 (aaaaaa) is excluded: 3 trials died there, the last with: the worker died"
        )
        assert not gpus.landed(8, A0)
        assert gpus.landed(8, A1)
        assert gpus.left(4) == 3, "one bad GPU costs one"

    def test_one_trial_that_dies_everywhere_excludes_nothing(self, gpus: Places) -> None:
        for place in (A0, A1, B0):
            die(gpus, 1, place)
        assert not gpus.out
        assert gpus.landed(1, B1)
        assert die(gpus, 2, A0) == []

    def test_an_epoch_in_between_is_in_a_place_s_favour(self, gpus: Places) -> None:
        for trial in range(10):
            die(gpus, trial, A0)
            gpus.landed(100, A0)
            gpus.progressed(100)
            gpus.left_alone(100)
        assert not gpus.out

    def test_trials_that_die_elsewhere_too_are_no_witnesses(self, gpus: Places) -> None:
        for trial in range(DEATHS_THERE):
            die(gpus, trial, A0)
        assert gpus.out
        die(gpus, 0, B0)
        assert gpus.gave_up(0) == [
            "GPU 0 of node 10.0.0.1 (aaaaaa) is used again: the trials that died there died elsewhere, too"
        ]
        assert gpus.left(4) == 4
        assert gpus.landed(9, A0)

    def test_a_node_whose_gpus_all_kill_loses_them_all(self) -> None:
        places = Places()
        places.resize({"aaaaaaaa": 4, "bbbbbbbb": 4})
        devices = [Place("aaaaaaaa", "10.0.0.1", (str(number),)) for number in range(4)]
        for trial in range(20):
            died = 0
            for place in devices:
                if died < 3 and places.landed(trial, place):
                    places.died(trial, "", again=died > 0)
                    died += 1
            assert died < 3, "after two GPUs of the node it goes to the other node"
            assert places.landed(trial, B0)
            places.ended(trial)
        assert len(places.out) == 4
        assert places.left(8) == 4

    def test_one_that_gives_up_on_one_node_is_a_witness_still(self, gpus: Places) -> None:
        for trial in range(DEATHS_THERE):
            die(gpus, trial, A0)
        die(gpus, 0, A1)
        assert gpus.gave_up(0) == []
        assert gpus.out

    def test_trials_that_die_together_do_not_exclude_a_node(self, nodes: Places) -> None:
        for trial in range(4):
            assert nodes.landed(trial, A)
        said = [nodes.died(trial, "", again=False) for trial in range(4)]
        assert [len(lines) for lines in said] == [0, 0, 1, 0]
        assert not nodes.out
        assert nodes.left(8) == 5
        assert len(die(nodes, 9, A)) == 1
        assert nodes.out, "the next one was alone"

    def test_what_is_left_alone_is_used_again(self, gpus: Places) -> None:
        for place in (A0, A1):
            for trial in range(DEATHS_THERE):
                die(gpus, 10 * len(gpus.out) + trial, place)
        assert len(gpus.out) == 2
        assert gpus.left(4) == 2
        gpus.resize({"aaaaaaaa": 2})
        assert gpus.left(2) == 2
        assert gpus.landed(50, A0)
        gpus.resize({"bbbbbbbb": 2})
        assert gpus.whole

    def test_workers_of_two_gpus_lose_places_of_two(self) -> None:
        places = Places(each=2)
        places.resize({"aaaaaaaa": 4})
        pair = Place("aaaaaaaa", "10.0.0.1", ("0", "1"))
        for trial in range(DEATHS_THERE):
            die(places, trial, pair)
        assert places.left(4) == 3
        assert places.gave_up(0) == []

    def test_a_trial_that_died_in_one_place_alone_stays_a_witness(self, gpus: Places) -> None:
        for trial in range(DEATHS_THERE):
            die(gpus, trial, A0)
        assert gpus.gave_up(0) == []
        assert gpus.out

    def test_the_last_place_is_never_excluded(self) -> None:
        places = Places()
        places.resize({"aaaaaaaa": 1})
        for trial in range(9):
            die(places, trial, A0)
            assert places.landed(trial, A0), "there is no other place to go to"
            places.left_alone(trial)
        assert not places.out
        assert places.left(1) == 1

    def test_a_node_that_is_gone_is_not_to_blame(self, gpus: Places) -> None:
        for trial in range(DEATHS_THERE):
            gpus.landed(trial, A0)
            gpus.resize({"bbbbbbbb": 2})
            assert gpus.died(trial, "the node died", again=True) == []
            gpus.resize({"aaaaaaaa": 2, "bbbbbbbb": 2})

    def test_a_node_gets_one_trial_at_a_time_before_it_is_excluded(self, nodes: Places) -> None:
        """Many trials at a time may be what kills them: the kernel ends a process when memory is short."""
        assert [die(nodes, trial, A) for trial in range(2)] == [[], []]
        assert die(nodes, 2, A) == [
            "node 10.0.0.1 (aaaaaa): one trial at a time, because 3 trials died there, the last with: the worker died"
        ]
        assert nodes.left(8) == 5
        assert nodes.landed(3, A)
        assert not nodes.landed(4, A)
        (said,) = nodes.died(3, "the worker died", again=False)
        assert said.startswith("node 10.0.0.1 (aaaaaa) is excluded: 4 trials died there")
        assert nodes.left(8) == 4
        assert not nodes.landed(4, A)

    def test_a_node_that_can_do_one_at_a_time_gets_more_again(self, nodes: Places) -> None:
        for trial in range(DEATHS_THERE):
            die(nodes, trial, A)
        left = []
        for trial in range(10, 34):
            assert nodes.landed(trial, A)
            nodes.ended(trial)
            left.append(nodes.left(8))
        assert sorted(set(left)) == [5, 6, 7, 8]
        assert left == sorted(left)
        assert nodes.whole

    def test_a_trial_with_several_gpus_casts_doubt_on_each(self) -> None:
        places = Places()
        places.resize({"aaaaaaaa": 4})
        pair = [("0", "1"), ("1", "2"), ("3", "1")]
        for trial, devices in enumerate(pair):
            die(places, trial, Place("aaaaaaaa", "10.0.0.1", devices))
        assert list(places.out) == [("aaaaaaaa", "1")]
        assert places.landed(9, Place("aaaaaaaa", "10.0.0.1", ("0", "2")))

    def test_a_trial_of_several_workers_has_no_known_place(self, gpus: Places) -> None:
        for trial in range(9):
            gpus.started(trial)
        assert gpus.died(0, "", again=False) == []
        assert gpus.left(4) == 4
        assert gpus.died(1, "", again=True) == ["the cluster: at most 4 side by side, because a worker died again"]
        assert gpus.left(9) == 4

    def test_where_there_is_one_place_a_second_death_makes_room(self) -> None:
        places = Places()
        places.resize({"aaaaaaaa": 2})
        places.landed(1, A)
        assert die(places, 2, A) == []
        assert die(places, 2, A, again=True) == [
            "node 10.0.0.1 (aaaaaa): at most 1 side by side, because a worker died again"
        ]


class TestMemory:
    def test_a_shortage_concerns_its_node_alone(self, nodes: Places) -> None:
        for trial, place in enumerate([A, A, A, A, B, B, B, B]):
            assert nodes.landed(trial, place)
        fewer, said = nodes.lacked_memory(0, of_device=False)
        assert not fewer
        assert said == ["node 10.0.0.1 (aaaaaa): at most 2 side by side, because memory was short"]
        assert nodes.left(8) == 6
        assert not nodes.landed(0, A)
        nodes.left_alone(1)
        nodes.left_alone(2)
        assert nodes.landed(0, A)
        assert nodes.lacked_memory(0, of_device=False)[0], "fewer ran there already"

    def test_the_memory_of_a_gpu_concerns_it_alone(self) -> None:
        places = Places(shared=4)
        places.resize({"aaaaaaaa": 8})
        for trial in range(8):
            assert places.landed(trial, A0 if trial < 4 else A1)
        assert places.lacked_memory(0, of_device=True) == (
            False,
            ["GPU 0 of node 10.0.0.1 (aaaaaa): at most 2 side by side, because memory was short"],
        )
        assert places.left(8) == 6
        places.left_alone(7)
        assert not places.landed(9, A0)
        assert places.landed(9, A1)

    def test_places_are_given_back_slowly_and_more_slowly_each_time(self, nodes: Places) -> None:
        def until_whole() -> int:
            for trial in range(4):
                assert nodes.landed(trial, A)
            nodes.lacked_memory(0, of_device=False)
            for trial in (1, 2, 3):
                nodes.left_alone(trial)
            for count in range(1, 100):
                assert nodes.landed(50, A)
                nodes.ended(50)
                if nodes.left(8) == 8:
                    return count
            raise AssertionError("never")

        assert until_whole() == 2 * 2 + 3 * 2

    def test_alone_there_is_nothing_to_be_said(self, nodes: Places) -> None:
        assert nodes.landed(0, A)
        assert nodes.lacked_memory(0, of_device=False) == (False, [])
        assert nodes.landed(0, A)
        assert nodes.lacked_memory(0, of_device=False)[0]


def test_nothing_fits_on_nothing() -> None:
    places = Places()
    places.resize({})
    assert places.left(0) == 0
    assert places.landed(1, A), "nodes that the count has not seen yet may be used"
