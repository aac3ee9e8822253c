"""Signs of life of the other processes."""

import threading

from experiments.training import liveness


def test_a_silent_process_is_lost_and_a_finished_one_is_not():
    watch = liveness.Watch(0, 3, 0.0)
    assert watch.lost({0: "1", 1: "1"}, 10.0) == []
    late = liveness.LOST + 1
    assert watch.lost({1: "2"}, late) == [2]
    assert watch.lost({1: "2", 2: liveness.DONE}, late + 1) == []
    assert watch.lost({1: "2", 2: liveness.DONE}, 3 * late) == [1]


def test_the_thread_tells_once_and_says_when_it_ends(monkeypatch):
    monkeypatch.setattr(liveness, "EVERY", 0.001)
    monkeypatch.setattr(liveness, "LOST", -1.0)
    kept, told, heard = {}, threading.Event(), []

    class Store:
        def key_value_set(self, key, value, allow_overwrite=False):
            kept[key] = value

        def key_value_dir_get(self, key):
            return [*kept.items(), (f"{key}1", "1")]

    class Runtime:
        client = Store()

    monkeypatch.setattr(liveness.runtime, "global_state", Runtime())
    with liveness.watched(0, 2, lambda others: (heard.append(others), told.set())):
        assert told.wait(60)
    assert heard == [[1]]
    monkeypatch.setattr(liveness, "LOST", 60.0)
    monkeypatch.setattr(liveness, "EVERY", 60.0)
    before = threading.active_count()
    with liveness.watched(0, 2, heard.append):
        assert threading.active_count() == before + 1
    assert kept["rwkv7/alive/0"] == liveness.DONE
    with liveness.watched(0, 1, heard.append):
        pass
    assert heard == [[1]]
