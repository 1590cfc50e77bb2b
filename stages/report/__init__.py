"""Write what a sweep found: Markdown, HTML, Parquet."""
