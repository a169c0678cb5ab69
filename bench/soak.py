"""A virtual day of requests and faults: is there exactly one outcome for each, and is nothing left behind?

    python bench/soak.py [--hours 24] [--seeds 3]

The real scheduler, admission, circuits and failover, over scripted engines, on virtual time (kensho.testing.soak).
"""

import argparse
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from harness import print_bar, print_machine
from kensho.resilience.admission import AdmissionQueue, Estimate, Priority
from kensho.resilience.admission_settings import AdmissionSettings
from kensho.testing.soak import soak


def million_cancels() -> tuple[int, float]:
    """A full queue, and a million requests that join it and leave. How many wait at the end, and us for one of them."""
    queue, estimate = AdmissionQueue(AdmissionSettings()), Estimate()
    for _ in range(99):
        queue.offer(Priority.LOW, 9.0, 0.0, estimate)
    began_s = time.process_time()
    for _ in range(1_000_000):
        ticket, _ = queue.offer(Priority.LOW, 9.0, 0.0, estimate)
        queue.cancel(ticket)
    return len(queue), time.process_time() - began_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    print_machine()
    found = 0
    for seed in range(1, args.seeds + 1):
        began_s = time.process_time()
        report = soak(hours=args.hours, rng=random.Random(seed).random)
        outcomes = ", ".join(f"{count} {word}" for word, count in sorted(report.outcomes.items()))
        print(
            f"seed {seed}: {args.hours:g} h in {time.process_time() - began_s:.0f} s of CPU; {report.asked} requests:"
            f" {outcomes}; {report.faults} faults, {report.moved} streams moved, {report.circuits} changes of circuits,"
            f" {report.levels} of the level, at most {report.most_tasks} clients at once",
            flush=True,
        )
        for what in report.faults_found:
            print(f"  {what}")
        found += len(report.faults_found)
    waiting, seconds = million_cancels()
    print(f"a million requests that joined a full queue and left: {seconds:.1f} us each")
    is_empty = print_bar("requests left behind by a million cancels", waiting - 99, 0, "")
    holds = print_bar("what did not hold (outcomes, ids, leaks)", found, 0, "")
    sys.exit(not (is_empty and holds))


if __name__ == "__main__":
    main()
