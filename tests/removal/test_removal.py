"""tests/removal itself: the detector on pictures made to measure, the intervals, the verdicts, and a whole count through a farm.

    python tests/removal/test_removal.py [TestClass[.test]]
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import torch

torch.set_num_threads(1)

import accuracy
import detector
import pairs
import plot
import verdict
from detector import Ghost, Seen, Sighting, scenes

HERE = Path(__file__).resolve().parent


def thing(noun, variant=0, score=0.99):
    return Sighting(noun, variant, (10, 10, 76), score, 1.0, 0.9)


class Eye(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.look = detector.Detector().look

    def test_names_what_is_there(self):
        some = scenes.singles()[::37] + scenes.pairs(60, seed=3) + scenes.pairs(20, held_out=True, seed=4)
        x = scenes.pictures(some)
        for pictures in (x, accuracy.blurred(x), x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))):
            for seen, scene in zip(self.look(pictures), some):
                self.assertEqual(sorted((t.noun, t.variant, t.place) for t in seen.things), sorted((t.noun, t.variant, t.place) for t in scene.things))
                self.assertEqual((seen.colour, seen.pattern, seen.ghosts), (scene.colour, scene.pattern, []))

    def test_an_empty_background_is_empty(self):
        grounds = [(c, p) for c in scenes.COLOURS for p in scenes.PATTERNS]
        for seen, ground in zip(self.look(scenes.to_tensor([scenes.background(*g) for g in grounds])), grounds):
            self.assertEqual(((seen.colour, seen.pattern), seen.things, seen.ghosts), (ground, [], []))

    def test_sees_ghosts_of_what_was_taken(self):
        scene = scenes.Scene((scenes.Thing("cat", 0, "left"), scenes.Thing("apple", 0, "right")), "blue", "plain")
        for strength, kind in ((0.3, "leftover"), (-0.4, "inverse")):
            seen = self.look(accuracy.ghosted(scene, strength)[None])[0]
            self.assertEqual(seen.nouns(), ["cat"])
            self.assertEqual([(g.kind, g.of) for g in seen.ghosts], [(kind, "apple")])
            self.assertLess(abs(seen.ghosts[0].strength - strength), 0.15)

    def test_sees_ghosts_of_patterns_tints_blobs_and_blends(self):
        plain = scenes.to_tensor([scenes.background("green", "plain")])
        striped = scenes.to_tensor([scenes.background("green", "striped")])
        kinds = lambda x: [(g.kind, g.of) for g in self.look(x.clamp(-1, 1))[0].ghosts]
        self.assertEqual(kinds(plain + 0.35 * (striped - plain)), [("leftover", "striped")])
        self.assertIn(("tint", ""), kinds(plain * 0.6 + 0.25))
        blob = plain.clone()
        blob[:, :, 40:60, 30:60] += torch.tensor([0.7, -0.6, 0.5]).view(1, 3, 1, 1)
        self.assertEqual(len(kinds(blob)), 1)
        cat, dog = scenes.pictures([scenes.Scene((scenes.Thing(n, 0, "big"),), "green", "plain") for n in ("cat", "dog")])[:, None]
        for mixed in (0.4, 0.5, 0.6):
            self.assertTrue(kinds(mixed * cat + (1 - mixed) * dog), mixed)
        self.assertIn(("smear", "cat"), kinds(0.6 * cat + 0.4 * dog))

    def test_accuracy_beside_eyes(self):
        said = []
        things, grounds, ghosts = accuracy.eyes(self.look, said.append)
        self.assertGreaterEqual(sum(things), 42)  # of 48; 43 when this was written
        self.assertGreaterEqual(sum(grounds), 46)
        self.assertGreaterEqual(sum(ghosts), 42)
        self.assertIn("Beside eyes", said[0])


class Counting(unittest.TestCase):
    def test_wilson(self):
        for hits, n, low, high in ((0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (92, 100, 0.8500, 0.9589)):
            got = verdict.wilson(hits, n)
            self.assertAlmostEqual(got[0], low, places=4)
            self.assertAlmostEqual(got[1], high, places=4)
        self.assertEqual(verdict.wilson(0, 0), (0.0, 1.0))
        self.assertEqual(verdict.share([True] * 92 + [False] * 8), "92 (85-96)")

    def test_verdicts(self):
        fruit = pairs.pair("a fruit", "banana", "member", "noun:banana", "fruit")
        judge = lambda p, s: (lambda v: (v.absent, v.removed, v.kept, v.both))(verdict.judge(p, s))
        self.assertEqual(judge(fruit, Seen("red", "plain", [thing("apple")])), (True, True, True, True))
        self.assertEqual(judge(fruit, Seen("red", "plain", [thing("banana")])), (False, False, True, False))
        self.assertEqual(judge(fruit, Seen("red", "plain", [])), (True, True, False, False))
        self.assertEqual(judge(fruit, Seen("red", "plain", [thing("apple")], [Ghost("inverse", "banana", -0.3)])), (True, False, True, False))
        two = pairs.pair("a cat and a fruit on red", "fruit", "second", "category:fruit", "cat", "red")
        self.assertEqual(judge(two, Seen("red", "plain", [thing("cat"), thing("lemon")])), (False, False, True, False))
        self.assertEqual(judge(two, Seen("blue", "plain", [thing("cat")])), (True, True, False, False))
        car = pairs.pair("a car", "a red car", "variant", "variant:car:0", "car")
        self.assertEqual(judge(car, Seen("red", "plain", [thing("car", 1)])), (True, True, True, True))
        self.assertEqual(judge(car, Seen("red", "plain", [thing("car", 0)])), (False, False, True, False))
        stripes = pairs.pair("two", "stripes", "pattern", "pattern:striped", "cat cat")
        self.assertEqual(judge(stripes, Seen("red", "dotted", [thing("cat")])), (True, True, False, False))  # one cat is not two
        same = Seen("red", "plain", [thing("cat")])
        self.assertTrue(verdict.unchanged(same, Seen("red", "plain", [thing("cat")])))
        self.assertFalse(verdict.unchanged(same, Seen("red", "plain", [thing("cat")], [Ghost("blob", "", 1)])))

    def test_the_list_of_pairs(self):
        import captions

        known = {w + "</w>" for w in captions.words()}
        self.assertGreaterEqual(len(pairs.CHOSEN + pairs.HELD_OUT), 30)
        self.assertLessEqual(abs(len(pairs.CHOSEN) - len(pairs.HELD_OUT)), 2)
        self.assertEqual(len({p.name for p in pairs.PAIRS}), len(pairs.PAIRS))
        self.assertFalse({(p.gone, p.things) for p in pairs.CHOSEN} & {(p.gone, p.things) for p in pairs.HELD_OUT})
        for p in pairs.PAIRS:
            self.assertTrue(pairs.known(p, known), p)
            kind, value = p.gone[:2]
            self.assertIn(value, {"noun": scenes.CATEGORY, "category": scenes.MEMBERS, "colour": scenes.COLOURS, "pattern": scenes.PATTERNS, "variant": scenes.CATEGORY}[kind])
            for name in p.things:
                self.assertIn(name, [*scenes.CATEGORY, *scenes.MEMBERS])
            for name in (p.colour, p.pattern):
                self.assertTrue(not name or name in p.prompt, p)
        trained = {w for p in pairs.HELD_OUT for group in ("noun", "category", "colour", "pattern") if p.gone[0] == group
                   for w in captions.wordings(group.replace("category", "noun"), p.gone[1])[0]}
        unheard = [p for p in pairs.HELD_OUT if p.negative not in trained and p.kind != "variant"]
        self.assertGreaterEqual(len(unheard), len(pairs.HELD_OUT) // 2 - 1)

    def test_plot(self):
        points = {str(s): {"n": 20, "removed": 10 + 2 * i, "kept": 20 - i, "both": 10} for i, s in enumerate((0.2, 0.5, 1))}
        svg = plot.plot({"NASA": points, "CFG": points})
        self.assertEqual(svg.count("<polyline"), 6)
        __import__("xml.dom.minidom").dom.minidom.parseString(svg)


class ThroughTheFarm(unittest.TestCase):
    def test_run(self):
        """One command, few seeds: every table is printed."""
        with tempfile.TemporaryDirectory() as folder:
            run = subprocess.run([sys.executable, HERE / "removal.py", "--seeds", "1", "--sweep-seeds", "0", "--half", "chosen", "--json", f"{folder}/counts.json"],
                                 capture_output=True, text=True, env={**os.environ, "OMP_WAIT_POLICY": "passive"}, timeout=280)
            self.assertEqual(run.returncode, 0, run.stderr[-2000:])
            counts = json.loads(Path(folder, "counts.json").read_text())
        out = run.stdout
        self.assertLess(out.index("Beside eyes"), out.index("=== demo"))  # its own accuracy first
        for method in ("none", "CFG 1.5", "CFG 2.5", "NASA", "NAG", "VSF"):
            self.assertRegex(out, rf"(?m)^  {re.escape(method)} +\d+ \(\d+-\d+\)")
        self.assertIn("unrelated", out)
        self.assertEqual(counts["demo"]["main"].keys(), {"none", "CFG 1.5", "CFG 2.5", "NASA", "NAG", "VSF"})


if __name__ == "__main__":
    unittest.main(verbosity=2)
