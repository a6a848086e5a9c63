"""Edge scheduling: which server generates which image, as published in LAD-TS (DEdgeAI), and how good that is.

environment   the published MEC model, many episodes at once
heuristics    rules without learning
bounds        what no policy can beat, and the optimum of small cases
statistics    interquartile means and bootstrap intervals over seeds
networks      every agent's network as one stack of weights
replay        every agent's replay buffer as one ring
training      the one loop of all learners, checkpoints
lad, d2sac, sac, dqn   one learner a file
env_api       the same environment behind PettingZoo and Gymnasium
"""
