"""``dens check``: look for what would end or spoil a run, before it starts."""
