"""Data sets in files, wherever they lie: read in bounded memory, as arrays or minibatch by minibatch."""
