"""hybridlib: every method is a path through a denoising tree.

trajectory   seeds, segments, and the tree that generations with a common beginning form
denoisers    diffusion models behind one protocol, a conditioning for every row
state        a generation stopped half-way: save, send, resume
sampler      walks the tree, everything alive at a step in one batch
pipelines    diffusers pipelines with public and personal prompts
models       by name: a shipped miniature, a local folder, a hub id
prompts      prompt sets
grids        the published grids as tables of trajectories
study        tables to images on disk, shard by shard, resumable
figures      the house style and the recurring plots
scheduling   edge servers and image tasks: environment, yardsticks, bounds, learners
miniature    captioned scenes and the recipes of the shipped models
"""

__version__ = "0.1.0"
