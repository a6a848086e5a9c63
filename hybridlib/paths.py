"""Where things lie in a clone of the project."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "data" / "models"
PROMPTS = ROOT / "data" / "prompts"
PUBLISHED = ROOT / "data" / "published"
OUTPUTS = ROOT / "outputs"
RESULTS = ROOT / "data" / "results"
