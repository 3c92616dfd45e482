"""Read or make labelled structures: ASE's formats, MD17, OC20's download, EMT on slabs."""
