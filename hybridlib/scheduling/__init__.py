"""Edge scheduling: which server generates which image, as published in LAD-TS (DEdgeAI), and how good that is.

system        the published servers, links, tasks and arrivals
environment   the slots they run through, many episodes at once
heuristics    rules without learning
bounds        what no policy can beat, and the optimum of small cases
fluid         our own scheduler: a size split that answers to the backlog, fitted on a fluid
statistics    interquartile means and bootstrap intervals over seeds
networks      every agent's network as one stack of weights
replay        every agent's replay buffer as one ring
training      the one loop of all learners, checkpoints
diffusion     the denoising policy of LAD-TS and D2SAC
lad, d2sac, sac, dqn   one learner a file
env_api       the same environment behind PettingZoo and Gymnasium
"""
