"""What a person reads of a run: tables, pictures of clouds, coloured clouds."""
