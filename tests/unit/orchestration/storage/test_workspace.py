"""Tests ERAT_HOME: which values are allowed, and what must not be in the folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from erat.errors import UserError
from orchestration.storage.workspace import Workspace


def opened(monkeypatch: pytest.MonkeyPatch, value: object, *, reading: bool = False) -> Workspace:
    monkeypatch.setenv("ERAT_HOME", str(value))
    return Workspace.from_environment(reading=reading)


def test_an_empty_name_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert opened(monkeypatch, "").root == tmp_path / "runs"


def test_what_is_no_path_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for value in ("~nosuchuser/x", "x" * 5000, tmp_path / "file", tmp_path / "file" / "x", tmp_path / "loop"):
        with pytest.raises(UserError, match=r"^ERAT_HOME=") as caught:
            opened(monkeypatch, value)
        assert len(str(caught.value)) < 400
        assert len(str(caught.value).splitlines()) == 1


def test_a_character_that_no_path_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"ERAT_HOME": "a\0b"})
    with pytest.raises(UserError, match=r"^ERAT_HOME=a.x00b is no path: "):
        Workspace.from_environment()


@pytest.mark.parametrize("name", ["cells", "reports", "outbox", "audits", "ray", "mlartifacts"])
def test_a_file_in_a_folder_s_place_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(UserError, match=rf"^{tmp_path / name} must be a folder: move away what lies there$"):
        opened(monkeypatch, tmp_path, reading=True)


@pytest.mark.parametrize("name", ["ledger.jsonl", "mlflow.db"])
def test_what_is_no_file_in_a_file_s_place_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=rf"^{tmp_path / name} must be a file: "):
        opened(monkeypatch, tmp_path)
    (tmp_path / name).rmdir()
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=rf"^{tmp_path / name} must be a file: "):
        opened(monkeypatch, tmp_path)


def test_reading_needs_no_permission_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    assert opened(monkeypatch, tmp_path, reading=True).root == tmp_path
    with pytest.raises(UserError, match="is not writable"):
        opened(monkeypatch, tmp_path)
