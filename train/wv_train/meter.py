"""What happened since the last row of metrics: sums over steps, and how long they took with and without their data."""

import time

from wv_train.totals import Totals


class Meter:
    """Goes while batches are asked for and learned from; what lies between (validation, saving) is not its time."""

    def __init__(self) -> None:
        self.totals = Totals()
        self._busy_s = self._waited_before = 0.0
        self._since = time.perf_counter()

    def opened(self, waited_s: float) -> None:
        """Go on with another loader, which has been waited for so long already."""
        self._waited_before = waited_s

    def begin(self, waited_s: float) -> None:
        """Forget all sums; waited_s: for data, since the loader was opened."""
        self.totals, self._busy_s, self._waited_before = Totals(), 0.0, waited_s

    def go(self) -> None:
        """From now on it is a step's time."""
        self._since = time.perf_counter()

    def add(self, totals: Totals) -> None:
        """Take in a step that ends now."""
        self.totals.add(totals)
        self._busy_s += time.perf_counter() - self._since

    def speed(self, waited_s: float) -> dict[str, float]:
        """Images a second with and without the wait, those of them that taught, and the wait in seconds; waited_s as
        in `begin`."""
        waited = waited_s - self._waited_before
        worked = self._busy_s - waited
        return {
            "images_per_s": self.totals.samples / self._busy_s if self._busy_s > 0 else 0.0,
            "images_per_s_without_wait": self.totals.samples / worked if worked > 0 else 0.0,
            "kept_images_per_s": self.totals.kept / self._busy_s if self._busy_s > 0 else 0.0,
            "wait_s": waited,
        }
