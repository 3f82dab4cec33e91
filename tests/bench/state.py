"""What a benchmark has measured so far, in a file, so that a run that was stopped goes on."""

import json
import sys
from pathlib import Path


class State:
    def __init__(self, path):
        """path None: nothing is kept."""
        self.path = Path(path) if path else None
        self.found = json.loads(self.path.read_text()) if path and self.path.exists() else {}

    def get(self, name, measure):
        """The result of that name; measured where there is none."""
        if name not in self.found:
            self.found[name] = measure()
            if self.path:
                self.path.with_suffix(".new").write_text(json.dumps(self.found))
                self.path.with_suffix(".new").rename(self.path)
            print(name, file=sys.stderr, flush=True)
        return self.found[name]
