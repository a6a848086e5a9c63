"""Scores of images: one name, one identity, one number an image.

alignment     CLIP cosine between an image and its prompt, or another image
fidelity      BRISQUE, with its scene_statistics and the conversion of its support vectors in brisque_svm
distortion    PSNR and SSIM against a reference image
similarity    MiniLM cosine between prompts
distribution  Frechet distance and CMMD between two sets of features: one number a set, not an image
inception     FID and Inception Score of folders of images, by torch-fidelity with local weights
optional      ImageReward and MUSIQ, where they are installed

Importing this package loads none of the models' libraries; its modules do.
"""

from .base import Metric

__all__ = ["Metric"]
