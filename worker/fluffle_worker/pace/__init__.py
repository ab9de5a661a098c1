"""How long a worker's rounds are and how large its minibatches, by what its machine can do."""
