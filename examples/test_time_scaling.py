"""Test-time scaling: a larger model guides the small one for one prompt at a time, and is not asked for the answer."""

import jax

from experiments.build import checkpoint_path
from experiments.pocket import benchmarks
from experiments.tasks import TASKS
from experiments.tasks.gsm8k import flexible
from rwkv7_jax import LanguageModel
from state_tuning import tune
from state_tuning.test_time_scaling import (
    AdaptConfig,
    InProcessTeacher,
    Problem,
    Session,
    Student,
    adapt_and_vote,
    make_program,
)

small = LanguageModel.load(checkpoint_path("pocket/student"))
large = LanguageModel.load(checkpoint_path("pocket/teacher"))
train = [TASKS["gsm8k"].to_example(record) for record in benchmarks.load("gsm8k", "train")]
records = benchmarks.load("gsm8k", "test")[:8]

# Both models are tuned on the same examples; neither has seen the eight problems below.
states = [tune(lm, train, steps=100, learning_rate=3.0).state.state for lm in (small, large)]

config = AdaptConfig(samples=4, steps=2, max_new_tokens=64)
session = Session(
    student=Student(small, states[0]),
    program=make_program(small.model, config),
    teacher=InProcessTeacher(large, state=states[1]),  # HttpTeacher("http://localhost:8000/v1", "NAME") is the other
    problems=[Problem(TASKS["gsm8k"].to_example(record)[0], stop=("\n\n",)) for record in records],
    keys=jax.random.split(jax.random.key(0), len(records)),
    config=config,
)
found = adapt_and_vote(session, answer=lambda problem, text: flexible(text))

for step, (greedy, voted) in enumerate(zip(found.greedy, found.voted, strict=True)):
    pairs = [zip(records, answers, strict=True) for answers in (greedy, voted)]
    count = [sum(TASKS["gsm8k"].score(r, one.results)["flexible_extract"] for r, one in pair) for pair in pairs]
    tokens = sum(one.cost.student_tokens for one in voted), sum(one.cost.teacher_tokens for one in voted)
    print(f"after {step} steps: greedy {count[0]:.0f}, vote {count[1]:.0f} of 8; tokens of small and large {tokens}")
