"""hybridlib: every method is a path through a denoising tree.

Floors, from the ground up; imports run downwards only, and wings do not import each other.

paths files noise intervals fits prompts progress   used by all, use nothing above
codecs       latents as bytes and back, at any segment border
denoising    trajectories and the tree they share, denoisers, sampler, state, pipelines, models by name
metrics      alignment, fidelity, distortion, sentence similarity
study        checked parameters, resumable runs, shipped results, all notebooks in one command
hybrid       wing 1: hybrid inference; published grids, quality curves (HIQM), planning, claims
compression  wing 2: latent compression; published grids, measured bytes, surfaces, claims
scheduling   wing 4: edge servers and image tasks; system, rules, learners, study
figures      the house style and the recurring plots
explorer     the widgets of notebook 00, and what they compute
miniature    captioned scenes and the recipes of the shipped models
"""

__version__ = "0.1.0"
