"""Which rows of a state pool mean what."""

# Row 0 holds the initial state. It is read by every session's first step and never written.
INITIAL_ROW = 0
