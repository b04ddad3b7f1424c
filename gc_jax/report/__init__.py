"""What people look at: progress, charts, tables, pages, comparisons."""
