"""Makes the programs of third_party/requirements-consumers.lock importable: import this first."""
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
SITE = ROOT / "third_party" / "consumers"
if not SITE.exists():
    sys.exit(f"{SITE} is missing; run tools/setup.sh")
sys.path.append(str(SITE))  # last: torch and transformers are those of the main environment
# executorch calls its schema compiler by name.
os.environ["PATH"] = f"{SITE / 'executorch' / 'data' / 'bin'}:{os.environ['PATH']}"
