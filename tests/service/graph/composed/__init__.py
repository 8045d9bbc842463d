"""Models that nobody wrote: graphs composed at random."""
