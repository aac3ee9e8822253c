"""A process that dies at the n-th of its operations, without a process: whatever it does afterwards fails too.

Operations are draws of data, steps, rows of metrics and everything done to files, in the main thread and the writer's;
one that writes or deletes several things is half done when the process dies in it.
"""

import contextlib
import json
import pathlib
import shutil

import orbax.checkpoint as ocp

from experiments.reporting import jsonl_store
from experiments.training import metrics_log
from experiments.training.checkpoint import files


class Killed(BaseException):
    """Stands for SIGKILL."""


class Killer:
    """Counts operations; at number `at` and at all later ones raises Killed."""

    def __init__(self, at=None):
        self.at, self.count, self.names = at, 0, []

    def tick(self, name, half=lambda: None):
        """One operation; `half` is done of it if it is the last."""
        self.count += 1
        self.names.append(name)
        if self.at is not None and self.count >= self.at:
            if self.count == self.at:
                half()
            raise Killed(name)

    def patched(self, monkeypatch):
        """All operations counted from now on."""
        text, rename, tree = pathlib.Path.write_text, pathlib.Path.rename, shutil.rmtree
        replace, hashes, append = jsonl_store.os.replace, files.file_hashes, metrics_log.MetricsLog.append
        save, wait = ocp.StandardCheckpointer.save, ocp.StandardCheckpointer.wait_until_finished

        def write_text(path, body, *args, **kwargs):
            self.tick(f"write {path.name}", lambda: text(path, body[: len(body) // 2]))
            return text(path, body, *args, **kwargs)

        def rmtree(path, *args, **kwargs):
            def half():
                for file in [file for file in pathlib.Path(path).rglob("*") if file.is_file()][::2]:
                    file.unlink()

            self.tick("delete", half)
            return tree(path, *args, **kwargs)

        def appended(log, row):
            def half():
                with log.path.open("a") as file:
                    file.write(json.dumps(row)[:-3])

            self.tick("row", half)
            return append(log, row)

        def saved(checkpointer, path, *args, **kwargs):
            def half():
                (path.parent / "tree.orbax-checkpoint-tmp" / "d").mkdir(parents=True)
                text(path.parent / "tree.orbax-checkpoint-tmp" / "d" / "part", "half")

            self.tick("orbax", half)
            return save(checkpointer, path, *args, **kwargs)

        def waited(checkpointer):
            with contextlib.suppress(RuntimeError):
                wait(checkpointer)
            self.tick("orbax is done")

        monkeypatch.setattr(pathlib.Path, "write_text", write_text)
        monkeypatch.setattr(pathlib.Path, "rename", lambda a, b: [self.tick("rename"), rename(a, b)][1])
        monkeypatch.setattr(jsonl_store.os, "replace", lambda a, b: [self.tick("replace"), replace(a, b)][1])
        monkeypatch.setattr(shutil, "rmtree", rmtree)
        monkeypatch.setattr(files, "file_hashes", lambda path: [self.tick("hashes"), hashes(path)][1])
        monkeypatch.setattr(metrics_log.MetricsLog, "append", appended)
        monkeypatch.setattr(ocp.StandardCheckpointer, "save", saved)
        monkeypatch.setattr(ocp.StandardCheckpointer, "wait_until_finished", waited)

    def step(self, function):
        """A step that dies before or after the device."""

        def stepped(state, batch):
            self.tick("step")
            result = function(state, batch)
            self.tick("stepped")
            return result

        return stepped
