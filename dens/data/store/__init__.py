"""Read and write LMDB folders of records in OC20's form."""
