"""Long runs with real processes: faults by chance, sessions and associations by the thousand, and what is left then."""
