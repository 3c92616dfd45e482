"""Convert labelled structures to LMDB folders: ``dens data convert``, ``oc20``, ``md17``."""
