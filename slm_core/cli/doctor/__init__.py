"""``slm doctor``: is all that the service needs there, and how is each thing mended."""
