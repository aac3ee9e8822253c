"""llama.cpp's library: what is missing, or has another layout, is one line."""

import ctypes.util
from pathlib import Path

import pytest

from experiments.bench import llama


def test_no_library_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(llama.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="xllamacpp is not installed"):
        llama.library_path()


def test_a_library_without_the_functions_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(llama, "library_path", lambda: Path(ctypes.util.find_library("c") or "libc.so.6"))
    with pytest.raises(ImportError, match="has no function llama_"):
        llama.load_library()


def test_settings_of_another_layout_are_refused(monkeypatch: pytest.MonkeyPatch):
    def defaults() -> llama.Settings:
        settings = llama.Settings()
        settings.numbers[:4] = (0, 512, 2048, 1)
        return settings

    call = {
        "llama_model_default_params": llama.Settings,
        "llama_model_load_from_file": lambda path, settings: 1,
        "llama_context_default_params": defaults,
    }
    monkeypatch.setattr(llama, "load_library", lambda: llama.Library(call, [], None))
    with pytest.raises(RuntimeError, match="other settings"):
        llama.Context(Path("a.gguf"), 1)
    call["llama_model_load_from_file"] = lambda path, settings: None
    monkeypatch.setattr(llama, "load_library", lambda: llama.Library(call, ["unknown architecture"], None))
    with pytest.raises(RuntimeError, match="unknown architecture"):
        llama.Context(Path("a.gguf"), 1)
