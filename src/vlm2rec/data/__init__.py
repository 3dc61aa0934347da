"""Data sets: preparing, reading, splitting, and the candidates everybody is ranked against. Imports no torch."""
