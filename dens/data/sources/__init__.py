"""Read labelled structures from files: ASE's formats, MD17, OC20's download."""
