"""The settings of test-time scaling, `rwkv7 scale`."""

import dataclasses
from typing import Literal

from experiments.config.commands import MODEL, CacheConfig
from experiments.config.overrides import option
from experiments.config.schema import ModelConfig

CACHE = CacheConfig()


@dataclasses.dataclass(frozen=True)
class ProblemsConfig:
    """What is answered."""

    tasks: tuple[str, ...] = option((), "one of pocket:mmlu, ...; mmlu, ... with dir; or the kind of records in file")
    dir: str | None = option(None, "folder of the real benchmarks' files, for a task without pocket:")
    file: str | None = option(None, 'jsonl of {"prompt", "completion"}, or public records of the task')
    match: Literal["text", "number"] = option("text", "how answers to a file without a task are compared")
    split: Literal["validation", "test"] = option("test", "split of the benchmark")
    chain: str | None = option(
        None, "answers after a chain of thought: a phrasing, or a template, as the states were tuned", escapes=True
    )


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """The larger model."""

    checkpoint: str = option(
        "", "a larger RWKV-7 checkpoint, or an address http://HOST/v1", required=True, address=True
    )
    tokenizer: str = option("auto", "of a checkpoint")
    state: str | None = option(None, "tuned state that a checkpoint starts from; none: the zero state")
    model: str | None = option(None, "name of the model behind an address")
    api: Literal["completions", "chat", "llama.cpp"] = option(
        "completions", "of an address; llama.cpp: completions of llama-server, which does not echo"
    )
    replay: str | None = option(None, "file that keeps the endpoint's answers, to repeat the run without it")
    offline: bool = option(False, "ask nothing that is not in the replay file")
    timeout: float = option(60.0, "seconds for one attempt")
    retries: int = option(4, "further attempts after a passing fault")
    workers: int = option(4, "requests at once")


@dataclasses.dataclass(frozen=True)
class OptionalTeacherConfig(TeacherConfig):
    """The larger model, where there need not be one."""

    checkpoint: str = option("", "a larger checkpoint, or an address http://HOST/v1; none: no teacher", address=True)


@dataclasses.dataclass(frozen=True)
class AdaptationConfig:
    """How each prompt's state is changed; fields of state_tuning.test_time_scaling.policy_gradient.AdaptConfig."""

    signal: Literal["auto", "distillation", "token", "reward"] = option(
        "auto",
        "what the teacher says: its distributions, log p of sampled tokens, one number; auto: the first it gives",
    )
    reward: Literal["log_probability", "margin"] = option("log_probability", "the teacher's score")
    samples: int = option(8, "chains a step, K")
    steps: int = option(3, "gradient steps")
    rate: float = option(0.03, "step size, about the change of each state entry a step, in units")
    norm_cap: float = option(1.0, "largest change of a prompt: root mean square in units of the state, else norm")
    units: Literal["state", "absolute"] = option("state", "state: parts of the root mean square of each head of S_0")
    floor: float = option(0.1, "least unit of a head, for a zero S_0")
    divergence: Literal["reverse", "forward", "mixed"] = option("reverse", "of the teacher's distributions")
    mixture: float = option(0.5, "the teacher's weight in the mixed divergence")
    kl: float = option(0.0, "weight of the KL to the policy without adaptation")
    clip_norm: float = option(1.0, "largest norm of a prompt's gradient; 0: no clipping")
    temperature: float = option(1.0, "of sampled chains")
    max_new_tokens: int = option(96, "longest chain")
    baseline: Literal["leave_one_out", "group"] = option("leave_one_out", "of the reward; group is GRPO's")
    chain_steps: int = option(0, "NLL steps on a chain of the teacher's before")
    vote: float = option(4.0, "c: a vote weighs exp(c times the teacher's mean log-probability of its chain)")
    choice_weight: float = option(0.5, "of the teacher's log-probabilities, added to the student's of given choices")
    agreement: float = option(0.0, "end a problem when this share of a step's chains have one answer; 0: never")


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """Search in state space; fields of state_tuning.test_time_scaling.search.SearchConfig."""

    beams: int = option(0, "chains of a problem that grow side by side and are forked, an even number; 0: no search")
    span: int = option(8, "tokens between two looks at the teacher's scores")
    part: float = option(0.1, "fork where they part by this many nats per token")


@dataclasses.dataclass(frozen=True)
class Scale:
    """`rwkv7 scale`."""

    model: ModelConfig = MODEL
    state: str | None = option(None, "tuned state that every prompt starts from; none: the zero state")
    data: ProblemsConfig = ProblemsConfig()
    limit: int = option(100, "answer at most this many problems")
    batch_size: int = option(16, "problems side by side")
    teacher: TeacherConfig = TeacherConfig()
    adapt: AdaptationConfig = AdaptationConfig()
    search: SearchConfig = SearchConfig()
    seed: int = option(0, "seed of all sampling")
    output: str = option("runs/scale", "folder of everything written")
    overwrite: bool = option(False, "throw away what the folder holds of an earlier run")
    system: CacheConfig = CACHE
