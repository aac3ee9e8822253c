"""The larger model: in this process, behind HTTP, or replayed from a file."""

from state_tuning.test_time_scaling.teacher.http import HttpTeacher
from state_tuning.test_time_scaling.teacher.http_client import TeacherError
from state_tuning.test_time_scaling.teacher.in_process import Generated, InProcessTeacher, Question, Scores, Teacher
from state_tuning.test_time_scaling.teacher.replay import Replay

__all__ = ["Generated", "HttpTeacher", "InProcessTeacher", "Question", "Replay", "Scores", "Teacher", "TeacherError"]
