"""Names what a picture of the demo model shows: things with their places, background, and ghosts.

Analysis by synthesis. The background is the nearest of the 24 there are. What differs from it is compared with what each thing would
change at each place (the cosine of the two is its score, their quotient its strength), so outline and colour count together. A thing is
there when its score and its strength are high: a blurry or pale one counts as missing. Then everything named is taken away, and whatever is left
where nothing should be is a ghost: the leftover of a thing, its inverse (what classifier-free guidance makes), a pattern's, a tint, or a blob of
nobody knows what; a thing that is named but blended with another, pale or haloed is a smear.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "models" / "train"))
import emoji  # noqa: E402
import scenes  # noqa: E402
from scenes import COLOURS, PATTERNS  # noqa: E402

HALF = scenes.SIZE // 2  # everything happens at half the size
# side -> the first position: those of the scenes, and of the models before them.
SIDES = {44: 2, 64: 0, 76: 2}
SCORE, DETAIL = 0.75, 0.45  # to be named
CLEAN, SPOILT = 0.93, 0.2  # a thing with a lower score, or with more that it does not explain, is there but spoilt
STRENGTH = (0.5, 1.7)
OVERLAP = 0.25  # of the smaller of two places, from which on they cannot both be taken
# Ghosts, in units of -1..1. Measured beside what clean pictures show through the autoencoder: see accuracy.py.
BLOB, TINT = 0.16, 0.12
FAINT = 0.05  # enough, if it is like a thing
GHOST_SCORE, GHOST_STRENGTH = 0.6, 0.15
PATTERN_SCORE, PATTERN_STRENGTH = 0.45, 0.25


@dataclass
class Sighting:
    noun: str
    variant: int
    at: tuple  # x, y, side
    score: float
    strength: float
    detail: float

    @property
    def place(self):
        """One of scenes.PLACES, or "" for elsewhere."""
        x, y, side = self.at
        return next((p for p, (px, py, ps) in scenes.PLACES.items() if (ps > 44) == (side > 44) and abs(x + side / 2 - px - ps / 2) <= 8
                     and abs(y + side / 2 - py - ps / 2) <= 8 and (side > 44 or abs(x - px) + abs(y - py) <= 8)), "")


@dataclass
class Ghost:
    kind: str  # leftover, inverse, smear, tint or blob
    of: str  # a noun, a pattern, or ""
    strength: float


@dataclass
class Seen:
    colour: str
    pattern: str
    things: list = field(default_factory=list)
    ghosts: list = field(default_factory=list)

    def nouns(self):
        return sorted(t.noun for t in self.things)


class Detector:
    def __init__(self):
        self.names = [(noun, v) for noun in scenes.CATEGORY for v in range(len(scenes.variants(noun)))]
        self.grounds = [(c, p) for c in COLOURS for p in PATTERNS]
        self.backgrounds = halved(scenes.to_tensor([scenes.background(*g) for g in self.grounds]))  # [24, 3, 48, 48]
        self.scales = [Scale(side, first, self.names, self.backgrounds) for side, first in SIDES.items()]
        self.places = [at for scale in self.scales for at in scale.places]
        boxes = torch.tensor(self.places, dtype=torch.float)
        self.overlap = overlap(boxes, boxes)
        self.covers = torch.stack([box_mask(at) for at in self.places])  # [P, 48, 48]
        self.rim = torch.ones(HALF, HALF, dtype=torch.bool)  # mostly background, whatever stands there
        self.rim[5:-5, 5:-5] = False

    @torch.no_grad()
    def look(self, pictures, chunk=64):
        """pictures [B, 3, 96, 96] in -1..1 -> a Seen each."""
        return [seen for part in pictures.split(chunk) for seen in self.look_chunk(halved(part))]

    def look_chunk(self, x):
        ground = self.nearest_ground(x)
        behind = self.backgrounds[ground]
        seen = [Seen(*self.grounds[g]) for g in ground.tolist()]
        tint = (x - behind)[:, :, self.rim].median(2).values
        for one, amount in zip(seen, tint.square().mean(1).sqrt().tolist()):
            if amount > TINT:
                one.ghosts.append(Ghost("tint", "", amount))
        rest = x - behind - tint[:, :, None, None]
        score, strength = self.correlate(rest, behind, ground)
        covered = torch.zeros(len(x), HALF, HALF)
        for i, one in enumerate(seen):
            one.things = self.things(score[i], strength[i], x[i])
            for thing in one.things:
                box = self.covers[self.places.index(thing.at)]
                rest[i] -= self.drawn(thing, behind[i])
                covered[i] = torch.maximum(covered[i], box)
                unlike = rest[i][:, box > 0].square().mean().sqrt().item()
                if thing.score < CLEAN or unlike > SPOILT:
                    one.ghosts.append(Ghost("smear", thing.noun, unlike))
        self.find_ghosts(seen, rest, 1 - covered, behind, ground)
        return seen

    def nearest_ground(self, x):
        """[B]. Things may cover much of it, so a pixel that is far off counts no more than one that is off."""
        small, grounds = F.avg_pool2d(x, 2), F.avg_pool2d(self.backgrounds, 2)
        off = torch.stack([(small - g).abs().mean(1).clamp(max=0.3).mean((1, 2)) for g in grounds], 1)
        return off.argmin(1)

    def correlate(self, difference, behind, ground):
        """Scores and strengths [B, places, names] of what differs from the background."""
        parts = [scale.correlate(difference, behind, ground) for scale in self.scales]
        return tuple(torch.cat(p, 1) for p in zip(*parts))

    def things(self, score, strength, x):
        """The best ones that pass, none over another."""
        good = torch.where((strength > STRENGTH[0]) & (strength < STRENGTH[1]), score, -1.0)
        found = []
        while len(found) < 4:
            at, name = divmod(good.argmax().item(), len(self.names))
            if good[at, name] < SCORE:
                break
            detail = self.detail(x, self.places[at], name)
            if detail < DETAIL:
                good[at, name] = -1  # the outline and the colour of it, but not the thing
                continue
            found.append(Sighting(*self.names[name], self.places[at], score[at, name].item(), strength[at, name].item(), detail))
            good[self.overlap[at] >= OVERLAP] = -1
        return found

    def detail(self, x, at, name):
        """The correlation of picture and thing inside its outline, colours' means taken away."""
        left, top, side = (v // 2 for v in at)
        scale = self.scale(at)
        inside = scale.alpha[name, 0] > 0.9
        a, b = (t[:, inside] for t in (x[:, top : top + side, left : left + side], scale.colour[name]))
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        return ((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-6)).item()

    def scale(self, at):
        return next(s for s in self.scales if s.side == at[2])

    def drawn(self, thing, behind):
        """What the thing changes of a background, [3, 48, 48]."""
        x, y, side = (v // 2 for v in thing.at)
        scale = self.scale(thing.at)
        n = self.names.index((thing.noun, thing.variant))
        out = torch.zeros_like(behind)
        window = (slice(None), slice(y, y + side), slice(x, x + side))
        out[window] = scale.colour[n] - scale.alpha[n] * behind[window]
        return out

    def find_ghosts(self, seen, rest, free, behind, ground):
        """rest: what nothing named explains [B, 3, 48, 48]; free: where nothing named stands [B, 48, 48]."""
        rest = self.pattern_ghosts(seen, rest * free[:, None], free)
        power = F.avg_pool2d(rest.square().mean(1, keepdim=True), 12, 4)
        room = F.avg_pool2d(free[:, None], 12, 4)
        blob = torch.where(room > 0.4, power / room.clamp(min=0.1), 0.0).amax((1, 2, 3)).sqrt()
        odd = (blob > FAINT).nonzero().flatten()
        if not len(odd):
            return
        score, strength = self.correlate(rest[odd], behind[odd], ground[odd])
        inside = torch.einsum("phw,bhw->bp", self.covers, free[odd]) / self.covers.sum((1, 2))
        score = torch.where((inside > 1 - OVERLAP)[..., None] & (strength.abs() > GHOST_STRENGTH), score, 0.0)
        for i, b in enumerate(odd.tolist()):
            at, name = divmod(score[i].abs().argmax().item(), len(self.names))
            if score[i, at, name].abs() >= GHOST_SCORE:
                amount = strength[i, at, name].item()
                seen[b].ghosts.append(Ghost("leftover" if amount > 0 else "inverse", self.names[name][0], amount))
            elif blob[b] > BLOB:
                seen[b].ghosts.append(Ghost("blob", "", blob[b].item()))

    def pattern_ghosts(self, seen, rest, free):
        for pattern in PATTERNS[1:]:
            marks = torch.stack([self.backgrounds[self.grounds.index((s.colour, pattern))] - self.backgrounds[self.grounds.index((s.colour, "plain"))]
                                 for s in seen])
            marks = (marks - marks.mean((2, 3), keepdim=True)) * free[:, None]
            along, size = (rest * marks).sum((1, 2, 3)), marks.square().sum((1, 2, 3)).clamp(min=1e-6)
            score = along / (size * rest.square().sum((1, 2, 3)).clamp(min=1e-6)).sqrt()
            for i, one in enumerate(seen):
                amount = (along[i] / size[i]).item()
                if one.pattern != pattern and abs(score[i]) > PATTERN_SCORE and abs(amount) > PATTERN_STRENGTH:
                    one.ghosts.append(Ghost("leftover" if amount > 0 else "inverse", pattern, amount))
                    rest[i] -= amount * marks[i]
        return rest


class Scale:
    """All things in one size: what they would change at each place."""

    def __init__(self, side, first, names, backgrounds):
        self.side, self.half, self.first = side, side // 2, first // 2
        at = range(first, scenes.SIZE - side + 1, 8)
        self.places = [(x, y, side) for y in at for x in at]
        rgba = torch.stack([scenes.torch.from_numpy(scenes.np.array(emoji.picture(scenes.variants(n)[v][0], side))) for n, v in names])
        rgba = rgba.permute(0, 3, 1, 2).float()
        alpha = rgba[:, 3:] / 255
        self.colour = halved(alpha * (rgba[:, :3] / 127.5 - 1))  # [N, 3, h, h], times alpha
        self.alpha = halved(alpha)
        self.colour_rows, self.alpha_rows = self.colour.flatten(1), self.alpha.flatten(1)
        # |alpha (thing - background)|^2 for each background and place, [24, P, N]
        b = self.windows(backgrounds)
        cross = b.view(*b.shape[:2], 3, -1)
        self.size = (self.colour_rows.square().sum(1) - 2 * torch.einsum("gpci,nci,ni->gpn", cross, self.colour.flatten(2), self.alpha_rows)
                     + cross.square().sum(2) @ self.alpha_rows.square().T)

    def windows(self, x):
        """[B, C, 48, 48] -> [B, P, C * h * h]"""
        return F.unfold(x[:, :, self.first :, self.first :], self.half, stride=4).transpose(1, 2)

    def correlate(self, difference, behind, ground):
        d = self.windows(difference)
        along = d @ self.colour_rows.T - self.windows((difference * behind).sum(1, keepdim=True)) @ self.alpha_rows.T
        size = self.size[ground]
        return along / (size * d.square().sum(2, keepdim=True)).clamp(min=1e-6).sqrt(), along / size


def halved(x):
    return F.avg_pool2d(x, 2)


def box_mask(at):
    x, y, side = (v // 2 for v in at)
    out = torch.zeros(HALF, HALF)
    out[y : y + side, x : x + side] = 1
    return out


def overlap(a, b):
    """Shares of the smaller of two boxes (x, y, side), [len(a), len(b)]."""
    low = torch.maximum(a[:, None, :2], b[None, :, :2])
    high = torch.minimum(a[:, None, :2] + a[:, None, 2:], b[None, :, :2] + b[None, :, 2:])
    return (high - low).clamp(min=0).prod(2) / torch.minimum(a[:, None, 2], b[None, :, 2]) ** 2
