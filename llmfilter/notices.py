"""What is said once about a whole run, however many rows it holds for."""


class Notices:
    """Notices of a run: whoever finds something adds it, and the run says it.

    Each topic has one notice, the first.
    """

    def __init__(self) -> None:
        self._topics: set[str] = set()
        self._untold: list[str] = []

    def add(self, topic: str, message: str) -> None:
        """Have a message said, if nothing was added on this topic yet."""
        if topic not in self._topics:
            self._topics.add(topic)
            self._untold.append(message)

    def take(self) -> list[str]:
        """Return the messages that were added since the last call."""
        untold, self._untold = self._untold, []
        return untold
