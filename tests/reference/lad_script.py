"""LAD-TS in the structure of the published script: one task at a time, batch-of-1 inference, one optimiser a network.

No hybridlib. Random numbers come from a `Draws` object, so that a test can hand out the same ones to both sides; the
default draws its own, which is what the benchmark times.
"""

from __future__ import annotations

import math
import random
from collections import deque

import numpy as np
import torch
from torch import nn


class Draws:
    """Own random numbers; slot counts all slots since the beginning."""

    def denoising(self, purpose, slot, b, n, steps, servers, rows=1):
        return torch.randn(steps, rows, servers)  # the published code draws one for the last step, too

    def action(self, slot, b, n, probabilities):
        return torch.distributions.Categorical(probabilities).sample().item()

    def batch(self, slot, b, size, wanted):
        return random.sample(range(size), wanted)


class Embedding(nn.Module):
    def forward(self, step):
        frequencies = torch.exp(torch.arange(8) * -(math.log(10000) / 7))
        angles = step[:, None] * frequencies[None, :]
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


class Denoiser(nn.Module):
    def __init__(self, servers, hidden):
        super().__init__()
        self.embedding = Embedding()
        self.layers = nn.Sequential(
            nn.Linear(servers + 16 + 2 + servers, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, servers),
        )

    def forward(self, x, step, state):
        embedded = self.embedding(step).to(x.dtype)
        return torch.softmax(self.layers(torch.cat([x, embedded, state], dim=1)), dim=-1)


class Diffusion(nn.Module):
    def __init__(self, servers, hidden, steps):
        super().__init__()
        self.model, self.steps, self.servers = Denoiser(servers, hidden), steps, servers
        i = np.arange(1, steps + 1)
        beta = 1 - np.exp(-0.1 / steps - 0.5 * (10 - 0.1) * (2 * i - 1) / steps**2)
        alpha_bar = np.cumprod(1 - beta)
        before = np.append(1.0, alpha_bar[:-1])
        for name, values in {
            "sqrt_recip": np.sqrt(1 / alpha_bar),
            "sqrt_recipm1": np.sqrt(1 / alpha_bar - 1),
            "mean_clean": beta * np.sqrt(before) / (1 - alpha_bar),
            "mean_latent": (1 - before) * np.sqrt(1 - beta) / (1 - alpha_bar),
            "log_variance": np.log(np.maximum(beta * (1 - before) / (1 - alpha_bar), 1e-20)),
        }.items():
            self.register_buffer(name, torch.tensor(values))

    def pick(self, values, step, like):
        return values.gather(-1, step).reshape(-1, 1).to(like.dtype)

    def forward(self, state, latent, noise):
        x = latent
        for i in reversed(range(self.steps)):
            step = torch.full((len(state),), i, dtype=torch.long)
            e = self.model(x, step, state)
            clean = self.pick(self.sqrt_recip, step, x) * x - self.pick(self.sqrt_recipm1, step, x) * e
            mean = self.pick(self.mean_clean, step, x) * clean + self.pick(self.mean_latent, step, x) * x
            nonzero = (1 - (step == 0).to(x.dtype)).reshape(-1, 1)
            x = mean + nonzero * (0.5 * self.pick(self.log_variance, step, x)).exp() * noise[i]
        return torch.softmax(x, dim=-1)


def critic(servers, hidden):
    return nn.Sequential(
        nn.Linear(2 + servers, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, servers),
    )


class Agent:
    """One base station: networks, replay and update of its own."""

    def __init__(self, b, servers, steps=5, hidden=20, dtype=torch.float32, warmup=300, batch=64):
        self.b, self.servers, self.steps, self.dtype = b, servers, steps, dtype
        self.warmup, self.batch = warmup, batch
        self.actor = Diffusion(servers, hidden, steps).to(dtype)
        self.critics = [critic(servers, hidden).to(dtype) for _ in range(2)]
        self.targets = [critic(servers, hidden).to(dtype) for _ in range(2)]
        for target, source in zip(self.targets, self.critics, strict=True):
            target.load_state_dict(source.state_dict())
        self.log_alpha = torch.tensor(math.log(0.05), dtype=dtype, requires_grad=True)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=1e-4)
        self.critic_optimizers = [torch.optim.Adam(c.parameters(), lr=1e-3) for c in self.critics]
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], lr=3e-4)
        self.replay = deque(maxlen=1000)

    def act(self, state, latent, draws, slot, n):
        with torch.no_grad():
            noise = draws.denoising("act", slot, self.b, n, self.steps, self.servers).to(self.dtype)
            state = torch.tensor(np.array([state]), dtype=self.dtype)
            latent = torch.tensor(np.array([latent]), dtype=self.dtype)
            probabilities = self.actor(state, latent, noise)
        action = draws.action(slot, self.b, n, probabilities)
        return action, probabilities.numpy()[0]

    def learn(self, draws, slot):
        chosen = [self.replay[i] for i in draws.batch(slot, self.b, len(self.replay), self.batch)]
        state, action, latent, reward, next_state, next_latent = (
            torch.tensor(np.array(part), dtype=self.dtype) for part in zip(*chosen, strict=True)
        )
        action = action.long()[:, None]

        def noise(purpose):
            return draws.denoising(purpose, slot, self.b, None, self.steps, self.servers, self.batch).to(self.dtype)

        with torch.no_grad():
            following = self.actor(next_state, next_latent, noise("target policy"))
            entropy = -(following * torch.log(following + 1e-8)).sum(1)
            least = torch.min(self.targets[0](next_state), self.targets[1](next_state))
            target = reward + 0.95 * ((following * least).sum(1) + self.log_alpha.exp() * entropy)
        for network, optimizer in zip(self.critics, self.critic_optimizers, strict=True):
            loss = ((network(state).gather(1, action)[:, 0] - target) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        probabilities = self.actor(state, latent, noise("policy"))
        entropy = -(probabilities * torch.log(probabilities + 1e-8)).sum(1)
        least = torch.min(self.critics[0](state), self.critics[1](state))
        loss = (-self.log_alpha.exp().detach() * entropy - (probabilities * least).sum(1)).mean()
        self.actor_optimizer.zero_grad()
        loss.backward()
        self.actor_optimizer.step()
        loss = ((entropy + 1.0).detach() * self.log_alpha.exp()).mean()
        self.alpha_optimizer.zero_grad()
        loss.backward()
        self.alpha_optimizer.step()
        for target, source in zip(self.targets, self.critics, strict=True):
            for ours, theirs in zip(target.parameters(), source.parameters(), strict=True):
                ours.data.copy_(0.995 * ours.data + 0.005 * theirs.data)


def play_slots(agents, system, sizes, memory, draws, slots, copies=False, first=0):
    """Delays of `slots` slots of one episode with learning; memory (T, B, N, B) is changed in place.

    `copies` stores copies of the latents; otherwise stored latents are views of the memory, as published.
    """
    capacity, rate, work, result = system
    servers = range(len(capacity))
    backlog, delays = np.zeros(len(capacity)), []
    for t in range(slots):
        placed = np.zeros(len(capacity))
        for b, agent in enumerate(agents):
            for n in range(len(sizes[t][b])):
                state = np.hstack([sizes[t][b][n], work[n], backlog])
                latent = memory[t, b, n].copy()
                action, probabilities = agent.act(state, latent, draws, first + t, n)
                j = action
                wait = (backlog[j] + placed[j]) / capacity[j]
                upload = sizes[t][b][n] / rate[j] if j != b else 0.0
                delay = upload + work[n] / capacity[j] + result[n] / rate[j] + wait
                delays.append(delay)
                placed[j] += work[n]
                if n + 1 < len(sizes[t][b]):
                    next_state, next_latent = np.hstack([sizes[t][b][n + 1], work[n + 1], backlog]), memory[t, b, n + 1]
                else:
                    next_state = np.hstack([sizes[t + 1][b][0], work[0], np.zeros(len(capacity))])
                    next_latent = memory[t + 1, b, 0]
                if copies:
                    stored, next_latent = latent, next_latent.copy()
                else:
                    stored = memory[t, b, n]
                memory[t, b, n] = probabilities
                agent.replay.append((state, action, stored, -delay, next_state, next_latent))
            if len(agent.replay) > agent.warmup:
                agent.learn(draws, first + t)
        backlog = np.array([max(backlog[j] + placed[j] - capacity[j], 0.0) for j in servers])
    return delays
