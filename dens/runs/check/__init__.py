"""Parts of ``dens check`` that need no training framework."""
