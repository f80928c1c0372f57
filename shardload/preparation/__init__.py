"""What is done to samples between their source and the dataset: steps, and the processes that run a user's functions."""

from shardload.preparation.functions import Function, function_step
from shardload.preparation.pool import StepPool
from shardload.preparation.steps import Refusal, Result, Step, StepError, Values, run_steps

__all__ = [
    "Function",
    "Refusal",
    "Result",
    "Step",
    "StepError",
    "StepPool",
    "Values",
    "function_step",
    "run_steps",
]
