"""What papers say of themselves, as data: today their result tables, later how they split, prompt and measure."""
