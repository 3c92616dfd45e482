"""``dens check``: findings, and checks of schedule, memory and corruption for any host."""
