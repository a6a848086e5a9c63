"""Parameters of the studies, checked before anything runs."""

from .base import Parameters, PromptParameters, SamplingParameters, Settings, closest
from .studies import (
    STUDIES,
    AlignmentParameters,
    CompactModelsParameters,
    CompressionParameters,
    FidelityParameters,
    FiguresParameters,
    HiqmParameters,
    QualityParameters,
    SchedulingParameters,
    SimilarityParameters,
    SweepParameters,
)

__all__ = [
    "STUDIES",
    "AlignmentParameters",
    "CompactModelsParameters",
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
    "SweepParameters",
    "closest",
]
