"""Edge scheduling: which server generates which image, as published in LAD-TS (DEdgeAI), and how good that is.

system    servers, links, tasks and their arrivals; the slots they run through, many episodes at once; what no policy
          can beat; the same environment behind PettingZoo and Gymnasium
rules     schedulers that do not learn by trial, and our own, fitted on a fluid
learners  LAD-TS, D2SAC, SAC and DQN: all agents and seeds in one batch, checkpointed
study     study 08 as remembered pieces: sweeps, claims, reports, shipped schedulers
"""
