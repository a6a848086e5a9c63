"""hybridlib: every method is a path through a denoising tree.

trajectory   seeds, segments, and the tree that generations with a common beginning form
noise        the initial noise of a seed
codecs       latents as bytes and back, at any segment border
denoisers    diffusion models behind one protocol, a conditioning for every row
state        a generation stopped half-way: save, send, resume
sampler      walks the tree, everything alive at a step in one batch
pipelines    diffusers pipelines with public and personal prompts
models       by name: a shipped miniature, a local folder, a hub id
prompts      prompt sets and the similarity of their prompts
grids        the published grids as tables of trajectories
files        images and tables on disk, whole or not at all
study        tables to images and scores on disk, resumable
metrics      alignment, fidelity, distortion, sentence similarity
fits         sigmoids, and intervals over prompts
hiqm         quality by common step and prompt similarity
planning     one quality surface, and how many steps to share
claims       what was published, tested on what was measured
results      tables of full runs that ship with the project
spreadsheets the published layouts, both ways
compression  fits of image quality against step and strength
figures      the house style and the recurring plots
scheduling   edge servers and image tasks: environment, yardsticks, bounds, learners
miniature    captioned scenes and the recipes of the shipped models
"""

import warnings

# tqdm advises notebook widgets, which nothing here needs.
warnings.filterwarnings("ignore", message="IProgress not found")

__version__ = "0.1.0"
