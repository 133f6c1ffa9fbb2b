"""The simulated store's dead letters: one a fingerprint, claimed before they are tried again."""

from collections.abc import Sequence

from ports.dead_letters import Claimed, DeadLetter, Settlement


class Kept:
    """A letter as it stands; ``due`` is when it is tried, or by when whoever has it must have told its end."""

    def __init__(self, number: int, letter: DeadLetter, now: float) -> None:
        self.id = f"dl_{number}"
        self.letter = letter
        self.status = ""
        self.attempts = max(letter.attempts, 1)
        self.claim: str | None = None
        self.lapses = 0
        self.due: float | None = None
        self.asked_for = False
        self.wait(letter, now)

    def wait(self, letter: DeadLetter, now: float) -> None:
        """Let it wait for its next try, or for an operator."""
        self.due = None if letter.retry_seconds is None else now + letter.retry_seconds
        self.status = "UNRESOLVED" if self.due is None else "WAITING"


class Letters:
    """All of them."""

    def __init__(self) -> None:
        self.by_fingerprint: dict[str, Kept] = {}

    def park(self, letter: DeadLetter, now: float) -> None:
        """Keep a failed message; what is decided of one that is kept stays."""
        kept = self.by_fingerprint.get(letter.fingerprint)
        if kept is None:
            self.by_fingerprint[letter.fingerprint] = Kept(len(self.by_fingerprint), letter, now)
            return
        kept.letter = letter
        kept.attempts += letter.attempts
        if kept.status == "WAITING" and not kept.asked_for:
            kept.wait(letter, now)

    def is_due(self, now: float) -> bool:
        """Tell whether any is to be tried."""
        return bool(self._due(now))

    def claim_due(self, claim: str, now: float, seconds: float) -> list[Claimed]:
        """Take in hand what is due: what lapsed goes last and alone."""
        due = sorted(self._due(now), key=lambda kept: (kept.status == "RETRYING", kept.due or 0.0, kept.id))
        fresh = [kept for kept in due if kept.status == "WAITING"]
        taken = fresh or due[:1]
        for kept in taken:
            kept.lapses += kept.status == "RETRYING"
            kept.status, kept.claim, kept.due = "RETRYING", claim, now + seconds
            kept.attempts += 1
        return [Claimed(kept.id, kept.letter.message, kept.attempts, None, kept.lapses) for kept in taken]

    def settle(self, claim: str, settlements: Sequence[Settlement], now: float) -> int:
        """Record what became of those that are still in hand."""
        held = {kept.id: kept for kept in self._in_hand(claim)}
        ours = [each for each in settlements if each.claimed.id in held]
        for each in ours:
            kept = held[each.claimed.id]
            kept.claim, kept.lapses, kept.due = None, 0, None
            if each.letter is None:
                kept.status = "RESOLVED"
            else:
                kept.letter = each.letter
                kept.wait(each.letter, now)
        return len(ours)

    def give_back(self, claim: str, now: float) -> int:
        """Let others have what is in hand."""
        held = self._in_hand(claim)
        for kept in held:
            kept.status, kept.claim, kept.due = "WAITING", None, now
            kept.attempts -= 1
        return len(held)

    def retry_unresolved(self, now: float) -> int:
        """Have everything tried again that waits for an operator; return how many that are."""
        waiting = [kept for kept in self.by_fingerprint.values() if kept.status == "UNRESOLVED"]
        for kept in waiting:
            kept.status, kept.due, kept.asked_for = "WAITING", now, True
        return len(waiting)

    def _due(self, now: float) -> list[Kept]:
        waiting = [kept for kept in self.by_fingerprint.values() if kept.status in ("WAITING", "RETRYING")]
        return [kept for kept in waiting if kept.due is not None and kept.due <= now]

    def _in_hand(self, claim: str) -> list[Kept]:
        return [kept for kept in self.by_fingerprint.values() if kept.status == "RETRYING" and kept.claim == claim]
