"""The launcher from a checkout: ``python main.py --config FILE`` is ``fairchem --config FILE``."""

from __future__ import annotations

from dens.cli import main

if __name__ == "__main__":  # ranks that are spawned import this file again
    main()
