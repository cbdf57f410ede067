"""Images, plots, tables and the self-contained HTML page."""
