"""Stages `vsd` and `vsd-nasa`: one-step students made the paper's way, by variational score distillation.

SwiftBrush v2: the student x0 = f(z, y) is noised to x_t, and is moved by what the frozen teacher with CFG says of x_t less what a LoRA copy of the
teacher says, which is trained all along to denoise the student's own pictures: E[w(t) (eps_teacher - eps_lora) df/dtheta]. No scene is shown.
SNOOPI's NASA-T (`vsd-nasa`): the student has NASA inside, f(z, y, y-), alpha ~ U(0, 1) each time; the teacher's CFG has the negative text in
the place of the empty one; the LoRA teacher is told no negative (the paper's better choice).
"""

import argparse
import copy

import torch
from torch.nn.utils import parametrize

import captions
import corpus
import model
from precision import quicken
from run_state import Stage, Training

SCALE = (0.5, 4.0)  # CFG of the teacher, drawn anew each time as in the paper's starred rows
TIMES = (20, 980)


class Lora(torch.nn.Module):
    """A weight's low-rank addition; nothing at first, and nothing while `on` is False."""

    on = True

    def __init__(self, weight, rank, gamma):
        super().__init__()
        self.down = torch.nn.Parameter(torch.randn(rank, weight[0].numel()) / weight[0].numel() ** 0.5)
        self.up = torch.nn.Parameter(torch.zeros(weight.shape[0], rank))
        self.factor = gamma / rank

    def forward(self, weight):
        return weight + self.factor * (self.up @ self.down).view_as(weight) if self.on else weight


def with_lora(unet, rank=64, gamma=128):
    """Freezes a U-Net and gives each linear layer and convolution an addition; returns these."""
    unet.requires_grad_(False)
    added = torch.nn.ModuleList()
    for layer in list(unet.modules()):
        if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)):
            added.append(Lora(layer.weight, min(rank, layer.weight.shape[0], layer.weight[0].numel()), gamma))
            parametrize.register_parametrization(layer, "weight", added[-1])
    return added


class Adam(torch.optim.AdamW):
    def step(self, lr):
        for group in self.param_groups:
            group["lr"] = lr
        super().step()
        self.zero_grad(set_to_none=True)


class Distillation(torch.nn.Module):
    """Student, teacher and the teacher's LoRA; only what learns is in state_dict."""

    def __init__(self, teacher):
        super().__init__()
        self.student = copy.deepcopy(teacher)
        self.student.text.requires_grad_(False)  # one text encoder for all three, as in the paper
        self.frozen = [teacher.requires_grad_(False)]  # in a list: not a part of the state
        self.lora = with_lora(teacher.unet)

    @property
    def teacher(self):
        return self.frozen[0]

    def score(self, x, t, context, lora):
        """x0 as the teacher sees it, with or without LoRA."""
        for part in self.lora:
            part.on = lora
        return model.x0_of(x, self.teacher.velocity(x, t, context), t)

    def student_loss(self, x0, context, without, generator):
        """Its gradient to x0 is w(t) (eps_teacher - eps_lora), w = 1 - alpha_bar; without: the texts of CFG's other half."""
        low, high = TIMES
        t = torch.randint(low, high, (len(x0),), generator=generator)
        x, _ = model.noised(x0.detach(), torch.randn(x0.shape, generator=generator), t)
        k = SCALE[0] + (SCALE[1] - SCALE[0]) * torch.rand(len(x0), 1, 1, 1, generator=generator)
        with torch.no_grad():
            wanted = (1 - k) * self.score(x, t, without, lora=False) + k * self.score(x, t, context, lora=False)
            a, s = model.signal_and_noise(t)
            # eps = (x_t - a x0) / s, so eps_teacher - eps_lora = a / s (x0_lora - x0_teacher).
            gradient = s**2 * a / s * (self.score(x, t, context, lora=True) - wanted)
        return (x0 * gradient).sum() / len(x0)

    def lora_loss(self, x0, context, generator):
        """The ordinary denoising loss on the student's pictures."""
        t = torch.randint(0, 1000, (len(x0),), generator=generator)
        x, v = model.noised(x0, torch.randn(x0.shape, generator=generator), t)
        for part in self.lora:
            part.on = True
        return (self.teacher.velocity(x, t, context) - v).square().mean()


def train(state_dir, name, data, painter, samples, batch=48, lr=5e-5, lora_lr=1e-3):
    painter.load_state_dict(Stage(state_dir, "teacher").need()["averaged"])
    both = Distillation(quicken(painter))
    student_opt = Adam((p for p in both.student.parameters() if p.requires_grad), lr, betas=(0.9, 0.99))
    lora_opt = Adam(both.lora.parameters(), lora_lr, betas=(0.9, 0.99))
    training = Training(Stage(state_dir, name), both, [student_opt, lora_opt], samples, batch, seed=30_000_000)
    for step in training:
        examples = data.examples(step.rng, batch)
        with torch.no_grad():
            context = both.student.encode([e.caption for e in examples])
            negative, alpha = None, None
            if name == "vsd-nasa":
                negative = both.student.encode([some_negative(step.rng) for _ in examples])
                alpha = torch.rand(batch, generator=step.generator)
            without = both.student.encode([""]).expand_as(context) if negative is None else negative
        x0 = both.student.draw(torch.randn(batch, *data.latents.shape[1:], generator=step.generator), context, negative, alpha)
        loss = both.student_loss(x0, context, without, step.generator)
        loss.backward()
        warm = min(1, step.done / 2000 + 0.05)
        student_opt.step(lr * warm)
        lora_loss = both.lora_loss(x0.detach(), context, step.generator)
        lora_loss.backward()
        lora_opt.step(lora_lr * warm)
        training.note(lora=lora_loss.detach())
    return {k.removeprefix("student."): v for k, v in training.averaged.items() if k.startswith("student.")}


def some_negative(rng):
    """Negative texts from a list, whatever the caption says, as the paper draws them."""
    group = rng.choice(("noun", "noun", "category", "colour", "pattern"))
    values = {"noun": captions.CATEGORY, "category": captions.MEMBERS, "colour": captions.COLOURS, "pattern": captions.PATTERNS}[group]
    return captions.wording(group, rng.choice(list(values)), rng)


if __name__ == "__main__":
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument("stage", choices=("vsd", "vsd-nasa"))
    a.add_argument("--state", required=True)
    a.add_argument("--samples", type=int, default=100_000)
    a.add_argument("--lr", type=float, default=5e-5)
    args = a.parse_args()
    torch.manual_seed(4)
    train(args.state, args.stage, corpus.load(args.state), model.Painter(model.load_tokenizer(args.state)), args.samples, lr=args.lr)
