"""A toy student and a teacher in this process that read bytes, for the tests of test-time scaling."""

import dataclasses

import jax
import jax.numpy as jnp

from rwkv7_jax import zero_state
from rwkv7_jax.language_model import LanguageModel
from rwkv7_jax.tokenizer import ByteTokenizer
from state_tuning.test_time_scaling import policy_gradient
from state_tuning.test_time_scaling.policy_gradient import AdaptConfig
from state_tuning.test_time_scaling.rollouts import Problem, Session, Student
from state_tuning.test_time_scaling.teacher.in_process import InProcessTeacher
from tests.helpers import CONFIG, MODEL, random_state, weights

BYTES = ByteTokenizer()


def strengthened(path, leaf):
    """Weights of a model whose time mix, and so its initial state, has much to say about the next token."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return leaf * {"head/weight": 3.0}.get(name, 8.0 if name.endswith("att/output/weight") else 1.0)


PARAMS = jax.tree_util.tree_map_with_path(strengthened, weights())
STUDENT = Student(LanguageModel(MODEL, PARAMS, BYTES), zero_state(CONFIG, None))
TEACHER_STATE = random_state(7, 0.4)
TEACHER = InProcessTeacher(LanguageModel(MODEL, PARAMS, BYTES), state=TEACHER_STATE, batch_size=8)
PROBLEMS = [Problem("one"), Problem("and two"), Problem("3"), Problem("go on")]
SETTINGS = AdaptConfig(samples=4, steps=2, rate=0.05, units="absolute", norm_cap=6.0, max_new_tokens=4, loss_chunk=4)
PROGRAMS = {}


def program(config):
    key = dataclasses.replace(config, samples=1, steps=1, agreement=0.0, vote=1.0, choice_weight=1.0, signal="auto")
    return PROGRAMS.setdefault(key, policy_gradient.make_program(MODEL, config))


def session(config=SETTINGS, problems=PROBLEMS, teacher=TEACHER, student=STUDENT):
    keys = jnp.stack([jax.random.fold_in(jax.random.key(5), i) for i in range(len(problems))])
    return Session(student, program(config), teacher, problems, keys, config)


def first_letter(b, text):
    del b
    return text[:1] or None
