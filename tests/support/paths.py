"""Where the project and the data of its tests are.  (No claims.)"""

from __future__ import annotations

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
POOLER: Final = str(ROOT / "pooler.py")

VECTORS: Final = ROOT / "tests" / "support" / "vectors"
OWN_RECORDINGS: Final = VECTORS / "recorded"  # written by hand, in the form of the others
RECORDINGS: Final = ROOT.parent / "shared" / "fixtures" / "open"  # of real upstreams, if there
SNAPSHOT: Final = ROOT / "tests" / "support" / "snapshot.json"
