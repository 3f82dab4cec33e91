"""What a picture is worth for its pair, and shares with their 95 % intervals."""

import math
from dataclasses import dataclass

from detector import scenes


@dataclass
class Verdict:
    absent: bool  # what the negative names is not there
    ghosts: bool  # but something is that nothing clean would leave
    kept: bool  # what the prompt asks for is there
    confidence: float  # the detector's score of it, 0 where it is missing

    @property
    def removed(self):
        return self.absent and not self.ghosts

    @property
    def both(self):
        return self.removed and self.kept


def judge(pair, seen):
    kept, scores = wanted(pair, seen)
    return Verdict(not there(pair.gone, seen), bool(seen.ghosts), kept, sum(scores) / len(scores) if scores else 0.0)


def there(what, seen):
    """Whether the picture shows it, whole or as somebody's ghost."""
    kind, value = what[:2]
    if kind in ("pattern", "colour"):
        return getattr(seen, kind) == value
    if kind == "variant":
        return any(t.noun == value and t.variant == int(what[2]) for t in seen.things)
    return any(named(value, t.noun) for t in seen.things)


def wanted(pair, seen):
    """(all that must stay is there, the scores of its things; with no thing named, of all that are there)."""
    left, scores, all_there = list(seen.things), [], True
    if not pair.things:
        return bool(left) and background(pair, seen), [t.score for t in left]
    for value in pair.things:
        found = next((t for t in left if named(value, t.noun)), None)
        scores.append(found.score if found else 0.0)
        all_there &= found is not None
        left = [t for t in left if t is not found]
    return all_there and background(pair, seen), scores


def background(pair, seen):
    return pair.colour in ("", seen.colour) and pair.pattern in ("", seen.pattern)


def named(value, noun):
    return value in (noun, scenes.CATEGORY[noun])


def unchanged(before, after):
    """An unrelated negative: the same things of the same kinds at the same places, the same background, no new ghosts."""
    of = lambda s: (sorted((t.noun, t.variant, t.place) for t in s.things), s.colour, s.pattern)
    return of(before) == of(after) and len(after.ghosts) <= len(before.ghosts)


def wilson(hits, n, z=1.959964):
    """(low, high) of a share's 95 % interval."""
    if not n:
        return 0.0, 1.0
    p = hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def mean(values, z=1.959964):
    """(mean, low, high) of a mean's 95 % interval."""
    n = len(values)
    m = sum(values) / n
    half = z * math.sqrt(sum((v - m) ** 2 for v in values) / max(1, n - 1) / n)
    return m, m - half, m + half


def share(hits):
    """"92 (88-95)" of a list of booleans, in percent."""
    hits = list(hits)
    if not hits:
        return "-"
    low, high = wilson(sum(hits), len(hits))
    return f"{100 * sum(hits) / len(hits):.0f} ({100 * low:.0f}-{100 * high:.0f})"
