"""One rendering path for training, evaluation and serving, and the reader of its answers."""
