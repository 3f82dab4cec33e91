"""deploy/quickstart, run twice: a picture each time, one farm.

    python tests/system/test_quickstart.py
"""

import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import unittest
from pathlib import Path

from farm import BIN, SOURCE


def packages_missing():
    names = re.sub(r"#.*", "", (SOURCE / "deploy" / "apt.txt").read_text()).split()
    if not shutil.which("dpkg-query"):
        return names
    said = subprocess.run(["dpkg-query", "-W", "-f=${Package} ${Status}\n", *names], capture_output=True, text=True).stdout
    return [n for n in names if f"{n} install ok installed" not in said]


def webp_size(data):
    """Width and height of a WebP file that has a canvas (VP8X), as those with XMP have."""
    assert data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X", data[:16]
    return tuple(1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))


def pixels(data):
    """The file without what it says of itself: the image's own chunk."""
    at = 12
    while data[at : at + 4] not in (b"VP8 ", b"VP8L"):
        at += 8 + (int.from_bytes(data[at + 4 : at + 8], "little") + 1) // 2 * 2
    return data[at : at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")]


class Quickstart(unittest.TestCase):
    def setUp(self):
        if missing := packages_missing():
            self.skipTest(f"a test installs nothing, and these are not there: {' '.join(missing)}")
        self.dir = Path(tempfile.mkdtemp(prefix="steerfarm-quickstart-"))
        self.addCleanup(shutil.rmtree, self.dir)
        clients, workers = f"ipc://{self.dir}/clients", f"ipc://{self.dir}/workers"
        kept = {k: v for k, v in os.environ.items() if not k.startswith("STEER_")}
        self.env = {**kept, "XDG_STATE_HOME": str(self.dir), "STEER_BUILD": str(BIN.parent), "STEER_BROKER": clients, "STEER_CLIENTS": clients,
                    "STEER_WORKERS": workers}
        self.addCleanup(self.end_farm)

    def pid(self):
        return int((self.dir / "steerfarm" / "quickstart.pid").read_text())

    def end_farm(self):
        """It belongs to nobody's session, so its end is seen by its pidfd."""
        try:
            pidfd = os.pidfd_open(self.pid())
        except (FileNotFoundError, ProcessLookupError):
            return
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        self.assertTrue(select.select([pidfd], [], [], 60)[0], "the farm does not end")
        os.close(pidfd)

    def run_once(self, output, *more):
        run = subprocess.run([SOURCE / "deploy" / "quickstart", "a red apple on a blue background", "--seed", "3", "--output", output, *more],
                             cwd=self.dir, env=self.env, capture_output=True, text=True, timeout=280)
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertIn(output, run.stdout)
        self.assertRegex(run.stdout, r"denoise \d")  # the table of the stages
        return run.stderr, (self.dir / output).read_bytes()

    def test_twice(self):
        said, first = self.run_once("one.webp")
        self.assertIn("starting a farm", said)
        pid = self.pid()
        said, second = self.run_once("two.webp")
        self.assertIn("already running", said)
        self.assertNotIn("starting", said)
        self.assertEqual(self.pid(), pid)
        self.assertEqual((webp_size(first), webp_size(second)), ((96, 96), (96, 96)))
        self.assertEqual(first, second)
        said, third = self.run_once("three.webp", "--negative", "dots")
        self.assertIn("without the negative prompt", said)
        self.assertNotEqual(third, first)
        without = (self.dir / "three-without.webp").read_bytes()
        self.assertEqual(pixels(without), pixels(first))


if __name__ == "__main__":
    unittest.main(verbosity=2)
