"""Every target in turn, for so many minutes each: PYTHONPATH=tests python -m fuzz --minutes 1.

What is found by the way is kept in .fuzz, so that the next run goes on from there. What breaks a target goes
to tests/corpus.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from fuzz.seeds import write_seeds
from fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "tests" / "corpus"
MEMORY_MB = 1024
SLOW_S = 10


def main() -> None:
    """Fuzz, and exit with 1 when something broke."""
    parser = argparse.ArgumentParser(prog="fuzz", description="Look for messages that break a target.")
    parser.add_argument("--minutes", type=float, default=1.0, help="for each target")
    minutes: float = parser.parse_args().minutes
    os.nice(10)
    broken = [name for name in TARGETS if not holds(name, seconds=round(60 * minutes))]
    if broken:
        sys.exit(f"broken: {', '.join(broken)}; what did it lies in tests/corpus, and pytest shows it again")


def holds(name: str, *, seconds: int) -> bool:
    """Fuzz one target, and tell whether it held."""
    found, seeds = ROOT / ".fuzz" / name, ROOT / ".fuzz" / "seeds" / name
    found.mkdir(parents=True, exist_ok=True)
    write_seeds(name, seeds)
    sys.stdout.write(f"--> {name} for {seconds} s\n")
    sys.stdout.flush()
    options = [
        f"-max_total_time={seconds}",
        "-max_len=4096",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-timeout={SLOW_S}",
        f"-artifact_prefix={CORPUS / name}/",
        "-verbosity=0",
        "-print_final_stats=1",
    ]
    command = [
        sys.executable,
        "-m",
        "fuzz.instrumented",
        name,
        *options,
        *map(str, (found, seeds, CORPUS / name)),
    ]
    return subprocess.run(command, check=False).returncode == 0


if __name__ == "__main__":
    main()
