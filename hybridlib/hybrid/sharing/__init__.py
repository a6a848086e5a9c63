"""From a list of prompts to the cheapest tree that keeps the quality asked for: `hybridlib.hybrid.share`.

quality   what a chain of handovers is expected to cost
groups    what a group of prompts runs under
optimise  the cheapest tree, by dynamic programming
plan      the tree, its cost and its images
planner   `share`, the one call
rivals    other rules that make such plans, to be scored the same way
online    prompts that arrive over time
reuse     the floor as a rule for a cache of prefixes
study     study 13: its surface, its plans, their images
measured  what its scores say
"""
