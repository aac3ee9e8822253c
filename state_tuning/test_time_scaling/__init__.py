"""Test-time scaling: a larger model guides one prompt at a time."""

from state_tuning.test_time_scaling import adaptation, policy_gradient, rollouts, selection, signals, teacher
from state_tuning.test_time_scaling.adaptation import Adaptation, adapt, adapt_and_vote
from state_tuning.test_time_scaling.baselines import controls, teacher_alone
from state_tuning.test_time_scaling.cost import Cost
from state_tuning.test_time_scaling.outcomes import Answered
from state_tuning.test_time_scaling.policy_gradient import AdaptConfig, Program, make_program
from state_tuning.test_time_scaling.rollouts import Problem, Session, Student
from state_tuning.test_time_scaling.teacher import HttpTeacher, InProcessTeacher, Teacher

__all__ = [
    "AdaptConfig",
    "Adaptation",
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
    "adapt_and_vote",
    "adaptation",
    "controls",
    "make_program",
    "policy_gradient",
    "rollouts",
    "selection",
    "signals",
    "teacher",
    "teacher_alone",
]
