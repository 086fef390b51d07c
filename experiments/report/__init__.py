"""Parts of the reports: finished runs, tables, figures."""
