"""Parameters of the studies, checked before anything runs."""

from .base import OwnParameters, Parameters, PromptParameters, SamplingParameters, Settings
from .sharing import SharingParameters
from .studies import (
    STUDIES,
    AlignmentParameters,
    CompactModelsParameters,
    CompressionParameters,
    FidelityParameters,
    FiguresParameters,
    FullSizeParameters,
    HiqmParameters,
    QualityParameters,
    SchedulingParameters,
    SimilarityParameters,
    SplitParameters,
    SweepParameters,
)
from .training import ImmiscibleParameters

__all__ = [
    "STUDIES",
    "AlignmentParameters",
    "CompactModelsParameters",
    "CompressionParameters",
    "FidelityParameters",
    "FiguresParameters",
    "FullSizeParameters",
    "HiqmParameters",
    "ImmiscibleParameters",
    "OwnParameters",
    "Parameters",
    "PromptParameters",
    "QualityParameters",
    "SamplingParameters",
    "SchedulingParameters",
    "Settings",
    "SharingParameters",
    "SimilarityParameters",
    "SplitParameters",
    "SweepParameters",
]
