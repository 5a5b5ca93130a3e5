"""A figure that is drawn again and again in one place of a notebook, while what it shows goes on."""

from IPython.display import display


class Redrawn:
    """What has a `figure()` and shows it anew at each `draw()`."""

    _shown = None

    def draw(self) -> None:
        """Show the figure as it is now, in the place where it was shown before."""
        if self._shown is None:
            self._shown = display(self.figure(), display_id=True)
        else:
            self._shown.update(self.figure())
