"""What training a model asks of its storage: demand, measurement, verdict and explanation."""

from shardload.capacity.demand import Flow, Stage, plan_stages
from shardload.capacity.explanation import SOURCES, explain
from shardload.capacity.formula import Step
from shardload.capacity.measurement import Measurement, Speed, measure
from shardload.capacity.reads import ReadPlan, plan_reads
from shardload.capacity.verdict import Verdict, judge
from shardload.capacity.workload import Workload

__all__ = [
    "SOURCES",
    "Flow",
    "Measurement",
    "ReadPlan",
    "Speed",
    "Stage",
    "Step",
    "Verdict",
    "Workload",
    "explain",
    "judge",
    "measure",
    "plan_reads",
    "plan_stages",
]
