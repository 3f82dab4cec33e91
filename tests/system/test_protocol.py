"""docs/protocol.md beside proto/steer.proto and proto/error.h: a stranger finds every message, code and field in it, and nothing that is not there.

    python tests/system/test_protocol.py
"""

import re
import unittest
from pathlib import Path

from steer_client import MESSAGES, TYPES

SOURCE = Path(__file__).resolve().parents[2]
PAGE = (SOURCE / "docs" / "protocol.md").read_text()
CODES = set(re.findall(r"^ +X\((\w+), \d+,", (SOURCE / "proto" / "error.h").read_text(), re.M))


def words(text):
    return set(re.findall(r"\w+", text))


def section(title):
    return re.search(rf"^## {title}$(.*?)(?=^## |\Z)", PAGE, re.M | re.S)[1]


class Page(unittest.TestCase):
    def test_messages(self):
        self.assertGreater(len(TYPES), 20)
        self.assertEqual(set(TYPES) - words(PAGE), set())

    def test_type_bytes(self):
        """A stranger who has no protoc sees each message's number."""
        said = {name: int(number) for name, number in re.findall(r"\b([A-Z_]+) (\d+)\b", section("Frames"))}
        self.assertEqual(said, TYPES)

    def test_codes(self):
        self.assertGreater(len(CODES), 20)
        self.assertEqual(CODES - words(section("REFUSED")), set())
        table = re.findall(r"^\| ([A-Z_ ]+) \|", section("REFUSED"), re.M)
        self.assertEqual(set(" ".join(table).split()) - CODES, set())

    def test_codes_of_the_broker(self):
        """What the broker refuses with is in the table."""
        used = set()
        for file in (SOURCE / "broker").glob("route*.c"):
            used |= set(re.findall(r"refuse\((?:[^();]|\([^()]*\))*?STEER_([A-Z_]+)", file.read_text()))
        self.assertGreater(len(used & CODES), 8)
        table = set(" ".join(re.findall(r"^\| ([A-Z_ ]+) \|", section("REFUSED"), re.M)).split())
        self.assertEqual((used & CODES) - table, set())

    def test_fields(self):
        missing = {}
        for message in ("Hello", "Welcome", "Refused", "Job", "Guidance", "Output", "Label", "Result", "Lease", "Fail", "Credit", "Submit", "Accepted", "Fetch", "ResultAck",
                        "Cancel", "Watch", "JobStatus", "Counts", "Progress", "Verdict"):
            fields = {f.name for f in MESSAGES[message].DESCRIPTOR.fields} - words(PAGE)
            if fields:
                missing[message] = sorted(fields)
        self.assertEqual(missing, {})

    def test_words_of_code(self):
        """What stands in back quotes and looks like a field is one."""
        known = set(TYPES) | CODES | {f.name for m in MESSAGES.values() for f in m.DESCRIPTOR.fields}
        values = {"queued", "running", "done", "failed", "cancelled", "expired", "kept", "duplicate", "unknown", "retry", "again"}
        said = {w for w in re.findall(r"`([a-z_0-9]+)`", PAGE)}
        self.assertGreater(len(said), 10)
        self.assertEqual(said - known - values, set())


if __name__ == "__main__":
    unittest.main(verbosity=2)
