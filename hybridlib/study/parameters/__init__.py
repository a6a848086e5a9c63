"""Parameters of the studies, checked before anything runs."""

from .base import Parameters, PromptParameters, SamplingParameters, Settings, closest
from .studies import (
    STUDIES,
    AlignmentParameters,
    CompressionParameters,
    FidelityParameters,
    FiguresParameters,
    HiqmParameters,
    ImmiscibleParameters,
    QualityParameters,
    SchedulingParameters,
    SimilarityParameters,
    SweepParameters,
)

__all__ = [
    "STUDIES",
    "AlignmentParameters",
    "CompressionParameters",
    "FidelityParameters",
    "FiguresParameters",
    "HiqmParameters",
    "ImmiscibleParameters",
    "Parameters",
    "PromptParameters",
    "QualityParameters",
    "SamplingParameters",
    "SchedulingParameters",
    "Settings",
    "SimilarityParameters",
    "SweepParameters",
    "closest",
]
