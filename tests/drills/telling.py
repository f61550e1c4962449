"""What a drill did and what it found."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Drill:
    """One run of a drill, in counts."""

    name: str
    seed: int
    rounds: int
    did: Counter[str] = field(default_factory=Counter)
    checked: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    missing: str | None = None
    """What this machine lacks, where nothing could be done for it."""

    @property
    def replay(self) -> str:
        return f"python -m tests.drills {self.name} --seed {self.seed} --rounds {self.rounds}"

    def check(self, what: str, holds: bool, otherwise: str = "") -> bool:
        """Count a check, and note a fault where it does not hold."""
        self.checked[what] += 1
        if not holds:
            self.fault(f"not so: {what}. {otherwise}".rstrip())
        return holds

    def fault(self, text: str) -> None:
        self.faults.append(text)
        print(f"  fault: {text}", flush=True)

    def __str__(self) -> str:
        if self.missing:
            return f"{self.name}: not done, {self.missing}"
        lines = [f"{self.name}, seed {self.seed}: {len(self.faults) or 'no'} faults"]
        lines += [f"  did     {_counts(self.did)}", f"  checked {_counts(self.checked)}"]
        lines += [f"  found   {fault}" for fault in self.faults]
        return "\n".join([*lines, f"  again   {self.replay}"])


def _counts(counter: Counter[str]) -> str:
    return "; ".join(f"{count:,} {what}" for what, count in sorted(counter.items())) or "nothing"
