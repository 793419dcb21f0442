"""Tests that Ray is started again where it gave up on its own processes."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable

import pytest

from orchestration.cluster.starting import patiently


class TestASlowStart:
    """Tests what is done when Ray gives up waiting for its own processes."""

    @pytest.fixture
    def begin(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
        """Return a function that begins Ray, which fails so many times with these words, and returns its attempts."""

        def run(failures: int, words: str) -> int:
            attempts = []

            def init() -> None:
                attempts.append(subprocess.Popen(["bash", "-c", "sleep 600; exit", "raylet"], start_new_session=True))
                if len(attempts) <= failures:
                    raise RuntimeError(words)

            monkeypatch.setattr("ray.shutdown", lambda: None)
            try:
                patiently(init)
                assert [process.wait() for process in attempts[:-1]] == [-signal.SIGKILL] * failures
                assert attempts[-1].poll() is None
            finally:
                for process in attempts:
                    os.killpg(process.pid, signal.SIGKILL)
            return len(attempts)

        return run

    def test_it_is_tried_again_without_what_the_first_attempt_left(self, begin: Callable[..., int]) -> None:
        with pytest.warns(UserWarning, match="trying again"):
            assert begin(2, "The current node timed out during startup.") == 3

    def test_not_for_ever(self, begin: Callable[..., int]) -> None:
        with pytest.warns(UserWarning, match="trying again"), pytest.raises(RuntimeError, match="timed out"):
            begin(9, "The current node timed out during startup.")

    def test_other_faults_are_told_at_once(self, begin: Callable[..., int]) -> None:
        with pytest.raises(RuntimeError, match="no room"):
            begin(1, "no room")
