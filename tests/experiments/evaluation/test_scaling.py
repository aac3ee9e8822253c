"""Answers of test-time scaling on disk."""

from experiments.evaluation.scaling import _is_outcome

LINE = {"method": "greedy", "n": 1, "correct": 1, "student_tokens": 4, "teacher_tokens": 0, "seconds": 0.5}


def test_an_old_line_needs_numbers_that_a_float_holds():
    assert _is_outcome(LINE)
    for wrong in (10**400, float("inf"), float("nan"), "1", None):
        assert not _is_outcome({**LINE, "seconds": wrong})
