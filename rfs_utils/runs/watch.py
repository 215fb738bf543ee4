"""Guards: what a run that goes wrong looks like in its metrics, and what probably caused it."""

import math
from collections import deque

PATIENCE = 20  # steps that must all look bad
SOLVED = "the problems are all solved; nothing is left to learn from them"
MAX_SKIPPED = 5  # updates in a row that may be skipped for a gradient that is not finite
WATCHED = ("entropy", "reward_avg", "zero_signal_groups", "accuracy", "truncated")


class Watch:
    """Looks at every step's metrics; `check` returns a new warning, or None.

    A warning is given once, and again only after the run has looked healthy in between.
    """

    def __init__(self, vocab_size: int, patience: int = PATIENCE):
        self.max_entropy = math.log(vocab_size)
        self.recent: deque[dict] = deque(maxlen=patience)
        self.best_reward = -math.inf
        self.warned: set[str] = set()

    def check(self, metrics: dict) -> str | None:
        """One sentence about a collapse, with its likely reason, the first time it shows."""
        self.recent.append({name: metrics[name] for name in WATCHED})
        if metrics["reward_avg"] is not None:  # None: no answer of the step was judged
            self.best_reward = max(self.best_reward, metrics["reward_avg"])
        found = self._find() if len(self.recent) == self.recent.maxlen else {}
        new = [name for name in found if name not in self.warned]
        self.warned = (self.warned & found.keys()) | set(new[:1])  # another one is told at the next step
        return found[new[0]] if new else None

    def state(self) -> dict:
        """What a checkpoint must hold for a resumed run to warn at the same step."""
        best = self.best_reward if self.recent else None
        return {"recent": list(self.recent), "best_reward": best, "warned": sorted(self.warned)}

    def restore(self, state: dict) -> None:
        """Go on from `state`."""
        self.recent.extend(state["recent"])
        self.best_reward = -math.inf if state["best_reward"] is None else state["best_reward"]
        self.warned = set(state["warned"])

    def _find(self) -> dict[str, str]:
        steps, found = len(self.recent), {}
        if all(m["entropy"] > 0.9 * self.max_entropy for m in self.recent):
            found["noise"] = (
                f"the entropy has been above 90 % of its maximum, {self.max_entropy:.2f}, for {steps} steps: the "
                "policy is close to random; the learning rate or the KL coefficient is probably too high"
            )
        if all(m["truncated"] > 0.9 for m in self.recent):
            found["too long"] = (
                f"more than 90 % of the answers have been cut off for {steps} steps: --max-new-tokens is too small, "
                "or the policy has forgotten how to end"
            )
        if all(m["reward_avg"] is None for m in self.recent):
            found["not judged"] = f"no answer has been judged for {steps} steps: every reward was None"
        elif self.best_reward > 0 and all(m["reward_avg"] is not None and m["reward_avg"] <= 0 for m in self.recent):
            found["no reward"] = (
                f"the reward has been 0 for {steps} steps, after {self.best_reward:.2f} at its best: the policy has "
                "probably been destroyed by too large updates; lower the learning rate"
            )
        elif all(m["zero_signal_groups"] == 1 for m in self.recent):
            alike = "all rollouts are alike; easier problems, a higher temperature or larger groups help"
            reason = SOLVED if (self.recent[-1]["accuracy"] or 0) > 0.5 else alike
            found["no signal"] = f"no group has had a signal for {steps} steps: {reason}"
        return found


def collapsed(warning: str) -> bool:
    """Whether a warning is about a run that will not recover, as opposed to one that has nothing left to learn."""
    return SOLVED not in warning
