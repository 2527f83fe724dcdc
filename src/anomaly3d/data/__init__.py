"""Data sets as they lie on disk: readers, indexes, and one Lightning data module per layout."""
