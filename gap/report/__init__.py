"""Pictures, plots, tables and the self-contained HTML page: draws what it is handed, knows nobody."""
