"""Files are written whole or not at all, and an error names the file that was meant."""

import errno
import os

import pytest

from rwkv7_jax import terminal
from rwkv7_jax.checkpoint import files, load_state


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_names_the_file_and_leaves_what_was_there(step, tmp_path, monkeypatch, capsys):
    path = tmp_path / "x.json"
    path.write_text("before")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    assert terminal.exit_status(lambda: files.write_text(path, "after")) == 2
    assert capsys.readouterr().err == f"error: {path}: No space left on device\n"
    assert [one.read_text() for one in tmp_path.iterdir()] == ["before"]


def test_a_folder_that_cannot_be_written_names_the_file(tmp_path, monkeypatch):
    def refused(**named: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", f"{named['dir']}/{named['prefix']}abc.tmp")

    monkeypatch.setattr(files.tempfile, "mkstemp", refused)
    with pytest.raises(PermissionError) as error:
        files.write_text(tmp_path / "x.json", "after")
    assert error.value.filename == str(tmp_path / "x.json")


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"other\.json"), files.atomic(tmp_path / "x.json"):
        (tmp_path / "other.json").read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_where_a_state_is_needed_is_named(tmp_path):
    with pytest.raises(files.CheckpointError, match=r"is a folder, not a state file; `rwkv7 state convert` makes"):
        load_state(tmp_path)


@pytest.mark.parametrize("address", ["gs://bucket/x.json", "s3://bucket/x.json", "file:///x.json"])
def test_an_address_is_no_folder_of_that_name(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is an address; give a local path"):
        files.write_text(address, "{}")
    assert list(tmp_path.iterdir()) == []
