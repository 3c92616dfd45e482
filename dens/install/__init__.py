"""List and copy recipes, and describe an installation for bug reports."""
