"""Parameters of the studies, checked before anything runs."""

from .base import Parameters, PromptParameters, SamplingParameters, Settings, closest
from .studies import (
    STUDIES,
    AlignmentParameters,
    CompressionParameters,
    FidelityParameters,
    FiguresParameters,
    HiqmParameters,
    QualityParameters,
    SchedulingParameters,
    SimilarityParameters,
    SplitParameters,
    SweepParameters,
)

__all__ = [
    "STUDIES",
    "AlignmentParameters",
    "CompressionParameters",
    "FidelityParameters",
    "FiguresParameters",
    "HiqmParameters",
    "Parameters",
    "PromptParameters",
    "QualityParameters",
    "SamplingParameters",
    "SchedulingParameters",
    "Settings",
    "SimilarityParameters",
    "SplitParameters",
    "SweepParameters",
    "closest",
]
