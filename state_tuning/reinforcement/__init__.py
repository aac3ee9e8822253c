"""Learning from rewards: GRPO and evolution strategies on an initial state, and rewards that a program can check."""

from state_tuning.reinforcement import estimators, evolution, grpo, learning, rewards, sampling
from state_tuning.reinforcement.estimators import leave_one_out, pass_at_k
from state_tuning.reinforcement.evolution import ESConfig
from state_tuning.reinforcement.grpo import GRPOConfig
from state_tuning.reinforcement.learning import Asked, Learner, evolution_step, grpo_step
from state_tuning.reinforcement.rewards import Answer, Reward, RewardError, make_reward
from state_tuning.reinforcement.sampling import Prompts, Sampler, pad_prompts

__all__ = [
    "Answer",
    "Asked",
    "ESConfig",
    "GRPOConfig",
    "Learner",
    "Prompts",
    "Reward",
    "RewardError",
    "Sampler",
    "estimators",
    "evolution",
    "evolution_step",
    "grpo",
    "grpo_step",
    "learning",
    "leave_one_out",
    "make_reward",
    "pad_prompts",
    "pass_at_k",
    "rewards",
    "sampling",
]
