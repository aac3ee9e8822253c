"""Test-time scaling: a larger model guides one prompt at a time."""

from state_tuning.test_time_scaling import adaptation, policy_gradient, rollouts, selection, teacher
from state_tuning.test_time_scaling.adaptation import Answered, adapt, controls, teacher_alone
from state_tuning.test_time_scaling.cost import Cost
from state_tuning.test_time_scaling.policy_gradient import AdaptConfig, Program, make_program
from state_tuning.test_time_scaling.rollouts import Problem, Session, Student
from state_tuning.test_time_scaling.teacher import HttpTeacher, InProcessTeacher, Teacher

__all__ = [
    "AdaptConfig",
    "Answered",
    "Cost",
    "HttpTeacher",
    "InProcessTeacher",
    "Problem",
    "Program",
    "Session",
    "Student",
    "Teacher",
    "adapt",
    "adaptation",
    "controls",
    "make_program",
    "policy_gradient",
    "rollouts",
    "selection",
    "teacher",
    "teacher_alone",
]
