"""Reports of studies, written into Markdown files: tables and figures."""
