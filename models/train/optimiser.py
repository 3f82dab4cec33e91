"""Muon (K. Jordan, 2024: momentum, orthogonalised by Newton-Schulz) for matrices and kernels, Adam for the rest."""

import torch

import precision

# The iteration was designed for bf16.
PRECISION = precision.BF16 if precision.NATIVE else torch.float32


def orthogonalise(g, steps=5):
    a, b, c = 3.4445, -4.7750, 2.0315
    x = (g / (g.norm() + 1e-7)).to(PRECISION)
    flip = x.shape[0] > x.shape[1]
    if flip:
        x = x.T
    for _ in range(steps):
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return (x.T if flip else x).to(g.dtype)


class Muon:
    def __init__(self, parameters, lr, adam_lr=None, momentum=0.95):
        parameters = [p for p in parameters if p.requires_grad]
        self.matrices = [p for p in parameters if p.ndim >= 2 and min(p.shape[0], p[0].numel()) > 8]
        chosen = set(map(id, self.matrices))
        self.adam = torch.optim.Adam([p for p in parameters if id(p) not in chosen], lr=adam_lr or lr, betas=(0.9, 0.99))
        self.lr, self.ratio, self.momentum = lr, (adam_lr or lr) / lr, momentum
        self.buffers = [torch.zeros_like(p) for p in self.matrices]

    def step(self, lr):
        for p, m in zip(self.matrices, self.buffers):
            m.lerp_(p.grad, 1 - self.momentum)
            g = p.grad.lerp(m, self.momentum).flatten(1)
            p.data.add_(orthogonalise(g).view_as(p), alpha=-lr * max(1, g.shape[0] / g.shape[1]) ** 0.5)
            p.grad = None
        for group in self.adam.param_groups:
            group["lr"] = lr * self.ratio
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)

    def state_dict(self):
        return {"buffers": self.buffers, "adam": self.adam.state_dict()}

    def load_state_dict(self, state):
        for mine, theirs in zip(self.buffers, state["buffers"]):
            mine.copy_(theirs)
        self.adam.load_state_dict(state["adam"])
