"""For how long nothing has been answered, while nothing was under way: a request that takes long is no silence."""

IDLE_MOST_S = 120.0  # a longer time without a request is one in which nobody wanted anything


class Silence:
    """Time without an answer and without a request under way."""

    def __init__(self) -> None:
        self._passed_s = 0.0
        self._since: float | None = None  # when the last request under way had ended

    def so_far_s(self, now: float) -> float:
        """Return how long it has been."""
        return 0.0 if self._since is None else self._passed_s + min(now - self._since, IDLE_MOST_S)

    def pause(self, now: float) -> None:
        """Note that a request is under way."""
        if self._since is not None:
            self._passed_s = self.so_far_s(now)
            self._since = None

    def go_on(self, now: float) -> None:
        """Note that none is under way any more."""
        self._since = now

    def end(self) -> None:
        """Note an answer."""
        self._passed_s, self._since = 0.0, None
