"""When the programs that run on look for garbage: not while they start, and never in what they started with."""

import gc


def pause() -> None:
    """Look for no garbage until `settle`: imports leave none, and looking for it takes an eighth of their time."""
    gc.disable()


def settle() -> None:
    """Look for garbage from now on, but not among the objects of the start, which stay for good.

    Looking through them again and again would cost a tenth of the hot path, in pauses that are longer than a decision.
    """
    gc.enable()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
